"""``fedge run report`` of runs over real HTTP: every number in the folder is one that the aggregator states."""

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load

from device_app.trainer import Trainer
from fedge.layout import Vector
from schemas.plan import plan_from_toml
from schemas.status import Role, RoundStatus, RunPhase, RunStatus, total_split
from server_app import report
from server_app.cli import main
from server_app.client import Client
from server_app.run_report import ask
from server_app.service import Service
from tests.support.http import ReadyWorker, Serving, cohort, invited, serving, take_part, until
from tests.support.split_federation import federating
from tests.support.split_federation import plan as split_plan

WAYS = ("up", "down")
LATE = {
    "rounds": 3,
    "cohort": cohort(3, least=2, most=2),
    "algorithm": {"name": "feddyn", "alpha": 0.1},
    "aggregation": {"max_staleness": 2},
}


@dataclass(frozen=True)
class Pleased(ReadyWorker):
    """Finds every model more accurate than the one before."""

    losses: list[float] = field(default_factory=list)

    async def evaluate(self, task: str, params: Vector, split: bool = False) -> dict[str, float]:
        self.losses.append(0.5 ** (len(self.losses) + 1))
        return {"accuracy": 1 - self.losses[-1], "loss": self.losses[-1]}


class Terminal:
    """Runs ``fedge run report`` beside the aggregator's event loop, into a folder of its own each time."""

    def __init__(self, service: Service, token: str, folder: Path) -> None:
        self.service, self.token, self.folder = service, token, folder

    async def fedge(self, *arguments: str) -> Result:
        home = {"XDG_CONFIG_HOME": str(self.folder / "config")}
        environment = {"FEDGE_SERVER": self.service.url, "FEDGE_TOKEN": self.token, **home}
        return await asyncio.to_thread(CliRunner(env=environment).invoke, main, list(arguments))

    async def report(self, run: str, name: str) -> tuple[dict[str, Any], Result]:
        out = self.folder / name
        ended = await self.fedge("run", "report", run, "--out", str(out), "--json")
        assert ended.exit_code == 0, ended.output
        summary = json.loads(ended.stdout)
        assert summary == json.loads((out / "summary.json").read_text()) and summary["report_dir"] == str(out)
        return summary, ended

    async def told(self, run: str) -> tuple[RunStatus, list[RoundStatus]]:
        """Return what the aggregator says of a run, once nothing of it moves."""
        await until(lambda: self.service.context.federation.driver is None)
        async with Client(self.service.url, self.token) as client:
            return await client.run(run), list((await client.rounds(run)).rounds)


def terminal(server: Serving, folder: Path) -> Terminal:
    return Terminal(server.service, server.tokens[Role.OPERATOR], folder)


