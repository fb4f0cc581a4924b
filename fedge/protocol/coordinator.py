"""The server's side of a round.

              CohortChosen          QuotaReached           Aggregated
    SELECTING ───────────> COLLECTING ───────────> AGGREGATING ───────────> CLOSED
        │                   │  ^  │
        │                   └──┘  │ TimedOut: max seconds, too few updates
        │       UpdateReceived,   │
        │       DeviceGone, Tick  v
        └───────────────────> ABANDONED <── Cancelled, from every open phase but AGGREGATING

A round closes as soon as every invited device has been heard (complete update, refusal or loss), or at max updates, or,
once min seconds have passed, at min updates, or at max seconds with at least min updates; otherwise it is abandoned.
Nobody waits for a straggler. Partial updates never close a round; what they delivered counts when it closes.

``step`` is pure. The shell calls it, writes the new round down, then performs the actions; each is safe twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedge.errors import ProtocolError
from schemas.status import RoundPhase

SELECTING, COLLECTING, AGGREGATING, CLOSED, ABANDONED = RoundPhase


@dataclass(frozen=True, slots=True)
class Quota:
    """The four numbers of a round's policy; seconds count from the invitation."""

    min_updates: int
    max_updates: int
    min_seconds: float
    max_seconds: float


@dataclass(frozen=True, slots=True)
class Round:
    """One round. ``updates`` maps a device to its complete update's id, ``gone`` a device to why it was lost."""

    number: int
    quota: Quota
    phase: RoundPhase = SELECTING
    opened_at: float = 0.0
    cohort: tuple[str, ...] = ()
    updates: Mapping[str, str] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def is_open(self) -> bool:
        """Whether updates are still taken."""
        return self.phase is COLLECTING

    @property
    def is_over(self) -> bool:
        """Whether nothing can change any more."""
        return self.phase in (CLOSED, ABANDONED)


@dataclass(frozen=True, slots=True)
class CohortChosen:
    """These devices are to be invited."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UpdateReceived:
    """Every segment of ``device``'s update ``digest`` is durable."""

    device: str
    digest: str


@dataclass(frozen=True, slots=True)
class DeviceGone:
    """``device`` will not deliver (any more) in this round."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class QuotaReached:
    """Enough was heard; raised by ``step`` itself."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """Max seconds passed without min updates; raised by ``step`` itself."""


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The new model is durable."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The run was stopped."""

    reason: str


Event = CohortChosen | UpdateReceived | DeviceGone | Tick | QuotaReached | TimedOut | Aggregated | Cancelled


@dataclass(frozen=True, slots=True)
class Invite:
    """Offer this round to ``devices``."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell ``device`` that its update is complete."""

    device: str


