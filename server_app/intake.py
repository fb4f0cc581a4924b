"""From the bytes of an upload to durable frames.

    body:   u32 length | packed UpdateHeader | frames, in any order, until the body ends

    read -> cut into frames -> bound and check -> known already? -> decode off the loop -> journal -> fold -> index

What was accepted stays accepted whatever follows it in the same body, and whatever becomes of the connection. A frame
that repeats one accepted before is acknowledged and counts once; one that differs is a conflict and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fedge.errors import CodecError, FrameError
from fedge.frames import Frame, FrameReader, read_frame
from fedge.layout import Layout, Vector
from fedge.protocol.ledger import Conflict, Verdict
from fedge.update import Stream, Trust, check_frame, decode_delta, update_bytes
from schemas.errors import PackingError
from schemas.ids import DeviceId
from schemas.messages import UpdateHeader, UpdateStatus
from schemas.packing import unpack
from server_app.body import Body
from server_app.book import Book
from server_app.errors import JournalError, Refused
from server_app.journal import Entry

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 4096


def max_body_bytes(layout: Layout) -> int:
    """Return the size of the largest update of ``layout``: float32 frames and the largest header."""
    return 4 + MAX_HEADER_BYTES + update_bytes(layout, "none", 8.0)


@dataclass(slots=True)
class Intake:
    """Takes uploads of all devices; ``slots`` bounds how many are worked on at a time, ``group`` their frames."""

    slots: asyncio.Semaphore
    group: int

    async def take(self, book: Book, device: DeviceId, number: int, body: Body) -> UpdateStatus:
        """Take one upload of ``device`` for round ``number``.

        Of two at a time, the first ends where it is: its connection is likely dead.

        Raises:
            Refused, PackingError, InvalidInput, FrameError, CodecError, Conflict: why not, or not all of it.
        """
        book.assignment(device, number)
        if device in book.uploads:
            book.uploads[device].cut()
        book.uploads[device] = body
        async with book.turns.setdefault(device, asyncio.Lock()), body.arriving():
            pieces = body.pieces()
            header, rest = await _read_header(pieces, body)
            try:
                if header.refusal is not None:
                    await self._refuse(book, device, header)
                else:
                    await _Upload(self, book, device, number, header).take(rest, pieces, body)
            except Conflict as error:
                book.note_conflict(device, str(error))
                raise
        return book.status(device)

    async def _refuse(self, book: Book, device: DeviceId, header: UpdateHeader) -> None:
        if book.ledger.is_complete(device):
            raise Conflict(f"expected no refusal of {device} after its complete update")
        if device not in book.refusals:
            await append(book, [book.refusal_entry(device, header)])


class _Upload:
    """One upload under way."""

    def __init__(self, intake: Intake, book: Book, device: DeviceId, number: int, header: UpdateHeader) -> None:
        book.ledger.check_header(device, header)
        self.intake, self.book, self.device, self.header = intake, book, device, header
        self.spec, self.stream = book.assignment(device, number).uplink, book.stream(device)

    async def take(self, rest: bytes, pieces: AsyncIterator[bytes], body: Body) -> None:
        """Take the frames, a group at a time; a fault is raised after the good frames before it."""
        reader = FrameReader()
        await self._feed(reader, rest)
        async for piece in pieces:
            await self._feed(reader, piece)
        if reader.pending_bytes and not body.is_cut:
            raise FrameError(f"expected whole frames, got {reader.pending_bytes} bytes of another at the end")

    async def _feed(self, reader: FrameReader, piece: bytes) -> None:
        group: list[bytes] = []
        try:
            for data in reader.feed(piece):
                group.append(data)
                if len(group) == self.intake.group:
                    full, group = group, []
                    await self._take_group(full)
        except FrameError:
            await self._take_group(group)
            raise
        await self._take_group(group)

    async def _take_group(self, group: Sequence[bytes]) -> None:
        async with self.intake.slots:
            fresh, fault = self._sift(group)
            decoded, broken = await asyncio.to_thread(
                _decode, [frame for _, frame in fresh], self.stream, self.book.trust
            )
            good = zip(fresh[: len(decoded)], decoded, strict=True)
            await append(self.book, self._entries([(data, frame, x) for (data, frame), x in good]))
        failure = broken or fault
        if failure is not None:
            raise failure

    def _entries(self, good: Sequence[tuple[bytes, Frame, Vector]]) -> list[Entry]:
        """Return what goes to the journal; the header goes with the first good frame, and never alone."""
        accepted = self.book.ledger.deliveries.get(self.device)
        header = accepted.header if accepted else self.header
        frames = [self.book.frame_entry(self.device, data, frame, x) for data, frame, x in good]
        return frames if accepted or not frames else [self.book.header_entry(self.device, header), *frames]

    def _sift(self, group: Sequence[bytes]) -> tuple[list[tuple[bytes, Frame]], Exception | None]:
        """Return the frames that are good and new, up to the first that is bad."""
        fresh: list[tuple[bytes, Frame]] = []
        seen: dict[int, bytes] = {}
        for data in group:
            try:
                frame = read_frame(data)
                check_frame(self.book.part(self.device), frame, self.spec.codec, self.spec.bits)
                verdict = self._verdict(data, frame)
                if seen.setdefault(frame.segment, data) != data:
                    raise Conflict(f"expected the same frame of segment {frame.segment} again, got another")
            except (FrameError, Conflict) as error:
                return fresh, error
            if verdict is Verdict.NEW and all(frame.segment != other.segment for _, other in fresh):
                fresh.append((data, frame))
        return fresh, None

    def _verdict(self, data: bytes, frame: Frame) -> Verdict:
        if self.device not in self.book.ledger.deliveries:
            return Verdict.NEW
        return self.book.ledger.check_frame(self.device, frame.segment, int.from_bytes(data[16:20], "little"))


def _decode(frames: Sequence[Frame], stream: Stream, trust: Trust) -> tuple[list[Vector], CodecError | None]:
    """Decode ``frames`` up to the first that cannot be."""
    decoded: list[Vector] = []
    for frame in frames:
        try:
            decoded.append(decode_delta(frame, stream, trust))
        except CodecError as error:
            return decoded, error
    return decoded, None


async def append(book: Book, entries: Sequence[Entry]) -> None:
    """Return once ``entries`` are durable and counted.

    Raises:
        Refused: 410, the round takes no more; 507, the disk did not take them.
    """
    if not entries:
        return
    try:
        is_taken = book.commit is not None and await book.commit.append(entries)
    except (OSError, JournalError) as error:
        raise Refused(507, "not_stored", f"the aggregator could not write this down: {error}") from error
    if not is_taken:
        raise round_over(book.run, book.round.number)


def round_over(run: str, number: int) -> Refused:
    """Return the refusal of anything for a round that takes no more."""
    return Refused(410, "round_over", f"round {number} of {run} takes no more updates; ask for its receipt")


async def _read_header(pieces: AsyncIterator[bytes], body: Body) -> tuple[UpdateHeader, bytes]:
    """Return the header and what was read beyond it."""
    held = b""
    async for piece in pieces:
        held += piece
        length = int.from_bytes(held[:4], "little")
        if len(held) >= 4 and length > MAX_HEADER_BYTES:
            raise PackingError(f"expected an update header of at most {MAX_HEADER_BYTES} bytes, got {length}")
        if len(held) >= 4 + length and len(held) >= 4:
            return unpack(UpdateHeader, held[4 : 4 + length], MAX_HEADER_BYTES), held[4 + length :]
    if body.is_cut:
        raise ConnectionResetError("the upload broke off before its header was there")
    raise PackingError(f"expected an update header, got a body of {len(held)} bytes")
