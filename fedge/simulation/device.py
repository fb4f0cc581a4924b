"""The participant's shell in a simulation: the real machine, the real codec, the real dual, and no network.

Time passes on the virtual clock: latency and bytes on the link, examples on the processor. Requests and answers get
lost, uploads die half-way and the device crashes with the chances its ``Link`` gives; a crash forgets everything but
what a spool would hold (the state, the dual, the frames of a pending update).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np

from fedge import feedback
from fedge.algorithms import Algorithm, Dual, LocalTerms
from fedge.downlink import Mode
from fedge.downlink.common import receive_all
from fedge.downlink.mcm import channel_of
from fedge.downlink.message import State, StateId, origin
from fedge.downlink.snapshot import decode_snapshot, downlink
from fedge.errors import CodecError, FedgeError, ProtocolError
from fedge.feedback import Memory
from fedge.frames import FrameReader
from fedge.layout import Vector
from fedge.protocol import participant
from fedge.protocol.ledger import Conflict
from fedge.protocol.offer import half_of, train_seed
from fedge.protocol.participant import (
    AnchorLost,
    Download,
    Downloaded,
    Failed,
    Held,
    Participant,
    Pending,
    Poll,
    Refuse,
    Refused,
    RoundOver,
    Send,
    Sent,
    Settle,
    Settled,
    StateLost,
    Tick,
    Train,
    UpdateReady,
    WorkArrived,
)
from fedge.simulation.aggregator import Aggregator, Closed
from fedge.simulation.clock import Clock
from fedge.simulation.world import Chance, Link, SplitTrained, SplitTrainer, Trained, Trainer
from fedge.update import by_segment, decode_applied, encode_update, uplink
from schemas.messages import Assignment, Receipt, Refusal, UpdateHeader, Work
from schemas.specs import SplitSpec


class Device:
    """One virtual device. ``frames``, ``duals``, ``memories`` and ``states`` are its flash: they and ``state`` outlive
    a crash, what was downloaded to train from does not."""

    def __init__(
        self, name: str, aggregator: Aggregator, trainer: Trainer, algorithm: Algorithm, link: Link, clock: Clock
    ) -> None:
        self.name, self.aggregator, self.trainer, self.algorithm = name, aggregator, trainer, algorithm
        self.link, self.clock = link, clock
        self.state = Participant()
        self.duals: dict[tuple[int, int], Dual] = {}
        self.memories: dict[tuple[int, int], Memory] = {}
        self._loss: Memory | None = None
        self.states: dict[StateId, State] = {}
        self.frames: list[bytes] = []
        self.header: UpdateHeader | None = None
        self._anchor: Vector | None = None
        self._life = 0
        self._chance = Chance(aggregator.plan.seed, "weather", name)
        half = half_of(aggregator.plan, aggregator.world.trains_of(name))
        self.layout = trainer.layout.front if half == "front" else trainer.layout
        """Of what this device trains."""

    def start(self) -> None:
        """Switch the device on, for the first time or after a crash."""
        for action in participant.resume(self.state, self.clock.now):
            self._do(action)

    def crash(self) -> None:
        """Lose what is only in memory, and start again a little later."""
        self._life += 1
        self._anchor = None
        self.aggregator.parked.pop(self.name, None)
        self.clock.after(1.0 + 4.0 * self._chance.draw(), partial(self._alive, self._life, self.start))

    def dual(self) -> Dual:
        """Return the dual that the state names, float64 ``[d]``."""
        zeros = np.zeros(self.layout.size)
        if self.state.last_applied == 0:
            return zeros
        return self.duals[self.state.dual_epoch, self.state.last_applied]

    def memory(self) -> Memory | None:
        """Return what error feedback remembers at the state, float32 ``[d]``; None stands for zeros."""
        return self.memories.get((self.state.dual_epoch, self.state.last_applied))

    def _alive(self, life: int, callback: Callable[[], None]) -> None:
        if life == self._life:
            callback()

    def _later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.clock.after(seconds, partial(self._alive, self._life, callback))

    def _step(self, event: participant.Event) -> None:
        if self._chance.happens(self.link.crash):
            self.crash()
            return
        self.state, actions = participant.step(self.state, event, self.clock.now, seed=len(self.name))
        for action in actions:
            self._do(action)

    def _do(self, action: participant.Action) -> None:
        match action:
            case Poll(pending):
                self._request(partial(self._poll, pending))
            case Download(assignment):
                self._request(partial(self._download, assignment))
            case Train(assignment):
                self._train(assignment)
            case Send(pending):
                self._request(partial(self._send, pending))
            case Settle(pending, receipt):
                self._later(0.0, partial(self._settle, pending, receipt))
            case Refuse():
                self._request(partial(self._refuse, action))
            case participant.WakeAt(at):
                self.clock.at(at, partial(self._alive, self._life, partial(self._step, Tick())))
            case _:  # nothing to cancel and nothing to delete here
                return

    def _request(self, serve: Callable[[], None]) -> None:
        if self._chance.happens(self.link.request_lost):
            self._later(self.link.latency_seconds, partial(self._step, Failed("the request was lost")))
        else:
            self._later(self.link.latency_seconds, serve)

    def _answer(self, event: participant.Event, seconds: float = 0.0) -> None:
        if self._chance.happens(self.link.answer_lost):
            event = Failed("the answer was lost")
        self._later(self.link.latency_seconds + seconds, partial(self._step, event))

    def _poll(self, pending: Pending | None) -> None:
        life = self._life
        pending_round = pending.assignment.round if pending else None

        def deliver(work: Work) -> None:
            self._alive(life, lambda: self._answer(WorkArrived(work.assignment, work.receipt)))

        self.aggregator.poll(self.name, pending_round, deliver)

    def _download(self, assignment: Assignment) -> None:
        try:
            data, held = self._fetch(assignment)
        except Closed:
            return self._answer(RoundOver())
        except ProtocolError as error:
            return self._answer(Failed(str(error)))
        return self._answer(Downloaded(held), len(data) / self.link.down_bytes_per_second)

    def _fetch(self, assignment: Assignment) -> tuple[bytes, Held | None]:
        """Take the anchor from the aggregator and keep it, with the state that it leads to."""
        spec, layout = assignment.downlink, self.layout
        own = self.states.get(self._held_id(assignment)) or origin(layout)
        data = self.aggregator.download(self.name, assignment.round, own.id)
        if not spec.has_memory:
            stream, reader = downlink(assignment.seed, assignment.round, self.name), FrameReader()
            frames = list(reader.feed(data))
            self._anchor = decode_snapshot(layout, frames, stream, spec.codec_name, spec.bits)
            return data, None
        channel = channel_of(layout, assignment.seed, self.name, Mode(spec.mode), spec.codec_name)
        delivered = receive_all(channel, own, data)
        self._anchor = delivered.anchor
        self.states = {own.id: own, delivered.state.id: delivered.state}
        return data, Held(run=assignment.run, state=delivered.state.id, downloads=self._downloads() + 1)

    def _held_id(self, assignment: Assignment) -> StateId:
        held = self.state.held
        return StateId(held.state if held is not None and held.run == assignment.run else "")

    def _downloads(self) -> int:
        return self.state.held.downloads if self.state.held is not None else 0

    def _train(self, assignment: Assignment) -> None:
        if self._anchor is None:  # a crash came after the download, and the anchor was in memory only
            return self._step(AnchorLost())
        dual = self.dual() if self.algorithm.stateful else None
        terms = self.algorithm.local_terms(dual, assignment.relative_size)
        seed = train_seed(assignment.seed, assignment.round, self.name)
        if assignment.split is not None:
            return self._train_front(assignment, assignment.split, terms, seed)
        result = self.trainer.begin(self.name, self._anchor, terms, assignment.local, seed)
        seconds = self.link.seconds_per_example * self.trainer.num_examples(self.name) * assignment.local.epochs
        return self._later(seconds, lambda: self._spool(assignment, result()))

    def _train_front(self, assignment: Assignment, spec: SplitSpec, terms: LocalTerms, seed: int) -> None:
        """Take the steps of the front half; they last as long as training does, and then as their bytes travel."""
        if self._anchor is None or not isinstance(self.trainer, SplitTrainer):
            return self._step(AnchorLost())
        local = assignment.local
        result = self.trainer.begin_front(self.name, self._anchor, terms, local, spec.steps, seed)
        seconds = self.link.seconds_per_example * self.trainer.num_examples(self.name) * local.epochs
        return self._later(seconds, partial(self._travel, assignment, result))

    def _travel(self, assignment: Assignment, result: Callable[[], SplitTrained]) -> None:
        try:
            done = result()
        except FedgeError as error:
            return self._step(Refused(Refusal.TRAINING_FAILED, str(error)))
        seconds = done.bytes_up / self.link.up_bytes_per_second + done.bytes_down / self.link.down_bytes_per_second
        seconds += 2 * self.link.latency_seconds * done.steps
        return self._later(seconds, partial(self._spool, assignment, Trained(done.delta, done.loss)))

    def _spool(self, assignment: Assignment, trained: Trained) -> None:
        stream, spec = uplink(assignment.seed, assignment.round, self.name), assignment.uplink
        layout, delta, options = self.layout, trained.delta, spec.codec_options
        try:
            if spec.has_memory:
                self.frames, self._loss = feedback.encode(
                    layout, delta, self.memory(), stream, spec.codec_name, spec.bits, options, self.algorithm.trust
                )
            else:
                self.frames = encode_update(layout, delta, stream, spec.codec_name, spec.bits, options)
        except CodecError as error:
            self._step(Refused(Refusal.TRAINING_FAILED, str(error)))
            return
        update = hashlib.blake2b(b"".join(self.frames), digest_size=16).hexdigest()
        num_examples = self.trainer.num_examples(self.name)
        self.header = UpdateHeader(update=update, num_examples=num_examples, loss=trained.loss)
        self._step(UpdateReady(update))

    def _send(self, pending: Pending) -> None:
        assignment, header = pending.assignment, self.header
        if header is None or header.update != pending.update:
            return self._step(StateLost())
        arrived = set(self.aggregator.status(self.name, assignment.round).segments)
        order = uplink(assignment.seed, assignment.round, self.name).order(len(self.frames))
        missing = [self.frames[index] for index in order if index not in arrived]
        is_cut = self._chance.happens(self.link.upload_cut)
        sent = missing[: int(self._chance.draw() * len(missing))] if is_cut else missing
        seconds = sum(map(len, sent)) / self.link.up_bytes_per_second
        self._later(seconds, partial(self._deliver, pending, header, sent, is_cut))
        return None

    def _deliver(self, pending: Pending, header: UpdateHeader, sent: list[bytes], is_cut: bool) -> None:
        try:
            status = self.aggregator.upload(self.name, pending.assignment.round, header, sent)
        except Closed:
            return self._answer(RoundOver())
        except (Conflict, CodecError) as error:
            return self._answer(Failed(str(error)))
        return self._answer(Failed("the link was cut") if is_cut else Sent(status))

    def _refuse(self, action: Refuse) -> None:
        header = UpdateHeader(update="0" * 16, num_examples=1, refusal=action.refusal, reason=action.reason)
        with contextlib.suppress(Closed):
            self.aggregator.upload(self.name, action.assignment.round, header, [])
        self._answer(RoundOver())

    def _settle(self, pending: Pending, receipt: Receipt) -> None:
        assignment, layout = pending.assignment, self.layout
        segments = [layout.segments[index] for index in receipt.applied]
        after = (self.state.dual_epoch, receipt.round)
        if segments and self.algorithm.stateful:
            stream = uplink(assignment.seed, assignment.round, self.name)
            frames = by_segment(self.frames)
            decoded = decode_applied(layout, frames, stream, receipt.applied, self.algorithm.trust)
            self.duals[after] = self.algorithm.commit(self.dual(), segments, decoded)
        if segments and self._loss is not None:
            now = (self.state.dual_epoch, self.state.last_applied)
            kept = {now: self.memories[now]} if now in self.memories else {}
            self.memories = {**kept, after: feedback.commit(self.memory(), segments, self._loss)}
        self._step(Settled())
