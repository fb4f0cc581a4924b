"""``fedge`` and ``fedge-server`` against a real aggregator, as a person at a terminal uses them."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from schemas.config import ServerConfig
from schemas.status import DeviceList, Role, RunList, RunPhase, RunStatus, ServerStatus
from server_app.cli import main, server
from server_app.client import Client
from server_app.service import Service, init_state

PLAN = 'task = "fedge.tasks.wisdm:task"\nrounds = 2\n[cohort]\ndevices = 2\n'
SERVER = [sys.executable, "-m", "server_app"]
ROOT = Path(__file__).parents[2]


class Terminal:
    """Runs ``fedge`` with the operator's token, beside the aggregator's event loop."""

    def __init__(self, url: str, tokens: dict[Role, str]) -> None:
        self.url, self.tokens = url, tokens

    async def fedge(self, *arguments: str, role: Role = Role.OPERATOR) -> Result:
        environment = {"FEDGE_SERVER": self.url, "FEDGE_TOKEN": self.tokens[role]}
        return await asyncio.to_thread(CliRunner(env=environment).invoke, main, list(arguments))

    async def answer(self, *arguments: str) -> str:
        ended = await self.fedge(*arguments)
        assert ended.exit_code == 0, ended.output
        return ended.stdout


@pytest.fixture
async def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Terminal]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    config = ServerConfig(port=0, state_dir=str(tmp_path / "state"))
    tokens = await init_state(config)
    async with Service(config) as service:
        yield Terminal(service.url, tokens)


async def test_a_run_is_started_looked_at_stopped_and_exported(terminal: Terminal, tmp_path: Path) -> None:
    plan, model = tmp_path / "plan.toml", tmp_path / "model.safetensors"
    plan.write_text(PLAN)
    assert "wisdm-1 is queued" in await terminal.answer("run", "start", str(plan))
    async with Client(terminal.url, terminal.tokens[Role.OPERATOR]) as client:
        async for status in client.watch("wisdm-1"):
            if status.waiting_for.startswith("0 of 2 devices"):
                break
    shown = await terminal.answer("run", "show", "wisdm-1")
    assert "0 of 2" in shown and "waiting for" in shown
    assert RunStatus.model_validate_json(await terminal.answer("run", "show", "wisdm-1", "--json")).size > 10_000
    assert json.loads(await terminal.answer("run", "show", "wisdm-1", "--rounds", "--json"))["rounds"] == []
    exported = await terminal.fedge("run", "export", "wisdm-1", str(model))
    assert exported.exit_code == 0 and f"{model.stat().st_size:,} bytes" in exported.stdout
    assert "untrained initial model" in exported.stderr
    nowhere = await terminal.fedge("run", "export", "wisdm-1", str(tmp_path / "none" / "m.safetensors"))
    assert nowhere.exit_code == 1 and "No such file or directory" in nowhere.stderr
    assert sum(tensor.size for tensor in load_file(model).values()) > 10_000
    assert "wisdm-1 is stopp" in await terminal.answer("run", "stop", "wisdm-1")
    watched = await terminal.fedge("run", "watch", "wisdm-1")
    assert watched.exit_code == 7 and "stopped by an operator" in watched.stderr
    runs = RunList.model_validate_json(await terminal.answer("run", "list", "--json")).runs
    assert [(run.run, run.phase) for run in runs] == [("wisdm-1", RunPhase.STOPPED)]
    assert "stopped" in await terminal.answer("run", "list")


async def test_status_and_devices_are_tables_or_json(terminal: Terminal) -> None:
    assert "0 online of 0" in await terminal.answer("status")
    assert ServerStatus.model_validate_json(await terminal.answer("status", "--json")).runs == 0
    assert "last seen" in await terminal.answer("devices")
    assert DeviceList.model_validate_json(await terminal.answer("devices", "--json")).devices == ()


async def test_a_viewers_token_looks_and_does_not_steer(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    made = json.loads(await terminal.answer("token", "create", "--role", "viewer", "--note", "the wall", "--json"))
    assert made["role"] == "viewer"
    terminal.tokens[Role.VIEWER] = made["token"]
    assert (await terminal.fedge("run", "list", role=Role.VIEWER)).exit_code == 0
    refused = await terminal.fedge("run", "start", str(tmp_path / "plan.toml"), role=Role.VIEWER)
    assert refused.exit_code == 5 and "operator token, got one for viewer" in refused.stderr
    assert "--token" in refused.stderr


async def test_what_is_not_there_and_what_cannot_be_have_their_own_exit_codes(
    terminal: Terminal, tmp_path: Path
) -> None:
    missing = await terminal.fedge("run", "show", "wisdm-9")
    assert missing.exit_code == 6 and "fedge run list" in missing.stderr
    assert (await terminal.fedge("status", "--token", "x" * 43)).exit_code == 5
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.replace("wisdm:", "wisdn:"))
    unknown = await terminal.fedge("run", "start", str(plan))
    assert unknown.exit_code == 3 and "did you mean 'fedge.tasks.wisdm:task'?" in unknown.stderr
    plan.write_text(PLAN + "updates = {min = 3, max = 2}\n")
    impossible = await terminal.fedge("run", "start", str(plan))
    assert impossible.exit_code == 3 and "cohort" in impossible.stderr


async def test_a_plan_that_only_the_aggregator_can_refuse_names_its_key(terminal: Terminal) -> None:
    async with Client(terminal.url, terminal.tokens[Role.OPERATOR]) as client:
        with pytest.raises(Exception, match=r"ronds: unknown key; did you mean 'rounds'") as caught:
            await client._request("POST", "/v1/runs", {"task": "fedge.tasks.wisdm:task", "ronds": 3, "rounds": 3})
    assert type(caught.value).__name__ == "Invalid"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fedge_server(folder: Path, *arguments: str) -> Result:
    return CliRunner(env=at_home(folder)).invoke(server, list(arguments))


def fedge(folder: Path, *arguments: str) -> Result:
    return CliRunner(env=at_home(folder)).invoke(main, list(arguments))


def at_home(folder: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CONFIG_HOME": str(folder / "config"), "PYTHONPATH": str(ROOT)}


def test_after_init_and_serve_a_person_on_this_machine_needs_no_option(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = fedge_server(folder, "init", "--port", str(port), "--state-dir", "state")
    assert done.exit_code == 0 and "The tokens are not shown again" in done.stdout, done.stderr
    assert (folder / "config" / "fedge" / "client.toml").stat().st_mode & 0o777 == 0o600
    assert "Is 'fedge-server serve' running" in fedge(folder, "status").stderr
    serving = subprocess.Popen([*SERVER, "serve"], cwd=folder, env=at_home(folder), stderr=-1, text=True)
    try:
        assert serving.stderr is not None
        assert any("aggregator listens" in line for line in serving.stderr)
        assert "0 online of 0" in fedge(folder, "status").stdout
        second = fedge_server(folder, "serve")
        assert second.exit_code == 1 and second.stderr.splitlines()[-1].startswith("Error: could not serve state on")
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(20) == 0
    finally:
        serving.kill()
        serving.communicate()


def test_init_keeps_what_is_there_and_makes_new_tokens(folder: Path) -> None:
    first = json.loads(fedge_server(folder, "init", "--json").stdout)
    written = (folder / "server.toml").read_text()
    again = fedge_server(folder, "init")
    assert "is there already and was left alone" in again.stdout and "goes on using the server" in again.stdout
    assert first["operator"] not in again.stdout
    assert (folder / "server.toml").read_text() == written
    assert fedge_server(folder, "init", "--port", "9").exit_code == 2
    assert first["operator"] in (folder / "config" / "fedge" / "client.toml").read_text()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("192.168.7.7", "http://192.168.7.7:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("fd00::7", "http://[fd00::7]:8080"),
    ],
)
def test_init_tells_fedge_where_the_aggregator_listens(folder: Path, host: str, url: str) -> None:
    assert fedge_server(folder, "init", "--host", host).exit_code == 0
    assert f'"{url}"' in (folder / "config" / "fedge" / "client.toml").read_text()


def test_serve_makes_no_empty_state_of_its_own(folder: Path) -> None:
    (folder / "server.toml").write_text('state_dir = "mistyped"\n')
    ended = fedge_server(folder, "serve")
    assert ended.exit_code == 3 and f"no state in {folder / 'mistyped'}; run 'fedge-server init' first" in ended.stderr
    assert not (folder / "mistyped").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "run 'fedge-server init'"), ("prt = 1\n", "prt: unknown key; did you mean 'port'?"), ("port = [", "TOML")],
)
def test_a_configuration_that_is_none_is_refused_by_name(folder: Path, text: str | None, message: str) -> None:
    if text is not None:
        (folder / "server.toml").write_text(text)
    ended = fedge_server(folder, "serve")
    assert ended.exit_code == 3 and message in ended.stderr
