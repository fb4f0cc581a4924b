"""Who takes part in a run, and who of them may still send the update of a round that is over.

``outstanding`` is what the participations without an outcome say, but for those of the open round: it changes in the
transactions that open and end a round, and in no other way. ``idle`` is in memory only: devices that owe an update and
have asked for other work, so that nothing of it will come. Their receipts are written with the next transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.ids import DeviceId
from schemas.messages import Assignment
from server_app.rows import Member


@dataclass(slots=True)
class Roster:
    """The devices of one run."""

    members: dict[DeviceId, Member] = field(default_factory=dict)
    outstanding: Mapping[DeviceId, Assignment] = field(default_factory=dict)
    idle: set[DeviceId] = field(default_factory=set)

    def owes(self, device: DeviceId, run: str, number: int) -> bool:
        """Whether the device's update of round ``number`` of ``run``, which is over, may still come."""
        asked = self.outstanding.get(device)
        return asked is not None and (asked.run, asked.round) == (run, number)

    def note_poll(self, device: DeviceId, pending: tuple[str, int] | None) -> None:
        """Note that ``device`` asked for work while it held the update ``pending``.

        Who has a late update to send names it, and who still trains does not ask: any other will not send it.
        """
        asked = self.outstanding.get(device)
        if asked is None or pending == (asked.run, asked.round):
            self.idle.discard(device)
        else:
            self.idle.add(device)

    def end_round(self, outstanding: Mapping[DeviceId, Assignment]) -> None:
        """Take what a round that is over left."""
        self.outstanding = outstanding
        self.idle &= outstanding.keys()
