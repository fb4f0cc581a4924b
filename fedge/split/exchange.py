"""What device and server say to each other in a round of split training: frames, each with the number of its step.

    device                                server
                                      <-  Hello     the step that comes next, and the shared state of now
      Batch  step t                   ->            the back half takes a step with it and what others sent
                                      <-  Answer    step t: the gradient, the loss, the shared state for what follows
                                          Refusal   step t: this was no batch; the device had better leave the round
                                          Over      the round takes no more

The number of the step is the frame's sequence number: steps ascend, and a device has one batch on its way at most. A
batch that comes again, byte for byte, is answered as before; another one of a step that was taken is refused. So
whatever dies between the two, a batch counts once: a device that got no answer sends its batch again.

Layout, little-endian: version u8, 1 | kind u8 | step u32, and then

    1 Hello     digest of the batch of the step before, 8 B, zeros where none | shared state
    2 Batch     length of activations u32 | activations | labels
    3 Answer    loss f32 | length of gradient u32 | gradient | shared state
    4 Refusal   why, UTF-8
    5 Over      why, UTF-8

A shared state is that of ``shared.py``, or nothing where the device has it already or there is none.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

from fedge.errors import CodecError

VERSION = 1
DIGEST_BYTES = 8
MOST_STEPS = (1 << 32) - 2
NO_DIGEST = bytes(DIGEST_BYTES)
_HEAD = struct.Struct("<BBI")
_BATCH, _ANSWER = struct.Struct("<I"), struct.Struct("<fI")


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    BATCH = 2
    ANSWER = 3
    REFUSAL = 4
    OVER = 5


@dataclass(frozen=True, slots=True)
class Hello:
    """``step`` comes next; ``digest`` is of the batch of the step before it, as the server has it."""

    step: int
    digest: bytes = NO_DIGEST
    shared: bytes = b""

    def to_bytes(self) -> bytes:
        """Return the frame."""
        return _head(Kind.HELLO, self.step) + self.digest + self.shared


@dataclass(frozen=True, slots=True)
class Batch:
    """What a device sends in step ``step``: messages of activations and of labels."""

    step: int
    activations: bytes
    labels: bytes

    def to_bytes(self) -> bytes:
        """Return the frame."""
        head = _head(Kind.BATCH, self.step) + _BATCH.pack(len(self.activations))
        return head + self.activations + self.labels

    @property
    def digest(self) -> bytes:
        """Names the batch by its bytes."""
        return hashlib.blake2b(self.to_bytes(), digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says of step ``step``: the message of the gradient, and the mean loss of the batch."""

    step: int
    loss: float
    gradient: bytes
    shared: bytes = b""

    def to_bytes(self) -> bytes:
        """Return the frame."""
        head = _head(Kind.ANSWER, self.step) + _ANSWER.pack(self.loss, len(self.gradient))
        return head + self.gradient + self.shared


@dataclass(frozen=True, slots=True)
class Refusal:
    """Step ``step`` of this device was not taken, for this ``reason``."""

    step: int
    reason: str

    def to_bytes(self) -> bytes:
        """Return the frame."""
        return _head(Kind.REFUSAL, self.step) + self.reason.encode()


@dataclass(frozen=True, slots=True)
class Over:
    """The round takes no more steps."""

    step: int
    reason: str

    def to_bytes(self) -> bytes:
        """Return the frame."""
        return _head(Kind.OVER, self.step) + self.reason.encode()


Frame = Hello | Batch | Answer | Refusal | Over


def read_exchange(data: bytes) -> Frame:
    """Read one frame.

    Raises:
        CodecError: it is none.
    """
    if len(data) < _HEAD.size:
        raise CodecError(f"expected a split frame of {_HEAD.size} bytes or more, got {len(data)}")
    version, kind, step = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if version != VERSION or kind not in set(Kind):
        raise CodecError(f"expected a split frame of version {VERSION}, got kind {kind} of version {version}")
    if step > MOST_STEPS:
        raise CodecError(f"expected a step of 0..{MOST_STEPS}, got {step}")
    match Kind(kind):
        case Kind.HELLO:
            _expect(DIGEST_BYTES, body)
            return Hello(step, body[:DIGEST_BYTES], body[DIGEST_BYTES:])
        case Kind.BATCH:
            _expect(_BATCH.size, body)
            stop = _BATCH.size + _BATCH.unpack_from(body)[0]
            _expect(stop, body)
            return Batch(step, body[_BATCH.size : stop], body[stop:])
        case Kind.ANSWER:
            _expect(_ANSWER.size, body)
            loss, length = _ANSWER.unpack_from(body)
            stop = _ANSWER.size + length
            _expect(stop, body)
            return Answer(step, loss, body[_ANSWER.size : stop], body[stop:])
        case Kind.REFUSAL:
            return Refusal(step, body.decode(errors="replace"))
        case Kind.OVER:
            return Over(step, body.decode(errors="replace"))


def _head(kind: Kind, step: int) -> bytes:
    return _HEAD.pack(VERSION, kind, step)


def _expect(size: int, body: bytes) -> None:
    if len(body) < size:
        raise CodecError(f"expected {size} bytes or more behind the head of a split frame, got {len(body)}")