def rounds_in(folder: Path) -> list[RoundStatus]:
    return [RoundStatus.model_validate_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def status_in(folder: Path) -> RunStatus:
    return RunStatus.model_validate_json((folder / "status.json").read_text())


def page_in(folder: Path) -> str:
    return (folder / "report.html").read_text()


def assert_agrees(summary: dict[str, Any], status: RunStatus, rounds: list[RoundStatus]) -> None:
    """Every number of ``summary`` is one of ``status``, and a sum over ``rounds`` where it is one."""
    for way in WAYS:
        sent, frames, bare = (getattr(t, way) for t in (status.traffic, status.frame_bytes, status.float32_bytes))
        keys = (f"bytes_{way}", f"bytes_{way}_frames", f"bytes_{way}_float32")
        assert tuple(summary[key] for key in keys) == (sent, frames, bare)
        assert sum(getattr(r.frame_bytes, way) for r in rounds) == frames
        assert sum(getattr(r.float32_bytes, way) for r in rounds) == bare
        assert sum(getattr(r.traffic, way) for r in rounds) <= sent
    for key in ("run", "task", "phase", "reason", "metrics", "initial_metrics", "per_bit_accuracy", "devices"):
        assert summary[key] == getattr(status, key), key
    assert (summary["rounds"], summary["rounds_abandoned"]) == (status.rounds_closed, status.rounds_abandoned)
    assert summary["late_updates"] == sum(len(r.late) for r in rounds)
    assert summary["split"] == (None if status.split is None else status.split.model_dump(mode="json"))
    assert total_split([r.split for r in rounds]) == status.split
    assert (summary["downlink"], summary["seed"]) == (status.plan.downlink.mode, status.plan.seed)
    assert summary["notes"] is None


async def test_a_run_that_is_over_is_reported_with_the_numbers_of_its_status_and_its_model(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", Pleased().running) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=3)
        await take_part(devices, 3)
        await server.until_over(run)
        prompt = terminal(server, tmp_path)
        status, rounds = await prompt.told(run)
        summary, _ = await prompt.report(run, "report")
        exported = await prompt.fedge("run", "export", run, str(tmp_path / "model.safetensors"))
        shown = await prompt.fedge("run", "report", run, "--out", str(tmp_path / "shown"))
    folder = tmp_path / "report"
    assert_agrees(summary, status, rounds)
    assert (summary["phase"], summary["rounds"], summary["as_of"]) == ("finished", 3, None)
    assert summary["per_bit_accuracy"] > 0 and summary["test_accuracy"] == status.metrics["accuracy"]
    assert summary["downlink"] == "rand-mcm" and summary["perturbation"] == rounds[-1].perturbation
    assert sum(summary["bytes_down_by_device"].values()) == status.frame_bytes.down
    assert summary["seconds"] == pytest.approx(status.ended_at - rounds[0].opened_at, abs=1e-3)
    assert (status_in(folder), rounds_in(folder)) == (status, rounds)
    assert plan_from_toml((folder / "plan.toml").read_text()) == status.plan
    assert exported.exit_code == 0
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    page = page_in(folder)
    assert "not over" not in page and "What was done to the devices" not in page
    assert f"{status.traffic.up:,} bytes" in page and f"{status.traffic.up:,} bytes" in shown.stdout
    assert f"report: {tmp_path / 'shown' / 'report.html'}" in shown.stdout


async def test_a_run_that_goes_on_is_reported_as_it_stands_late_updates_included(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "state", Pleased().running) as server,
        server.devices("a", "b", "slow") as (a, b, slow),
    ):
        run = await server.start(**LATE)
        asked = await invited([a, b, slow])
        for device, one in zip((a, b, slow), asked, strict=True):
            await device.download(one)
        for device, one in zip((a, b), asked, strict=False):
            await device.upload(one)
        second = await invited([a, b], asked[:2])
        await slow.upload(asked[2])
        await a.upload(second[0])
        prompt = terminal(server, tmp_path)
        going, _ = await prompt.report(run, "going")
        told = status_in(tmp_path / "going")
        rounds = rounds_in(tmp_path / "going")
        await b.upload(second[1])
        await take_part([a, b], 1, second)
        await server.until_over(run)
        status, all_rounds = await prompt.told(run)
        over, _ = await prompt.report(run, "over")
    assert_agrees(going, told, rounds)
    assert (going["phase"], going["rounds"], going["late_updates"]) == ("running", 1, 1)
    assert [r.phase for r in rounds] == ["closed", "collecting"] and rounds[1] == told.round
    for way in WAYS:
        assert sum(getattr(r.traffic, way) for r in rounds) == going[f"bytes_{way}"]
    page = page_in(tmp_path / "going")
    assert "This run is not over: everything below is as of" in page and "late updates that counted" in page
    assert load((tmp_path / "going" / "model.safetensors").read_bytes()).keys() >= {"first.weight"}
    assert_agrees(over, status, all_rounds)
    assert (over["phase"], over["rounds"], over["late_updates"]) == ("finished", 3, 1)
    assert plan_from_toml((tmp_path / "over" / "plan.toml").read_text()).algorithm.name == "feddyn"


async def test_whenever_it_is_asked_for_a_report_adds_up(tmp_path: Path) -> None:
    async with serving(tmp_path / "state", Pleased().running) as server, server.devices("a", "b") as devices:
        run, seen = await server.start(rounds=8), 0
        work = asyncio.create_task(take_part(devices, 8))
        async with Client(server.url, server.tokens[Role.OPERATOR]) as client:
            while (result := (await ask(client, run, lambda: 1e9))[0]).as_of is not None:
                assert result.status is not None
                summary, rounds = report.summary(result, None), list(result.rounds)
                assert_agrees(summary, result.status, rounds)
                for way in WAYS if result.status.round is not None else ():
                    assert sum(getattr(r.traffic, way) for r in rounds) == summary[f"bytes_{way}"]
                tested = [r.metrics for r in rounds if r.metrics]
                assert (tested[-1] if tested else {}) == summary["metrics"]
                seen += len(rounds) > 1
        await work
    assert seen > 3


async def test_a_split_run_is_reported_with_what_its_steps_cost(tmp_path: Path) -> None:
    async with Trainer() as trainer, federating(tmp_path, trainer) as federation:
        for k in range(2):
            await federation.add(f"pi-{k}", k)
        ended = await asyncio.wait_for(federation.run(split_plan(2, rounds=2)), 90)
        prompt = Terminal(federation.service, federation.tokens[Role.OPERATOR], tmp_path)
        status, rounds = await prompt.told(ended.run)
        summary, _ = await prompt.report(ended.run, "report")
    assert status.phase is RunPhase.FINISHED and status.split is not None
    assert_agrees(summary, status, rounds)
    assert summary["split"]["batches"] == sum(r.split.batches for r in rounds if r.split) > 0
    page = page_in(tmp_path / "report")
    assert "front halves served" in page and "front half down to one device" in page
    assert status.split.bytes.up <= summary["bytes_up_frames"] < summary["bytes_up"]


async def test_a_run_whose_turn_has_not_come_is_reported_without_a_model(tmp_path: Path) -> None:
    async with serving(tmp_path / "state") as server:
        first, queued = await server.start(), await server.start()
        federation, prompt = server.service.context.federation, terminal(server, tmp_path)
        await until(lambda: federation.driver is not None and "of 2" in federation.driver.waiting_for)
        begun, said = await prompt.report(first, "first")
        summary, _ = await prompt.report(queued, "queued")
    assert "untrained initial model" in said.stderr and (tmp_path / "first" / "model.safetensors").exists()
    assert begun["phase"] == "running" and "waiting for 0 of 2 devices online" in page_in(tmp_path / "first")
    assert (summary["phase"], summary["rounds"], summary["seconds"]) == ("queued", 0, None)
    assert not (tmp_path / "queued" / "model.safetensors").exists()
    assert f"waiting for {first} to end" in page_in(tmp_path / "queued")


async def test_a_folder_in_use_an_unknown_run_and_a_stranger_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    async with serving(tmp_path / "state") as server:
        run, prompt = await server.start(), terminal(server, tmp_path)
        used = await prompt.fedge("run", "report", run, "--out", "used")
        unknown = await prompt.fedge("run", "report", "tiny-9", "--out", "none")
        stranger = await prompt.fedge("run", "report", run, "--token", "x" * 43)
        empty = await prompt.fedge("run", "report", run, "--out", "empty")
        by_default = await prompt.fedge("run", "report", run)
    assert used.exit_code == 2 and "expected a new or empty folder, used holds notes.txt" in used.stderr
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes.txt"]
    assert unknown.exit_code == 6 and "fedge run list" in unknown.stderr and not (tmp_path / "none").exists()
    assert stranger.exit_code == 5
    assert empty.exit_code == 0 and (tmp_path / "empty" / "report.html").exists()
    assert by_default.exit_code == 0, by_default.output
    assert [path.name.rsplit("-", 2)[0] for path in (tmp_path / "reports").iterdir()] == [run]
