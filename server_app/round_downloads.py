"""What the devices of one round download: counted as it begins, in the round's journal before its last piece leaves.

    begin: counted whole ── pieces leave ─┬─ journal ── the last piece leaves
                                          └─ it breaks off: what had not left is taken back ── journal

So where a device has all of it the count is durable: by one record for a download, which shares its write and its sync
with what else waits (``server_app.journal``), and nothing for a piece. A crash loses the counts of downloads under way.
An aggregator that ends in order writes those down too, as ``put_all`` has it. Pieces are counted as they are handed to
the connection: where a download breaks off, what lay in its buffers counts.

The body of a record DOWNLOAD, little-endian: bytes u64 | the same vectors as float32 u64, 0 where it broke off |
E‖ŵ - w‖² of what comes of it f64.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field

from schemas.ids import DeviceId
from server_app.errors import JournalError
from server_app.journal import Entry, GroupCommit, Kind, Record
from server_app.traffic import Account

BODY = struct.Struct("<QQd")


@dataclass(slots=True, eq=False)
class Sending:
    """One download: ``size`` bytes, of which ``sent`` have left."""

    device: DeviceId
    size: int
    float32_bytes: int
    perturbation: float
    sent: int = 0

    @property
    def record(self) -> Record:
        """What the journal holds of it, as far as it has come."""
        bare = self.float32_bytes if self.sent == self.size else 0
        return Record(Kind.DOWNLOAD, self.device, BODY.pack(self.sent, bare, self.perturbation))


@dataclass(slots=True)
class RoundDownloads:
    """The downloads of one round. ``frames`` and ``bare`` are the round's accounts, ``commit`` its journal."""

    frames: Account
    bare: Account
    commit: GroupCommit | None = None
    by_device: Counter[DeviceId] = field(default_factory=Counter)
    perturbations: dict[DeviceId, float] = field(default_factory=dict)
    _owed: set[Sending] = field(default_factory=set)

    def begin(self, device: DeviceId, size: int, float32_bytes: int, perturbation: float) -> Sending:
        """Count a download that is about to be sent; ``end`` is owed for it."""
        sending = Sending(device, size, float32_bytes, perturbation)
        self._count(device, size, float32_bytes)
        self.perturbations[device] = perturbation
        self._owed.add(sending)
        return sending

    async def leave(self, sending: Sending, length: int) -> None:
        """Note that a piece of ``length`` bytes leaves now."""
        sending.sent += length
        if sending.sent == sending.size:
            await self._write(sending)

    async def end(self, sending: Sending) -> None:
        """Take back what did not leave, and write the rest down if that is not done."""
        missing = sending.size - sending.sent
        if missing:
            self._count(sending.device, -missing, -sending.float32_bytes)
        await self._write(sending)

    def put_all(self, commit: GroupCommit) -> None:
        """Have written what is not yet, of downloads under way what has left: ``commit`` is about to be sealed."""
        owed, self._owed = self._owed, set()
        if owed:
            commit.put([_entry(sending) for sending in owed])

    def replay(self, record: Record) -> None:
        """Take a record of the journal again."""
        sent, bare, perturbation = BODY.unpack(record.body)
        device = DeviceId(record.device)
        self._count(device, sent, bare)
        self.perturbations[device] = perturbation

    def _count(self, device: DeviceId, size: int, float32_bytes: int) -> None:
        self.frames.down += size
        self.bare.down += float32_bytes
        self.by_device[device] += size

    async def _write(self, sending: Sending) -> None:
        """Write down ``sending``, unless it is; where the disk does not take it, it is tried again in the end."""
        if sending not in self._owed or self.commit is None:
            return
        self._owed.remove(sending)
        try:
            await self.commit.append([_entry(sending)])
        except (OSError, JournalError):  # logged where it happened; the device gets its download all the same
            self._owed.add(sending)


def _entry(sending: Sending) -> Entry:
    """Return what goes to the journal; it was counted as it began."""
    return Entry(sending.record, _nothing, _nothing)


def _nothing() -> None:
    """Nothing follows."""
