"""The back half of one round's split training, as devices meet it: the shell around ``fedge.protocol.gathering``.

    batch ── waits ── step with all that came together: journal ── worker process ── answers kept ── answered

A step is durable before it is taken and taken before anybody hears of it. What the worker process holds is a cache of
the journal: if the process or the aggregator dies, the same steps with the same batches give the same bits, and every
device's last answer with them. So a batch is counted once, however often it comes. The journal is
``server_app.split_journal``.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedge.errors import FedgeError
from fedge.layout import Vector
from fedge.protocol import gathering
from fedge.protocol.gathering import Arrived, Came, Dropped, Gathering, Last, Left, Stepped, WakeAt
from fedge.protocol.ledger import Conflict
from fedge.protocol.split_counts import Counts
from fedge.split.exchange import NO_DIGEST, Answer, Batch, Hello, Over, Refusal
from fedge.split.message import most_bytes
from fedge.split.options import Options
from schemas.ids import DeviceId
from schemas.status import SplitStatus
from server_app.body import Body
from server_app.errors import JournalError, Refused, ServerError, WorkerDied, WorkerError
from server_app.journal import Journal
from server_app.split_journal import open_journal, records_of, steps_in, suspend

log = logging.getLogger(__name__)

TRIES, PAUSE_SECONDS = 3, 1.0
Parts = Sequence[bytes | memoryview]


class Asks(Protocol):
    """The worker process, as this module uses it."""

    def ask(self, request: Mapping[str, Any], parts: Parts = ()) -> Awaitable[tuple[dict[str, Any], list[bytes]]]:
        """Return the answer to ``request``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What the worker process needs to hold this round's back half: a request "split_open" and its vectors."""

    request: Mapping[str, Any]
    anchor: Vector
    dual: Vector | None

    @property
    def parts(self) -> Parts:
        """The vectors as bytes."""
        vectors = [self.anchor] if self.dual is None else [self.anchor, self.dual]
        return [np.ascontiguousarray(vector, np.float32).data.cast("B") for vector in vectors]


