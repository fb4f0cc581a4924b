"""All runs: one under way at a time, the others in a queue; and what a device is to do right now."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import replace
from typing import Any

from fedge.errors import UnknownName
from fedge.per_bit import per_bit_accuracy
from fedge.protocol import run as runs
from schemas.ids import NAME, DeviceId, RunId
from schemas.messages import Assignment, Outcome, Receipt, UpdateStatus, Work
from schemas.plan import Plan
from schemas.status import RoundStatus, RunPhase, RunStatus, RunSummary, total_split
from server_app import planning
from server_app.book import Book
from server_app.devices import Device
from server_app.driver import Driver
from server_app.errors import Refused
from server_app.house import House
from server_app.intake import round_over
from server_app.rows import RunRow, plus

log = logging.getLogger(__name__)


class Federation:
    """Starts, stops and shows runs."""

    def __init__(self, house: House, tasks: tuple[str, ...]) -> None:
        self.house = house
        self.driver: Driver | None = None
        self._tasks = tasks
        self.is_ready = asyncio.Event()
        """Set once the round that was open when the aggregator ended is open again: before, every answer is wrong."""
        self._queued = asyncio.Event()

    async def run(self) -> None:
        """Drive one run after the other, for ever. A run that was under way when the aggregator ended comes first."""
        while True:
            self._queued.clear()
            # A run may be over and yet owe its receipts and its end, where the aggregator ended just then.
            waiting = [row for row in await self.house.store.runs() if row.ended_at is None]
            if not waiting:
                self.is_ready.set()
                await self._queued.wait()
                continue
            row = next((row for row in waiting if row.phase is not RunPhase.QUEUED), waiting[0])
            driver = Driver(self.house, row)
            if row.phase is not RunPhase.QUEUED:
                await driver.resume()
            self.driver = driver
            self.is_ready.set()
            await driver.drive()
            self.driver = None
            self.house.changes.notify()

    async def start(self, plan: Plan) -> RunRow:
        """Queue a run of ``plan``.

        Raises:
            UnknownName: the plan's task is not among those this aggregator serves.
        """
        if plan.task not in self._tasks:
            raise UnknownName("task", plan.task, self._tasks)
        row = await self.house.store.add_run(_stem(plan.task), plan, self.house.wall_clock())
        log.info("run queued", extra={"run": row.run, "task": plan.task})
        self._queued.set()
        return row

    async def stop(self, run: str, reason: str) -> None:
        """End ``run``: at once where it is queued, else as soon as its round is closed or abandoned."""
        row = await self.find(run)
        if self.driver is not None and self.driver.run.run == run:
            self.driver.stop(reason)
        elif not row.progress.is_over:
            progress, _ = runs.step(row.progress, runs.Stopped(reason))
            await self.house.store.save_run(replace(row, progress=progress, ended_at=self.house.wall_clock()))
            if self.driver is not None and self.driver.run.run == run:
                self.driver.stop(reason)  # its turn came while that was written

    async def find(self, run: str) -> RunRow:
        """Return the run as it is now.

        Raises:
            Refused: 404, there is none of this name.
        """
        if self.driver is not None and self.driver.run.run == run:
            return self.driver.run
        # Not every text that a path may hold is one that a database takes.
        row = await self.house.store.run(run) if re.fullmatch(NAME, run) else None
        if row is None:
            raise Refused(
                404,
                "unknown_run",
                f"expected the name of a run, got {run!r}; 'fedge run list' (GET /v1/runs) shows them",
            )
        return row

    def open_book(self, run: str, number: int) -> Book | None:
        """Return the book of this round where it still takes updates."""
        book = self.driver.book if self.driver is not None else None
        return book if book is not None and (book.run, book.round.number) == (run, number) else None

    def late_book(self, run: str, number: int, device: DeviceId) -> Book | None:
        """Return the book of the open round where it takes the device's update of this earlier one."""
        book = self.driver.book if self.driver is not None else None
        return book if book is not None and self._owes(run, number, device) else None

    async def book(self, run: str, number: int, device: DeviceId | None = None) -> Book:
        """Return the book of this round, or the one that takes the update of ``device`` for it.

        Raises:
            Refused: 404 for a run or round that does not exist, 410 for a round that is over.
        """
        book = self.open_book(run, number)
        if book is None and device is not None:
            book = self.late_book(run, number, device)
        if book is not None:
            return book
        row = await self.find(run)
        if not 1 <= number <= row.progress.round:
            raise Refused(404, "unknown_round", f"expected a round of 1..{row.progress.round} of {run}, got {number}")
        raise round_over(run, number)

    async def work_for(self, device: Device, pending: tuple[str, int] | None) -> Work | None:
        """Return what ``device`` is to do now; None where there is nothing.

        ``pending`` names the round the device holds an update for. While that round is open and has the whole update,
        the device waits for its receipt and is asked for nothing else; so while the update may come in a later round,
        until one opens that wants it.
        """
        receipt = None
        if self.driver is not None:
            self.driver.roster.note_poll(device.id, pending)
        if pending is not None:
            is_owed = self._owes(*pending, device.id)
            book = self.late_book(*pending, device.id) if is_owed else self.open_book(*pending)
            if is_owed and book is not None and book.wants(device.id):
                return Work(assignment=self._ask(device, book, book.late[device.id]))
            if is_owed or (book is not None and not book.wants(device.id)):
                return None
            if book is None:
                receipt = await self.receipt(RunId(pending[0]), pending[1], device.id)
        assignment = self._assignment(device)
        return Work(assignment=assignment, receipt=receipt) if assignment or receipt else None

    async def receipt(self, run: RunId, number: int, device: DeviceId) -> Receipt:
        """Return what became of a device's part in a round that is over; late where it had none."""
        found = await self.house.store.receipt(run, number, device)
        return found or Receipt(run=run, round=number, update=None, outcome=Outcome.LATE, applied=())

    async def update_status(self, run: str, number: int, device: DeviceId) -> UpdateStatus:
        """Return which segments of a device's update arrived, or were applied where the round is over."""
        book = self.open_book(run, number) or self.late_book(run, number, device)
        if book is not None:
            book.assignment(device, number)
            return book.status(device)
        if self._owes(run, number, device):
            return UpdateStatus(run=RunId(run), round=number, update=None, segments=(), is_complete=False, is_open=True)
        row = await self.find(run)
        if not 1 <= number <= row.progress.round:
            raise Refused(404, "unknown_round", f"expected a round of 1..{row.progress.round} of {run}, got {number}")
        found = await self.receipt(RunId(run), number, device)
        return UpdateStatus(
            run=found.run,
            round=number,
            update=found.update,
            segments=found.applied,
            is_complete=found.outcome is Outcome.APPLIED,
            is_open=False,
        )

    def _owes(self, run: str, number: int, device: DeviceId) -> bool:
        return self.driver is not None and self.driver.roster.owes(device, run, number)

    def _assignment(self, device: Device) -> Assignment | None:
        book = self.driver.book if self.driver is not None else None
        if book is None or device.id not in book.assignments or not book.wants(device.id):
            return None
        return self._ask(device, book, book.assignments[device.id])

    def _ask(self, device: Device, book: Book, asked: Assignment) -> Assignment:
        over_at = book.round.opened_at + book.round.quota.max_seconds
        left = over_at - self.house.clock()
        book.fetched.add(device.id)
        is_now = asked.split is not None and asked.round == book.round.number
        if is_now and self.driver is not None and self.driver.back is not None:
            self.driver.back.came(device.id)
        device.busy_until = over_at
        return asked.model_copy(update={"seconds_left": max(left, 0.0)})

    # What people see

    async def summaries(self) -> list[RunSummary]:
        """Return all runs, newest first."""
        rows = reversed(await self.house.store.runs())
        drivers = [(row, self._driver_of(row)) for row in rows]
        now = [(driver.run, driver.round_status()) if driver else (row, None) for row, driver in drivers]
        return [RunSummary(**self._summary(row, status)) for row, status in now]

    async def status(self, run: str) -> RunStatus:
        """Return one run in full."""
        row = await self.find(run)
        driver = self._driver_of(row)
        members = driver.members if driver else await self.house.store.members(run)
        now = driver.round_status() if driver else None
        totals = row.totals
        return RunStatus(
            **self._summary(row, now),
            plan=row.plan,
            size=row.layout.size if row.layout else 0,
            devices=len(members) or self._eligible(row),
            excluded=driver.excluded() if driver else {},
            round=now,
            waiting_for=self._waiting_for(row, driver),
            frame_bytes=plus(totals.frame_bytes, now.frame_bytes) if now else totals.frame_bytes,
            float32_bytes=plus(totals.float32_bytes, now.float32_bytes) if now else totals.float32_bytes,
            per_bit_accuracy=_per_bit_accuracy(row),
        )

    async def rounds(self, run: str) -> list[RoundStatus]:
        """Return all rounds of a run, the one under way last."""
        driver = self._driver_of(await self.find(run))
        rounds = await self.house.store.rounds(run)
        if driver is None or driver.book is None:
            return rounds
        now = driver.round_status()
        return [now if now is not None and status.round == now.round else status for status in rounds]

    def _driver_of(self, row: RunRow) -> Driver | None:
        return self.driver if self.driver is not None and self.driver.run.run == row.run else None

    def _summary(self, row: RunRow, now: RoundStatus | None) -> dict[str, Any]:
        """Return what a ``RunSummary`` says; ``now`` is the round under way."""
        driver, totals = self._driver_of(row), row.totals
        return {
            "run": row.run,
            "task": row.plan.task,
            "phase": row.phase,
            "reason": row.progress.reason,
            "rounds_closed": row.progress.rounds_closed,
            "rounds_planned": row.plan.rounds,
            "rounds_abandoned": row.progress.rounds_abandoned,
            "created_at": row.created_at,
            "ended_at": row.ended_at,
            "metrics": dict(row.metrics),
            "initial_metrics": dict(row.initial_metrics or {}),
            "split": total_split([totals.split, now.split if now else None]),
            "late_updates": totals.late_updates + (len(now.late) if now else 0),
            "traffic": plus(totals.traffic, driver.traffic()) if driver and row.ended_at is None else totals.traffic,
        }

    def _waiting_for(self, row: RunRow, driver: Driver | None) -> str:
        if driver is not None:
            return driver.waiting_for
        return f"{self.driver.run.run} to end" if row.phase is RunPhase.QUEUED and self.driver else ""

    def _eligible(self, row: RunRow) -> int:
        layout = row.layout
        if layout is None:
            return 0
        return sum(planning.obstacle(row.plan, layout, d) is None for d in self.house.devices.by_id.values())


def _per_bit_accuracy(row: RunRow) -> float | None:
    initial = row.initial_metrics or {}
    return per_bit_accuracy(row.metrics.get("accuracy"), initial.get("accuracy"), row.tested_bytes_up or 0)


def _stem(task: str) -> str:
    """Return the first part of a run's name: the task's module, or its object where that says more."""
    module, _, attribute = task.partition(":")
    name = module.rpartition(".")[2] if attribute == "task" else attribute
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")[:48] or "run"
