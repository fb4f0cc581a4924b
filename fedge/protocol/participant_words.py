"""What a participant hears, and what it has its shell do: the events and actions of ``fedge.protocol.participant``."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.base import Model
from schemas.ids import Digest, RunName
from schemas.messages import Assignment, Receipt, Refusal, UpdateStatus


class Pending(Model):
    """An encoded update in the spool whose receipt has not come yet; ``assignment`` is what it answers."""

    assignment: Assignment
    update: Digest


class Held(Model):
    """The download state that the device has, by its name in ``run``. ``downloads`` counts those taken so far; with
    ``has_anchor`` the params to train from are kept beside it, being others."""

    run: RunName
    state: Digest
    has_anchor: bool = False
    downloads: int = 0


@dataclass(frozen=True, slots=True)
class WorkArrived:
    """The answer to a poll."""

    assignment: Assignment | None
    receipt: Receipt | None


@dataclass(frozen=True, slots=True)
class Downloaded:
    """The anchor of the assignment is durable in the spool, and with it the download state ``held``, if any."""

    held: Held | None = None


@dataclass(frozen=True, slots=True)
class AnchorLost:
    """What was downloaded is not in the spool any more, or damaged."""


@dataclass(frozen=True, slots=True)
class UpdateReady:
    """The encoded update is durable in the spool; ``update`` is its id."""

    update: str


@dataclass(frozen=True, slots=True)
class Sent:
    """The aggregator answered an upload."""

    status: UpdateStatus


@dataclass(frozen=True, slots=True)
class Refused:
    """This device cannot do what it is asked."""

    refusal: Refusal
    reason: str


@dataclass(frozen=True, slots=True)
class RoundOver:
    """The aggregator takes nothing more for the round: closed, unknown, or this device was not invited.

    A conflict is a ``Failed``: the round goes on, and its receipt will say which update counted.
    """


@dataclass(frozen=True, slots=True)
class Settled:
    """The receipt in hand is durable in the spool."""


@dataclass(frozen=True, slots=True)
class StateLost:
    """The spool cannot do what the receipt in hand asks: the dual or the update is gone or damaged."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The phase's work failed and may succeed later; ``retry_after`` is the least wait in seconds, if one was asked.

    ``has_progress``: part of it was done, and will not have to be done again.
    """

    reason: str
    retry_after: float | None = None
    has_progress: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    WorkArrived
    | Downloaded
    | AnchorLost
    | UpdateReady
    | Sent
    | Refused
    | RoundOver
    | Settled
    | StateLost
    | Failed
    | Tick
)


@dataclass(frozen=True, slots=True)
class Poll:
    """Ask for work; ``pending`` names the update whose receipt is wanted."""

    pending: Pending | None


@dataclass(frozen=True, slots=True)
class Download:
    """Fetch the anchor and keep it, with the state it leads to; then ``Downloaded``."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Train:
    """Train from the anchor with the dual named by run, epoch and round, encode, spool; then ``UpdateReady``."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Send:
    """Send what the aggregator does not have yet of the pending update."""

    pending: Pending


@dataclass(frozen=True, slots=True)
class Settle:
    """Make the dual after ``receipt`` from the one before it, durably; then ``Settled``."""

    pending: Pending
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the aggregator that this round goes on without the device; then ``RoundOver``."""

    assignment: Assignment
    refusal: Refusal
    reason: str


@dataclass(frozen=True, slots=True)
class CancelTraining:
    """Stop training; nobody waits for it."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete what no state names any more: anchors, spooled updates, other runs' duals."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a ``Tick`` at this instant."""

    at: float


Action = Poll | Download | Train | Send | Settle | Refuse | CancelTraining | Forget | WakeAt
