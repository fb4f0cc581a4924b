"""Indices of centroids as bytes: packed, or through an adaptive range coder; in C in ``kernels/indices.c``.

*Packed*: b = ⌈log2 L⌉ bits each, index i in bits b·i .. b·i + b - 1, the lowest bit of the first byte first. What is
left of the last byte is zero.

*Coded*: an index is b binary decisions, the highest bit first; the bits before it name a node of a tree, 1 .. 2^b - 1.
Each position j of the B x q indices has its own model: for each node a probability p that the bit is 1, in 1/65536.
Position after position, and at each one example after example,

    p ← p + (bit - p)/(n + w),    n = how often this node came up so far, up to 255

    starting with   (p of this node over the group so far + its p at the end of the position before)/2,  w = 3
    or with         what both ends know of this position (a ``shared`` model, in 1/256),                 w = 6

so a message needs nothing but itself, and finds within B examples most of what a model of past steps would know. The
group's own p begins at ½, w = 2. Bits go through a range coder with carries (G. N. N. Martin, 1979): 32 bits of range,
a byte at a time, four bytes to end. The decoder must end with every byte read and nothing left of the code: a checksum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedge.codecs.native import kernels
from fedge.errors import CodecError

MOST_BITS = 8
_SCALE, _LEAST, _MOST_SEEN = 1 << 16, 64, 255
_OWN_WEIGHT, _SHARED_WEIGHT, _GROUP_WEIGHT = 3, 6, 2
_RATES = [32768, 32768] + [_SCALE // n for n in range(2, _MOST_SEEN + _SHARED_WEIGHT + 1)]

Indices = npt.NDArray[np.uint8]


def bits_of(centroids: int) -> int:
    """Return ⌈log2 L⌉."""
    return (centroids - 1).bit_length()


def packed_bytes(count: int, bits: int) -> int:
    """Return the length of ``count`` packed codes."""
    return (count * bits + 7) // 8


def pack_bits(codes: Indices, bits: int) -> bytes:
    """Return ``codes``, uint8, each below 2^``bits``, packed in the order of memory."""
    if kernels is not None:
        data: bytes = kernels.pack_bits(np.ascontiguousarray(codes), bits)
        return data
    planes = codes.reshape(-1, 1) >> np.arange(bits, dtype=np.uint8) & 1
    return np.packbits(planes.reshape(-1), bitorder="little").tobytes()


def unpack_bits(data: bytes | memoryview, bits: int, count: int) -> Indices:
    """Return ``count`` codes, uint8 ``[count]``.

    Raises:
        CodecError: ``data`` is not as long as they are, or does not end with zeros.
    """
    expected = packed_bytes(count, bits)
    if len(data) != expected:
        raise CodecError(f"expected {expected} bytes for {count} codes of {bits} bits, got {len(data)}")
    if (left := 8 * expected - count * bits) and data[-1] >> (8 - left):
        raise CodecError(f"expected {left} zero bits behind the last code, got {data[-1]:#04x}")
    codes = np.zeros(count, np.uint8)
    if kernels is not None:
        kernels.unpack_bits(data, bits, codes)
    elif bits:
        planes = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little")
        codes[:] = (planes.reshape(count, bits) << np.arange(bits, dtype=np.uint8)).sum(1)
    return codes


def encode_indices(index: Indices, groups: int, bits: int, shared: Indices | None = None) -> bytes:
    """Return ``index``, uint8 ``[q, B]``, each below 2^``bits``, through the coder; ``bits`` from 1 on.

    ``shared``: a model of every position, uint8 ``[q, 2^bits - 1]``.
    """
    if kernels is not None:
        data: bytes = kernels.encode_indices(np.ascontiguousarray(index), len(index), groups, bits, shared)
        return data
    writer = _Writer()
    _code(writer, index.copy(), groups, bits, shared)
    return writer.end()


def decode_indices(
    data: bytes | memoryview, positions: int, examples: int, groups: int, bits: int, shared: Indices | None = None
) -> Indices:
    """Return indices, uint8 ``[positions, examples]``.

    Raises:
        CodecError: ``data`` does not end where the indices do.
    """
    index = np.zeros((positions, examples), np.uint8)
    if kernels is not None:
        sound = kernels.decode_indices(data, positions, groups, bits, shared, index)
    else:
        reader = _Reader(data)
        _code(reader, index, groups, bits, shared)
        sound = reader.ends
    if not sound:
        raise CodecError(f"expected {positions} x {examples} coded indices in {len(data)} bytes, got others")
    return index


class _Writer:
    """Writes bits that are 1 with probability p/65536."""

    def __init__(self) -> None:
        self.low, self.range, self.data, self.held, self.first = 0, 0xFFFFFFFF, bytearray(), 0, -1
        self.broken = False

    def bit(self, bit: int, p: int) -> int:
        bound = (self.range >> 16) * min(max(p, _LEAST), _SCALE - _LEAST)
        if bit:
            self.range = bound
        else:
            self.low += bound
            self.range -= bound
        while self.range < 1 << 24:
            self.range <<= 8
            self._shift()
        return bit

    def end(self) -> bytes:
        for _ in range(5):
            self._shift()
        return bytes(self.data)

    def _shift(self) -> None:
        """Let go of the highest byte, once no carry can change it."""
        if self.low < 0xFF000000 or self.low >> 32:
            carry = self.low >> 32
            if self.first >= 0:  # the very first one is always zero
                self.data.append((self.first + carry) & 0xFF)
            self.data += bytes([(0xFF + carry) & 0xFF]) * self.held
            self.held, self.first = 0, self.low >> 24 & 0xFF
        else:
            self.held += 1
        self.low = (self.low & 0x00FFFFFF) << 8


class _Reader:
    """Reads what :class:`_Writer` wrote."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data, self.at, self.range, self.code, self.broken = data, 0, 0xFFFFFFFF, 0, False
        for _ in range(4):
            self.code = self.code << 8 | self._take()

    @property
    def ends(self) -> bool:
        return not self.broken and self.at == len(self.data) and self.code == 0

    def bit(self, _: int, p: int) -> int:
        bound = (self.range >> 16) * min(max(p, _LEAST), _SCALE - _LEAST)
        bit = int(self.code < bound)
        if bit:
            self.range = bound
        else:
            self.code -= bound
            self.range -= bound
        while self.range < 1 << 24:
            self.range <<= 8
            self.code = (self.code << 8 | self._take()) & 0xFFFFFFFF
        return bit

    def _take(self) -> int:
        if self.at < len(self.data):
            self.at += 1
            return self.data[self.at - 1]
        self.broken = True
        return 0


