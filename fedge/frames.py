"""A frame: one encoded segment, decodable alone and in any order.

Layout, little-endian, 20 bytes of header and then the payload:

    offset  type  field
    0       u8    version, 1
    1       u8    codec number (``fedge.codecs``)
    2       u16   segment index
    4       u32   coordinates in the segment
    8       f32   bits per coordinate the codec was asked for
    12      u32   payload length in bytes
    16      u32   CRC-32 of the first 16 bytes and the payload

A frame says all that its decoding needs but the seed, which both ends derive from names (``fedge.seeds``).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedge.errors import FrameError

VERSION = 1
HEADER = struct.Struct("<BBHIfII")
HEADER_BYTES = HEADER.size
MAX_COORDINATES = 65_536
# The largest payload any codec makes of one segment is float32.
MAX_PAYLOAD_BYTES = 4 * MAX_COORDINATES + 64
MAX_FRAME_BYTES = HEADER_BYTES + MAX_PAYLOAD_BYTES


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The header of one frame; ``length`` is the payload's, in bytes."""

    codec: int
    segment: int
    count: int
    bits: float
    length: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One encoded segment. ``bits`` is exactly a float32."""

    codec: int
    segment: int
    count: int
    bits: float
    payload: bytes

    def to_bytes(self) -> bytes:
        """Return header and payload."""
        head = HEADER.pack(VERSION, self.codec, self.segment, self.count, self.bits, len(self.payload), 0)
        checksum = zlib.crc32(self.payload, zlib.crc32(head[:16]))
        return head[:16] + checksum.to_bytes(4, "little") + self.payload


def as_wire_bits(bits: float) -> float:
    """Return ``bits`` as a frame carries it: the nearest float32. Encode with this value, not with ``bits``."""
    return float(np.float32(bits))


def read_header(data: bytes) -> FrameHeader:
    """Read and bound the first 20 bytes of a frame.

    Raises:
        FrameError: too short, another version, more coordinates or bytes than any segment has, or bits that
            are no positive number.
    """
    if len(data) < HEADER_BYTES:
        raise FrameError(f"expected a frame header of {HEADER_BYTES} bytes, got {len(data)}")
    version, codec, segment, count, bits, length, checksum = HEADER.unpack_from(data)
    if version != VERSION:
        raise FrameError(f"expected frame version {VERSION}, got {version}")
    if not 1 <= count <= MAX_COORDINATES:
        raise FrameError(f"expected 1 to {MAX_COORDINATES} coordinates in segment {segment}, got {count}")
    if length > MAX_PAYLOAD_BYTES:
        raise FrameError(f"expected at most {MAX_PAYLOAD_BYTES} payload bytes, got {length}")
    if not 0.0 < bits <= 32.0:
        raise FrameError(f"expected more than 0 and at most 32 bits per coordinate, got {bits}")
    return FrameHeader(codec, segment, count, bits, length, checksum)


def read_frame(data: bytes) -> Frame:
    """Read the one frame that ``data`` is.

    Raises:
        FrameError: as ``read_header``, or a length or checksum that does not fit.
    """
    header = read_header(data)
    if len(data) != HEADER_BYTES + header.length:
        raise FrameError(f"expected a frame of {HEADER_BYTES + header.length} bytes, got {len(data)}")
    payload = data[HEADER_BYTES:]
    checksum = zlib.crc32(payload, zlib.crc32(data[:16]))
    if checksum != header.checksum:
        raise FrameError(f"expected checksum {header.checksum:08x} in segment {header.segment}, got {checksum:08x}")
    return Frame(header.codec, header.segment, header.count, header.bits, payload)


class FrameReader:
    """Cuts a stream of bytes into frames, whatever pieces it arrives in. Holds at most one frame.

    >>> reader = FrameReader()
    >>> list(reader.feed(b""))
    []
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished frame are held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next piece, yield the frames it completes: whole, with a sound header, checksum unread.

        Raises:
            FrameError: the stream is no stream of frames; what was yielded before stays good.
        """
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= HEADER_BYTES:
                header = read_header(bytes(self._buffer[start : start + HEADER_BYTES]))
                stop = start + HEADER_BYTES + header.length
                if len(self._buffer) < stop:
                    break
                yield bytes(self._buffer[start:stop])
                start = stop
        finally:
            del self._buffer[:start]
