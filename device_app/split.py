"""A device's part of a round of split training: steps of the front half, each with an answer from the aggregator.

    open ─> [ connect ─> greeting ─> [ batch ─> answer ─> step ─> checkpoint ]* ]* ─> delta of the front half

After every step the spool has the params and the number of the next, so that a device that loses its power goes on
where it was. What it had sent it makes again, byte for byte, and is answered as before; where it cannot, it goes on
with the step after.

A connection that brought at least one answer before it died is made again at once. One that brought none is an error,
which the participant machine waits out; and the other way to the aggregator is tried the next time. Steps end when
four fifths of the round's time are over: what was learnt by then still has to travel.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from device_app.errors import NoWebSocket, RoundGone, SpoolError, TrainerError, Unreachable
from device_app.exchange import Channel, poll_channel, socket_channel
from device_app.front_trainer import Front
from device_app.spool import SplitStep, Spool
from device_app.trainer import Trained
from device_app.transport import Link
from fedge.split.exchange import Answer, Batch, Hello, Over, Refusal
from schemas.messages import Assignment

log = logging.getLogger(__name__)

SHARE_OF_TIME = 0.8
MOST_SECONDS = 1e9
MAX_ANSWER_BYTES = 1 << 27
Transport = Literal["auto", "websocket", "poll"]


@dataclass(slots=True)
class SplitTraining:
    """The steps of one device in the round of ``assignment``. ``polls``: by requests, and not over a WebSocket."""

    link: Link
    spool: Spool
    front: Front
    assignment: Assignment
    transport: Transport = "auto"
    polls: bool = False
    shared: bytes = b""
    """The shared state that the next batch is made with."""
    params: bytes = b""
    """What the front half is before the next step."""
    ends_at: float = math.inf
    """When the loop's clock says that there is no more time for steps."""
    answered: int = 0
    """Steps that were answered."""
    had_no_socket: bool = False
    """Whether something on the way did not let a WebSocket through, and requests did get through."""

    async def run(self) -> Trained:
        """Make the steps and return what came of them.

        Raises:
            Unreachable: the aggregator did not answer; what was done is in the spool.
            RoundGone: the round takes no more steps.
            TrainerError: this device cannot make them, or the aggregator has no use for its batches.
            SpoolError: the disk did not take a step.
        """
        while self._goes_on():
            before = self.answered
            try:
                async with self._channel() as channel:
                    await self._steps(channel)
            except NoWebSocket as error:
                if self.transport == "websocket" or self.polls:
                    raise
                log.warning("no WebSocket, going on by requests", extra={"reason": str(error)})
                self.polls = self.had_no_socket = True
            except Unreachable as error:
                if self.answered == before:
                    self.polls = self.transport != "websocket" and not self.polls
                    raise
                log.info("connection lost", extra={"step": self.front.next, "reason": str(error)})
        return await self.front.close()

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[Channel]:
        mine = self.assignment
        if self.polls or self.transport == "poll":
            yield poll_channel(self.link, mine.run, mine.round, MAX_ANSWER_BYTES)
            return
        async with socket_channel(self.link, mine.run, mine.round, MAX_ANSWER_BYTES) as channel:
            yield channel

    def _goes_on(self) -> bool:
        """Whether there is a step to make, and time for it; the first is made in any case."""
        is_late = asyncio.get_running_loop().time() > self.ends_at and self.front.done > 0
        return self.front.next < self.front.steps and not is_late

    async def _steps(self, channel: Channel) -> None:
        hello = await channel.hello()
        if isinstance(hello, Over):
            raise RoundGone(hello.reason, "round_over")
        await self._agree(hello)
        while self._goes_on():
            answer = await channel.say(await self.front.forward(self.shared))
            await self._take(answer)

    async def _agree(self, hello: Hello) -> None:
        """Find the step to go on with, after the aggregator said which it has."""
        if hello.step == self.front.next + 1:
            batch: Batch = await self.front.forward(self.shared)
            if batch.digest == hello.digest:
                return  # it was taken, and its answer is to be had
        if hello.step > self.front.next:
            log.warning("steps skipped", extra={"from": self.front.next, "to": hello.step})
            await self.front.skip(hello.step)
        if self.front.batch is None and hello.shared and hello.shared != self.shared:
            # Kept before anything is made with it: after a power cut the same batch has to be made again.
            self.shared = hello.shared
            await self._keep()

    async def _take(self, answer: Answer | Refusal | Over) -> None:
        if isinstance(answer, Over):
            raise RoundGone(answer.reason, "round_over")
        if isinstance(answer, Refusal):
            raise TrainerError(f"the aggregator took no step {answer.step}: {answer.reason}")
        self.params = await self.front.backward(answer.gradient, answer.loss)
        self.answered += 1
        self.shared = answer.shared or self.shared
        await self._keep()

    async def _keep(self) -> None:
        """Write down where this device is."""
        left = self.ends_at - asyncio.get_running_loop().time()
        kept = SplitStep(self.front.next, self.params, self.shared, time.time() + min(left, MOST_SECONDS))
        try:
            await asyncio.to_thread(self.spool.write_split, self.assignment, kept)
        except SpoolError as error:
            # The step is made. Without the checkpoint a power cut would cost this device what it learnt since the last.
            log.warning("step not written down", extra={"step": self.front.next, "reason": str(error)})
