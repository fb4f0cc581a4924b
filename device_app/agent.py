"""The agent: a thin shell around the participant machine, for one device.

    event -> step -> write the state down -> perform the actions -> event ...

At most one piece of work (``device_app.work``) is under way, and each ends in one event. While training lasts, a
watcher looks now and then whether the round still takes updates. Errors of the work end here:

    Unreachable, Declined, a disk that is full    Failed: the machine backs off
    RoundGone                                     RoundOver; a poll has no round, so there it is Failed too
    Unauthorised, no task that can be trained     the agent ends: a person is needed
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass

from device_app.client import Client
from device_app.errors import AggregatorError, RoundGone, SpoolError, Unauthorised
from device_app.home import Home
from device_app.spool import Spool
from device_app.trainer import Trainer
from device_app.transport import Link, connect
from device_app.work import Duties
from fedge.errors import ProtocolError
from fedge.protocol.participant import (
    Action,
    CancelTraining,
    Download,
    Event,
    Failed,
    Forget,
    Participant,
    Poll,
    Refuse,
    RoundOver,
    Send,
    Settle,
    Tick,
    Train,
    WakeAt,
    resume,
    step,
)
from fedge.seeds import derive
from schemas.messages import Assignment

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Watch:
    """When training is looked in on: first after ``after_seconds``, then every ``every_seconds``."""

    after_seconds: float = 10.0
    every_seconds: float = 15.0


WATCH = Watch()


def plain(link: Link) -> Link:
    """Return ``link`` as it is."""
    return link


async def run_device(home: Home, trainer: Trainer, wrap: Callable[[Link], Link] = plain, watch: Watch = WATCH) -> None:
    """Run the device of ``home`` until cancelled. ``wrap`` may put another link around the real one.

    Raises:
        HomeError: the home folder lacks something, or another agent uses it.
        Unauthorised: the aggregator does not know this device.
        TrainerError: none of its tasks can be trained.
    """
    config, credential = home.config(), home.credential()
    home.expect_enrolled()
    spool = Spool(home.spool_path, home.disk)
    with home.locked():
        async with connect(config, credential) as link:
            duties = Duties(config, Client(wrap(link)), spool, trainer, credential)
            await Agent(config.name, duties, spool, derive("backoff", credential), watch).run()


class Agent:
    """One device: its state, its events, and the work under way."""

    def __init__(self, name: str, duties: Duties, spool: Spool, seed: int, watch: Watch = WATCH) -> None:
        self.name, self.duties, self.spool, self.seed, self.watch = name, duties, spool, seed, watch
        self.state = Participant()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._now = _steady_clock()

    async def run(self) -> None:
        """Perform what the state in the spool still owes, then answer events until cancelled."""
        async with _single_errors(), asyncio.TaskGroup() as tasks:
            bench = _Bench(tasks, self._events)
            self.state = await asyncio.to_thread(self.spool.open)
            for action in self._owed():
                await self._perform(action, bench)
            while True:
                for action in await self._take(await self._events.get()):
                    await self._perform(action, bench)

    def _owed(self) -> list[Action]:
        try:
            return resume(self.state, self._now())
        except ProtocolError as error:
            log.warning("state makes no sense, starting as a new device", extra={"reason": str(error)})
            self.state = Participant()
            return resume(self.state, self._now())

    async def _take(self, event: Event) -> list[Action]:
        """Step, write the state down, return what is to be done."""
        before, now = self.state, self._now()
        after, actions = step(before, event, now, self.seed)
        if after != before:
            try:
                await asyncio.to_thread(self.spool.write_state, after)
            except SpoolError as error:
                # Without its state on disk the device does nothing new: it tries the present phase's work again.
                log.error("state not written", extra={"device": self.name, "reason": str(error)})
                after, actions = step(before, Failed(str(error)), now, self.seed)
        self._report(before, event, after)
        self.state = after
        return actions

    def _report(self, before: Participant, event: Event, after: Participant) -> None:
        facts: dict[str, object] = {"device": self.name, "event": type(event).__name__}
        if isinstance(event, Failed):
            wait = (after.retry_at or self._now()) - self._now()
            facts |= {"reason": event.reason, "failures": after.failures, "wait_seconds": round(wait, 1)}
            log.warning("waiting to try again", extra=facts)
        elif before.phase is not after.phase:
            named = after.assignment or (after.pending.assignment if after.pending else None)
            if named is not None:
                facts |= {"run": named.run, "round": named.round}
            log.info(f"{before.phase} -> {after.phase}", extra=facts)

    async def _perform(self, action: Action, bench: _Bench) -> None:
        match action:
            case Forget():
                await self._forget()
            case WakeAt(at):
                asyncio.get_running_loop().call_later(max(0.0, at - self._now()), self._events.put_nowait, Tick())
            case CancelTraining():
                bench.clear()
            case Train(assignment):
                bench.begin(_as_event(self.duties.train(self.state, assignment)))
                bench.watch(self._look_in(assignment))
            case Poll(pending):
                bench.begin(_as_event(self.duties.poll(pending), if_gone=Failed("the aggregator offers no work")))
            case _:
                bench.begin(_as_event(self._other_work(action)))

    def _other_work(self, action: Action) -> Coroutine[None, None, Event]:
        match action:
            case Download(assignment):
                return self.duties.download(self.state, assignment)
            case Send(pending):
                return self.duties.send(pending)
            case Settle(pending, receipt):
                return self.duties.settle(self.state, pending, receipt)
            case Refuse(assignment, refusal, reason):
                return self.duties.refuse(assignment, refusal, reason)
            case _:
                raise ProtocolError(f"no work is known for {type(action).__name__}")

    async def _forget(self) -> None:
        try:
            await asyncio.to_thread(self.spool.forget, self.state)
        except SpoolError as error:
            log.error("spool not tidied", extra={"device": self.name, "reason": str(error)})

    async def _look_in(self, assignment: Assignment) -> Event:
        """Wait until nobody waits for the training of ``assignment`` any more."""
        await asyncio.sleep(self.watch.after_seconds)
        while True:
            if not await self.duties.is_round_open(assignment):
                return RoundOver()
            await asyncio.sleep(self.watch.every_seconds)


class _Bench:
    """Holds the one piece of work under way and its watcher; both end with an event on the queue."""

    def __init__(self, tasks: asyncio.TaskGroup, events: asyncio.Queue[Event]) -> None:
        self._tasks, self._events = tasks, events
        self._under_way: list[asyncio.Task[None]] = []

    def begin(self, work: Coroutine[None, None, Event]) -> None:
        """Start ``work``; what was there before is over."""
        self.clear()
        self.watch(work)

    def watch(self, work: Coroutine[None, None, Event]) -> None:
        """Start ``work`` beside what is under way."""
        self._under_way.append(self._tasks.create_task(self._finish(work)))

    def clear(self) -> None:
        """Cancel what is under way."""
        for task in self._under_way:
            task.cancel()
        self._under_way.clear()

    async def _finish(self, work: Coroutine[None, None, Event]) -> None:
        self._events.put_nowait(await work)


async def _as_event(work: Coroutine[None, None, Event], if_gone: Event | None = None) -> Event:
    """Return the event that ``work`` ends in, errors included."""
    try:
        return await work
    except Unauthorised:
        raise
    except RoundGone as error:
        log.info("round gone", extra={"reason": str(error)})
        return if_gone or RoundOver()
    except AggregatorError as error:
        return Failed(str(error), error.retry_after_seconds)
    except SpoolError as error:
        return Failed(str(error))


@asynccontextmanager
async def _single_errors() -> AsyncIterator[None]:
    """Let the first error of a task group rise as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from group


def _steady_clock() -> Callable[[], float]:
    """Return a clock in seconds since 1970 that is never set back while the process runs."""
    started = time.time() - time.monotonic()
    return lambda: started + time.monotonic()
