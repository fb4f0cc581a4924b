"""Damaged streams of frames, on the way that an upload takes: reader, checksum, agreement, codec.

Every step passes a frame on or raises ``FrameError`` or ``CodecError``; the reader holds no more than one frame. Most
streams are *sealed* again after the damage, or the checksum would keep everything from what lies behind it.
"""

from __future__ import annotations

import functools
import struct
import zlib
from dataclasses import dataclass
from random import Random

import numpy as np

from fedge import seeds
from fedge.algorithms import FedDyn
from fedge.codecs import CODECS
from fedge.errors import CodecError, FrameError
from fedge.frames import HEADER_BYTES, MAX_FRAME_BYTES, FrameReader, read_frame
from fedge.layout import Kind, Layout, TensorSpec
from fedge.update import LARGEST_MAGNITUDE, check_frame, decode_delta, encode_update, uplink
from tests.fuzz.damage import DAMAGES, EXTREMES

NAMES = ("none", *sorted(CODECS))
RATES = (0.05, 1.0, 2.5, 8.0)
LAYOUT = Layout.of(
    [
        TensorSpec("w", (45, 50), Kind.WEIGHT),
        TensorSpec("b", (40,), Kind.RAW),
        TensorSpec("seen", (), Kind.BUFFER),
    ]
)
STREAM = uplink(1, 2, "a")
# Offset and length of every field but the checksum, as in fedge.frames.
FIELDS = ((0, 1), (1, 1), (2, 2), (4, 4), (8, 4), (12, 4))


@dataclass(frozen=True, slots=True)
class Upload:
    """A damaged stream, the agreement it is held against, and the pieces it arrives in."""

    data: bytes
    name: str
    bits: float
    piece_bytes: int
    damage: str


@functools.cache
def frames(name: str, bits: float) -> tuple[bytes, ...]:
    """Return the frames of one sound update."""
    delta = (sum(seeds.uniform(stream, LAYOUT.size) for stream in range(4)) - 2.0).astype(np.float32)
    return tuple(encode_update(LAYOUT, delta, STREAM, name, bits))


def sealed(frame: bytes) -> bytes:
    """Return ``frame`` with the length and the checksum that its payload calls for."""
    if len(frame) < HEADER_BYTES:
        return frame
    head = frame[:12] + struct.pack("<I", len(frame) - HEADER_BYTES)
    return head + struct.pack("<I", zlib.crc32(frame[HEADER_BYTES:], zlib.crc32(head))) + frame[HEADER_BYTES:]


def with_field(rng: Random, frame: bytes) -> bytes:
    """Return ``frame`` with an extreme or a random number in one field of the header."""
    at, length = rng.choice(FIELDS)
    value = (rng.choice(EXTREMES) + rng.randbytes(4))[:length] if rng.random() < 0.7 else rng.randbytes(length)
    return frame[:at] + value + frame[at + length :]


def draw(rng: Random) -> Upload:
    """Draw one damaged upload."""
    agreed, sent = (rng.choice(NAMES), rng.choice(RATES)), (rng.choice(NAMES), rng.choice(RATES))
    if rng.random() < 0.7:
        sent = agreed
    parts = list(rng.sample(frames(*sent), rng.randint(1, len(frames(*sent)))))
    at, damage = rng.randrange(len(parts)), rng.choice(tuple(DAMAGES))
    head, payload = parts[at][:HEADER_BYTES], parts[at][HEADER_BYTES:]
    other = rng.choice(frames(*agreed))
    if rng.random() < 0.3:
        parts[at] = with_field(rng, parts[at])
    elif rng.random() < 0.7:
        parts[at] = head + DAMAGES[damage](rng, payload, other[HEADER_BYTES:])
    if rng.random() < 0.7:
        parts[at] = sealed(parts[at])
    data = b"".join(parts)
    if rng.random() < 0.3:
        data = DAMAGES[damage](rng, data, other)
    return Upload(data, *agreed, rng.choice((1 + len(data) // 50, 19, 20, 21, 1000, len(data) + 1)), damage)


def check(upload: Upload) -> list[np.ndarray]:
    """Assert what the module promises; return the segments that came through."""
    reader, found = FrameReader(), []
    try:
        for start in range(0, len(upload.data), upload.piece_bytes):
            for raw in reader.feed(upload.data[start : start + upload.piece_bytes]):
                assert HEADER_BYTES <= len(raw) <= MAX_FRAME_BYTES, f"a frame of {len(raw)} bytes"
                found += [x for x in [segment(raw, upload)] if x is not None]
            assert reader.pending_bytes < MAX_FRAME_BYTES, f"{reader.pending_bytes} bytes held"
    except FrameError:
        assert reader.pending_bytes <= MAX_FRAME_BYTES + upload.piece_bytes, f"{reader.pending_bytes} bytes held"
    return found


def segment(raw: bytes, upload: Upload) -> np.ndarray | None:
    """Take one frame as an aggregator does; None if it is refused."""
    try:
        frame = read_frame(raw)
        assert frame.to_bytes() == raw, "another frame than was read"
        expected = check_frame(LAYOUT, frame, upload.name, upload.bits)
        x = decode_delta(frame, STREAM, FedDyn().trust)
    except (FrameError, CodecError):
        return None
    assert (x.shape, x.dtype) == ((expected.size,), np.float32), f"{x.dtype} of shape {x.shape}"
    assert np.abs(x).max() <= LARGEST_MAGNITUDE, "a change that no training makes, or one that is not finite"
    return x
