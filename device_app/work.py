"""The work behind each action of the participant machine: do it, say what came of it. Every method may be repeated.

    Poll      GET work                                                       -> WorkArrived
    Download  check task, layout and budget; GET the anchor; spool           -> Downloaded, Refused
    Train     anchor - dual -> trainer -> delta -> frames -> spool           -> UpdateReady, Refused, AnchorLost
    Send      ask what arrived, PUT the rest                                 -> Sent, StateLost
    Settle    move the dual by what the receipt names                        -> Settled, StateLost
    Refuse    PUT a header without frames                                    -> RoundOver

Errors rise: ``agent`` makes events of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from contextlib import suppress

import numpy as np

from device_app.client import Client
from device_app.downloads import Downloads
from device_app.errors import Declined, RoundGone, StateLost, TrainerDied, TrainerError, Unreachable
from device_app.front_trainer import Front, FrontSpec
from device_app.profile import Identity, describe_tasks, introduction
from device_app.split import SHARE_OF_TIME, SplitTraining
from device_app.spool import SplitStep, Spool, StoredUpdate, update_id
from device_app.trainer import Description, LocalRun, Trained, Trainer
from fedge import algorithms, feedback
from fedge.algorithms.base import Algorithm, LocalTerms
from fedge.budget import rate
from fedge.errors import BudgetError, CodecError, FedgeError
from fedge.feedback import Memory
from fedge.layout import Layout, Vector
from fedge.protocol import participant
from fedge.protocol.offer import part_of, train_seed
from fedge.protocol.participant import (
    AnchorLost,
    Downloaded,
    Event,
    Failed,
    Participant,
    Pending,
    Refused,
    RoundOver,
    Sent,
    Settled,
    UpdateReady,
    WorkArrived,
)
from fedge.update import Stream, encode_update, uplink
from schemas.config import DeviceConfig
from schemas.messages import Assignment, Receipt, Refusal, UpdateHeader
from schemas.specs import AlgorithmSpec, LocalSpec, SplitSpec

log = logging.getLogger(__name__)

HASTY_SECONDS = 1.0
"""A long poll that comes back empty sooner than this was not held."""


class Duties:
    """Does the work of one device."""

    def __init__(self, config: DeviceConfig, client: Client, spool: Spool, trainer: Trainer, credential: str) -> None:
        self.config, self.client, self.spool, self.trainer = config, client, spool, trainer
        self.downloads = Downloads(client, spool)
        self._credential = credential
        self._options = {task.task: task.data for task in config.tasks}
        self._identity: Identity | None = None
        self._unsent = ""
        self._polls = False
        self._ends: dict[tuple[str, int], float] = {}

    async def introduce(self) -> Identity:
        """Tell the aggregator what this device can train, once in the life of this process; return who it is.

        Raises:
            TrainerError: not one task of the configuration can be trained.
        """
        if self._identity is None:
            tasks = await describe_tasks(self.trainer, self._options)
            message = introduction(self.config, self._credential, tasks)
            answer = await self.client.introduce(message)
            self._identity = Identity(answer.device, tasks)
            log.info("introduced", extra={"device": answer.device, "tasks": sorted(tasks)})
        return self._identity

    async def poll(self, pending: Pending | None) -> Event:
        """Ask for work."""
        await self.introduce()
        loop = asyncio.get_running_loop()
        asked_at, wait = loop.time(), self.config.wait_seconds
        named = None if pending is None else (pending.assignment.run, pending.assignment.round)
        work = await self.client.poll(wait, named)
        if (asked := work.assignment) is not None:
            self._ends = {(asked.run, asked.round): loop.time() + SHARE_OF_TIME * asked.seconds_left}
        is_empty = work.assignment is None and work.receipt is None
        if is_empty and loop.time() - asked_at < min(HASTY_SECONDS, wait / 2):
            return Failed("the aggregator did not hold the poll")
        return WorkArrived(work.assignment, work.receipt)

    async def download(self, state: Participant, assignment: Assignment) -> Event:
        """Fetch the anchor, if this device can take part at all."""
        me = await self.introduce()
        refused = self._refusal(assignment, me.tasks.get(assignment.task))
        if refused is not None:
            return refused
        layout = _layout(me, assignment)
        return Downloaded(await self.downloads.fetch(assignment, me.device, layout, state.held))

    async def train(self, state: Participant, assignment: Assignment) -> Event:
        """Train, encode and spool the update."""
        me = await self.introduce()
        refused = self._refusal(assignment, me.tasks.get(assignment.task))
        if refused is not None:
            return refused
        layout = _layout(me, assignment)
        try:
            anchor = await self.downloads.anchor(assignment, me.device, layout, state.held)
        except StateLost as error:
            log.warning("download lost", extra={"run": assignment.run, "reason": str(error)})
            return AnchorLost()
        try:
            trained = await self._train(state, assignment, me, anchor)
            update = await asyncio.to_thread(self._encode, state, assignment, me.device, layout, trained)
        except StateLost as error:
            return Refused(Refusal.STATE_LOST, str(error))
        except _Halfway as halfway:
            return Failed(str(halfway), halfway.retry_after, has_progress=True)
        except (TrainerError, FedgeError) as error:
            return Refused(Refusal.TRAINING_FAILED, str(error))
        await asyncio.to_thread(self.spool.write_update, assignment, update)
        self._unsent = update.header.update
        return UpdateReady(update.header.update)

    async def send(self, pending: Pending) -> Event:
        """Send the segments that the aggregator lacks; all of them where none was ever sent."""
        me = await self.introduce()
        run, number = pending.assignment.run, pending.assignment.round
        try:
            stored = await asyncio.to_thread(self.spool.read_update, pending)
        except StateLost as error:
            log.error("update lost", extra={"run": run, "round": number, "reason": str(error)})
            return participant.StateLost()
        held: tuple[int, ...] = ()
        if pending.update != self._unsent:
            status = await self.client.update_status(run, number)
            if status.is_complete or not status.is_open:
                return Sent(status)
            if status.update not in (None, pending.update):
                return Failed(f"the aggregator holds another update of this round, {status.update}")
            held = status.segments
        self._unsent = ""
        order = _uplink(pending.assignment, me.device).order(len(stored.frames))
        missing = [stored.frames[index] for index in order if index not in held]
        status = await self.client.upload(run, number, stored.header, missing)
        facts = {"run": run, "round": number, "segments": len(missing), "bytes": sum(map(len, missing))}
        log.info("update sent", extra={**facts, "is_complete": status.is_complete})
        return Sent(status)

    async def settle(self, state: Participant, pending: Pending, receipt: Receipt) -> Event:
        """Move the dual by the segments that ``receipt`` names."""
        me = await self.introduce()
        mine = pending.assignment
        try:
            described = me.tasks.get(mine.task)
            if described is None or described.of_run(mine.layout) is None:
                raise StateLost(f"expected a task {mine.task} of layout {mine.layout}")
            algorithm, stream, layout = build(mine.algorithm), _uplink(mine, me.device), _layout(me, mine)
            await asyncio.to_thread(self.spool.settle, state, pending, receipt, algorithm, layout, stream)
        except StateLost as error:
            log.error("dual lost", extra={"run": mine.run, "round": mine.round, "reason": str(error)})
            return participant.StateLost()
        return Settled()

    async def refuse(self, assignment: Assignment, refusal: Refusal, reason: str) -> Event:
        """Tell the aggregator to go on without this device."""
        me = await self.introduce()
        described = me.tasks.get(assignment.task)
        header = UpdateHeader(
            update=hashlib.blake2b(f"{refusal} {reason}".encode(), digest_size=16).hexdigest(),
            num_examples=described.num_examples if described else 1,
            refusal=refusal,
            reason=reason,
        )
        await self.client.upload(assignment.run, assignment.round, header, [])
        log.warning("round refused", extra={"round": assignment.round, "refusal": refusal, "reason": reason})
        return RoundOver()

    async def is_round_open(self, assignment: Assignment) -> bool:
        """Whether the aggregator still takes an update of this round; if it does not say, it does."""
        try:
            return (await self.client.update_status(assignment.run, assignment.round)).is_open
        except RoundGone:
            return False
        except (Unreachable, Declined):
            return True

    def _refusal(self, assignment: Assignment, described: Description | None) -> Refused | None:
        """Say why this device cannot take part, from what is known before any byte of the model moves."""
        if described is None:
            known = ", ".join(sorted(self._options))
            return Refused(Refusal.UNKNOWN_TASK, f"expected one of {known}, got {assignment.task}")
        layout = described.of_run(assignment.layout)
        if layout is None:
            expected = f"expected layout {described.layout.digest} of {assignment.task}"
            return Refused(Refusal.LAYOUT_DIFFERS, f"{expected}, got {assignment.layout}")
        layout = part_of(layout, assignment)
        try:
            rate(layout, assignment.uplink, self.config.limits.uplink)
            rate(layout, assignment.downlink, self.config.limits.downlink)
        except BudgetError as error:
            return Refused(Refusal.BUDGET_TOO_SMALL, str(error))
        return None

    async def _train(self, state: Participant, assignment: Assignment, me: Identity, anchor: Vector) -> Trained:
        algorithm, layout = build(assignment.algorithm), _layout(me, assignment)
        dual = None
        if algorithm.stateful:
            run, epoch = assignment.run, assignment.dual_epoch
            dual = await asyncio.to_thread(self.spool.dual, run, epoch, state.last_applied, layout.size)
        terms = algorithm.local_terms(dual, assignment.relative_size)
        if assignment.split is not None:
            return await self._train_front(assignment, assignment.split, me, anchor, terms)
        facts = {"run": assignment.run, "round": assignment.round}
        trained = await self.trainer.train(
            assignment.task,
            self._options[assignment.task],
            anchor,
            terms,
            local_run(assignment.local),
            train_seed(assignment.seed, assignment.round, me.device),
            lambda epoch, loss: log.debug("epoch done", extra={**facts, "epoch": epoch, "loss": loss}),
            split=layout.num_front > 0,
        )
        log.info("trained", extra={**facts, "loss": trained.loss, "num_examples": trained.num_examples})
        return trained

    async def _train_front(
        self, assignment: Assignment, spec: SplitSpec, me: Identity, anchor: Vector, terms: LocalTerms
    ) -> Trained:
        """Train the front half, with the aggregator's answers to each step.

        Raises:
            _Halfway: the aggregator or the trainer is gone, after some steps; they are kept.
        """
        task, options = assignment.task, self._options[assignment.task]
        key = f"{self.config.name} {assignment.run} {assignment.round}"
        kept = await asyncio.to_thread(self.spool.read_split, assignment, anchor.size)
        front = Front(self.trainer, task, options, key)
        how = FrontSpec(spec.quantizer, spec.steps, self.config.keeps_tape)
        seed = train_seed(assignment.seed, assignment.round, me.device)
        steps = SplitTraining(self.client.link, self.spool, front, assignment, self.config.split_transport, self._polls)
        steps.shared = kept.shared if kept else b""
        steps.params = kept.params if kept else np.ascontiguousarray(anchor, np.float32).tobytes()
        steps.ends_at = self._end_of(assignment, kept)
        try:
            resume = (kept.step, kept.params) if kept else None
            await front.open(anchor, terms, local_run(assignment.local), seed, how, resume)
            trained = await steps.run()
        except (Unreachable, TrainerDied) as error:
            if steps.answered:
                raise _Halfway(error) from error
            raise
        finally:
            self._polls = steps.had_no_socket and steps.answered > 0
            with suppress(TrainerDied):
                await front.drop()
        facts = {"run": assignment.run, "round": assignment.round, "steps": front.next, "of": front.steps}
        log.info("front half trained", extra={**facts, "loss": trained.loss, "num_examples": trained.num_examples})
        return trained

    def _end_of(self, assignment: Assignment, kept: SplitStep | None) -> float:
        """Return when steps for ``assignment`` have to end, by the loop's clock: counted from when it came."""
        now, share = asyncio.get_running_loop().time(), SHARE_OF_TIME * assignment.seconds_left
        known = self._ends.get((assignment.run, assignment.round), now + share)
        return known if kept is None else min(known, now + kept.ends_at - time.time())

    def _encode(
        self, state: Participant, assignment: Assignment, device: str, layout: Layout, trained: Trained
    ) -> StoredUpdate:
        frames, loss = self._encoded(state, assignment, _uplink(assignment, device), layout, trained.delta)
        known = trained.loss if math.isfinite(trained.loss) else None
        header = UpdateHeader(update=update_id(frames), num_examples=trained.num_examples, loss=known)
        if loss is not None:
            self.spool.write_loss(assignment, header.update, loss)
        return StoredUpdate(header, tuple(frames))

    def _encoded(
        self, state: Participant, assignment: Assignment, stream: Stream, layout: Layout, delta: Vector
    ) -> tuple[list[bytes], Memory | None]:
        """Return the frames of an update, and with error feedback what they lose.

        A memory that has become so large that no update could carry it is let go.
        """
        spec, trust = assignment.uplink, build(assignment.algorithm).trust
        bits = rate(layout, spec, self.config.limits.uplink)
        if not spec.has_memory:
            return encode_update(layout, delta, stream, spec.codec_name, bits, spec.codec_options), None
        memory = self.spool.memory(assignment.run, assignment.dual_epoch, state.last_applied, layout.size)
        try:
            return feedback.encode(layout, delta, memory, stream, spec.codec_name, bits, spec.codec_options, trust)
        except CodecError as error:
            if memory is None:
                raise
            log.warning("memory let go", extra={"run": assignment.run, "reason": str(error)})
            return feedback.encode(layout, delta, None, stream, spec.codec_name, bits, spec.codec_options, trust)


class _Halfway(Exception):
    """The aggregator, or the trainer, was gone after part of the work was done."""

    def __init__(self, error: Unreachable | TrainerDied) -> None:
        super().__init__(str(error))
        self.retry_after = error.retry_after_seconds if isinstance(error, Unreachable) else None


def _layout(me: Identity, assignment: Assignment) -> Layout:
    """Return the layout of what ``assignment`` asks to train; its digest was looked at before."""
    layout = me.tasks[assignment.task].of_run(assignment.layout)
    if layout is None:
        raise StateLost(f"expected a model of layout {assignment.layout}, the task builds another now")
    return part_of(layout, assignment)


def build(spec: AlgorithmSpec) -> Algorithm:
    """Return the algorithm of ``spec``."""
    return algorithms.build(**spec.model_dump())


def local_run(spec: LocalSpec) -> LocalRun:
    """Return ``spec``, whose learning rate is the round's, as the trainer takes it."""
    return LocalRun(
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        weight_decay=spec.weight_decay,
        clip_norm=spec.clip_norm or None,
        optimizer=spec.optimizer,
    )


def _uplink(assignment: Assignment, device: str) -> Stream:
    return uplink(assignment.seed, assignment.round, device)
