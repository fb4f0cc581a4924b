"""The coordinator's shell in a simulation: the machines of ``fedge.protocol`` and a dictionary for a database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from fedge.aggregation import SegmentSums
from fedge.algorithms import Algorithm, ServerState
from fedge.downlink.message import StateId
from fedge.errors import BudgetError, ProtocolError
from fedge.frames import read_frame
from fedge.layout import Layout
from fedge.protocol import coordinator
from fedge.protocol import run as runs
from fedge.protocol.coordinator import CohortChosen, DeviceGone, Round, UpdateReceived
from fedge.protocol.ledger import Ledger, Verdict
from fedge.protocol.offer import Standing, assign, certify, counted_size, mean_size, quota_of
from fedge.selection import choose_cohort
from fedge.simulation.clock import Clock
from fedge.simulation.downlinks import Downlinks
from fedge.simulation.world import World
from fedge.update import check_frame, decode_delta, uplink
from fedge.weighting import error_of
from schemas.ids import RunId
from schemas.messages import Assignment, Receipt, Refusal, UpdateHeader, UpdateStatus, Work
from schemas.plan import Plan
from schemas.specs import FedDyn

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
    ) -> None:
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
        self._assignments: dict[str, Assignment] = {}

    def start(self) -> None:
        """Open the run."""
        self._run_step(runs.Opened())

    def poll(self, device: str, pending_round: int | None, answer: Callable[[Work], None]) -> None:
        """Answer now if there is a receipt or an assignment for ``device``, else when there is."""
        work = self._work_for(device, pending_round)
        if work is not None:
            answer(work)
        else:
            self.parked[device] = (pending_round, answer)

    def download(self, device: str, round_number: int, said: StateId, numbers: StateId | None = None) -> bytes:
        """Return what ``device`` makes the params it starts from of: frames, or messages for the state ``said``."""
        self._check_open(round_number)
        data = self.downlinks.answer(self._assignments[device], device, self.state.params, said, numbers)
        self.frame_traffic.down += len(data)
        return data

    def status(self, device: str, round_number: int) -> UpdateStatus:
        """Say which segments of ``device``'s update arrived."""
        current = round_number == self.round.number
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
        self._check_open(round_number)
        if header.refusal is not None:
            if header.refusal is Refusal.STATE_LOST:
                self.reset_duals = True
            self._round_step(DeviceGone(device, header.refusal))
            return self.status(device, round_number)
        self.ledger.take_header(device, header)
        for data in frames:
            self._take_frame(device, data)
        if self.ledger.is_complete(device):
            self._round_step(UpdateReceived(device, header.update))
        return self.status(device, round_number)

    def _take_frame(self, device: str, data: bytes) -> None:
        frame, spec = read_frame(data), self._assignments[device].uplink
        check_frame(self.layout, frame, spec.codec_name, spec.bits)
        checksum = int.from_bytes(data[16:20], "little")
        self.frame_traffic.up += len(data)
        if self.ledger.check_frame(device, frame.segment, checksum) is Verdict.NEW:
            x = decode_delta(frame, uplink(self.plan.seed, self.round.number, device), self.algorithm.trust)
            self.ledger.take_frame(device, frame.segment, checksum)
            self.sums.add(frame.segment, x, self.algorithm.weight(self.sizes[device]), error_of(frame))

    def _check_open(self, round_number: int) -> None:
        if round_number != self.round.number or not self.round.is_open:
            raise Closed(f"round {round_number} takes nothing more")

    def _work_for(self, device: str, pending_round: int | None) -> Work | None:
        receipt = None if pending_round is None else self.receipts.get((device, pending_round))
        if pending_round is not None and receipt is None:
            return None
        invited = self.round.is_open and device in self._assignments
        heard = device in self.round.updates or device in self.round.gone
        assignment = self._assignments[device] if invited and not heard else None
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
        self.round = Round(number, quota_of(self.plan))
        self.ledger = Ledger(len(self.layout.segments))
        self.sums = SegmentSums(self.layout, self.plan.aggregation.weights)
        self._assignments = {}
        self.downlinks.begin_round()
        cohort = choose_cohort(self.plan.seed, number, self.world.devices, self.plan.cohort.devices)
        self._round_step(CohortChosen(cohort))

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
                    self.state = self.algorithm.server_step(self.state, self.sums, len(self.world.devices))
                    self._round_step(coordinator.Aggregated())
                    self._end_round(runs.RoundClosed())
                case coordinator.Abandon(reason):
                    self._end_round(runs.RoundAbandoned(reason))

    def _tick(self, number: int) -> None:
        if number == self.round.number and not self.round.is_over:
            self._round_step(coordinator.Tick())

    def _invite(self, devices: tuple[str, ...]) -> None:
        for device in devices:
            standing = Standing(self._relative_size(device), self._applied(device), self.world.limits_of(device))
            try:
                self._assignments[device] = assign(
                    self.plan, RUN, self.round, device, self.layout, standing, self.dual_epoch, self.clock.now
                )
            except BudgetError as error:
                self.clock.after(0.0, partial(self._lose, self.round.number, device, str(error)))
        self._wake()

    def _lose(self, number: int, device: str, why: str) -> None:
        if number == self.round.number and self.round.is_open:
            self._round_step(DeviceGone(device, why))

    def _end_round(self, event: runs.Event) -> None:
        for device in {*self.round.cohort, *self.ledger.deliveries}:
            receipt = certify(RUN, self.round, self.ledger, device)
            self.receipts[device, self.round.number] = receipt
            if receipt.applied:
                self.last_applied[device] = self.round.number
        if self.reset_duals and self.state.h is not None:
            self.state = self.state.without_duals()
            self.dual_epoch, self.reset_duals, self.last_applied = self.dual_epoch + 1, False, {}
        self.on_round(self)
        # Planned, not called: rounds that nobody answers would otherwise nest without end.
        self.clock.after(0.0, lambda: self._go_on(event))

    def _go_on(self, event: runs.Event) -> None:
        self._run_step(event)
        self._wake()

    def _relative_size(self, device: str) -> float:
        return self.sizes[device] / self.mean_size

    def _applied(self, device: str) -> int:
        return self.last_applied.get(device, 0) if isinstance(self.plan.algorithm, FedDyn) else 0
