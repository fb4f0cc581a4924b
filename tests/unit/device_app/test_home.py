"""The home folder: configuration, credential, lock."""

import stat
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_app.errors import HomeError
from device_app.home import Home, default_home, to_toml
from schemas.base import parse_toml
from schemas.config import DeviceConfig, TaskConfig
from schemas.specs import Limits, LinkLimit

CONFIG = DeviceConfig(
    server="https://hub.example:8443/fl",
    name="pi-1",
    tasks=(
        TaskConfig(task="a.b:task", data={"path": 'C:\\da "ta"\n', "user": 7, "odd key": (1.5, True)}),
        TaskConfig(task="c:task"),
    ),
    limits=Limits(uplink=LinkLimit(bits=0.5), downlink=LinkLimit(bytes_per_second=1e3, deadline_seconds=20.0)),
    threads=2,
)


def test_a_configuration_comes_back_as_it_was_written(tmp_path):
    home = Home(tmp_path / "new" / "home")
    home.write_config(CONFIG)
    assert home.config() == CONFIG


@given(st.dictionaries(st.text(), st.text() | st.booleans() | st.integers(-(2**63), 2**63 - 1), max_size=3))
def test_any_data_option_survives_toml(data):
    config = CONFIG.model_copy(update={"tasks": (TaskConfig(task="a.b:task", data=data),)})
    assert tomllib.loads(to_toml(config))["tasks"][0].get("data", {}) == data
    assert parse_toml(DeviceConfig, to_toml(config), "device.toml") == config


def test_keys_at_their_default_are_not_written():
    config = DeviceConfig(server="http://hub", name="pi-1", tasks=(TaskConfig(task="c:task"),))
    assert to_toml(config) == 'server = "http://hub"\nname = "pi-1"\n\n[[tasks]]\ntask = "c:task"\n'


def test_the_credential_is_drawn_once_and_for_its_owner_alone(tmp_path):
    home = Home(tmp_path / "home")
    credential = home.make_credential()
    assert home.make_credential() == home.credential() == credential
    assert stat.S_IMODE(home.credential_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    assert Home(tmp_path / "other").make_credential() != credential


def test_a_home_that_is_not_enrolled_says_what_to_do(tmp_path):
    with pytest.raises(HomeError, match="run 'fedge-device enroll' first"):
        Home(tmp_path).config()
    with pytest.raises(HomeError, match="credential"):
        Home(tmp_path).credential()


def test_a_misspelt_key_is_named_with_the_nearest_one(tmp_path):
    home = Home(tmp_path)
    home.config_path.write_text('server = "http://hub"\nname = "pi-1"\nthread = 2\n[[tasks]]\ntask = "c:task"\n')
    with pytest.raises(HomeError, match="did you mean 'threads'"):
        home.config()


def test_a_home_in_use_keeps_others_out_until_it_is_left(tmp_path):
    home = Home(tmp_path)
    assert not home.is_running
    with home.locked():
        assert home.is_running
        with pytest.raises(HomeError, match="another agent"), home.locked():
            pass
    assert not home.is_running
    with home.locked():
        pass


def test_the_home_comes_from_the_environment_or_lies_in_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDGE_DEVICE_HOME", str(tmp_path / "here"))
    assert default_home() == tmp_path / "here"
    monkeypatch.delenv("FEDGE_DEVICE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_home() == tmp_path / ".fedge-device"
