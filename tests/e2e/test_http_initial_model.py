"""The initial model is tested once, beside the first round and not before it, and its metrics outlive a restart."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedge.algorithms import ServerState
from fedge.layout import Vector
from schemas.status import RunPhase
from server_app import driver
from server_app.errors import WorkerError
from server_app.rows import RunRow
from tests.support.http import ReadyWorker, Serving, initial_params, invited, serving, take_part, until

INITIAL = {"accuracy": 0.5 + float(initial_params(5).mean())}


@dataclass(frozen=True)
class Examiner(ReadyWorker):
    """A worker that keeps what it tested, and tests while it may; accuracy is 0.5 and the mean of the params."""

    tested: list[Vector] = field(default_factory=list)
    may_test: asyncio.Event = field(default_factory=asyncio.Event)

    async def evaluate(self, task: str, params: Vector, split: bool = False) -> dict[str, float]:
        """Wait, then answer."""
        self.tested.append(params)
        await self.may_test.wait()
        return {"accuracy": 0.5 + float(params.mean())}

    @property
    def initial_tests(self) -> int:
        """How often the initial model was tested."""
        return sum((params == initial_params(5)).all() for params in self.tested)


def at_work() -> Examiner:
    """Return one that may test."""
    worker = Examiner()
    worker.may_test.set()
    return worker


def present(server: Serving) -> RunRow:
    """Return the row of the run under way, which has begun."""
    found = server.service.context.federation.driver
    assert found is not None
    return found.run


async def test_rounds_close_while_the_initial_model_is_still_being_tested(tmp_path: Path) -> None:
    worker = Examiner()
    async with serving(tmp_path, worker.running) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=3)
        asked = await invited(devices, await take_part(devices, 2))
        shown = await server.run(run)
        assert (shown.rounds_closed, shown.initial_metrics, worker.initial_tests) == (2, {}, 1)
        worker.may_test.set()
        for device, one in zip(devices, asked, strict=True):
            await device.upload(one)
        status = await server.until_over(run)
    assert (status.phase, status.initial_metrics, worker.initial_tests) == (RunPhase.FINISHED, INITIAL, 1)


async def test_what_a_megabit_bought_is_told_of_the_round_tested_last_and_kept(tmp_path: Path) -> None:
    async with serving(tmp_path, at_work().running) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=3, evaluate_every=2)
        asked = await take_part(devices, 1)
        await until(lambda: present(server).initial_metrics is not None)
        assert (await server.run(run)).per_bit_accuracy is None
        asked = await invited(devices, await take_part(devices, 1, asked))
        await until(lambda: bool(present(server).metrics))
        await devices[0].upload(asked[0])
        _, told = await server.ask("GET", f"/v1/runs/{run}")
        _, rounds = await server.ask("GET", f"/v1/runs/{run}/rounds")
    up = [r["traffic"]["up"] for r in rounds["rounds"]]
    assert up[2] > 1000 and [bool(r["metrics"]) for r in rounds["rounds"]] == [False, True, False]
    gained = 100 * (told["metrics"]["accuracy"] - INITIAL["accuracy"])
    assert told["per_bit_accuracy"] == pytest.approx(gained / (8 * (up[0] + up[1]) / 1e6)) != 0
    async with serving(tmp_path) as server:
        assert (await server.run(run)).per_bit_accuracy == told["per_bit_accuracy"]


async def test_a_restarted_aggregator_knows_the_initial_metrics_and_does_not_ask_again(tmp_path: Path) -> None:
    async with serving(tmp_path, at_work().running) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=2)
        await invited(devices, await take_part(devices, 1))
        await until(lambda: present(server).initial_metrics is not None)
    worker = at_work()
    async with serving(tmp_path, worker.running) as server, server.devices("a", "b") as devices:
        assert (await server.run(run)).initial_metrics == INITIAL
        await take_part(devices, 1)
        status = await server.until_over(run)
        assert (await server.ask("GET", "/v1/runs"))[1]["runs"][0]["initial_metrics"] == INITIAL
    assert (status.phase, status.initial_metrics, worker.initial_tests) == (RunPhase.FINISHED, INITIAL, 0)


async def test_an_aggregator_that_ended_before_the_test_did_asks_again_and_for_the_last_round_too(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, Examiner().running) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=1)
        await take_part(devices, 1)
        await until(lambda: present(server).progress.has_all_rounds)
    worker = at_work()
    async with serving(tmp_path, worker.running) as server:
        status = await server.until_over(run)
    assert (status.phase, status.initial_metrics, worker.initial_tests) == (RunPhase.FINISHED, INITIAL, 1)
    assert status.metrics.keys() == {"accuracy"} and status.metrics != INITIAL


async def test_initial_metrics_that_come_as_a_round_is_written_down_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, loop, real = Examiner(), asyncio.get_running_loop(), driver.save_state
    async with serving(tmp_path, worker.running) as server, server.devices("a", "b") as devices:

        async def measured() -> None:
            worker.may_test.set()
            await until(lambda: present(server).initial_metrics is not None)

        def save_late(path: Path, state: ServerState) -> None:
            if path.name == "round-1.state":
                asyncio.run_coroutine_threadsafe(measured(), loop).result()
            real(path, state)

        monkeypatch.setattr(driver, "save_state", save_late)
        run = await server.start(rounds=2)
        await take_part(devices, 2)
        assert (await server.until_over(run)).initial_metrics == INITIAL


@dataclass(frozen=True)
class LateWorker(ReadyWorker):
    """A worker that cannot test the initial model."""

    async def evaluate(self, task: str, params: Vector, split: bool = False) -> dict[str, float]:
        """Fail for the initial model."""
        if (params == initial_params(5)).all():
            raise WorkerError("no memory")
        return {"accuracy": 0.5}


async def test_a_run_whose_initial_model_cannot_be_tested_is_none_the_worse(tmp_path: Path) -> None:
    async with serving(tmp_path, LateWorker().running) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=1)
        await take_part(devices, 1)
        status = await server.until_over(run)
    assert (status.phase, status.reason, status.metrics) == (RunPhase.FINISHED, "", {"accuracy": 0.5})
    assert status.initial_metrics == {}


@dataclass(frozen=True)
class BlindWorker(ReadyWorker):
    """A worker whose task has no test data."""

    asked: list[str] = field(default_factory=list)

    async def evaluate(self, task: str, params: Vector, split: bool = False) -> dict[str, float]:
        """Return nothing."""
        self.asked.append(task)
        return {}


async def test_a_task_without_test_data_is_asked_for_its_initial_metrics_once(tmp_path: Path) -> None:
    worker = BlindWorker()
    async with serving(tmp_path, worker.running) as server, server.devices("a", "b"):
        run = await server.start()
        await until(lambda: bool(worker.asked) and present(server).initial_metrics is not None)
    again = BlindWorker()
    async with serving(tmp_path, again.running) as server:
        assert (await server.run(run)).initial_metrics == {}
    assert (len(worker.asked), again.asked) == (1, [])
