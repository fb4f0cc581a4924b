"""Two things at the same time: a stop and an evaluation, an end and whatever is under way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedge.layout import Vector
from schemas.ids import DeviceId
from server_app.rows import RunRow
from server_app.store import Store
from tests.support.http import ReadyWorker, cohort, invited, serving, take_part, until


@dataclass(frozen=True)
class SlowWorker(ReadyWorker):
    """A worker that evaluates when it is let."""

    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def evaluate(self, task: str, params: Vector, split: bool = False) -> dict[str, float]:
        """Wait, then answer."""
        await self.may_answer.wait()
        return await super().evaluate(task, params, split)


async def test_a_run_stopped_while_its_metrics_are_written_down_stays_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, writing, may_write = SlowWorker(), asyncio.Event(), asyncio.Event()
    real = Store.save_run

    async def slow(store: Store, run: RunRow) -> None:
        if run.metrics and not may_write.is_set():
            writing.set()
            await may_write.wait()
        await real(store, run)

    alone = serving(tmp_path, worker.running, offline_seconds=1e-6)
    async with alone as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=3)
        await take_part(devices, 1)
        driver = server.service.context.federation.driver
        assert driver is not None
        await until(lambda: driver.waiting_for == "0 of 2 devices online")
        monkeypatch.setattr(Store, "save_run", slow)
        worker.may_answer.set()
        await writing.wait()
        await server.ask("POST", f"/v1/runs/{run}/stop")
        await until(lambda: driver.run.progress.is_over)
        may_write.set()
        status = await server.until_over(run)
        assert (str(status.phase), status.reason) == ("stopped", "stopped by an operator")
        assert set(status.metrics) == {"mean"}


async def test_an_aggregator_ends_although_an_evaluation_never_does(tmp_path: Path) -> None:
    async with asyncio.timeout(20):
        async with serving(tmp_path, SlowWorker().running) as server, server.devices("a", "b") as devices:
            run = await server.start(rounds=2)
            await invited(devices, await take_part(devices, 1))
        async with serving(tmp_path) as server, server.devices("a", "b") as devices:
            await take_part(devices, 1)
            status = await server.until_over(run)
            assert (str(status.phase), status.rounds_closed, set(status.metrics)) == ("finished", 2, {"mean"})


@pytest.mark.parametrize("how", ["stopped", "failed"])
async def test_a_run_whose_last_words_were_not_written_is_ended_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    real = Store.save_run

    async def cut(store: Store, run: RunRow) -> None:
        if run.ended_at is not None:
            raise RuntimeError("power cut")
        await real(store, run)

    with pytest.raises(BaseExceptionGroup):
        async with serving(tmp_path) as server, server.devices("a", "b") as devices:
            seconds = (0.0, 0.2 if how == "failed" else 60.0)
            run = await server.start(abandon_after=1, cohort=cohort(2, least=2, seconds=seconds))
            asked = await invited(devices)
            await devices[0].upload(asked[0])
            monkeypatch.setattr(Store, "save_run", cut)
            if how == "stopped":
                await server.ask("POST", f"/v1/runs/{run}/stop")
            await asyncio.get_running_loop().create_future()
    monkeypatch.undo()
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        async with asyncio.timeout(10):
            status = await server.until_over(run)
        assert status.phase == how
        assert (await devices[0].receipt(asked[0])).outcome == "abandoned"
        again = await server.start(rounds=1)
        await take_part(devices, 1)
        assert (await server.until_over(again)).phase == "finished"


async def test_a_run_stopped_as_its_turn_comes_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = Store.save_run

    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        first, second = await server.start(rounds=1), await server.start(rounds=1)
        federation = server.service.context.federation
        turn_came = asyncio.Event()

        async def late(store: Store, run: RunRow) -> None:
            if run.run == second and run.phase == "stopped" and not turn_came.is_set():
                turn_came.set()
                await take_part(devices, 1)
                await until(lambda: federation.driver is not None and federation.driver.run.run == second)
            await real(store, run)

        monkeypatch.setattr(Store, "save_run", late)
        assert (await server.ask("POST", f"/v1/runs/{second}/stop"))[0] == 202
        async with asyncio.timeout(10):
            assert (await server.until_over(second)).phase == "stopped"
        assert (await server.run(first)).phase == "finished"


async def test_a_device_that_took_work_and_vanished_does_not_stay_online_when_the_round_is_over(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, offline_seconds=0.05) as server, server.devices("a", "b") as devices:
        run = await server.start(abandon_after=1, cohort=cohort(2, least=2, seconds=(0.0, 0.2)))
        await invited(devices)
        known = server.service.context.house.devices
        assert known.is_online(known.by_id[DeviceId("a")])
        await server.until_over(run)
        await until(lambda: not known.is_online(known.by_id[DeviceId("a")]))
