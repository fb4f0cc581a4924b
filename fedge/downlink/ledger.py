"""Rand-MCM's memory of one device, safe under any fault. Both ends in one file.

The server steps its copy of a device's state only when the device has said that it did so itself: what was sent is
pending until then, at most ``MAX_PENDING`` messages, and what was lost is forgotten. Every word of the device names the
state that it has, so an acknowledgement is never a message of its own.

              Asked              Heard: a pending name
      NEW ─────────────> OFFERED ─────────────────────> SETTLED
       ^                 │     ^                           │
       │    Asked, Heard └──>──┴─────────── Asked ─────────┘
       └── Drifted, from anywhere

    the device called its state        the server
    the state's name                   makes a delta of it; what is pending may still arrive and stays
    a pending name                     promotes it: decodes it onto the state, forgets the others
    a public base                      makes a full from that base
    anything else                      makes a full from zeros; its own state stays, the word may have been a late one

That is on Asked; Heard moves as far as the promotion.

The shell writes the new ledger down before it sends (write-ahead), and the device its new state before it trains or
speaks. Then whichever end crashes where, and whatever is lost, late, twice or out of order:

    server before its write    nothing was sent             device before its write    it still says the old name
    server after it            a pending that never came    device after it            it says the pending name
    server from a backup       a name it does not know: full

Messages are pending as bytes and decoded when they are promoted: the server's numbers come from what the device got.
An evicted row is ``Ledger()``: the device's next word is unknown and gets a full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from fedge.downlink.mcm import FULL_BITS, Channel, Delivered, apply_message, apply_to, encode_message
from fedge.downlink.message import Floats, Kind, State, StateId, checksum, next_of, origin, read_message
from fedge.errors import CodecError

MAX_PENDING = 2


class Phase(StrEnum):
    """What the server knows of a device's state."""

    NEW = "new"
    OFFERED = "offered"
    SETTLED = "settled"


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """The server's row of one device: what it has for certain, messages that it may have taken, oldest first, and how
    many fulls were made for a device that had a state (two devices of one name would make it grow for ever)."""

    state: State | None = None
    pending: tuple[bytes, ...] = ()
    resyncs: int = 0

    @property
    def phase(self) -> Phase:
        if self.pending:
            return Phase.OFFERED
        return Phase.NEW if self.state is None else Phase.SETTLED


@dataclass(frozen=True, slots=True)
class Heard:
    """Any word of the device: a poll, an update. It has the state ``said``."""

    said: StateId


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """The device wants ``params``, float ``[d]``, of ``round`` at ``bits``; ``alpha`` None: what fits the error.

    ``full_bits`` are those of a full; fewer are right for a link that cannot take 8, and deltas make them good.
    """

    said: StateId
    params: Floats
    round: int
    bits: float
    alpha: float | None = None
    full_bits: float = FULL_BITS


@dataclass(frozen=True, slots=True)
class Drifted:
    """The device's numbers are not the server's (``is_drifted``), or no delta leads from them: a full comes next."""


Event = Heard | Asked | Drifted


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``message``, once the ledger is on disk."""

    message: bytes


TRANSITIONS: Mapping[Phase, Mapping[type[Event], frozenset[Phase]]] = {
    Phase.NEW: {
        Heard: frozenset({Phase.NEW}),
        Asked: frozenset({Phase.OFFERED}),
        Drifted: frozenset({Phase.NEW}),
    },
    Phase.OFFERED: {
        Heard: frozenset({Phase.OFFERED, Phase.SETTLED}),
        Asked: frozenset({Phase.OFFERED}),
        Drifted: frozenset({Phase.NEW}),
    },
    Phase.SETTLED: {
        Heard: frozenset({Phase.SETTLED}),
        Asked: frozenset({Phase.OFFERED}),
        Drifted: frozenset({Phase.NEW}),
    },
}


def step(channel: Channel, ledger: Ledger, event: Event) -> tuple[Ledger, list[Send]]:
    """Return the ledger after ``event``, and the message to send once it is written down.

    Raises:
        CodecError: params so far from the state that float32 has no difference. ``Drifted`` gets the device a full.
    """
    match event:
        case Heard(said):
            return _promote(channel, ledger, said), []
        case Asked(said):
            return _offer(channel, _promote(channel, ledger, said), event)
        case Drifted():
            return Ledger(resyncs=ledger.resyncs + (ledger.state is not None)), []


def answer(channel: Channel, ledger: Ledger, asked: Asked, numbers: StateId | None = None) -> tuple[Ledger, bytes]:
    """Return the ledger and the message for a device that asks, a full where a delta is not to be had.

    ``numbers`` is the checksum of the state that it has, where it says so.

    Raises:
        CodecError: params that float32 does not hold.
    """
    ledger, _ = step(channel, ledger, Heard(asked.said))
    if numbers is not None and is_drifted(ledger, asked.said, numbers):
        ledger, _ = step(channel, ledger, Drifted())
    try:
        ledger, sent = step(channel, ledger, asked)
    except CodecError:
        ledger, _ = step(channel, ledger, Drifted())
        ledger, sent = step(channel, ledger, asked)
    return ledger, sent[0].message


def is_drifted(ledger: Ledger, said: StateId, numbers: StateId) -> bool:
    """Whether a device that has state ``said`` with ``checksum`` ``numbers`` has other numbers than the server."""
    return ledger.state is not None and ledger.state.id == said and checksum(ledger.state.vector) != numbers


def receive(channel: Channel, own: State, data: bytes) -> Delivered:
    """Return what the device makes of a message: written down before it trains. It then says ``state.id``.

    Raises:
        StaleMessage: late, repeated or out of order; the device keeps its state and asks again.
        FrameError, CodecError: as ``read_message`` and ``apply_message``; likewise.
    """
    return apply_message(channel, own, read_message(data))


def _promote(channel: Channel, ledger: Ledger, said: StateId) -> Ledger:
    for data in ledger.pending:
        if next_of(data) == said:
            state = apply_to(channel, ledger.state, read_message(data)).state
            # What else is pending was made for the name that the device had before: it will not take it.
            return replace(ledger, state=state, pending=())
    return ledger


def _offer(channel: Channel, ledger: Ledger, asked: Asked) -> tuple[Ledger, list[Send]]:
    state, said = ledger.state, asked.said
    if state is not None and state.id == said:
        base, kind, bits, alpha = state, Kind.DELTA, asked.bits, asked.alpha
    else:
        base, kind, bits, alpha = channel.base(said) or origin(channel.layout), Kind.FULL, asked.full_bits, None
    data = encode_message(channel, kind, base, said, asked.params, asked.round, bits, alpha)
    is_resync = kind is Kind.FULL and state is not None and data not in ledger.pending
    # The same question has the same answer, and takes no second place.
    others = tuple(message for message in ledger.pending if message != data)
    return Ledger(state, (*others, data)[-MAX_PENDING:], ledger.resyncs + is_resync), [Send(data)]
