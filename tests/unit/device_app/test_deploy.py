"""The documented configuration is one."""

from pathlib import Path

from schemas.base import parse_toml
from schemas.config import DeviceConfig

DEPLOY = Path(__file__).parents[3] / "deploy" / "device.toml"


def test_the_documented_configuration_is_valid_and_names_every_key():
    text = DEPLOY.read_text("utf-8")
    config = parse_toml(DeviceConfig, text, "device.toml")
    assert config.tasks[0].data == {"user": 7}
    keys = [*DeviceConfig.model_fields, "task", "data", "uplink", "downlink", *type(config.limits.uplink).model_fields]
    assert [key for key in keys if key not in text] == []


def test_the_documented_defaults_are_the_defaults():
    shown = "\n".join(
        line.removeprefix("# ")
        for line in DEPLOY.read_text("utf-8").split("[[tasks]]")[0].splitlines()
        if " = " in line
    )
    config = parse_toml(DeviceConfig, shown + '\n[[tasks]]\ntask = "a:b"\n', "device.toml")
    defaults = {key: field.default for key, field in DeviceConfig.model_fields.items() if not field.is_required()}
    assert {key: getattr(config, key) for key in defaults} == defaults
