"""The journal of one round: accepted updates, and what was downloaded, in the order it happened, append-only.

Layout, little-endian; the file starts with the 8 bytes ``MAGIC``, then one record after the other:

    offset  type  field
    0       u32   length of what follows the checksum, in bytes
    4       u32   CRC-32 of what follows
    8       u8    kind (``Kind``)
    9       u8    length of the device's id
    10      ..    the device's id, then the body: a packed ``UpdateHeader``, a frame, the counts of a download
                  (``server_app.round_downloads``) or, of no device, those of sockets (``server_app.book``); in the
                  journal of split steps (``server_app.split_journal``) a batch, or what a step was taken with

A record is durable, folded into the sums and indexed before the device hears of it. The journal is the truth, sums and
ledger are caches: taking the records again in the file's order gives the same bits. A crash may leave the last record
torn; ``Journal.open`` cuts it off, and with it whatever follows a record whose checksum does not fit.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, Self

from server_app.blobs import sync_directory
from server_app.errors import JournalError

log = logging.getLogger(__name__)

MAGIC = b"fedgeJ\x01\n"
PREFIX = struct.Struct("<II")
MAX_RECORD_BYTES = 1 << 27
"""The largest batch of activations is half as much."""


class Kind(IntEnum):
    """What a record's body is."""

    HEADER = 1
    FRAME = 2
    REFUSAL = 3
    SPLIT_BATCH = 4
    SPLIT_STEP = 5
    DOWNLOAD = 6
    TRAFFIC = 7
    SPLIT_TOLD = 8


@dataclass(frozen=True, slots=True)
class Record:
    """One thing accepted from one device, or sent to it."""

    kind: Kind
    device: str
    body: bytes

    def to_bytes(self) -> bytes:
        """Return the record as it lies in the file."""
        name = self.device.encode()
        content = bytes((self.kind, len(name))) + name + self.body
        return PREFIX.pack(len(content), zlib.crc32(content)) + content


class Journal:
    """The open file of one round. Methods wait for the disk: call them off the event loop."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._descriptor = descriptor
        # Closing waits for a write under way: its descriptor might be another file's by then.
        self._using = threading.Lock()

    @classmethod
    def open(cls, path: Path, replay: Callable[[Record], None]) -> Self:
        """Open or create the journal at ``path`` and hand every good record to ``replay``, in order.

        What follows the last good record is cut off. The file and its directory entry are durable on return.
        """
        is_new = not path.exists()
        good = len(MAGIC)
        if not is_new:
            with path.open("rb") as file:
                for record, stop in read_records(file):
                    replay(record)
                    good = stop
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        journal = cls(path, descriptor, good)
        journal._repair()
        if is_new:
            sync_directory(path.parent)
        return journal

    def append(self, records: Sequence[Record]) -> None:
        """Write ``records`` and wait until they are durable. After an error the file is as it was before.

        Raises:
            OSError: the disk is full or failing.
            JournalError: an earlier failure could not be undone.
        """
        data = b"".join(record.to_bytes() for record in records)
        with self._using:
            if self._descriptor < 0:
                raise JournalError(f"expected an open journal, {self.path.name} was closed or failed")
            try:
                _write_at(self._descriptor, data, self.size_bytes)
                os.fdatasync(self._descriptor)
            except OSError:
                self._undo()
                raise
            self.size_bytes += len(data)

    def close(self) -> None:
        """Close the file, after a write under way; closing twice is fine."""
        with self._using:
            self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _repair(self) -> None:
        found = os.fstat(self._descriptor).st_size
        if found > self.size_bytes:
            facts = {"journal": str(self.path), "kept_bytes": self.size_bytes, "cut_bytes": found - self.size_bytes}
            log.warning("journal cut after its last good record", extra=facts)
        if found < self.size_bytes or os.pread(self._descriptor, len(MAGIC), 0) != MAGIC:
            os.ftruncate(self._descriptor, 0)
            _write_at(self._descriptor, MAGIC, 0)
            self.size_bytes = len(MAGIC)
        os.ftruncate(self._descriptor, self.size_bytes)
        os.fsync(self._descriptor)

    def _undo(self) -> None:
        try:
            os.ftruncate(self._descriptor, self.size_bytes)
        except OSError:
            log.exception("journal cannot be cut back, no more records", extra={"journal": str(self.path)})
            self._close()


def read_records(file: BinaryIO) -> Iterator[tuple[Record, int]]:
    """Yield each good record and the offset where it ends; stops at the first that is torn or corrupt."""
    if file.read(len(MAGIC)) != MAGIC:
        return
    offset = len(MAGIC)
    while len(prefix := file.read(PREFIX.size)) == PREFIX.size:
        length, checksum = PREFIX.unpack(prefix)
        content = file.read(length) if length <= MAX_RECORD_BYTES else b""
        record = _parse(content) if len(content) == length and zlib.crc32(content) == checksum else None
        if record is None:
            log.error("bad journal record", extra={"journal": getattr(file, "name", ""), "offset": offset})
            return
        offset += PREFIX.size + length
        yield record, offset


def _parse(content: bytes) -> Record | None:
    if len(content) < 2 or content[0] not in set(Kind) or len(content) < 2 + content[1]:
        return None
    start = 2 + content[1]
    return Record(Kind(content[0]), content[2:start].decode(), content[start:])


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@dataclass(frozen=True, slots=True)
class Entry:
    """A record and what follows once it is durable.

    ``fold`` runs on the disk's thread, ``take`` on the event loop; both in the journal's order, before the append
    returns.
    """

    record: Record
    fold: Callable[[], None]
    take: Callable[[], None]


class GroupCommit:
    """One write and one sync for all that arrived while the last one was under way."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: list[tuple[Sequence[Entry], asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._is_sealed = False

    async def run(self) -> None:
        """Commit until ``seal`` was called and nothing waits; then close the journal."""
        try:
            while self._waiting or not self._is_sealed:
                await self._wake.wait()
                self._wake.clear()
                batch, self._waiting = self._waiting, []
                if batch:
                    await self._commit(batch)
        finally:
            self._journal.close()

    async def append(self, entries: Sequence[Entry]) -> bool:
        """Return True once ``entries`` are durable, folded and taken; False, and nothing done, once sealed.

        Raises:
            OSError, JournalError: they are not durable and count for nothing.
        """
        done = self.put(entries)
        if done is None:
            return False
        await asyncio.shield(done)
        return True

    def put(self, entries: Sequence[Entry]) -> asyncio.Future[None] | None:
        """Have ``entries`` written with the next batch, without waiting for it; None, and nothing done, once sealed."""
        if self._is_sealed:
            return None
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entries, done))
        self._wake.set()
        return done

    def seal(self) -> None:
        """Take no more records; ``run`` returns once those that wait are durable."""
        self._is_sealed = True
        self._wake.set()

    async def _commit(self, batch: Sequence[tuple[Sequence[Entry], asyncio.Future[None]]]) -> None:
        entries = [entry for group, _ in batch for entry in group]
        try:
            await asyncio.to_thread(self._write_and_fold, entries)
        except (OSError, JournalError) as error:
            log.exception("journal write failed", extra={"journal": str(self._journal.path)})
            for _, done in batch:
                if not done.done():
                    done.set_exception(error)
                    done.exception()  # who put it there need not wait: then nobody asks
            return
        for entry in entries:
            entry.take()
        for _, done in batch:
            if not done.done():
                done.set_result(None)

    def _write_and_fold(self, entries: Sequence[Entry]) -> None:
        self._journal.append([entry.record for entry in entries])
        for entry in entries:
            entry.fold()
