"""What a device asks of the aggregator, as typed calls over a ``Link``.

enroll   POST /v1/enroll                          introduce() -> the device's id
work     GET  /v1/work?wait=S[&run=R&round=N]     poll() -> an assignment, a receipt, or nothing
model    GET  /v1/runs/R/download?round=N         download() -> frames
update   PUT  /v1/runs/R/rounds/N/updates/me      upload() -> which segments are durable
         GET  same                                update_status() -> the same answer

upload body: u32 length, little-endian | UpdateHeader | frames in the order given
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from device_app.errors import Declined, Unreachable
from device_app.transport import STALL_SECONDS, Answer, Body, Link
from fedge.errors import FrameError
from fedge.frames import MAX_FRAME_BYTES, FrameReader
from schemas.errors import SchemaError
from schemas.ids import RunId
from schemas.messages import Enroll, Enrolled, UpdateHeader, UpdateStatus, Work
from schemas.packing import M, pack, unpack

MAX_MESSAGE_BYTES = 1 << 20
NO_CONTENT = 204
PIECE_BYTES = 16_384
"""An upload leaves in pieces of this size: small enough to notice a dead link soon."""


@dataclass(frozen=True, slots=True)
class Client:
    """The aggregator, seen by one device."""

    link: Link

    async def introduce(self, message: Enroll) -> Enrolled:
        """Enrol, or refresh what the aggregator knows about this device; safe to repeat."""
        async with self.link.request("POST", "v1/enroll", body=_body([pack(message)])) as answer:
            return await _message(Enrolled, answer)

    async def poll(self, wait_seconds: float, pending: tuple[RunId, int] | None) -> Work:
        """Ask for work and, where ``pending`` names the run and round of an update, for its receipt."""
        query = {"wait": f"{wait_seconds:g}"}
        if pending is not None:
            query |= {"run": pending[0], "round": str(pending[1])}
        patience = STALL_SECONDS / 2 + wait_seconds
        async with self.link.request("GET", "v1/work", query, patience_seconds=patience) as answer:
            return Work() if answer.status == NO_CONTENT else await _message(Work, answer)

    async def download(self, run: RunId, round_number: int, num_segments: int) -> list[bytes]:
        """Return the ``num_segments`` frames of the model that this device starts from, as they came.

        Raises:
            Unreachable: they are cut off, damaged or more than expected.
        """
        reader, frames = FrameReader(), list[bytes]()
        query = {"round": str(round_number)}
        try:
            async with self.link.request("GET", f"v1/runs/{run}/download", query) as answer:
                async for chunk in answer.chunks:
                    frames += reader.feed(chunk)
                    if len(frames) > num_segments or reader.pending_bytes > MAX_FRAME_BYTES:
                        raise FrameError(f"expected {num_segments} frames, got more")
        except FrameError as error:
            raise Unreachable(f"a download that is none: {error}", "bad_download") from error
        if reader.pending_bytes or len(frames) != num_segments:
            raise Unreachable(f"expected {num_segments} frames, got {len(frames)}", "short_download")
        return frames

    async def upload(
        self, run: RunId, round_number: int, header: UpdateHeader, frames: Sequence[bytes]
    ) -> UpdateStatus:
        """Send ``frames`` in the order given; returns which segments the aggregator holds durably."""
        head = pack(header)
        body = _body([len(head).to_bytes(4, "little"), head, *frames])
        async with self.link.request("PUT", _update_path(run, round_number), body=body) as answer:
            return await _message(UpdateStatus, answer)

    async def update_status(self, run: RunId, round_number: int) -> UpdateStatus:
        """Return which segments of this device's update arrived, and whether the round still takes more."""
        async with self.link.request("GET", _update_path(run, round_number)) as answer:
            return await _message(UpdateStatus, answer)


def _update_path(run: RunId, round_number: int) -> str:
    return f"v1/runs/{run}/rounds/{round_number}/updates/me"


def _body(parts: Sequence[bytes]) -> Body:
    return Body(sum(map(len, parts)), lambda: _pieces(parts))


async def _pieces(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    """Yield ``parts``, small ones joined, so that a message does not cost a packet for each frame."""
    held = bytearray()
    for part in parts:
        held += part
        while len(held) >= PIECE_BYTES:
            yield bytes(held[:PIECE_BYTES])
            del held[:PIECE_BYTES]
    if held:
        yield bytes(held)


async def _message(model: type[M], answer: Answer) -> M:
    data = await answer.read(MAX_MESSAGE_BYTES)
    try:
        return unpack(model, data)
    except SchemaError as error:
        raise Declined(f"an answer that is no {model.__name__}: {error}", "bad_answer") from error
