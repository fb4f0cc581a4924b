"""What devices and server of a split run may share beyond the model: a codebook, and a model of indices per position.

The server makes it of what it has decoded, names it by its bytes, and gives it to devices beside the front half; a
message that was made with it names it, so that the wrong one is refused and never read.

    codebook   [R, L, d/q]     mean of the devices' c_rl, each counted by its vectors, over the last step that had any
    model      [q, 2^b - 1]    for each node of the tree of an index (``fedge/codecs/indices.py``), how often its bit
                               was 1 at this position, in 1/256; a step counts DECAY as much as the one after it

Layout, little-endian: version u8, 1 | flags u8, 1 codebook + 2 model | L - 1 u8 | 0 | q u16 | R u16 | length d/q u32,
then codebook f32, then model u8. id = BLAKE2b-64 of all that.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedge.codecs.product import Floats, Indices, Ints
from fedge.errors import CodecError
from fedge.split.quantizer import LARGEST_MAGNITUDE, Shape, group_of

VERSION = 1
ID_BYTES = 8
DECAY = 0.8
_HEAD = struct.Struct("<BBBBHHI")
_CODEBOOK, _MODEL = 1, 2


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """A codebook float32 ``[R, L, d/q]``, a model of indices uint8 ``[q, 2^b - 1]``, or both, under a name."""

    shape: Shape  # its examples are not part of it
    codebook: Floats | None = None
    model: Indices | None = None
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", hashlib.blake2b(self.to_bytes(), digest_size=ID_BYTES).hexdigest())

    def to_bytes(self) -> bytes:
        """Return what devices are given."""
        shape = self.shape
        flags = (_CODEBOOK if self.codebook is not None else 0) | (_MODEL if self.model is not None else 0)
        head = _HEAD.pack(VERSION, flags, shape.centroids - 1, 0, shape.subvectors, shape.groups, shape.length)
        book = b"" if self.codebook is None else self.codebook.astype("<f4").tobytes()
        return head + book + (b"" if self.model is None else self.model.tobytes())

    @classmethod
    def from_bytes(cls, data: bytes, most_values: int) -> Shared:
        """Read a state for rows of at most ``most_values`` values.

        Raises:
            CodecError: it is none, or larger.
        """
        if len(data) < _HEAD.size:
            raise CodecError(f"expected a shared state with a header of {_HEAD.size} bytes, got {len(data)} bytes")
        version, flags, last, zero, subvectors, groups, length = _HEAD.unpack_from(data)
        if version != VERSION or flags & ~(_CODEBOOK | _MODEL) or zero or not 1 <= subvectors * length <= most_values:
            got = f"version {version}, flags {flags}, {subvectors} x {length}"
            raise CodecError(f"expected a shared state of version {VERSION} for {most_values} values, got {got}")
        shape = Shape(1, subvectors * length, subvectors, groups, last + 1)
        nodes = (1 << shape.index_bits) - 1
        floats = groups * (last + 1) * length if flags & _CODEBOOK else 0
        expected = _HEAD.size + 4 * floats + (subvectors * nodes if flags & _MODEL else 0)
        if len(data) != expected:
            raise CodecError(f"expected a shared state of {expected} bytes, got {len(data)}")
        book = model = None
        if flags & _CODEBOOK:
            book = np.frombuffer(data, "<f4", floats, _HEAD.size).astype(np.float32).reshape(shape.codebook_shape)
            if not np.abs(book).max() <= LARGEST_MAGNITUDE:
                raise CodecError(f"expected centroids of magnitude {LARGEST_MAGNITUDE:g} or less, got others")
        if flags & _MODEL:
            model = np.frombuffer(data, np.uint8, -1, _HEAD.size + 4 * floats).reshape(subvectors, nodes)
        return cls(shape, book, model)


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What a server keeps to make shared states of: the last codebook, and decayed counts, float64 ``[q, 2^b]``."""

    shape: Shape
    codebook: Floats | None = None
    ones: npt.NDArray[np.float64] | None = None
    seen: npt.NDArray[np.float64] | None = None

    def after(self, batches: Sequence[tuple[Floats | None, Indices]]) -> Memory:
        """Return the memory after a step: of each batch its codebook, None if shared, and indices ``[q, B]``."""
        shape = self.shape
        fitted = [(book, _vectors(index, shape)) for book, index in batches if book is not None]
        codebook = _mean(fitted, self.codebook) if fitted else self.codebook
        ones, seen = (np.zeros((shape.subvectors, 1 << shape.index_bits)) for _ in range(2))
        if self.ones is not None and self.seen is not None:
            ones, seen = DECAY * self.ones, DECAY * self.seen
        for _, index in batches:
            # A node is the index without its lowest bits, behind a leading one; the next bit is what it decides.
            whole = index.astype(np.int64) | 1 << shape.index_bits
            for b in range(shape.index_bits - 1, -1, -1):
                seen += _by_position(whole >> (b + 1), seen.shape)
                ones += _by_position(whole >> (b + 1), ones.shape, whole >> b & 1)
        return Memory(shape, codebook, ones, seen)

    def publish(self, codebook: bool = True, model: bool = False) -> Shared:
        """Return the state for the steps to come."""
        return Shared(self.shape, self.codebook if codebook else None, self._model() if model else None)

    def _model(self) -> Indices | None:
        if self.ones is None or self.seen is None or not self.shape.index_bits:
            return None
        # Where little was seen, what all positions had.
        usual = (self.ones.sum(0) + 0.5) / (self.seen.sum(0) + 1.0)
        share = (self.ones + 2.0 * usual) / (self.seen + 2.0)
        model: Indices = np.clip(256.0 * share[:, 1:], 1, 254).astype(np.uint8)
        return model


def _by_position(node: Ints, shape: tuple[int, int], weights: Ints | None = None) -> npt.NDArray[np.float64]:
    """Return how often each node ``[q, B]`` comes up at its position, or the sum of its weights, float64 ``shape``."""
    cell = (np.arange(shape[0])[:, None] * shape[1] + node).reshape(-1)
    found = np.bincount(cell, None if weights is None else weights.reshape(-1), shape[0] * shape[1])
    return found.astype(np.float64).reshape(shape)


def _vectors(index: Indices, shape: Shape) -> npt.NDArray[np.float64]:
    """Return how many vectors each centroid has, float64 ``[R, L]``."""
    cell = group_of(shape.subvectors, shape.groups)[:, None] * shape.centroids + index
    counts = np.bincount(cell.reshape(-1), minlength=shape.groups * shape.centroids)
    return counts.reshape(shape.groups, shape.centroids).astype(np.float64)


def _mean(fitted: Sequence[tuple[Floats, npt.NDArray[np.float64]]], before: Floats | None) -> Floats:
    total = sum(counts for _, counts in fitted)
    sums = sum(book.astype(np.float64) * counts[..., None] for book, counts in fitted)
    kept = fitted[0][0] if before is None else before
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.asarray(sums) / np.asarray(total)[..., None]
    return np.where(np.asarray(total)[..., None] > 0, means, kept).astype(np.float32)
