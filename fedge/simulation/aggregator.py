"""The coordinator's shell in a simulation: the machines of ``fedge.protocol`` and a dictionary for a database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from fedge.aggregation import SegmentSums
from fedge.algorithms import Algorithm, ServerState
from fedge.downlink.message import StateId
from fedge.errors import BudgetError, ProtocolError
from fedge.frames import read_frame
from fedge.layout import Layout
from fedge.protocol import coordinator
from fedge.protocol import run as runs
from fedge.protocol.back_device import back_seed, back_terms, fold, with_back_dual
from fedge.protocol.coordinator import CohortChosen, DeviceGone, Round, UpdateReceived
from fedge.protocol.ledger import Ledger, Verdict
from fedge.protocol.offer import Standing, assign, certify, counted_size, half_of, mean_size, part_of, quota_of
from fedge.protocol.staleness import end, late_receipts, seat, step_of
from fedge.simulation.clock import Clock
from fedge.simulation.downlinks import Downlinks
from fedge.simulation.world import SplitTrainer, World
from fedge.update import check_frame, decode_delta, uplink
from fedge.weighting import error_of
from schemas.ids import RunId
from schemas.messages import Assignment, Receipt, Refusal, UpdateHeader, UpdateStatus, Work
from schemas.plan import Plan
from schemas.specs import FedDyn
from schemas.status import SplitStatus

RUN = "simulated"


class Closed(ProtocolError):
    """What was sent is for a round that takes nothing more."""


@dataclass(slots=True)
class Traffic:
    """Bytes of frames and messages, by direction."""

    up: int = 0
    down: int = 0


class Aggregator:
    """One run over the devices of ``world``. ``on_round`` is called as each round ends."""

    def __init__(
        self,
        plan: Plan,
        world: World,
        layout: Layout,
        sizes: Mapping[str, int],
        algorithm: Algorithm,
        state: ServerState,
        clock: Clock,
        on_round: Callable[[Aggregator], None],
        trainer: SplitTrainer | None = None,
    ) -> None:
        self.trainer = trainer
        self.split: SplitStatus | None = None
        """What the round's split training did; None where there was none."""
        self.plan, self.world, self.layout, self.algorithm, self.state = plan, world, layout, algorithm, state
        self.mean_size = mean_size(sizes.values())
        self.sizes = {device: counted_size(size, self.mean_size) for device, size in sizes.items()}
        self.clock, self.on_round = clock, on_round
        self.run = runs.Run(plan.rounds, plan.abandon_after)
        self.round = Round(0, quota_of(plan))
        self.ledger, self.sums = Ledger(len(layout.segments)), SegmentSums(layout, plan.aggregation.weights)
        self.dual_epoch, self.reset_duals = 0, False
        self.last_applied: dict[str, int] = {}
        self.receipts: dict[tuple[str, int], Receipt] = {}
        self.parked: dict[str, tuple[int | None, Callable[[Work], None]]] = {}
        self.traffic, self.frame_traffic = Traffic(), Traffic()
        self.downlinks = Downlinks(layout, plan.seed)
        self.late: Mapping[str, Assignment] = {}
        """What devices were asked in earlier rounds that may still come."""
        self.rounds_late: dict[str, int] = {}
        """Whose update of an earlier round counted in the round that has just ended, and how many rounds later."""
        self.invited: dict[str, Assignment] = {}
        """What devices were asked in this round."""
        self._fetched: set[str] = set()
        self._idle: set[str] = set()
        self._refused: set[str] = set()
        self._is_short = False

    def start(self) -> None:
        """Open the run."""
        self._run_step(runs.Opened())

    def poll(self, device: str, pending_round: int | None, answer: Callable[[Work], None]) -> None:
        """Answer now if there is a receipt or an assignment for ``device``, else when there is."""
        if device in self.late and pending_round != self.late[device].round:
            self._idle.add(device)  # who has a late update to send names it, and who still trains does not ask
        else:
            self._idle.discard(device)
        work = self._work_for(device, pending_round)
        if work is not None:
            answer(work)
            return
        self.parked[device] = (pending_round, answer)
        if self._is_short:
            self._open_round(self.run.round)

    def download(self, device: str, round_number: int, said: StateId, numbers: StateId | None = None) -> bytes:
        """Return what ``device`` makes the params it starts from of: frames, or messages for the state ``said``."""
        self._check_open(round_number)
        data = self.downlinks.answer(self.invited[device], device, self.state.params, said, numbers)
        self.frame_traffic.down += len(data)
        return data

    def status(self, device: str, round_number: int) -> UpdateStatus:
        """Say which segments of ``device``'s update arrived."""
        current = round_number == self.round.number or self._owes(device, round_number)
        delivery = self.ledger.deliveries.get(device) if current else None
        return UpdateStatus(
            run=RunId(RUN),
            round=round_number,
            update=delivery.header.update if delivery else None,
            segments=delivery.segments if delivery else (),
            is_complete=current and self.ledger.is_complete(device),
            is_open=current and self.round.is_open,
        )

    def upload(self, device: str, round_number: int, header: UpdateHeader, frames: list[bytes]) -> UpdateStatus:
        """Take what arrived of an upload: all of it or, where the link was cut, the frames that were whole."""
        self._check_open(round_number, device)
        if header.refusal is not None:
            self._refused.add(device)
            if header.refusal is Refusal.STATE_LOST:
                self.reset_duals = True
            self._round_step(DeviceGone(device, header.refusal))
            return self.status(device, round_number)
        self.ledger.take_header(device, header)
        for data in frames:
            self._take_frame(device, data)
        if self.ledger.is_complete(device) and device in self.round.cohort:
            self._round_step(UpdateReceived(device, header.update))
        return self.status(device, round_number)

    def _take_frame(self, device: str, data: bytes) -> None:
        asked, frame = self._asked(device), read_frame(data)
        check_frame(part_of(self.layout, asked), frame, asked.uplink.codec_name, asked.uplink.bits)
        checksum = int.from_bytes(data[16:20], "little")
        self.frame_traffic.up += len(data)
        if self.ledger.check_frame(device, frame.segment, checksum) is Verdict.NEW:
            x = decode_delta(frame, uplink(self.plan.seed, asked.round, device), self.algorithm.trust)
            step = step_of(self.round.number - asked.round)
            self.ledger.take_frame(device, frame.segment, checksum)
            self.sums.add(frame.segment, x, self.algorithm.weight(self.sizes[device]), error_of(frame), step)

    def _asked(self, device: str) -> Assignment:
        return self.invited[device] if device in self.invited else self.late[device]

    def _owes(self, device: str, round_number: int) -> bool:
        return device in self.late and self.late[device].round == round_number

    def _check_open(self, round_number: int, device: str = "") -> None:
        is_known = round_number == self.round.number or self._owes(device, round_number)
        if not is_known or not self.round.is_open:
            raise Closed(f"round {round_number} takes nothing more")

    def _work_for(self, device: str, pending_round: int | None) -> Work | None:
        receipt = None if pending_round is None else self.receipts.get((device, pending_round))
        if pending_round is not None and receipt is None:
            is_wanted = self._owes(device, pending_round) and self.round.is_open and device not in self._refused
            if is_wanted and not self.ledger.is_complete(device):
                return Work(assignment=self.late[device])
            return None
        invited = self.round.is_open and device in self.invited
        heard = device in self.round.updates or device in self.round.gone
        assignment = self.invited[device] if invited and not heard else None
        if assignment is not None:
            self._fetched.add(device)
        return Work(assignment=assignment, receipt=receipt) if receipt or assignment else None

    def _wake(self) -> None:
        for device, (pending_round, answer) in list(self.parked.items()):
            work = self._work_for(device, pending_round)
            if work is not None:
                del self.parked[device]
                answer(work)

    def _run_step(self, event: runs.Event) -> None:
        self.run, actions = runs.step(self.run, event)
        for action in actions:
            match action:
                case runs.OpenRound(number):
                    self._open_round(number)
                case runs.EvaluateModel():
                    self._run_step(runs.Evaluated())

    def _open_round(self, number: int) -> None:
        plan, owing = self.plan, self.late.keys() - self._idle
        ready = {d for d in owing if d in self.parked and self.parked[d][0] == self.late[d].round}
        chosen = seat(plan.seed, number, set(self.world.devices) - owing, ready, plan.cohort)
        self._is_short = chosen is None
        if chosen is None:
            return
        self._write(late_receipts({device: self.late[device] for device in self._idle}))
        self.late = {device: asked for device, asked in self.late.items() if device not in self._idle}
        self.round = Round(number, quota_of(self.plan))
        self.ledger = Ledger(len(self.layout.segments))
        self.sums = SegmentSums(self.layout, self.plan.aggregation.weights)
        self.invited = {}
        self._fetched, self._idle, self._refused = set(), set(), set()
        self.downlinks.begin_round()
        self.split = None
        invited, seated = chosen
        self._round_step(CohortChosen((*invited, *seated)))

    def _round_step(self, event: coordinator.Event) -> None:
        self.round, actions = coordinator.step(self.round, event, self.clock.now)
        for action in actions:
            match action:
                case coordinator.Invite(devices):
                    self._invite(devices)
                case coordinator.WakeAt(at):
                    number = self.round.number
                    self.clock.at(at, partial(self._tick, number))
                case coordinator.Aggregate():
                    self._aggregate()
                    self._round_step(coordinator.Aggregated())
                    self._end_round(runs.RoundClosed())
                case coordinator.Abandon(reason):
                    self._end_round(runs.RoundAbandoned(reason))

    def _tick(self, number: int) -> None:
        if number == self.round.number and not self.round.is_over:
            self._round_step(coordinator.Tick())

    def _invite(self, devices: tuple[str, ...]) -> None:
        for device in (name for name in devices if name not in self.late):
            size, limits = self.sizes[device], self.world.limits_of(device)
            standing = Standing(self._relative_size(device), self._applied(device), limits, size)
            try:
                fixed = (self.plan, RUN, self.round, device, self.layout, standing, self.dual_epoch, self.clock.now)
                self.invited[device] = assign(*fixed, half_of(self.plan, self.world.trains_of(device)) or "whole")
            except BudgetError as error:
                self.clock.after(0.0, partial(self._lose, self.round.number, device, str(error)))
        asked = {**self.late, **self.invited}
        self.ledger.own = {name: len(self.layout.front.segments) for name, one in asked.items() if one.split}
        self._open_halves()
        self._wake()

    def _open_halves(self) -> None:
        """Let the back half begin from the state, where somebody was asked to train a front half."""
        fronts = [asked for asked in self.invited.values() if asked.split is not None]
        if not fronts or self.trainer is None or self.plan.split is None:
            return
        terms, params = back_terms(self.state, fronts, self.algorithm), np.asarray(self.state.params, np.float32)
        seed, spec = back_seed(self.plan.seed, self.round.number), self.plan.split
        self.trainer.open_halves(params, terms, fronts[0].local, spec, len(fronts), seed)

    def _aggregate(self) -> None:
        """Make the next state of what was delivered, and of what the back half learnt."""
        before, learnt = self.state, None
        if self.trainer is not None and any(asked.split for asked in self.invited.values()):
            learnt, self.split = self.trainer.close_halves()
        if learnt is not None and self.split is not None:
            size = sum(self.sizes[device] for device in self.split.devices)
            fold(self.sums, self.layout, self.algorithm, size, learnt)
        self.state = self.algorithm.server_step(before, self.sums, len(self.world.devices))
        if learnt is not None:
            self.state = with_back_dual(self.state, before, self.algorithm, self.layout, learnt)

    def _lose(self, number: int, device: str, why: str) -> None:
        if number == self.round.number and self.round.is_open:
            self._round_step(DeviceGone(device, why))

    def _end_round(self, event: runs.Event) -> None:
        self._settle(runs.step(self.run, event)[0])
        if self.reset_duals and self.state.h is not None:
            self.state = self.state.without_duals()
            self.dual_epoch, self.reset_duals, self.last_applied = self.dual_epoch + 1, False, {}
        self.on_round(self)
        # Planned, not called: rounds that nobody answers would otherwise nest without end.
        self.clock.after(0.0, lambda: self._go_on(event))

    def _settle(self, run: runs.Run) -> None:
        """Write the receipts that this round decides; what is not heard yet may still come in the next of ``run``."""
        asked = {**self.invited, **self.late}
        not_at_work = {*self._refused, *self._idle, *(self.invited.keys() - self._fetched)}
        has_next = not (run.is_over or run.has_all_rounds)
        epoch = self.dual_epoch + (self.reset_duals and self.state.h is not None) if has_next else None
        ending = end(self.round, self.ledger, asked, not_at_work, epoch, self.plan.aggregation.max_staleness)
        unable = set(self.round.cohort) - asked.keys()  # no budget left room for an assignment
        self._write({device: certify(RUN, self.round, self.ledger, device) for device in unable})
        self._write(ending.receipts)
        counted = [device for device in self.late if device in ending.receipts and ending.receipts[device].applied]
        self.rounds_late = {device: self.round.number - self.late[device].round for device in counted}
        self.late = ending.outstanding
        self._idle &= self.late.keys()

    def _write(self, receipts: Mapping[str, Receipt]) -> None:
        for device, receipt in receipts.items():
            self.receipts[device, receipt.round] = receipt
            if receipt.applied:
                self.last_applied[device] = receipt.round

    def _go_on(self, event: runs.Event) -> None:
        self._run_step(event)
        self._wake()

    def _relative_size(self, device: str) -> float:
        return self.sizes[device] / self.mean_size

    def _applied(self, device: str) -> int:
        return self.last_applied.get(device, 0) if isinstance(self.plan.algorithm, FedDyn) else 0
