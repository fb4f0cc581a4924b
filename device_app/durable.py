"""Files that are either whole or not there, whenever the power fails.

    write: NAME.tmp <- bytes, fsync; rename to NAME; fsync the folder

    checked file, little-endian: magic "fdg1" | u32 CRC-32 of what follows the first 8 bytes | u64 length | bytes

A reader of a checked file gets exactly what was written, or ``StateLost``. ``Disk.on_step`` is called after every
step that could be a process's last: tests stop there.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_app.errors import SpoolError, StateLost

MAGIC = b"fdg1"
_HEAD_BYTES = 16

Piece = bytes | memoryview


def _no_step(name: str) -> None:
    """Let the step pass."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Writes, reads and deletes files so that a crash leaves the old file or the new one."""

    on_step: Callable[[str], None] = _no_step

    def write(self, path: Path, pieces: Sequence[Piece], mode: int = 0o644) -> None:
        """Make ``path`` hold ``pieces``, durably.

        Raises:
            SpoolError: the disk would not take it; the file is as it was.
        """
        unfinished = path.with_name(path.name + ".tmp")
        try:
            with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
                for piece in pieces:
                    file.write(piece)
                self.on_step(f"filled {path.name}")
                file.flush()
                os.fsync(file.fileno())
            self.on_step(f"synced {path.name}")
            unfinished.replace(path)
            self.on_step(f"renamed {path.name}")
            _sync_folder(path.parent)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise SpoolError(f"could not write {path}: {error.strerror or error}") from error
        self.on_step(f"wrote {path.name}")

    def delete(self, path: Path) -> None:
        """Make sure that ``path`` is not there. A crash may bring it back once."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise SpoolError(f"could not delete {path}: {error.strerror or error}") from error
        self.on_step(f"deleted {path.name}")

    def write_checked(self, path: Path, pieces: Sequence[Piece]) -> None:
        """Make ``path`` hold ``pieces`` with a length and a checksum in front."""
        length = sum(memoryview(piece).nbytes for piece in pieces)
        tail = length.to_bytes(8, "little")
        checksum = zlib.crc32(tail)
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
        self.write(path, [MAGIC + checksum.to_bytes(4, "little") + tail, *pieces])

    def read_checked(self, path: Path) -> bytes:
        """Return what ``write_checked`` was given, in one piece.

        Raises:
            StateLost: there is no such file, or it is cut off or altered.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise StateLost(f"expected a file {path}, got none") from error
        except OSError as error:
            raise SpoolError(f"could not read {path}: {error.strerror or error}") from error
        length = int.from_bytes(data[8:_HEAD_BYTES], "little")
        if data[:4] != MAGIC or len(data) != _HEAD_BYTES + length:
            raise StateLost(f"expected {path} to hold {length} checked bytes, got {len(data)} in all")
        if zlib.crc32(memoryview(data)[8:]) != int.from_bytes(data[4:8], "little"):
            raise StateLost(f"expected {path} to match its checksum; it was altered")
        return data[_HEAD_BYTES:]


PLAIN_DISK = Disk()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