@dataclass(slots=True, eq=False)
class BackHalf:
    """The back half of one round.

    ``at_work`` says how many devices train its front half right now, ``steps_of`` how many steps one has in all.
    ``failure`` says why it cannot go on, empty while it can; ``is_hopeless`` whether it could not in another round.
    """

    recipe: Recipe
    worker: Asks
    path: Path
    gather_seconds: float
    at_work: Callable[[], int]
    steps_of: Callable[[DeviceId], int]
    clock: Callable[[], float]
    failure: str = ""
    is_hopeless: bool = False
    counts: Counts = field(default_factory=Counts)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    is_suspended: bool = False
    """Whether it goes on later: the aggregator ends, and not the round."""
    values: int = 0
    width: int = 0
    turns: int = 1
    bodies: dict[DeviceId, Body] = field(default_factory=dict)
    connections: dict[DeviceId, asyncio.Transport] = field(default_factory=dict)
    _state: Gathering = field(init=False)
    _batches: dict[str, Batch] = field(default_factory=dict)
    _answers: dict[str, Answer | Refusal] = field(default_factory=dict)
    _waiters: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    _shared: bytes = b""
    _given: dict[str, bytes] = field(default_factory=dict)
    _served: set[DeviceId] = field(default_factory=set)
    _inbox: asyncio.Queue[gathering.Event] = field(default_factory=asyncio.Queue)
    _wake_at: float = math.inf
    _journal: Journal | None = None
    _is_abandoned: bool = False
    _is_open: asyncio.Event = field(default_factory=asyncio.Event)
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._state = Gathering(self.gather_seconds)

    # What devices meet

    def came(self, device: DeviceId) -> None:
        """Wait for ``device`` with the next step: it is at work."""
        self._inbox.put_nowait(Came(device))

    def left(self, device: DeviceId) -> None:
        """Wait for ``device`` no longer."""
        self._inbox.put_nowait(Left(device))

    async def hello(self, device: DeviceId) -> Hello | Over:
        """Return what a device that (re)connects has to know."""
        await self.ready()
        if self.over.is_set():
            return self._over(0)
        self.came(device)
        last = self._state.taken.get(device)
        self._given.pop(device, None)
        shared = self._news(device)
        found = Hello(0, NO_DIGEST, shared) if last is None else Hello(last.step + 1, last.digest, shared)
        self.counts.shared += len(shared)
        self.counts.greetings += len(found.to_bytes()) - len(shared)
        return found

    async def exchange(self, device: DeviceId, batch: Batch) -> Answer | Refusal | Over:
        """Return the answer to a batch, once it is there; the same one to the same batch, always.

        Raises:
            Conflict: it contradicts what was taken.
        """
        await self.ready()
        if self.over.is_set():
            return self._over(batch.step)
        if batch.step >= self.turns * self.steps_of(device):
            raise Conflict(f"expected steps below {self.turns * self.steps_of(device)} of {device}, got {batch.step}")
        last = Last(batch.step, batch.digest)
        if gathering.is_repeat(self._state, device, last):
            self.counts.repeats += 1
            self._given.pop(device, None)
        else:
            # Before the first await: of two at a time the second is a repeat, or a conflict.
            self._batches[device] = batch
            self._waiters[device] = asyncio.get_running_loop().create_future()
            self._state, actions = gathering.step(self._state, Arrived(device, last), self.clock())
            self._inbox.put_nowait(gathering.Tick())
            self._note(actions)
        return await self.answer(device, batch.step)

    async def answer(self, device: DeviceId, step: int) -> Answer | Refusal | Over:
        """Return the answer to the batch of ``step``, once it is there.

        Raises:
            Refused: 409, there is no such batch, or none any more.
        """
        await self.ready()
        waiter = self._waiters.get(device)
        if waiter is not None:
            ended = asyncio.create_task(self.over.wait())
            either: set[asyncio.Future[Any]] = {waiter, ended}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
            if waiter.done():
                waiter.result()
        found = self._answers.get(device)
        if found is not None and found.step == step:
            if isinstance(found, Refusal):
                return found
            shared = self._news(device)
            self.counts.shared += len(shared)
            return Answer(step, found.loss, found.gradient, shared)
        if self.over.is_set():
            return self._over(step)
        raise Refused(409, "unknown_step", f"expected a step that {device} has sent, got {step}; send its batch again")

    def most_bytes(self) -> int:
        """Return the most bytes that a frame of a device may have."""
        examples, settings = int(self.recipe.request["batch_size"]), self.recipe.request["quantizer"]
        if not self.values:
            return 1 << 16  # it could not be made, and says so
        between = 64 + examples * (8 + 4 * self.width)
        if settings is None:
            return max(between, 64 + examples * (4 * self.values + 1))
        shape = Options.of(self.values, settings).shape(examples, self.values)
        return max(between, 64 + examples + most_bytes(shape))

    def status(self) -> SplitStatus:
        """Return what is shown."""
        return self.counts.status(self._served)

    @property
    def served(self) -> frozenset[DeviceId]:
        """Devices of whom a batch was taken."""
        return frozenset(self._served)

    # What it does

    async def run(self) -> None:
        """Take steps until ``close``; must not be cancelled in the middle of one."""
        try:
            async with self._busy:
                await self._again()
            while not self.over.is_set():
                async with self._busy:
                    if not self.over.is_set():
                        await self._go_on()
                await self._next()
        except (ServerError, FedgeError, OSError, LookupError, ValueError) as error:
            self._fail(error)  # of this round, whatever it is: the aggregator goes on
        finally:
            self._is_open.set()

    def _fail(self, error: Exception) -> None:
        log.error("back half failed", extra={"journal": str(self.path), "why": str(error)})
        self.failure = str(error) or type(error).__name__
        # What a task or a plan cannot do it cannot do in the next round either; processes and disks may recover.
        self.is_hopeless = isinstance(error, WorkerError) and not isinstance(error, WorkerDied)
        self.over.set()

    async def close(self) -> Vector | None:
        """Take no more steps; return what training changed, float32 ``[d]``, None where no step was taken.

        Raises:
            WorkerError: it failed, now or before.
        """
        await self._is_open.wait()
        self.over.set()
        self._inbox.put_nowait(gathering.Tick())
        async with self._busy:
            if self._journal is not None:
                await asyncio.to_thread(self._journal.close)
            if self.failure:
                raise WorkerError(self.failure)
            if not self._served:
                return None
            _, parts = await self._ask({"ask": "split_delta"})
        return np.frombuffer(parts[0], np.float32)

    async def abandon(self, is_suspended: bool = False) -> None:
        """Take no more steps: what was done is of no use, or if it is suspended will be done again from the journal."""
        self.is_suspended, self._is_abandoned = is_suspended, True
        self.over.set()
        self._inbox.put_nowait(gathering.Tick())
        async with self._busy:
            if self._journal is not None:
                end = partial(suspend, counts=self.counts) if is_suspended else Journal.close
                await asyncio.to_thread(end, self._journal)

    async def ready(self) -> None:
        """Wait until everything in the journal was taken."""
        await self._is_open.wait()

    async def _next(self) -> None:
        """Wait for something to do."""
        ended = None if self._wake_at == math.inf else self._wake_at
        try:
            async with asyncio.timeout_at(ended):
                event = await self._inbox.get()
        except TimeoutError:
            event = gathering.Tick()
        self._wake_at = math.inf
        self._state, actions = gathering.step(self._state, event, self.clock())
        self._note(actions)

    def _note(self, actions: Sequence[gathering.Action]) -> None:
        for action in actions:
            if isinstance(action, WakeAt):
                self._wake_at = action.at

    async def _go_on(self) -> None:
        """Take steps as long as enough batches wait."""
        while self._state.under_way and not self.over.is_set():
            devices = tuple(name for name in self._state.waiting if name in self._state.under_way)
            await self._take(devices)

    async def _take(self, devices: tuple[str, ...]) -> None:
        sent = [(name, self._batches[name]) for name in devices]
        at_work = max(self.at_work(), len(sent))
        assert self._journal is not None
        try:
            await asyncio.to_thread(self._journal.append, records_of(sent, at_work, self.counts))
        except (OSError, JournalError) as error:
            self._drop(devices, error)
            return
        try:
            await self._step(sent, at_work)
        except WorkerDied:
            log.warning("back half is made again", extra={"journal": str(self.path)})
            await self._again()

    def _drop(self, devices: tuple[str, ...], error: Exception) -> None:
        """Let go of batches that could not be written down; their devices will send them again."""
        log.error("split step not written down", extra={"journal": str(self.path), "why": str(error)})
        why = f"the aggregator could not write this down: {error}"
        self._state, actions = gathering.step(self._state, Dropped(devices), self.clock())
        self._note(actions)
        for name in devices:
            del self._batches[name]
            waiter = self._waiters.pop(name)
            waiter.set_exception(Refused(507, "not_stored", why))
            waiter.exception()  # whoever waited may have hung up: then nobody asks

    async def _step(self, sent: Sequence[tuple[str, Batch]], at_work: int) -> None:
        """Have a step taken that is written down, and keep what came of it."""
        request = {"ask": "split_step", "devices": at_work, "sent": [[name, batch.step] for name, batch in sent]}
        parts = [part for _, batch in sent for part in (batch.activations, batch.labels)]
        head, answers = await self.worker.ask(request, parts)
        self._shared = answers[-1]
        losses = []
        for (name, batch), (loss, *values, refusal), data in zip(sent, head["outcomes"], answers, strict=False):
            if refusal:
                self._answers[name] = Refusal(batch.step, refusal)
                self.counts.refused += 1
                log.warning("split batch refused", extra={"device": name, "step": batch.step, "why": refusal})
                continue
            self._answers[name] = answer = Answer(batch.step, loss, data)
            self._served.add(DeviceId(name))
            self.counts.note(batch, answer, *values)
            losses.append(loss)
        self.counts.note_step(losses)
        self._settle({name: Last(batch.step, batch.digest) for name, batch in sent})

    def _settle(self, taken: Mapping[str, Last]) -> None:
        """Let those go who wait for a step that was taken."""
        waited = self._state.waiting
        self._state, actions = gathering.step(self._state, Stepped(taken), self.clock())
        self._note(actions)
        for name in waited.keys() - self._state.waiting.keys():
            del self._batches[name]
            self._waiters.pop(name).set_result(None)

    def _news(self, device: str) -> bytes:
        """Return the shared state, where it is not the one this device was given last."""
        if self._given.get(device) == self._shared:
            return b""
        self._given[device] = self._shared
        return self._shared

    def _over(self, step: int) -> Over:
        """Return that there are no more steps.

        Raises:
            Refused: 503, there are, later.
        """
        if self.is_suspended:
            raise Refused(503, "ending", "the aggregator ends; the round goes on when it is back")
        return Over(step, self.failure or "the round takes no more steps")

    # The journal

    async def _again(self) -> None:
        """Make the back half from the journal, as it was when the last step in it was taken."""
        self._is_open.clear()  # nobody gets the answer of a step that is taken up again for a later one's
        try:
            for attempt in range(TRIES):
                try:
                    return await self._replay()
                except WorkerDied:
                    if attempt == TRIES - 1:
                        raise
                    await asyncio.sleep(PAUSE_SECONDS * attempt)
        except (ServerError, OSError) as error:
            self._fail(error)
            raise
        finally:
            self._is_open.set()

    async def _replay(self) -> None:
        if self._journal is None:
            self._journal = await asyncio.to_thread(open_journal, self.path, self.counts)
        head, _ = await self.worker.ask(self.recipe.request, self.recipe.parts)
        self.values, self.width, self.turns = (int(head[name]) for name in ("values", "width", "turns"))
        now = self.counts
        self.counts, self._shared = Counts(repeats=now.repeats, shared=now.shared, greetings=now.greetings), b""
        self._served.clear()
        steps = steps_in(self.path)
        try:
            while not self._is_abandoned and (found := await asyncio.to_thread(next, steps, None)) is not None:
                await self._step(*found)
        finally:
            await asyncio.to_thread(steps.close)

    async def _ask(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        try:
            return await self.worker.ask(request)
        except WorkerDied:
            await self._again()
            return await self.worker.ask(request)
