"""A run's row as it is written down by two writers, and the evaluations of its rounds and of its initial model.

Rounds do not wait for their metrics, the first one included: the worker process tests the published model while the
next round collects. At most ``MAX_PENDING`` tests wait for it; beyond that, closing the next round does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from fedge.layout import Vector
from server_app.errors import WorkerError
from server_app.house import House
from server_app.rows import RunRow, with_measured

log = logging.getLogger(__name__)

MAX_PENDING = 4
INITIAL = 0
"""The initial model's place among the rounds."""


class RunRecord:
    """A run's present row. Whoever changes it holds ``writing`` from reading ``row`` to setting it."""

    def __init__(self, row: RunRow) -> None:
        self.row = row
        self.writing = asyncio.Lock()


class Evaluations:
    """Tests published models, oldest first."""

    def __init__(self, house: House, record: RunRecord) -> None:
        self.failure = ""
        """Why the latest evaluation of a round failed; empty where it did not."""
        self._house = house
        self._record = record
        self._slots = asyncio.Semaphore(MAX_PENDING)
        self._under_way: dict[asyncio.Task[None], int] = {}

    def is_testing(self, number: int) -> bool:
        """Whether the test of the model after round ``number`` is under way."""
        return number in self._under_way.values()

    async def begin(self, number: int, published: Vector) -> None:
        """Have the model after round ``number``, which has just ended, tested."""
        bytes_up = self._record.row.totals.traffic.up
        await self._slots.acquire()
        self._start(number, self._measure(number, published, bytes_up))

    async def begin_initial(self) -> None:
        """Have the initial model tested. It is made again from its seed, so this may be asked for at any time."""
        await self._slots.acquire()
        self._start(INITIAL, self._measure_initial())

    async def cancel(self) -> None:
        """Give up those under way: the aggregator ends. Restarted, it asks for the first and the last again."""
        for task in self._under_way:
            task.cancel()
        await self.wait()

    async def wait(self) -> None:
        """Return when none is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _start(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        task = self._house.spawn(work)
        self._under_way[task] = number
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._slots.release()

    async def _measure(self, number: int, published: Vector, bytes_up: int) -> None:
        run = self._record.row
        try:
            metrics = await self._house.worker.evaluate(run.plan.task, published, run.plan.is_split)
        except WorkerError as error:
            log.warning("evaluation failed", extra={"run": run.run, "round": number, "why": str(error)})
            self.failure = f"evaluation of round {number} failed: {error}"
            return
        self.failure = ""
        async with self._record.writing:
            status = await self._house.store.round(run.run, number)
            if status is not None and metrics:
                await self._house.store.save_round(run.run, status.model_copy(update={"metrics": metrics}))
            row = self._record.row
            await self._save(replace(row, metrics=metrics, tested_bytes_up=bytes_up) if metrics else row)
        self._house.changes.notify()

    async def _measure_initial(self) -> None:
        run, worker = self._record.row, self._house.worker
        try:
            _, params = await worker.initial(run.plan.task, run.plan.seed, run.plan.is_split)
            metrics = await worker.evaluate(run.plan.task, params, run.plan.is_split)
        except WorkerError as error:
            # No reason for the run: its model is no worse for it. The next start asks again.
            log.warning("evaluation failed", extra={"run": run.run, "round": INITIAL, "why": str(error)})
            return
        async with self._record.writing:
            await self._save(replace(self._record.row, initial_metrics=metrics))
        self._house.changes.notify()

    async def _save(self, measured: RunRow) -> None:
        """Write down what was measured; the caller holds ``writing``."""
        await self._house.store.save_run(measured)
        # The row as it is now: the run may have been stopped while that was written.
        self._record.row = with_measured(self._record.row, measured)
