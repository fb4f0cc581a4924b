"""A run's row as it is written down by two writers, and the evaluations of its rounds.

Rounds do not wait for their metrics: the worker process tests the published model while the next round collects. At
most ``MAX_PENDING`` vectors wait for it; beyond that, closing the next round does.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from fedge.layout import Vector
from server_app.errors import WorkerError
from server_app.house import House
from server_app.rows import RunRow

log = logging.getLogger(__name__)

MAX_PENDING = 4


class RunRecord:
    """A run's present row. Whoever changes it holds ``writing`` from reading ``row`` to setting it."""

    def __init__(self, row: RunRow) -> None:
        self.row = row
        self.writing = asyncio.Lock()


class Evaluations:
    """Tests published models, oldest first."""

    def __init__(self, house: House, record: RunRecord) -> None:
        self.failure = ""
        """Why the latest evaluation failed; empty where it did not."""
        self._house = house
        self._record = record
        self._slots = asyncio.Semaphore(MAX_PENDING)
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._under_way

    async def begin(self, number: int, published: Vector) -> None:
        """Have the model after round ``number`` tested."""
        await self._slots.acquire()
        task = self._house.spawn(self._measure(number, published))
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    async def cancel(self) -> None:
        """Give up those under way: the aggregator ends. After a restart the last round's are asked for again."""
        for task in self._under_way:
            task.cancel()
        await self.wait()

    async def wait(self) -> None:
        """Return when none is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._slots.release()

    async def _measure(self, number: int, published: Vector) -> None:
        run = self._record.row
        try:
            metrics = await self._house.worker.evaluate(run.plan.task, published)
        except WorkerError as error:
            log.warning("evaluation failed", extra={"run": run.run, "round": number, "why": str(error)})
            self.failure = f"evaluation of round {number} failed: {error}"
            return
        self.failure = ""
        async with self._record.writing:
            status = await self._house.store.round(run.run, number)
            if status is not None and metrics:
                await self._house.store.save_round(run.run, status.model_copy(update={"metrics": metrics}))
            metrics = metrics or dict(self._record.row.metrics)
            await self._house.store.save_run(replace(self._record.row, metrics=metrics))
            # The row as it is now: the run may have been stopped while that was written.
            self._record.row = replace(self._record.row, metrics=metrics)
        self._house.changes.notify()
