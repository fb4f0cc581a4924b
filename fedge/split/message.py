"""The bytes of what goes up in a split step: activations and their labels. Both ends of each; what comes down is
``gradient.py``.

A message says itself what it holds, so that it can be read with nothing else but, where it says so, a state that both
ends share (``shared.py``), which it names. Checksums are the outer frame's. Layout, little-endian; of activations:

    offset  type  field
    0       u8    version, 1
    1       u8    1: activations
    2       u8    codebook, 0 float32, 1 eight bits, 2 the shared one, plus 16 · indices, 0 packed, 1 coded,
                  2 coded by the shared model
    3       u8    L - 1
    4       u16   B
    6       u16   q
    8       u16   R
    10      u32   d
    14      8 B   name of the shared state            if codebook or indices need it
            f32 × R·L·d/q                             the codebook as float32; or
            (lo f32 | step f32) × R, u8 × R·L·d/q     in eight bits: c = lo + step·u8; or nothing
            indices by position, then by example, to the end (``fedge/codecs/indices.py``)

of labels: version | 3 | bits b u8 | 0 | B u16, then B labels of b bits, packed.

Whoever reads bytes from a stranger says with ``most_values`` how many activations it will make room for at most: memory
stays within a small multiple of 4 bytes for each of those and of what came.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from fedge.codecs.indices import decode_indices, encode_indices, pack_bits, packed_bytes, unpack_bits
from fedge.codecs.product import Floats, Indices, Ints
from fedge.errors import CodecError
from fedge.split.quantizer import LARGEST_MAGNITUDE, MOST_EXAMPLES, Shape
from fedge.split.shared import ID_BYTES, Shared

VERSION = 1
ACTIVATIONS, GRADIENTS, LABELS = 1, 2, 3
FLOAT_BITS = 32
MOST_VALUES = 1 << 24
"""64 MiB of float32, which is twenty examples of 800,000 activations."""
_HEAD = struct.Struct("<BBBBHHHI")
_LABEL_HEAD = struct.Struct("<BBBBH")


class CodebookKind(IntEnum):
    """How a codebook travels."""

    FLOAT32 = 0
    EIGHT_BITS = 1
    SHARED = 2


class IndexKind(IntEnum):
    """How indices travel."""

    PACKED = 0
    CODED = 1
    CODED_SHARED = 2


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """Centroids float32 ``[R, L, d/q]``, how they travel, and as which bytes."""

    kind: CodebookKind
    centroids: Floats
    data: bytes

    @classmethod
    def float32(cls, centroids: Floats) -> Codebook:
        """Return a codebook that travels as it is."""
        return cls(CodebookKind.FLOAT32, centroids, centroids.astype("<f4").tobytes())

    @classmethod
    def eight_bits(cls, centroids: Floats) -> Codebook:
        """Return a codebook rounded to 256 values between the least and the greatest of each group."""
        flat = centroids.reshape(len(centroids), -1)
        lo = flat.min(1)
        step = ((flat.max(1) - lo) / np.float32(255)).astype(np.float32)
        codes = np.rint((flat - lo[:, None]) / np.where(step > 0, step, 1)[:, None])
        data = np.stack([lo, step], 1).astype("<f4").tobytes() + np.clip(codes, 0, 255).astype(np.uint8).tobytes()
        return cls(CodebookKind.EIGHT_BITS, _from_eight_bits(data, centroids.shape), data)

    @classmethod
    def shared(cls, state: Shared) -> Codebook:
        """Return the codebook both ends have: nothing travels.

        Raises:
            CodecError: ``state`` has none.
        """
        if state.codebook is None:
            raise CodecError(f"expected a shared codebook in state {state.id}, got none")
        return cls(CodebookKind.SHARED, state.codebook, b"")

    @classmethod
    def read(cls, kind: CodebookKind, data: memoryview, shape: Shape, state: Shared | None) -> Codebook:
        """Read the codebook at the start of ``data``.

        Raises:
            CodecError: it ends before, has a centroid out of range, or the shared one is of another shape.
        """
        if kind is CodebookKind.SHARED:
            assert state is not None  # who asks has looked for it
            found = cls.shared(state)
            if found.centroids.shape != shape.codebook_shape:
                got = found.centroids.shape
                raise CodecError(f"expected a shared codebook of shape {shape.codebook_shape}, got {got}")
            return found
        count = shape.groups * shape.centroids * shape.length
        expected = 4 * count if kind is CodebookKind.FLOAT32 else 8 * shape.groups + count
        if len(data) < expected:
            raise CodecError(f"expected {expected} bytes of codebook, got {len(data)}")
        raw = bytes(data[:expected])
        with np.errstate(over="ignore", invalid="ignore"):
            centroids = (
                np.frombuffer(raw, "<f4").astype(np.float32).reshape(shape.codebook_shape)
                if kind is CodebookKind.FLOAT32
                else _from_eight_bits(raw, shape.codebook_shape)
            )
        if not (centroids.min() >= -LARGEST_MAGNITUDE and centroids.max() <= LARGEST_MAGNITUDE):
            raise CodecError(f"expected centroids of magnitude {LARGEST_MAGNITUDE:g} or less, got others")
        return cls(kind, centroids, raw)


def _from_eight_bits(data: bytes, shape: tuple[int, ...]) -> Floats:
    groups = shape[0]
    lo, step = np.frombuffer(data, "<f4", 2 * groups).astype(np.float32).reshape(groups, 2).T
    codes = np.frombuffer(data, np.uint8, -1, 8 * groups).reshape(groups, -1).astype(np.float32)
    found: Floats = (lo[:, None] + step[:, None] * codes).reshape(shape)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class ActivationMessage:
    """What a device says of one batch: ``index`` uint8 ``[q, B]`` into a codebook, and what of the state it used."""

    shape: Shape
    codebook: Codebook
    index: Indices
    indices: IndexKind
    state_id: bytes = b""

    @property
    def needs_state(self) -> bool:
        """Whether it can be read only with the state it names."""
        return self.codebook.kind is CodebookKind.SHARED or self.indices is IndexKind.CODED_SHARED

    def to_bytes(self, state: Shared | None = None) -> bytes:
        """Return the message. Indices that coding would make longer travel packed.

        Raises:
            CodecError: it needs a state, and this is not the one.
        """
        shape, kind, bits = self.shape, self.indices, self.shape.index_bits
        model = _model(state, shape) if kind is IndexKind.CODED_SHARED else None
        packed = packed_bytes(self.index.size, bits)
        coded = b""
        if kind is not IndexKind.PACKED and bits:
            coded = encode_indices(self.index, shape.groups, bits, model)
        if not coded or len(coded) >= packed:
            kind, coded = IndexKind.PACKED, pack_bits(self.index, bits)
        kinds = self.codebook.kind | kind << 4
        sizes = shape.examples, shape.subvectors, shape.groups, shape.values
        head = _HEAD.pack(VERSION, ACTIVATIONS, kinds, shape.centroids - 1, *sizes)
        needs_state = self.codebook.kind is CodebookKind.SHARED or kind is IndexKind.CODED_SHARED
        return b"".join([head, self.state_id if needs_state else b"", self.codebook.data, coded])

    @classmethod
    def from_bytes(cls, data: bytes, state: Shared | None = None, most_values: int = MOST_VALUES) -> ActivationMessage:
        """Read a message of B·d <= ``most_values``.

        Raises:
            CodecError: it is none, is larger, or needs a state that this is not.
        """
        view = memoryview(data)
        kinds, last, *sizes = read_head(_HEAD, data, ACTIVATIONS, "activations")
        examples, subvectors, groups, values = sizes
        shape = Shape(examples, values, subvectors, groups, last + 1)
        if examples * values > most_values:
            raise CodecError(f"expected {most_values} activations or fewer, got {examples} x {values}")
        if kinds & 15 not in set(CodebookKind) or kinds >> 4 not in set(IndexKind):
            raise CodecError(f"expected a known kind of codebook and of indices, got {kinds:#04x}")
        kind, indices, at, named = CodebookKind(kinds & 15), IndexKind(kinds >> 4), _HEAD.size, b""
        if kind is CodebookKind.SHARED or indices is IndexKind.CODED_SHARED:
            named = bytes(view[at : at + ID_BYTES])
            at += ID_BYTES
            if state is None or bytes.fromhex(state.id) != named:
                raise CodecError(f"expected shared state {named.hex()}, got {state and state.id}")
        book = Codebook.read(kind, view[at:], shape, state)
        rest, bits = view[at + len(book.data) :], shape.index_bits
        if indices is IndexKind.PACKED:
            index = unpack_bits(rest, bits, examples * subvectors).reshape(subvectors, examples)
        elif not bits:
            raise CodecError("expected packed indices of one centroid, got coded ones")
        else:
            model = _model(state, shape) if indices is IndexKind.CODED_SHARED else None
            index = decode_indices(rest, subvectors, examples, groups, bits, model)
        if index.max() >= shape.centroids:
            raise CodecError(f"expected indices below {shape.centroids}, got {index.max()}")
        return cls(shape, book, index, indices, named)


def most_bytes(shape: Shape) -> int:
    """Return the most bytes that a message of activations of this shape has."""
    book = 4 * shape.groups * shape.centroids * shape.length
    return _HEAD.size + ID_BYTES + book + packed_bytes(shape.examples * shape.subvectors, shape.index_bits)


def state_named(data: bytes) -> str | None:
    """Return the id of the shared state that a message of activations was made with; None where it needs none.

    Raises:
        CodecError: it is no such message.
    """
    kinds = read_head(_HEAD, data, ACTIVATIONS, "activations")[0]
    if kinds & 15 != CodebookKind.SHARED and kinds >> 4 != IndexKind.CODED_SHARED:
        return None
    return data[_HEAD.size : _HEAD.size + ID_BYTES].hex()


def _model(state: Shared | None, shape: Shape) -> Indices:
    expected = shape.subvectors, (1 << shape.index_bits) - 1
    if state is None or state.model is None or state.model.shape != expected:
        got = state if state is None or state.model is None else state.model.shape
        raise CodecError(f"expected a shared model of shape {expected}, got {got}")
    return state.model


def write_labels(labels: Ints, bits: int) -> bytes:
    """Return ``labels``, integers ``[B]``, each below 2^``bits``, 1 to 8.

    Raises:
        CodecError: other bits, none or too many labels, or one that does not fit.
    """
    if not (1 <= bits <= 8 and 1 <= labels.size <= MOST_EXAMPLES and 0 <= labels.min() <= labels.max() < 1 << bits):
        raise CodecError(f"expected 1 to {MOST_EXAMPLES} labels of 1 to 8 bits, got {labels.size} of {bits}")
    return _LABEL_HEAD.pack(VERSION, LABELS, bits, 0, labels.size) + pack_bits(labels.astype(np.uint8), bits)


def read_labels(data: bytes, examples: int) -> Ints:
    """Return the labels of a batch of so many ``examples``, int64 ``[B]``.

    Raises:
        CodecError: ``data`` are no labels, or of another batch.
    """
    bits, zero, count = read_head(_LABEL_HEAD, data, LABELS, "labels")
    if zero or not 1 <= bits <= 8 or count != examples:
        raise CodecError(f"expected {examples} labels of 1 to 8 bits, got {count} of {bits}")
    return unpack_bits(memoryview(data)[_LABEL_HEAD.size :], bits, count).astype(np.int64)


def read_head(form: struct.Struct, data: bytes, kind: int, name: str) -> tuple[int, ...]:
    """Return what a header of ``form`` holds behind its version and kind."""
    if len(data) < form.size:
        raise CodecError(f"expected {name} with a header of {form.size} bytes, got {len(data)} bytes")
    version, found, *fields = form.unpack_from(data)
    if (version, found) != (VERSION, kind):
        raise CodecError(f"expected {name} of version {VERSION}, got kind {found} of version {version}")
    return tuple(fields)
