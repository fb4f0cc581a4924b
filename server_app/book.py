"""The open round in memory: what was asked, what arrived, and the running sums.

Everything but the coordinator's state can be had again from the journal, record by record in the file's order: the
ledger, the refusals, what was downloaded, and sums of the same bits.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedge.aggregation import SegmentSums
from fedge.frames import Frame, read_frame
from fedge.layout import Layout, Vector
from fedge.protocol.coordinator import DeviceGone, Event, Round, UpdateReceived
from fedge.protocol.ledger import Ledger
from fedge.protocol.offer import part_of
from fedge.protocol.staleness import Ending, end, may_come, step_of
from fedge.update import Stream, Trust, decode_delta, uplink
from fedge.weighting import error_of
from schemas.ids import DeviceId, RunId
from schemas.messages import Assignment, Refusal, UpdateHeader, UpdateStatus
from schemas.packing import pack, unpack
from schemas.status import RoundPhase, RoundStatus, SplitStatus, Traffic
from server_app.body import Body
from server_app.errors import Refused
from server_app.journal import Entry, GroupCommit, Journal, Kind, Record
from server_app.round_downloads import RoundDownloads
from server_app.traffic import Account

TRAFFIC = struct.Struct("<QQ")
"""The body of a record of that kind, little-endian: bytes up, bytes down."""


@dataclass(slots=True)
class Book:
    """One round that takes updates. ``report`` hands events to the coordinator.

    ``assignments`` are the cohort's, ``late`` those of devices whose update of an earlier round may still come.
    ``weights`` are the devices' weights in the mean, from what is on record and not from what an update says; ``trust``
    is the algorithm's, by which decoded frames are multiplied.
    ``sizes`` are how many examples devices of the cohort have.
    ``carried`` is what sockets had carried for the round before the aggregator was started again, as far as is known.
    ``conflicts`` are devices that sent another update or frame than before: this round they will not get whole.
    """

    run: RunId
    round: Round
    opened_at: float
    layout: Layout
    assignments: Mapping[DeviceId, Assignment]
    weights: Mapping[DeviceId, float]
    trust: Trust
    ledger: Ledger
    sums: SegmentSums
    late: Mapping[DeviceId, Assignment] = field(default_factory=dict)
    max_staleness: int = 0
    sizes: Mapping[DeviceId, int] = field(default_factory=dict)
    carried: Traffic = field(default_factory=Traffic)
    refusals: dict[DeviceId, UpdateHeader] = field(default_factory=dict)
    conflicts: set[DeviceId] = field(default_factory=set)
    fetched: set[DeviceId] = field(default_factory=set)
    uploads: dict[DeviceId, Body] = field(default_factory=dict)
    turns: dict[DeviceId, asyncio.Lock] = field(default_factory=dict)
    frame_bytes: Account = field(default_factory=Account)
    float32_bytes: Account = field(default_factory=Account)
    downloads: dict[DeviceId, asyncio.Transport] = field(default_factory=dict)
    downloaded: RoundDownloads = field(init=False)
    commit: GroupCommit | None = None
    committing: asyncio.Task[None] | None = None
    report: Callable[[Event], None] = lambda event: None

    def __post_init__(self) -> None:
        self.downloaded = RoundDownloads(self.frame_bytes, self.float32_bytes)

    def asked(self, device: DeviceId) -> Assignment | None:
        """Return what ``device`` was asked, in this round or in an earlier one whose update may still come."""
        return self.assignments.get(device) or self.late.get(device)

    def assignment(self, device: DeviceId, number: int) -> Assignment:
        """Return what ``device`` was asked in round ``number``.

        Raises:
            Refused: 403, it was not invited.
        """
        found = self.asked(device)
        if found is None or found.round != number:
            raise Refused(403, "not_invited", f"{device} was not invited to round {number} of {self.run}")
        return found

    def part(self, device: DeviceId) -> Layout:
        """Return the layout of what ``device`` was asked to train: the model's, or that of its front half."""
        return part_of(self.layout, self._owed(device))

    def at_work(self) -> int:
        """Return how many devices train the front half right now: invited, come for their work, and not done."""
        fronts = [device for device, asked in self.assignments.items() if asked.split is not None]
        return sum(device in self.fetched and self.wants(device) for device in fronts)

    def split_steps(self, device: DeviceId) -> int:
        """Return how many steps of its front half ``device`` was asked for."""
        asked = self.assignments.get(device)
        return 0 if asked is None or asked.split is None else asked.split.steps

    def wants(self, device: DeviceId) -> bool:
        """Whether ``device`` was asked and still owes something in this round."""
        invited = self.round.is_open and self.asked(device) is not None
        is_done = device in self.refusals or device in self.conflicts or self.ledger.is_complete(device)
        return invited and not is_done

    def note_conflict(self, device: DeviceId, why: str) -> None:
        """Wait for ``device`` no longer, and ask it for nothing more: what it holds is not what it began to send."""
        if device not in self.conflicts and not self.ledger.is_complete(device):
            self.conflicts.add(device)
            self.report(DeviceGone(device, f"conflict: {why}"))

    def stream(self, device: DeviceId) -> Stream:
        """Return what the seeds of the device's frames derive from: the round that it trained in."""
        asked = self._owed(device)
        return uplink(asked.seed, asked.round, device)

    def rounds_late(self, device: DeviceId) -> int:
        """Return how many rounds before this one the device was asked."""
        return self.round.number - self._owed(device).round

    def header_entry(self, device: DeviceId, header: UpdateHeader) -> Entry:
        """Return the header of a device's update as an entry of the journal."""
        record = Record(Kind.HEADER, device, pack(header))
        return Entry(record, _nothing, lambda: self.ledger.take_header(device, header))

    def refusal_entry(self, device: DeviceId, header: UpdateHeader) -> Entry:
        """Return a device's refusal as an entry of the journal."""
        return Entry(Record(Kind.REFUSAL, device, pack(header)), _nothing, lambda: self._take_refusal(device, header))

    def frame_entry(self, device: DeviceId, data: bytes, frame: Frame, x: Vector) -> Entry:
        """Return one checked and decoded frame, ``x`` what it counts for, as an entry of the journal."""
        weight, error, step = self.weights[device], error_of(frame), step_of(self.rounds_late(device))
        return Entry(
            Record(Kind.FRAME, device, data),
            lambda: self.sums.add(frame.segment, x, weight, error, step),
            lambda: self._take_frame(device, data, frame),
        )

    def replay(self, record: Record) -> None:
        """Take a record of the journal again."""
        device = DeviceId(record.device)
        if record.kind is Kind.HEADER:
            self.ledger.take_header(device, unpack(UpdateHeader, record.body))
        elif record.kind is Kind.REFUSAL:
            self.refusals[device] = unpack(UpdateHeader, record.body)
        elif record.kind is Kind.DOWNLOAD:
            self.downloaded.replay(record)
        elif record.kind is Kind.TRAFFIC:
            up, down = TRAFFIC.unpack(record.body)
            self.carried = Traffic(up=up, down=down)
        else:
            frame = read_frame(record.body)
            entry = self.frame_entry(device, record.body, frame, decode_delta(frame, self.stream(device), self.trust))
            entry.fold()
            entry.take()

    def updates(self) -> dict[str, str]:
        """Return the complete updates of the cohort, by device in the order of their first frame."""
        deliveries, cohort = self.ledger.deliveries, set(self.round.cohort)
        complete = {name: d for name, d in deliveries.items() if self.ledger.is_complete(name) and name in cohort}
        return {name: delivery.header.update for name, delivery in complete.items()}

    def is_dual_lost(self) -> bool:
        """Whether a device said that its dual no longer fits the server's h."""
        return any(header.refusal is Refusal.STATE_LOST for header in self.refusals.values())

    def mean_loss(self) -> float | None:
        """Return the mean local loss of the complete updates that stated one, late ones apart."""
        complete = [device for device in self.updates() if device in self.assignments]
        headers = [self.ledger.deliveries[device].header for device in complete]
        losses = [header.loss for header in headers if header.loss is not None]
        # Divided first: a sum of losses that are all finite may not be.
        mean = sum(loss / len(losses) for loss in losses)
        return mean if losses and math.isfinite(mean) else None

    def ending(self, idle: Collection[DeviceId], dual_epoch: int | None) -> Ending[DeviceId]:
        """Return what the round leaves, once it is over; ``dual_epoch`` is that of the next, None where there is none.

        ``idle`` are devices that have asked for other work while they owed a late update.
        """
        asked = {**self.assignments, **self.late}
        absent = {device for device in self.assignments if device not in self.fetched}
        not_at_work = {*absent, *self.refusals, *self.conflicts, *idle}
        return end(self.round, self.ledger, asked, not_at_work, dual_epoch, self.max_staleness)

    def status(self, device: DeviceId) -> UpdateStatus:
        """Return which segments of the device's update are durable.

        As the round closes an update of which nothing came may still be for the next: who trains need not stop.
        """
        delivery, asked = self.ledger.deliveries.get(device), self._owed(device)
        stays = delivery is None and may_come(asked, self.round.number + 1, asked.dual_epoch, self.max_staleness)
        return UpdateStatus(
            run=self.run,
            round=asked.round,
            update=delivery.header.update if delivery else None,
            segments=self.ledger.segments(device),
            is_complete=self.ledger.is_complete(device),
            is_open=self.round.is_open or stays,
        )

    def round_status(
        self, traffic: Traffic, closed_at: float | None = None, split: SplitStatus | None = None
    ) -> RoundStatus:
        """Return what people see of the round."""
        sent = [DeviceId(name) for name in self.ledger.deliveries if self.ledger.segments(name)]
        complete = [name for name in sent if self.ledger.is_complete(name)]
        late = {} if self.round.phase is RoundPhase.ABANDONED else {name: self.rounds_late(name) for name in sent}
        return RoundStatus(
            round=self.round.number,
            phase=self.round.phase,
            cohort=tuple(DeviceId(name) for name in self.round.cohort),
            updates=tuple(name for name in complete if name in self.assignments),
            partial=tuple(name for name in sent if name not in complete and name in self.assignments),
            late={name: rounds for name, rounds in late.items() if rounds},
            gone=tuple(DeviceId(name) for name in self.round.gone),
            reason=self.round.reason,
            opened_at=self.opened_at,
            closed_at=closed_at,
            loss=self.mean_loss(),
            shrunk_by=self.sums.shrunk_by,
            bytes_down=dict(+self.downloaded.by_device),
            split=split,
            perturbation=sum(lost) / len(lost) if (lost := self.downloaded.perturbations.values()) else None,
            traffic=traffic,
            frame_bytes=_with_split(self.frame_bytes.snapshot(), split),
            float32_bytes=_with_split(self.float32_bytes.snapshot(), split, is_float32=True),
        )

    def note_traffic(self, traffic: Traffic) -> None:
        """Have the journal say what sockets have carried for the round until now."""
        if self.commit is not None:
            record = Record(Kind.TRAFFIC, "", TRAFFIC.pack(traffic.up, traffic.down))
            self.commit.put([Entry(record, _nothing, _nothing)])

    async def seal(self, traffic: Traffic) -> None:
        """Take no more frames and wait for those under way; what was downloaded and carried is written down."""
        if self.commit is not None and self.committing is not None:
            self.note_traffic(traffic)
            self.downloaded.put_all(self.commit)
            self.commit.seal()
            await asyncio.wait([self.committing])

    @contextmanager
    def downloading(self, device: DeviceId, transport: asyncio.Transport | None) -> Iterator[None]:
        """Let ``device`` have one download at a time: a new one hangs up on the one before, as uploads do."""
        before = self.downloads.get(device)
        if before is not None and before is not transport:
            before.abort()
        if transport is not None:
            self.downloads[device] = transport
        try:
            yield
        finally:
            if self.downloads.get(device) is transport:
                self.downloads.pop(device, None)

    def _owed(self, device: DeviceId) -> Assignment:
        return self.assignments[device] if device in self.assignments else self.late[device]

    def _take_frame(self, device: DeviceId, data: bytes, frame: Frame) -> None:
        self.ledger.take_frame(device, frame.segment, int.from_bytes(data[16:20], "little"))
        self.frame_bytes.up += len(data)
        self.float32_bytes.up += 4 * frame.count
        if self.ledger.is_complete(device) and device in self.round.cohort:
            self.report(UpdateReceived(device, self.ledger.deliveries[device].header.update))

    def _take_refusal(self, device: DeviceId, header: UpdateHeader) -> None:
        self.refusals[device] = header
        self.report(DeviceGone(device, _why(header)))


