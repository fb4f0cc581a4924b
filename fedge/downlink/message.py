"""The state of a download memory, its name, and the message that moves it from one to the next.

A state is a vector that device and server both hold. Its name is not made of its numbers but of the bytes that led to
it, a chain that is the same on every machine whatever its floating point:

    id(public base)  = BLAKE2b-64("base" ‖ digest of the layout ‖ its float32 bytes)
    id(next state)   = BLAKE2b-64(base id ‖ first 20 bytes of the message ‖ frames),   base id being its bytes 20 .. 27

Whether the numbers agree as well is asked rarely, with ``checksum``. A *public base* is a vector both ends can make
without a word: zeros (``origin``), or the model a task begins with.

Layout, little-endian, 36 bytes of header and then the frames by segment:

    offset  type  field
    0       u8    version, 1
    1       u8    kind: 1 delta, 2 full, 3 copy
    2       u16   frames
    4       u32   round: whose params these are
    8       f32   α, the step of the memory
    12      8 B   said: what the device called its state; the message is for that state alone
    20      8 B   base: the state it is relative to; of a copy, the checksum of its bytes
    28      8 B   next: the state it leads to
    36            frames

A *delta* is relative to ``said``. A *full* is relative to a public base, so that it needs nothing of what the device
had, but is taken only by a device that still has it: a full that comes late changes nothing. A *copy* has the state
itself as float32 and leads to a state whose name others already use; it swaps the two: base = id of next and the bytes.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NewType

import numpy as np
import numpy.typing as npt

from fedge.errors import FrameError
from fedge.frames import FrameReader
from fedge.layout import Layout

StateId = NewType("StateId", str)
"""16 hexadecimal digits."""
Floats = npt.NDArray[np.floating[Any]]
"""float32 in the field; float64 where a test wants the algebra without rounding. Results keep the dtype."""

VERSION = 1
HEADER = struct.Struct("<BBHIf8s8s8s")
HEADER_BYTES = HEADER.size
_HASHED = 20  # what of the header enters the name beside the base
_ID_BYTES = 8


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A vector ``[d]`` that both ends hold, under its name."""

    id: StateId
    vector: Floats


def public_base(layout: Layout, vector: Floats) -> State:
    """Return a vector ``[d]`` both ends can make, as a state."""
    layout.check(vector)
    numbers = np.ascontiguousarray(vector, "<f4").tobytes()
    return State(_name(b"base", layout.digest.encode(), numbers), vector)


def origin(layout: Layout) -> State:
    """Return the base that anyone can make: float32 zeros."""
    return public_base(layout, np.zeros(layout.size, np.float32))


def checksum(vector: Floats) -> StateId:
    """Return a name for the numbers of ``vector`` ``[d]``, as float32; -0 and 0 are two numbers here."""
    return _name(b"numbers", np.ascontiguousarray(vector, "<f4").tobytes())


class Kind(IntEnum):
    """What the vector of a message is added to."""

    DELTA = 1
    FULL = 2
    COPY = 3


@dataclass(frozen=True, slots=True)
class Message:
    """One message, read. ``alpha`` is exactly a float32; ``next`` was checked against the bytes."""

    kind: Kind
    round: int
    alpha: float
    said: StateId
    base: StateId
    next: StateId
    frames: tuple[bytes, ...]


def write_message(
    kind: Kind, round_number: int, alpha: float, said: StateId, known: StateId, frames: list[bytes]
) -> bytes:
    """Return a message; ``known`` is its base or, of a copy, where it leads. The other follows from the bytes."""
    head = HEADER.pack(VERSION, kind, len(frames), round_number, alpha, bytes.fromhex(said), b"", b"")[:_HASHED]
    given = bytes.fromhex(known)
    made = bytes.fromhex(_name(given, head, *frames))
    return b"".join([head, made, given, *frames] if kind is Kind.COPY else [head, given, made, *frames])


def next_of(data: bytes) -> StateId:
    """Return which state a message says that it leads to; checks nothing."""
    return StateId(data[HEADER_BYTES - _ID_BYTES : HEADER_BYTES].hex())


def read_message(data: bytes) -> Message:
    """Read a message.

    Raises:
        FrameError: too short, another version or kind, α no number in (0, 1], other frames than it says, or a ``next``
            that is not the name of these bytes.
    """
    if len(data) < HEADER_BYTES:
        raise FrameError(f"expected a message header of {HEADER_BYTES} bytes, got {len(data)}")
    version, kind, count, number, alpha, *ids = HEADER.unpack_from(data)
    if version != VERSION:
        raise FrameError(f"expected message version {VERSION}, got {version}")
    if kind not in set(Kind):
        raise FrameError(f"expected a kind of message of {', '.join(map(str, map(int, Kind)))}, got {kind}")
    if not 0.0 < alpha <= 1.0:
        raise FrameError(f"expected an alpha above 0 and at most 1, got {alpha}")
    said, base, following = (StateId(part.hex()) for part in ids)
    reader = FrameReader()
    frames = list(reader.feed(data[HEADER_BYTES:]))
    if len(frames) != count or reader.pending_bytes:
        rest = f"{len(frames)} and {reader.pending_bytes} bytes more"
        raise FrameError(f"expected a message of {count} frames, got {rest}")
    given, made = (following, base) if kind == Kind.COPY else (base, following)
    if made != (name := _name(bytes.fromhex(given), data[:_HASHED], *frames)):
        raise FrameError(f"expected a message named {name} by its bytes, got one named {made}")
    return Message(Kind(kind), number, alpha, said, base, following, tuple(frames))


def _name(*parts: bytes) -> StateId:
    digest = hashlib.blake2b(digest_size=_ID_BYTES)
    for part in parts:
        digest.update(part)
    return StateId(digest.hexdigest())