@dataclass(frozen=True, slots=True)
class Reject:
    """Tell ``device`` why its update is not taken."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Make the new model from what was delivered, then report ``Aggregated``."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give every device of the cohort the receipt that nothing was applied."""

    reason: str


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a ``Tick`` at this instant."""

    at: float


Action = Invite | Acknowledge | Reject | Aggregate | Abandon | WakeAt

TRANSITIONS: Mapping[RoundPhase, Mapping[type[Event], RoundPhase]] = {
    SELECTING: {CohortChosen: COLLECTING, Tick: SELECTING, Cancelled: ABANDONED},
    COLLECTING: {
        UpdateReceived: COLLECTING,
        DeviceGone: COLLECTING,
        Tick: COLLECTING,
        QuotaReached: AGGREGATING,
        TimedOut: ABANDONED,
        Cancelled: ABANDONED,
    },
    AGGREGATING: {
        UpdateReceived: AGGREGATING,
        DeviceGone: AGGREGATING,
        Tick: AGGREGATING,
        Cancelled: AGGREGATING,
        Aggregated: CLOSED,
    },
    CLOSED: {UpdateReceived: CLOSED, DeviceGone: CLOSED, Tick: CLOSED, Aggregated: CLOSED, Cancelled: CLOSED},
    ABANDONED: {UpdateReceived: ABANDONED, DeviceGone: ABANDONED, Tick: ABANDONED, Cancelled: ABANDONED},
}


def step(round: Round, event: Event, now: float) -> tuple[Round, list[Action]]:
    """Return the round after ``event`` and what the shell owes for it.

    Raises:
        ProtocolError: ``TRANSITIONS`` does not allow ``event`` in this phase.
    """
    after, actions = _apply(round, event, now)
    follows = verdict(after, now)
    if follows is None:
        return after, [*actions, *_wake(after)] if after != round else actions
    closed, owed = _apply(after, follows, now)
    return closed, [*actions, *owed]


def resume(round: Round) -> list[Action]:
    """Return what a round read back from disk still owes."""
    match round.phase:
        case RoundPhase.COLLECTING:
            return [Invite(round.cohort), *_wake(round)]
        case RoundPhase.AGGREGATING:
            return [Aggregate()]
        case RoundPhase.ABANDONED:
            return [Abandon(round.reason)]
        case _:
            return []


def verdict(round: Round, now: float) -> QuotaReached | TimedOut | None:
    """Say whether a collecting round has enough, has failed, or goes on."""
    if round.phase is not COLLECTING:
        return None
    have, quota, passed = len(round.updates), round.quota, now - round.opened_at
    all_heard = all(device in round.updates or device in round.gone for device in round.cohort)
    enough = have >= quota.min_updates
    if have >= quota.max_updates or (enough and (all_heard or passed >= quota.min_seconds)):
        return QuotaReached()
    return TimedOut() if all_heard or passed >= quota.max_seconds else None


def _apply(round: Round, event: Event, now: float) -> tuple[Round, list[Action]]:
    phase = TRANSITIONS[round.phase].get(type(event))
    if phase is None:
        raise ProtocolError(f"round {round.number} is {round.phase}: {type(event).__name__} is not allowed")
    match event:
        case UpdateReceived():
            return _take_update(round, event)
        case DeviceGone():
            return _lose(round, event)
        case CohortChosen(devices):
            return replace(round, phase=phase, cohort=devices, opened_at=now), [Invite(devices)]
        case QuotaReached():
            return replace(round, phase=phase), [Aggregate()]
        case TimedOut() | Cancelled() if phase is ABANDONED and round.phase is not ABANDONED:
            reason = event.reason if isinstance(event, Cancelled) else _shortfall(round)
            return replace(round, phase=phase, reason=reason), [Abandon(reason)]
        case _:
            return replace(round, phase=phase), []


def _take_update(round: Round, event: UpdateReceived) -> tuple[Round, list[Action]]:
    device, digest = event.device, event.digest
    if round.updates.get(device) == digest:
        return round, [Acknowledge(device)]
    if device not in round.cohort:
        return round, [Reject(device, "not invited")]
    if device in round.updates:
        return round, [Reject(device, "another update was taken already")]
    if round.phase is not COLLECTING:
        return round, [Reject(device, "late")]
    gone = {name: why for name, why in round.gone.items() if name != device}
    return replace(round, updates={**round.updates, device: digest}, gone=gone), [Acknowledge(device)]


def _lose(round: Round, event: DeviceGone) -> tuple[Round, list[Action]]:
    known = event.device in round.cohort and event.device not in round.updates
    if not known or round.phase is not COLLECTING:
        return round, []
    return replace(round, gone={**round.gone, event.device: event.reason}), []


def _shortfall(round: Round) -> str:
    counts = f"{len(round.updates)} complete updates of {len(round.cohort)} invited, {round.quota.min_updates} needed"
    told = [f"{device}: {why}" for device, why in round.gone.items() if ": " in why]  # those that said more than a word
    return f"{counts}; {told[-1]}" if told else counts


def _wake(round: Round) -> list[Action]:
    if round.phase is not COLLECTING:
        return []
    quota = round.quota
    seconds = quota.min_seconds if len(round.updates) >= quota.min_updates else quota.max_seconds
    return [WakeAt(round.opened_at + seconds)]
