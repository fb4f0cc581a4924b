"""Which updates and frames of one round were accepted, by device: what makes an upload safe to repeat.

The journal on disk is the truth, a ledger is its index in memory: rebuilt by taking the same records in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fedge.errors import ProtocolError
from schemas.messages import UpdateHeader


class Verdict(StrEnum):
    """What to do with something a device sent."""

    NEW = "new"
    DUPLICATE = "duplicate"


class Conflict(ProtocolError):
    """A second, different update or frame where one was accepted already."""


@dataclass(slots=True)
class Delivery:
    """What one device delivered: its header, and the checksum of each frame by segment."""

    header: UpdateHeader
    checksums: dict[int, int] = field(default_factory=dict)

    @property
    def segments(self) -> tuple[int, ...]:
        """Return the segments that arrived, ascending."""
        return tuple(sorted(self.checksums))


class Ledger:
    """The deliveries of one round; ``num_segments`` make an update complete, of the devices in ``own`` so many."""

    def __init__(self, num_segments: int, own: Mapping[str, int] | None = None) -> None:
        self.num_segments = num_segments
        self.own = own or {}
        self.deliveries: dict[str, Delivery] = {}

    def check_header(self, device: str, header: UpdateHeader) -> Verdict:
        """Say whether ``header`` is the first of ``device`` or the one accepted before.

        Raises:
            Conflict: another update of this device was accepted in this round.
        """
        delivery = self.deliveries.get(device)
        if delivery is None:
            return Verdict.NEW
        if delivery.header.update != header.update:
            raise Conflict(f"expected update {delivery.header.update} of {device}, got {header.update}")
        return Verdict.DUPLICATE

    def take_header(self, device: str, header: UpdateHeader) -> None:
        """Accept ``header``; taking it twice changes nothing."""
        if self.check_header(device, header) is Verdict.NEW:
            self.deliveries[device] = Delivery(header)

    def check_frame(self, device: str, segment: int, checksum: int) -> Verdict:
        """Say whether a frame is new or repeats one accepted before.

        Raises:
            Conflict: a different frame of this segment was accepted, or no header came first.
        """
        delivery = self.deliveries.get(device)
        if delivery is None:
            raise Conflict(f"expected an update header of {device} before its frames, got none")
        known = delivery.checksums.get(segment)
        if known is None:
            return Verdict.NEW
        if known != checksum:
            raise Conflict(f"expected checksum {known:08x} of segment {segment} again, got {checksum:08x}")
        return Verdict.DUPLICATE

    def take_frame(self, device: str, segment: int, checksum: int) -> Verdict:
        """Accept a frame; says whether it was new."""
        verdict = self.check_frame(device, segment, checksum)
        self.deliveries[device].checksums[segment] = checksum
        return verdict

    def is_complete(self, device: str) -> bool:
        """Whether every segment of the device's update arrived."""
        delivery = self.deliveries.get(device)
        return delivery is not None and len(delivery.checksums) == self.own.get(device, self.num_segments)

    def segments(self, device: str) -> tuple[int, ...]:
        """Return the segments of ``device`` that arrived, ascending; none where it sent nothing."""
        delivery = self.deliveries.get(device)
        return delivery.segments if delivery else ()
