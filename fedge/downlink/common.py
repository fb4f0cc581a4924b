"""MCM's one memory for all devices, and how a device that skipped rounds catches up. Both ends in one file.

Each round the server makes one message for everybody, H_k-1 → H_k, and keeps it. A device says which H it has and gets
the messages since; none is encoded twice. Where they would be longer than H itself in float32 (16 of them at 2 bits),
it gets H as it is. Unlike a device's own memory (``ledger.py``) this one moves on whether or not anyone listened, so
there is nothing to promote: the chain is the truth, and what a device says is a place in it, or is not.

    said H_j, the log has j+1 .. k    those messages
    said H_k, α = 1                   nothing: ŵ_k is H_k
    otherwise                         H_k as float32; if α ≠ 1, H_k-1 and the last message, as ŵ_k follows from these

The shell writes the new ``Common`` down before anyone gets its last message.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedge.downlink.mcm import Channel, Delivered, apply_message, apply_to, encode_copy, encode_message
from fedge.downlink.message import (
    HEADER,
    HEADER_BYTES,
    Floats,
    Kind,
    Message,
    State,
    StateId,
    checksum,
    origin,
    read_message,
)
from fedge.errors import CodecError, FrameError
from fedge.frames import HEADER_BYTES as FRAME_HEADER_BYTES
from fedge.frames import read_header
from fedge.layout import Layout
from fedge.update import FLOAT32_BITS, update_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Common:
    """The memory H_k, the one before it, and the last messages, oldest first."""

    state: State
    previous: State
    log: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, base: State) -> Common:
        """Return the memory before the first round: a public base."""
        return cls(base, base)

    @property
    def last(self) -> Message | None:
        """The message of the last round."""
        return read_message(self.log[-1]) if self.log else None


def advance_common(
    channel: Channel, common: Common, params: Floats, round_number: int, bits: float, alpha: float | None = None
) -> Common:
    """Return the memory after ``round_number``; the round repeated changes nothing.

    Raises:
        CodecError: params so far from the memory that float32 has no difference.
    """
    if common.last is not None and common.last.round == round_number:
        return common
    state = common.state
    data = encode_message(channel, Kind.DELTA, state, state.id, params, round_number, bits, alpha)
    log, room = (*common.log, data), HEADER_BYTES + update_bytes(channel.layout, "none", FLOAT32_BITS)
    # Who missed more than a copy takes gets the copy. The last message stays, however long.
    while len(log) > 1 and sum(map(len, log)) > room:
        log = log[1:]
    return Common(apply_to(channel, state, read_message(data)).state, state, log)


def most_bytes(layout: Layout) -> int:
    """Return the most that a download takes: what was missed, as long as it is no longer than a copy, or that copy."""
    return 2 * (HEADER_BYTES + update_bytes(layout, "none", FLOAT32_BITS))


def refresh(
    channel: Channel,
    common: Common | None,
    params: Floats,
    round_number: int,
    bits: float,
    full_bits: float,
    alpha: float | None = None,
) -> Common:
    """Return the memory after ``round_number``, begun from zeros at ``full_bits`` where there is none to go on from.

    Raises:
        CodecError: params that float32 does not hold.
    """
    if common is not None:
        try:
            return advance_common(channel, common, params, round_number, bits, alpha)
        except CodecError:
            pass  # so far from the memory that it begins anew: devices do not know its name and get a copy
    return advance_common(channel, Common.of(origin(channel.layout)), params, round_number, full_bits, alpha)


def catch_up(channel: Channel, common: Common, said: StateId, numbers: StateId | None = None) -> list[bytes]:
    """Return the messages, in order, that bring a device with state ``said`` to ŵ_k.

    ``numbers`` is the checksum of the state that it has, where it says so: if H_k or H_k-1 has others it gets a copy.
    """
    last = common.last
    known = {state.id: state for state in (common.previous, common.state)}
    is_drifted = numbers is not None and said in known and numbers != checksum(known[said].vector)
    if not is_drifted:
        if said == common.state.id and (last is None or last.alpha == 1.0):
            return []
        for place, data in enumerate(common.log):
            if data[12:20].hex() == said:
                return list(common.log[place:])
    if last is None or last.alpha == 1.0:
        return [encode_copy(channel, common.state, said, last.round if last else 0)]
    return [encode_copy(channel, common.previous, said, last.round), common.log[-1]]


def receive_all(channel: Channel, own: State, data: bytes) -> Delivered:
    """Return what the device makes of a download of messages end to end; of none, what it has.

    Raises:
        StaleMessage, FrameError, CodecError: as ``apply_message``; the device keeps its state and asks again.
    """
    delivered = Delivered(own.vector, own)
    for message in _cut(data):
        delivered = apply_message(channel, delivered.state, read_message(message))
    return delivered


def _cut(data: bytes) -> list[bytes]:
    """Cut a download into messages; ``FrameError`` if the last one is not whole."""
    found, start = [], 0
    while start < len(data):
        if len(data) - start < HEADER_BYTES:
            raise FrameError(f"expected a message header of {HEADER_BYTES} bytes, got {len(data) - start}")
        stop = start + HEADER_BYTES
        for _ in range(HEADER.unpack_from(data, start)[2]):
            stop += FRAME_HEADER_BYTES + read_header(data[stop : stop + FRAME_HEADER_BYTES]).length
        found.append(data[start:stop])
        start = stop
    return found