def _with_split(frames: Traffic, split: SplitStatus | None, is_float32: bool = False) -> Traffic:
    """Return bytes of frames with those of split steps; as float32, activations and gradients alone count."""
    if split is None:
        return frames
    own = split.float32_bytes if is_float32 else split.bytes
    return Traffic(up=frames.up + own.up, down=frames.down + own.down)


def open_book(book: Book, path: Path) -> None:
    """Open the round's journal, and take again what it holds. Further records go through ``book.commit``.

    Waits for the disk: call it off the event loop.
    """
    report, book.report = book.report, lambda event: None
    journal = Journal.open(path, book.replay)
    book.report = report
    # What was carried is on record once a minute, frames at once: sockets carried these at least.
    frames, carried = book.frame_bytes.snapshot(), book.carried
    book.carried = Traffic(up=max(carried.up, frames.up), down=max(carried.down, frames.down))
    book.commit = book.downloaded.commit = GroupCommit(journal)


def gone_of(book: Book) -> dict[str, str]:
    """Return which devices refused, and why, after a replay."""
    return {device: _why(header) for device, header in book.refusals.items()}


def _why(header: UpdateHeader) -> str:
    return f"{header.refusal}: {header.reason}" if header.reason else str(header.refusal)


def _nothing() -> None:
    """Neither a header nor what sockets carried moves a sum."""
