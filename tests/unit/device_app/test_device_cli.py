"""The commands as a person types them, and their exit codes."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from device_app import service
from device_app.cli import main
from device_app.enrolment import changes
from device_app.home import Home
from device_app.service import unit_text
from device_app.spool import Spool
from fedge.codecs import native
from fedge.protocol.participant import Participant, Phase
from schemas.config import DeviceConfig, TaskConfig

NOBODY = "http://127.0.0.1:9"
TOKEN = "t" * 43


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.make_credential()
    tasks = (TaskConfig(task="fedge.tasks.wisdm:task", data={"user": 7}),)
    home.write_config(DeviceConfig(server=NOBODY, name="pi-1", tasks=tasks))
    return home


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def enroll(home, *words):
    return invoke("enroll", "--home", home, "--server", NOBODY, "--token", TOKEN, *words)


def test_importing_the_agent_does_not_import_torch():
    code = "import device_app.cli, sys; sys.exit('torch' in sys.modules or 'sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_enrolment_that_fails_keeps_the_credential_and_says_by_its_exit_code_what_is_wrong(tmp_path):
    root = tmp_path / "home"
    limits = ("--bits", "0.5", "--download-bytes-per-round", "90000")
    wrong = enroll(root, "--data", "user=7", "--data", "place=kitchen")
    assert (wrong.exit_code, "unknown option place; expected the option user" in wrong.output) == (6, True)
    assert "TaskError" not in wrong.output
    credential = Home(root).credential()
    unheard = enroll(root, "--data", "user=7", "--name", "pi-9", *limits)
    assert unheard.exit_code == 5
    assert f"{NOBODY}/v1/enroll: connection refused" in unheard.output
    config = Home(root).config()
    assert (config.name, config.server, config.tasks[0].data) == ("pi-9", NOBODY, {"user": 7})
    assert (config.limits.uplink.bits, config.limits.downlink.bytes_per_round) == (0.5, 90_000)
    assert Home(root).credential() == credential
    assert "not enrolled: run 'fedge-device enroll'" in invoke("status", "--home", root).output
    ran = invoke("run", "--home", root)
    assert (ran.exit_code, "run 'fedge-device enroll'" in ran.output) == (3, True)


def test_a_task_that_comes_with_fedge_may_be_named_in_short(tmp_path):
    assert enroll(tmp_path, "--task", "wisdm", "--data", "user=7").exit_code == 5
    assert Home(tmp_path).config().tasks[0].task == "fedge.tasks.wisdm:task"


def test_status_shows_the_id_that_the_aggregator_gave(home):
    assert json.loads(invoke("status", "--home", home.root, "--json").stdout)["enrolment"].startswith("unknown")
    home.write_device("pi-1-2")
    shown = json.loads(invoke("status", "--home", home.root, "--json").stdout)
    assert (shown["device"], shown["enrolment"]) == ("pi-1-2", "enrolled as pi-1-2")


def test_what_another_enrolment_changes_is_said(home):
    before = home.config()
    tasks = (TaskConfig(task="fedge.tasks.wisdm:task", data={"user": 9}),)
    assert changes(before, before.model_copy(update={"tasks": tasks})) == [
        "data of this home changed from user=7 to user=9"
    ]
    assert changes(before, before) == changes(None, before) == []


def test_a_failed_enrolment_elsewhere_ends_the_old_one_and_at_the_same_aggregator_does_not(home):
    home.write_device("pi-1")
    assert enroll(home.root, "--data", "user=7").exit_code == 5
    assert home.device == "pi-1"
    assert enroll(home.root, "--data", "user=7", "--server", "http://127.0.0.1:7").exit_code == 5
    assert home.device == ""


def test_the_doctor_warns_where_the_codecs_are_slow(tmp_path):
    command = [sys.executable, "-m", "device_app", "doctor", "--home", str(tmp_path)]
    environment = {**os.environ, "FEDGE_NO_NATIVE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "WARN codecs: The codecs run in NumPy" in done.stdout


def test_a_missing_extension_is_told_from_a_broken_one():
    hide = "import sys; sys.modules['fedge.codecs._native'] = None; from fedge.codecs import *; print(native_status())"
    environment = {key: value for key, value in os.environ.items() if key != "FEDGE_NO_NATIVE"}
    done = subprocess.run([sys.executable, "-c", hide], env=environment, capture_output=True, text=True, check=True)
    assert "was not built" in done.stdout and "install a C compiler" in done.stdout
    assert "cannot be imported (bad magic)" in native._why(ImportError("bad magic"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--bits", "9"), "limits.uplink.bits"),
        (("--bytes-per-second", "100"), "deadline_seconds"),
        (("--name", "Not A Name"), "name: expected 1 to 63 lower-case letters"),
        (("--task", "no colon"), "tasks.0.task: expected package.module:object"),
        (("--token", "wrong"), "token: expected a token as fedge-server init"),
        (("--token", "wrong"), "- or _; got 5 characters"),
        (("--server", "127.0.0.1:8080"), "server: expected http://HOST:PORT or https://HOST:PORT, got"),
        (("--server", "http://hub:port"), "server: expected http://HOST:PORT"),
        (("--data", "user"), "expected KEY=VALUE"),
    ],
)
def test_wrong_options_are_named_and_exit_with_2(tmp_path, words, says):
    done = enroll(tmp_path / "home", *words)
    assert done.exit_code == 2
    assert says in done.output and "wrong" not in done.output
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("command", ["run", "status", "install"])
def test_a_home_that_is_not_enrolled_exits_with_3(tmp_path, command):
    done = invoke(command, "--home", tmp_path)
    assert done.exit_code == 3
    assert "run 'fedge-device enroll' first" in done.output


def test_status_shows_what_the_spool_holds(home):
    spool = Spool(home.spool_path)
    spool.open()
    spool.write_state(Participant(phase=Phase.IDLE, run="run-1", last_applied=4, failures=2, retry_at=0.0))
    shown = json.loads(invoke("status", "--home", home.root, "--json").stdout)
    assert (shown["device"], shown["phase"], shown["run"], shown["last_round_settled"]) == ("pi-1", "idle", "run-1", 4)
    assert (shown["is_running"], shown["failures_in_a_row"]) == (False, 2)
    assert shown["retry_at"] == "1970-01-01T00:00:00+00:00"
    table = invoke("status", "--home", home.root).stdout
    assert "update_awaiting_receipt  -" in table


def test_status_of_a_damaged_spool_says_so(home):
    home.spool_path.mkdir()
    (home.spool_path / "state").write_bytes(b"rubbish")
    assert "lost" in json.loads(invoke("status", "--home", home.root, "--json").stdout)["phase"]


def test_the_doctor_names_what_is_wrong_and_what_is_right(home):
    done = invoke("doctor", "--home", home.root, "--json")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.exit_code == 1
    assert not findings["aggregator"]["is_good"]
    assert findings["task fedge.tasks.wisdm:task"]["is_good"]
    assert findings["disk"]["is_good"] and "ms" in findings["disk"]["detail"]


def test_a_service_is_installed_and_leaves_nothing_behind(home, tmp_path, monkeypatch):
    monkeypatch.setattr(service, "_RUNNING", tmp_path / "no systemd")
    unit = tmp_path / "fedge-device.service"
    done = invoke("install", "--home", home.root, "--unit", unit)
    assert done.exit_code == 0, done.output
    assert f'run --home "{home.root}"' in unit.read_text()
    assert "systemctl enable --now fedge-device.service" in done.output
    assert invoke("uninstall", "--unit", unit).exit_code == 0
    assert not unit.exists()
    assert "there is no" in invoke("uninstall", "--unit", unit).output
    assert home.config() and home.credential()


def test_a_unit_cannot_be_installed_for_an_account_that_is_not_there(home, tmp_path):
    done = invoke("install", "--home", home.root, "--user", "no-such-account", "--unit", tmp_path / "unit")
    assert done.exit_code == 3
    assert "no-such-account" in done.output


def test_a_unit_quotes_what_systemd_would_expand(tmp_path):
    text = unit_text(tmp_path / 'a "b" 100%', "pi", "/usr/bin/python")
    assert 'a \\"b\\" 100%%"' in text