class _Model:
    """Probabilities of the nodes, and how often each came up."""

    def __init__(self, p: list[int], weight: int) -> None:
        self.p, self.seen, self.weight = p, [0] * len(p), weight

    def adapt(self, node: int, bit: int) -> None:
        off = (_SCALE - 1 if bit else 0) - self.p[node]
        self.p[node] += (off * _RATES[self.seen[node] + self.weight]) >> 16
        self.seen[node] = min(self.seen[node] + 1, _MOST_SEEN)


def _code(coder: _Writer | _Reader, index: Indices, groups: int, bits: int, shared: Indices | None) -> None:
    """Write ``index``, or read it into ``index``."""
    nodes, q = 1 << bits, len(index)
    group = own = _Model([], 0)
    for j in range(q):
        if j == 0 or j * groups // q != (j - 1) * groups // q:
            group, own = _Model([_SCALE // 2] * nodes, _GROUP_WEIGHT), _Model([_SCALE // 2] * nodes, 0)
        if shared is None:
            own = _Model([(a + b) // 2 for a, b in zip(group.p, own.p, strict=True)], _OWN_WEIGHT)
        else:
            own = _Model([0] + [256 * p + 128 for p in shared[j].tolist()], _SHARED_WEIGHT)
        for i, value in enumerate(index[j].tolist()):
            node = 1
            for b in range(bits - 1, -1, -1):
                bit = coder.bit(value >> b & 1, own.p[node])
                own.adapt(node, bit)
                group.adapt(node, bit)
                node = 2 * node + bit
            index[j, i] = node - nodes
        if coder.broken:
            return
