"""The steps of split training, as a device asks for them: over a WebSocket, or by requests where that does not work.

    async with socket_channel(..) as channel:      # or poll_channel
        hello = await channel.hello()
        answer = await channel.say(batch)          # Answer, Refusal or Over

Both say the same frames (``fedge.split.exchange``) to the same address. A WebSocket costs a handshake once and six to
eight bytes a step, a request its headers every time: about 400 bytes. Nothing is tried again here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from device_app.client import NO_CONTENT, body_of
from device_app.errors import Declined
from device_app.transport import STALL_SECONDS, Link, Socket
from fedge.errors import CodecError
from fedge.split.exchange import Answer, Batch, Frame, Hello, Over, Refusal, read_exchange
from schemas.ids import RunId

WAIT_SECONDS = 30.0


class Channel(Protocol):
    """A way to the back half of one round."""

    async def hello(self) -> Hello | Over:
        """Return what the aggregator knows of this device's steps.

        Raises:
            AggregatorError: it does not say.
        """
        ...

    async def say(self, batch: Batch) -> Answer | Refusal | Over:
        """Send a batch and return its answer.

        Raises:
            AggregatorError: there is none; the batch may have been taken all the same.
        """
        ...


@dataclass(frozen=True, slots=True)
class SocketChannel:
    """Steps over a WebSocket."""

    socket: Socket

    async def hello(self) -> Hello | Over:
        """See ``Channel``."""
        frame = _read(await self.socket.receive())
        if not isinstance(frame, Hello | Over):
            raise _unexpected("a greeting", frame)
        return frame

    async def say(self, batch: Batch) -> Answer | Refusal | Over:
        """See ``Channel``."""
        await self.socket.send(batch.to_bytes())
        return _answer(_read(await self.socket.receive()))


@dataclass(frozen=True, slots=True)
class PollChannel:
    """Steps by requests: a POST for each, and long polls until its answer is there."""

    link: Link
    path: str
    round_number: int
    max_bytes: int

    async def hello(self) -> Hello | Over:
        """See ``Channel``."""
        async with self.link.request("GET", self.path, self._query()) as answer:
            frame = _read(await answer.read(self.max_bytes))
        if not isinstance(frame, Hello | Over):
            raise _unexpected("a greeting", frame)
        return frame

    async def say(self, batch: Batch) -> Answer | Refusal | Over:
        """See ``Channel``."""
        patience = STALL_SECONDS / 2 + WAIT_SECONDS
        query = {**self._query(), "wait": f"{WAIT_SECONDS:g}"}
        async with self.link.request("POST", self.path, query, body_of([batch.to_bytes()]), patience) as answer:
            if answer.status != NO_CONTENT:
                return _answer(_read(await answer.read(self.max_bytes)))
        query["step"] = str(batch.step)
        while True:
            async with self.link.request("GET", self.path, query, patience_seconds=patience) as answer:
                if answer.status != NO_CONTENT:
                    return _answer(_read(await answer.read(self.max_bytes)))

    def _query(self) -> dict[str, str]:
        return {"round": str(self.round_number)}


@asynccontextmanager
async def socket_channel(link: Link, run: RunId, round_number: int, max_bytes: int) -> AsyncIterator[SocketChannel]:
    """Hold a WebSocket to the back half of a round.

    Raises:
        NoWebSocket: something on the way does not let it through.
        AggregatorError: there is no connection.
    """
    async with link.socket(_path(run), {"round": str(round_number)}, max_bytes) as socket:
        yield SocketChannel(socket)


def poll_channel(link: Link, run: RunId, round_number: int, max_bytes: int) -> PollChannel:
    """Return the way to the back half of a round by requests."""
    return PollChannel(link, _path(run), round_number, max_bytes)


def _path(run: RunId) -> str:
    return f"v1/runs/{run}/split"


def _read(data: bytes) -> Frame:
    try:
        return read_exchange(data)
    except CodecError as error:
        raise Declined(f"an answer that is no split frame: {error}", "bad_answer") from error


def _answer(frame: Frame) -> Answer | Refusal | Over:
    if not isinstance(frame, Answer | Refusal | Over):
        raise _unexpected("an answer", frame)
    return frame


def _unexpected(expected: str, frame: Frame) -> Declined:
    return Declined(f"expected {expected} of the aggregator, got {type(frame).__name__}", "bad_answer")
