"""When the back half takes a step, and with whose batches: the server's side of split training, without the sockets.

    Arrived   a batch came        new: it waits;  the one answered last: answer again;  another of that step: conflict
    Left      a device is done, or gone for good: nobody waits for it
    Tick      time has passed
    Stepped   the step that was asked for is taken, and its answers are kept
    Dropped   it could not be taken: whoever sent for it sends again

    ─> Take(devices)   begin a step with what these have sent; one at a time
    ─> WakeAt(at)      tick then

Devices that are at work are waited for, so that what comes together is taken together: until all of them have sent, or
``gather_seconds`` after the first. Who missed a step is not waited for until it sends again: a device that died costs
the others one wait, and one on a slow link makes its steps by itself, or with others as slow. ``most`` batches are
enough.

Steps of a device ascend, and one that was taken is never taken again. ``step`` is pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedge.protocol.ledger import Conflict

MOST_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Last:
    """The last step of a device that was taken, and the digest of its batch."""

    step: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Gathering:
    """Who is waited for, what waits, and what was taken. ``waiting`` is in the order of arrival.

    ``missed`` are those who missed a step and have not sent since: that they are there again is not enough.
    """

    gather_seconds: float
    present: frozenset[str] = frozenset()
    waiting: Mapping[str, Last] = field(default_factory=dict)
    taken: Mapping[str, Last] = field(default_factory=dict)
    under_way: frozenset[str] = frozenset()
    missed: frozenset[str] = frozenset()
    first_at: float | None = None
    most: int = MOST_AT_ONCE


@dataclass(frozen=True, slots=True)
class Came:
    """``device`` is at work in this round."""

    device: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """A batch of ``device`` came, of this step and digest."""

    device: str
    batch: Last


@dataclass(frozen=True, slots=True)
class Left:
    """``device`` will send no more."""

    device: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step was taken with these batches; they waited, or a journal says so."""

    batches: Mapping[str, Last]


@dataclass(frozen=True, slots=True)
class Dropped:
    """The step with what ``devices`` sent could not be taken: as if it had not come."""

    devices: tuple[str, ...]


Event = Came | Arrived | Left | Tick | Stepped | Dropped


@dataclass(frozen=True, slots=True)
class Take:
    """Take a step with the batches of ``devices``."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a ``Tick`` then."""

    at: float


Action = Take | WakeAt


def is_repeat(state: Gathering, device: str, batch: Last) -> bool:
    """Return whether a batch waits already or was taken; whoever sent it gets the answer to that.

    Raises:
        Conflict: another batch of this step, or one of a step that is past.
    """
    known = state.waiting.get(device) or state.taken.get(device)
    if known is None or batch.step > known.step:
        if known is not None and device in state.waiting:
            raise Conflict(f"expected no other step of {device} before step {known.step} is answered, got {batch.step}")
        return False
    if batch != known:
        raise Conflict(f"expected step {known.step} of {device} as it was, or a later one, got step {batch.step}")
    return True


def step(state: Gathering, event: Event, now: float) -> tuple[Gathering, list[Action]]:
    """Return the state after ``event`` at ``now``, seconds, and what is to be done.

    Raises:
        Conflict: a batch that contradicts what was taken; nothing is changed.
    """
    match event:
        case Came(device):
            state = replace(state, present=state.present | ({device} - state.missed))
        case Arrived(device, batch):
            if is_repeat(state, device, batch):
                return state, []
            first_at = now if state.first_at is None else state.first_at
            waiting = {**state.waiting, device: batch}
            present, missed = state.present | {device}, state.missed - {device}
            state = replace(state, present=present, missed=missed, waiting=waiting, first_at=first_at)
        case Left(device):
            state = replace(state, present=state.present - {device})
        case Stepped(batches):
            waiting = {name: batch for name, batch in state.waiting.items() if batches.get(name) != batch}
            since = now if waiting else None
            taken = {**state.taken, **batches}
            state = replace(state, waiting=waiting, taken=taken, under_way=frozenset(), first_at=since)
        case Dropped(devices):
            waiting = {name: batch for name, batch in state.waiting.items() if name not in devices}
            state = replace(state, waiting=waiting, under_way=frozenset(), first_at=now if waiting else None)
        case Tick():
            pass
    return _decide(state, now)


def _decide(state: Gathering, now: float) -> tuple[Gathering, list[Action]]:
    if state.under_way or not state.waiting or state.first_at is None:
        return state, []
    devices = tuple(state.waiting)[: state.most]
    until = state.first_at + state.gather_seconds
    if state.present <= state.waiting.keys() or len(devices) == state.most or now >= until:
        missed = state.present - state.waiting.keys() if now >= until else frozenset()
        present, missed = state.present - missed, state.missed | missed
        return replace(state, present=present, missed=missed, under_way=frozenset(devices)), [Take(devices)]
    return state, [WakeAt(until)]
