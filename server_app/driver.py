"""One run, from its first parameters to its last metrics: the shell around ``fedge.protocol.coordinator``.

    initial state -> [ wait for devices -> open -> collect -> close | abandon ]* -> evaluated -> over

Closing a round writes, in this order, so that a crash anywhere in between is safe to repeat:

    journal sealed and folded -> state file -> one transaction (round, receipts, members, run) -> old files deleted

Until the transaction the round is open and its journal decides; after it the round is over and its receipts decide.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedge.algorithms import ServerState, build
from fedge.errors import FedgeError
from fedge.layout import Layout, Vector
from fedge.protocol import coordinator
from fedge.protocol import run as runs
from fedge.protocol.coordinator import (
    Abandon,
    Action,
    Aggregate,
    Aggregated,
    DeviceGone,
    Event,
    Invite,
    Tick,
    UpdateReceived,
    WakeAt,
)
from fedge.protocol.staleness import late_receipts
from schemas.ids import DeviceId
from schemas.messages import Receipt
from schemas.status import RoundPhase, RoundStatus, RunPhase, Traffic
from server_app.back_half import BackHalf
from server_app.blobs import RunFiles, load_state, save_state
from server_app.book import Book
from server_app.downlinks import Downlinks
from server_app.errors import RunFailed, Stopped, WorkerError
from server_app.evaluation import Evaluations, RunRecord
from server_app.house import House
from server_app.opening import Opening
from server_app.rows import Member, RunRow, add_round, plus, with_measured
from server_app.split_round import back_half_of, next_state
from server_app.traffic import Since

log = logging.getLogger(__name__)

NEVER = float("inf")


class Driver:
    """Drives one run. Handlers read ``run``, ``state``, ``book``, ``members``, ``roster`` and ``waiting_for``."""

    def __init__(self, house: House, row: RunRow) -> None:
        self.house = house
        self.record = RunRecord(row)
        self.evaluations = Evaluations(house, self.record)
        self.algorithm = build(**row.plan.algorithm.model_dump())
        self.files = RunFiles(house.state_dir, row.run)
        self.downlinks = Downlinks(row.plan.downlink.mode, self.files.downloads, house.max_download_state_bytes)
        self.opening = Opening(house, self.record, self.algorithm, self.files)
        self.roster = self.opening.roster
        self.book: Book | None = None
        self.back: BackHalf | None = None
        self.state: ServerState | None = None
        self.waiting_for = ""
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._wake_at = NEVER
        self._owed: list[runs.Action] = []
        self._sleepers: set[DeviceId] = set()
        self._stop_reason: str | None = None
        self._failure = ""
        self._since = Since(house.traffic.total)

    @property
    def run(self) -> RunRow:
        """The run as it is written down."""
        return self.record.row

    @property
    def members(self) -> Mapping[DeviceId, Member]:
        """The devices of the run."""
        return self.roster.members

    def stop(self, reason: str) -> None:
        """End the run as soon as no round is half closed."""
        self._stop_reason = reason
        self._inbox.put_nowait(coordinator.Cancelled(reason))
        self.house.devices.arrived.set()

    async def resume(self) -> None:
        """Read a run that was under way back, its open round with it. Until then no device may be answered."""
        run = self.run
        if run.layout is None:
            return
        self.state = await asyncio.to_thread(load_state, self.files.state(run.state_round))
        self._owed = runs.resume(run.progress)
        book = await self.opening.reopen(run.layout, run.progress.round)
        if book is not None:
            self._set_book(book)
            self._since.carry(book.carried)
            self._inbox.put_nowait(Tick())
        log.info("run resumed", extra={"run": run.run, "round": run.progress.round})

    async def drive(self) -> None:
        """Bring the run to its end, whatever that is, and write it down."""
        try:
            layout = self.run.layout or await self._begin()
            if self.run.initial_metrics is None and not self.run.progress.is_over:
                await self.evaluations.begin_initial()
            while not self.run.progress.is_over:
                await self._next_action(layout)
        except Stopped as stopped:
            self._step(runs.Stopped(str(stopped)))
        except (RunFailed, WorkerError, FedgeError) as error:
            self._step(runs.Broken(str(error)))
        await self._end()

    async def settle(self) -> None:
        """Before the aggregator ends: take no more frames, and wait until those that came are durable."""
        if self.book is not None:
            await self.book.seal(self.traffic())
        if self.back is not None:
            await self.back.abandon(is_suspended=True)
        await self.evaluations.cancel()

    def traffic(self) -> Traffic:
        """Return the bytes of all devices since this run began or its last round was over."""
        return self._since.traffic()

    def note_traffic(self) -> None:
        """Have that written down where a round is open: it is what a restart goes on from."""
        if self.book is not None:
            self.book.note_traffic(self.traffic())

    def excluded(self) -> dict[DeviceId, str]:
        """Return which devices train this task and yet cannot take part, and why."""
        layout = self.run.layout
        return self.opening.eligibility.excluded(layout, self.house.devices.by_id.values()) if layout else {}

    def round_status(self) -> RoundStatus | None:
        """Return the round under way; None before the first and after the last."""
        if self.book is not None:
            return self.book.round_status(self.traffic(), split=self.back.status() if self.back else None)
        if self.run.phase is RunPhase.RUNNING and not self.run.progress.has_all_rounds:
            return RoundStatus(round=self.run.progress.round, phase=RoundPhase.SELECTING, traffic=self.traffic())
        return None

    async def _begin(self) -> Layout:
        """Make the state the first round starts from."""
        run = self.run
        self.waiting_for = "the initial model"
        layout, params = await self.house.worker.initial(run.plan.task, run.plan.seed, run.plan.is_split)
        self._check_stopped()
        self.state = self.algorithm.initial(params)
        await asyncio.to_thread(self.files.create)
        await asyncio.to_thread(save_state, self.files.state(0), self.state)
        progress, self._owed = runs.step(run.progress, runs.Opened())
        await self._save(replace(run, layout=layout, progress=progress))
        log.info("run started", extra={"run": run.run, "size": layout.size, "segments": len(layout.segments)})
        return layout

    async def _next_action(self, layout: Layout) -> None:
        """Do the one thing the run's machine asked for last."""
        owed, self._owed = self._owed, []
        for action in owed:
            match action:
                case runs.OpenRound(number):
                    await self._collect(self.book or await self._open(layout, number))
                    self._check_stopped()
                case runs.EvaluateModel():
                    failure = await self._last_metrics()
                    self._step(runs.Evaluated())
                    self.record.row = replace(self.run, progress=replace(self.run.progress, reason=failure))

    def _step(self, event: runs.Event) -> None:
        progress, self._owed = runs.step(self.run.progress, event)
        self.record.row = replace(self.run, progress=progress)

    def _check_stopped(self) -> None:
        if self._failure:
            raise RunFailed(f"the back half failed: {self._failure}")
        if self._stop_reason is not None:
            raise Stopped(self._stop_reason)

    async def _open(self, layout: Layout, number: int) -> Book:
        book = await self.opening.open(layout, number, self._pause, self.traffic)
        self._set_book(book)
        return book

    def _pause(self, waiting_for: str) -> None:
        """Show what the next round waits for, and give those who wait meanwhile what there is for them.

        Raises:
            Stopped: it need not wait any longer.
        """
        self._check_stopped()
        self.waiting_for = waiting_for
        if waiting_for:
            self._wake_sleepers()
            self.house.changes.notify()

    def _set_book(self, book: Book) -> None:
        # An inbox for each round: what was reported as the last one closed is none of this one's.
        self._inbox = asyncio.Queue()
        book.report = self._inbox.put_nowait
        if book.commit is not None:
            book.committing = self.house.spawn(book.commit.run())
        self.book = book
        if self.state is not None:
            self.back = back_half_of(self.house, self.run, book, self.state, self.algorithm, self.files)
        if self.back is not None:
            self.house.spawn(self._run_back(self.back))

    async def _run_back(self, back: BackHalf) -> None:
        await back.run()
        if back.failure:
            self._failure = back.failure if back.is_hopeless else ""
            self._inbox.put_nowait(coordinator.Cancelled(f"the back half failed: {back.failure}"))

    # Collecting

    async def _collect(self, book: Book) -> None:
        """Feed the coordinator until the round is over."""
        self._wake_at = NEVER
        if self._stop_reason is not None:
            self._inbox.put_nowait(coordinator.Cancelled(self._stop_reason))
        await self._perform(book, coordinator.resume(book.round))
        absent_at = self.house.clock() + self.house.offline_seconds
        while not book.round.is_over:
            event = await self._next_event(min(self._wake_at, absent_at))
            if self.house.clock() >= absent_at:
                absent_at = NEVER
                self._report_absent(book)
            await self._apply(book, event)

    async def _next_event(self, at: float) -> Event:
        try:
            async with asyncio.timeout_at(None if at == NEVER else at):
                return await self._inbox.get()
        except TimeoutError:
            return Tick()

    def _report_absent(self, book: Book) -> None:
        """Count as lost, for now, who was invited and is not there to hear of it."""
        for device in map(DeviceId, book.round.cohort):
            if device not in book.fetched and not self.house.devices.is_online(self.house.devices.by_id[device]):
                self._inbox.put_nowait(DeviceGone(device, "offline"))

    async def _apply(self, book: Book, event: Event) -> None:
        before = book.round
        if self.back is not None and isinstance(event, UpdateReceived | DeviceGone):
            self.back.left(DeviceId(event.device))
        book.round, actions = coordinator.step(before, event, self.house.clock())
        if book.round != before:
            facts = {"run": book.run, "round": before.number, "event": type(event).__name__}
            log.info("round moved", extra={**facts, "phase": str(book.round.phase)})
        await self._perform(book, actions)
        self.house.changes.notify()

    async def _perform(self, book: Book, actions: Sequence[Action]) -> None:
        """Do what the coordinator asked for. The answer to an upload acknowledges it; nothing else is owed for one."""
        for action in actions:
            match action:
                case Invite(devices):
                    self._sleepers.update((DeviceId(name) for name in devices), book.late)
                    self._wake_sleepers()
                case WakeAt(at):
                    self._wake_at = at
                case Aggregate():
                    await self._close(book)
                case Abandon(reason):
                    await self._abandon(book, reason)
                case coordinator.Reject(device, reason):
                    log.info("update not taken", extra={"device": device, "why": reason})

    def _wake_sleepers(self) -> None:
        sleepers, self._sleepers = self._sleepers, set()
        for device in sleepers:
            self.house.devices.wake(device)

    # Closing

    async def _close(self, book: Book) -> None:
        await book.seal(self.traffic())
        try:
            learnt = None if self.back is None else await self.back.close()
        except WorkerError as error:
            book.round = replace(book.round, phase=RoundPhase.ABANDONED, reason=f"the back half failed: {error}")
            await self._abandon(book, book.round.reason)
            return
        state = await asyncio.to_thread(self._next_state, book, learnt)
        book.round, _ = coordinator.step(book.round, Aggregated(), self.house.clock())
        epoch = self.run.dual_epoch + book.is_dual_lost()
        run = replace(self.run, state_round=book.round.number, dual_epoch=epoch)
        await self._finish_round(book, run, state, runs.RoundClosed())
        closed, plan = self.run.progress.rounds_closed, self.run.plan
        if closed % plan.evaluate_every == 0 or closed == plan.rounds:
            await self.evaluations.begin(book.round.number, np.asarray(state.published, np.float32))

    async def _abandon(self, book: Book, reason: str) -> None:
        await book.seal(self.traffic())
        if self.back is not None:
            await self.back.abandon()
        log.info("round abandoned", extra={"run": book.run, "round": book.round.number, "why": reason})
        run, state = self.run, self.state
        if state is not None and state.h is not None and book.is_dual_lost():
            state = state.without_duals()
            run = replace(run, state_round=book.round.number, dual_epoch=run.dual_epoch + 1)
        # A round that a person ended is not one of those in a row that fail a run.
        event = runs.RoundAbandoned(reason) if self._stop_reason is None else runs.Stopped(self._stop_reason)
        await self._finish_round(book, run, state, event)

    def _next_state(self, book: Book, learnt: Vector | None) -> ServerState:
        if self.state is None:
            raise RunFailed("expected a state before the first round")
        state = next_state(self.algorithm, self.state, book, len(self.members), self.back, learnt)
        if not (np.isfinite(state.params).all() and np.isfinite(state.published).all()):
            raise RunFailed(f"the model diverged: round {book.round.number} left numbers that are not finite")
        return state.without_duals() if book.is_dual_lost() else state

    async def _finish_round(self, book: Book, run: RunRow, state: ServerState | None, event: runs.Event) -> None:
        number, epoch = book.round.number, self.run.dual_epoch
        progress, self._owed = runs.step(run.progress, event)
        has_next = not (progress.is_over or progress.has_all_rounds)
        ending = book.ending(self.roster.idle, run.dual_epoch if has_next else None)
        receipts = ending.receipts
        if state is not None and state is not self.state:
            await asyncio.to_thread(save_state, self.files.state(number), state)
        applied = {device: receipt.round for device, receipt in receipts.items() if receipt.applied}
        moved = [replace(self.members[d], dual_epoch=epoch, last_applied=asked) for d, asked in applied.items()]
        previous = self.run.state_round
        status = book.round_status(self.traffic(), self.house.wall_clock(), self.back.status() if self.back else None)
        async with self.record.writing:
            totals = add_round(run.totals, status)
            run = with_measured(replace(run, progress=progress, totals=totals), self.run)
            await self.house.store.end_round(run, status, receipts, moved)
            self.record.row, self.state = run, state
            self._since.move(status.traffic)  # with the totals: before, they lack these bytes
        self.roster.members |= {member.device: member for member in moved}
        self.roster.end_round(ending.outstanding)
        self.book = self.back = None
        self._note_devices(receipts)
        await self.house.store.save_devices(self.house.devices.take_changed())
        await asyncio.to_thread(self.files.prune, {run.state_round, previous})

    def _note_devices(self, receipts: Mapping[DeviceId, Receipt]) -> None:
        for name, receipt in receipts.items():
            self.house.devices.by_id[name].end_round(receipt.outcome)
            self._sleepers.add(name)

    # The end

    async def _last_metrics(self) -> str:
        """Wait for the last round's metrics, or ask for them again after a restart; return what went wrong."""
        self.waiting_for = "the evaluation of the last round"
        self._wake_sleepers()
        status = await self.house.store.round(self.run.run, self.run.state_round)
        is_missing = status is not None and not status.metrics
        is_asked = self.evaluations.is_testing(self.run.state_round) or self.evaluations.failure
        if is_missing and not is_asked and self.state is not None:
            await self.evaluations.begin(self.run.state_round, np.asarray(self.state.published, np.float32))
        await self.evaluations.wait()
        return self.evaluations.failure

    async def _end(self) -> None:
        await self.evaluations.wait()
        reason = self.run.progress.reason
        if self.book is not None:
            self.book.round = replace(self.book.round, phase=RoundPhase.ABANDONED, reason=reason)
            await self._abandon(self.book, reason)
        # A run that ends between two rounds, or that ended as the aggregator did, takes no late updates either.
        if self.roster.outstanding:
            await self.house.store.save_receipts(late_receipts(self.roster.outstanding))
            self._sleepers.update(self.roster.outstanding)
            self.roster.end_round({})
        self.waiting_for = ""
        await self.downlinks.close()
        totals = self.run.totals.model_copy(update={"traffic": plus(self.run.totals.traffic, self.traffic())})
        await self._save(replace(self.run, ended_at=self.house.wall_clock(), totals=totals))
        await self.house.store.save_devices(self.house.devices.take_changed())
        log.info("run over", extra={"run": self.run.run, "phase": str(self.run.phase), "why": self.run.progress.reason})
        self._wake_sleepers()

    async def _save(self, run: RunRow) -> None:
        async with self.record.writing:
            await self.house.store.save_run(run)
            self.record.row = run
        self.house.changes.notify()
