"""A model as one flat vector, and the segments it is cut into.

Codecs, sums and states see one contiguous float32 vector of length d. A ``Layout`` says where each named tensor
lies in it, and both ends compute it from the model alone:

    vector = [ all WEIGHT tensors | all RAW tensors | all BUFFER tensors ],  each kind in model order

    WEIGHT  trained, compressed: matrices, kernels, embeddings
    RAW     trained, sent as float32: biases, norms, anything one-dimensional or tiny
    BUFFER  not trained, sent as float32, averaged plainly: BatchNorm statistics, counters, frozen tensors

A *segment* is a run of at most 65,536 coordinates of one kind, the unit of encoding, upload, loss and averaging.
Full segments are a multiple of 4,096 coordinates (the codecs' block), or in small models a power of two. A model
of up to half a million weights has about eight segments of them, so that a link that dies half-way has still
delivered something. None is under 1,024 unless its whole kind is.

The layout of a model that is trained split (``fedge.split``) has the front half's tensors first, and each half is laid
out as a model of its own: what a device that holds the front half knows is a prefix, of the vector and of the segments.

    vector = [ WEIGHT | RAW | BUFFER of the front half | WEIGHT | RAW | BUFFER of the back half ]

Integer tensors ride as float32, which holds integers exactly up to 2^24 = 16,777,216; ``pack`` refuses larger.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedge.errors import LayoutError

Vector = npt.NDArray[np.float32]
"""float32, shape [d], contiguous."""

MAX_SEGMENT = 65_536
MIN_SEGMENT = 1_024
BLOCK = 4_096
TARGET_SEGMENTS = 8
EXACT_INTEGERS = 1 << 24
"""float32 holds every integer of at most this magnitude."""

_DTYPES = frozenset(
    [
        "float16",
        "float32",
        "float64",
        "bool",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "uint32",
        "int32",
        "uint64",
        "int64",
    ]
)


class Kind(StrEnum):
    """How a tensor is trained and sent. The order of definition is the order in the vector."""

    WEIGHT = "weight"
    RAW = "raw"
    BUFFER = "buffer"


_RANK = {kind: rank for rank, kind in enumerate(Kind)}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor of a model. ``dtype`` is the NumPy name of what the model holds."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if any(n < 0 for n in self.shape):
            raise LayoutError(f"tensor {self.name!r}: expected dimensions of at least 0, got {list(self.shape)}")
        if self.kind not in _RANK:
            raise LayoutError(f"tensor {self.name!r}: expected a kind of {', '.join(Kind)}, got {self.kind!r}")
        if self.dtype not in _DTYPES:
            known = ", ".join(sorted(_DTYPES))
            raise LayoutError(f"tensor {self.name!r}: expected a dtype of {known}, got {self.dtype!r}")

    @property
    def size(self) -> int:
        """Number of coordinates; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Segment:
    """Coordinates ``start`` .. ``stop`` - 1 of the vector, all of one kind."""

    index: int
    start: int
    stop: int
    kind: Kind

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        """``vector[segment.slice]`` is a view of the segment."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor and each segment lies in the flat vector.

    >>> layout = Layout.of([TensorSpec("b", (3,), Kind.RAW), TensorSpec("w", (3, 2), Kind.WEIGHT)])
    >>> layout.size, layout.offsets
    (9, {'w': 0, 'b': 6})

    ``num_front``: how many of the tensors are the front half's; 0: the model is not cut.
    """

    tensors: tuple[TensorSpec, ...]
    num_front: int = 0
    size: int = field(init=False, repr=False, compare=False)
    offsets: Mapping[str, int] = field(init=False, repr=False, compare=False)
    segments: tuple[Segment, ...] = field(init=False, repr=False, compare=False)
    digest: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.tensors, self.num_front)
        offsets, size = {}, 0
        for tensor in self.tensors:
            offsets[tensor.name] = size
            size += tensor.size
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "segments", _segments(self._halves))
        object.__setattr__(self, "digest", hashlib.blake2b(text.encode(), digest_size=16).hexdigest())

    @classmethod
    def of(cls, tensors: Iterable[TensorSpec]) -> Self:
        """Return the layout of ``tensors`` given in model order: sorted by kind, else left in order."""
        return cls(_sorted(tensors))

    @classmethod
    def halves(cls, front: Iterable[TensorSpec], back: Iterable[TensorSpec]) -> Self:
        """Return the layout of a model that is cut in two, whose tensors are given half by half in model order."""
        first = _sorted(front)
        return cls((*first, *_sorted(back)), len(first))

    @property
    def front(self) -> Layout:
        """The layout of the front half alone: the same tensors and segments at the same places.

        Raises:
            LayoutError: the model is not cut.
        """
        if not self.num_front:
            raise LayoutError("expected the layout of a model that is cut in two, got one that is whole")
        return Layout(self.tensors[: self.num_front])

    @property
    def num_trained(self) -> int:
        """How many coordinates are trained: all but the BUFFER tensors."""
        return sum(tensor.size for tensor in self.tensors if tensor.kind is not Kind.BUFFER)

    def trained(self, vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the trained coordinates of ``vector`` ``[d]``, in its order; where they are a prefix, as a view."""
        self.check(vector)
        trained = [segment for segment in self.segments if segment.kind is not Kind.BUFFER]
        if all(segment.stop <= self.num_trained for segment in trained):
            return vector[: self.num_trained]
        return np.concatenate([vector[segment.slice] for segment in trained])

    @property
    def _halves(self) -> tuple[tuple[TensorSpec, ...], ...]:
        return tuple(half for half in (self.tensors[: self.num_front], self.tensors[self.num_front :]) if half)

    def pack(self, arrays: Mapping[str, npt.ArrayLike]) -> Vector:
        """Return the named arrays as one float32 vector ``[d]``.

        Raises:
            LayoutError: if a tensor is missing, unknown or of another shape, or an integer exceeds 2^24.
        """
        names = set(self.offsets)
        if names != set(arrays):
            missing, extra = sorted(names - set(arrays)), sorted(set(arrays) - names)
            raise LayoutError(f"expected {len(names)} tensors; missing {missing}, not in the layout {extra}")
        vector = np.empty(self.size, np.float32)
        for tensor in self.tensors:
            start = self.offsets[tensor.name]
            vector[start : start + tensor.size] = _flat(tensor, np.asarray(arrays[tensor.name]))
        return vector

    def unpack(self, vector: npt.NDArray[np.floating[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the tensors of ``vector`` ``[d]`` by name: views where the dtype is its own, else copies.

        Integer tensors are rounded, and kept within what ``pack`` accepts and their dtype holds.

        Raises:
            LayoutError: if ``vector`` is not of shape ``[d]``.
        """
        self.check(vector)
        return {
            tensor.name: _as_dtype(vector[start : start + tensor.size], tensor.dtype).reshape(tensor.shape)
            for tensor in self.tensors
            for start in [self.offsets[tensor.name]]
        }

    def rows(self, segment: Segment, about: int) -> tuple[int, int]:
        """Return a length near ``about`` coordinates by which rows of the segment's largest tensor come, and after how
        many coordinates of the segment the first such run of rows ends.

        A row is what one entry of the first axis holds: the weights of one output. Short rows are taken together,
        long ones cut into equal parts if they can be.
        """
        shares = [(self._overlap(tensor, segment), tensor) for tensor in self.tensors]
        share, tensor = max(shares, key=lambda pair: pair[0])
        row = tensor.size // tensor.shape[0] if share and tensor.shape else 1
        if row <= about:
            length = row * max(1, round(about / row))
        else:
            parts = [row // k for k in range(1, 2 * row // about + 1) if row % k == 0]
            length = min(parts, key=lambda part: abs(math.log(part / about)))
            length = length if length <= 2 * about else about
        return length, (self.offsets[tensor.name] - segment.start) % length

    def _overlap(self, tensor: TensorSpec, segment: Segment) -> int:
        start = self.offsets[tensor.name]
        return max(0, min(start + tensor.size, segment.stop) - max(start, segment.start))

    def check(self, vector: npt.NDArray[Any]) -> None:
        """Raise ``LayoutError`` unless ``vector`` is of shape ``[d]``."""
        if vector.shape != (self.size,):
            raise LayoutError(f"expected a vector of shape [{self.size}], got {list(vector.shape)}")

    def to_json(self) -> dict[str, Any]:
        """Return the layout as a dict of lists, strings and integers."""
        rows = [[tensor.name, list(tensor.shape), str(tensor.kind), tensor.dtype] for tensor in self.tensors]
        return {"tensors": rows, "num_front": self.num_front} if self.num_front else {"tensors": rows}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the layout that ``to_json`` described.

        Raises:
            LayoutError: if ``document`` describes no layout.
        """
        try:
            return cls(tuple(_spec(*row) for row in document["tensors"]), document.get("num_front", 0))
        except (KeyError, TypeError) as error:
            raise LayoutError(f"expected {{'tensors': [[name, shape, kind, dtype], ..]}}: {error!r}") from error


def _spec(name: object, shape: Iterable[object], kind: object, dtype: object) -> TensorSpec:
    """Return one row of ``to_json`` as a spec, refusing what JSON can hold and a layout cannot."""
    dims = tuple(shape)
    if not (isinstance(name, str) and isinstance(dtype, str)):
        raise LayoutError(f"expected a name and a dtype, got {name!r} and {dtype!r}")
    if not all(type(n) is int for n in dims):
        raise LayoutError(f"tensor {name!r}: expected integer dimensions, got {list(dims)}")
    if kind not in set(Kind):
        raise LayoutError(f"tensor {name!r}: expected a kind of {', '.join(Kind)}, got {kind!r}")
    return TensorSpec(name, tuple(int(str(n)) for n in dims), Kind(str(kind)), dtype)


def _sorted(tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(sorted(tensors, key=lambda tensor: _RANK[tensor.kind]))


def _check(tensors: tuple[TensorSpec, ...], num_front: int) -> None:
    """Refuse what is no layout: nothing in it, a name twice, kinds out of order, a cut outside it."""
    names = [tensor.name for tensor in tensors]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise LayoutError(f"expected every tensor name once, got {', '.join(map(repr, twice))} more than once")
    if sum(tensor.size for tensor in tensors) == 0:
        raise LayoutError(f"expected at least one coordinate, got {len(tensors)} tensors of none")
    if type(num_front) is not int or not 0 <= num_front < len(tensors):
        raise LayoutError(f"expected 0 to {len(tensors) - 1} tensors in the front half, got {num_front!r}")
    ranks = [_RANK[tensor.kind] for tensor in tensors]
    if any(part != sorted(part) for part in (ranks[:num_front], ranks[num_front:])):
        kinds = ", ".join(tensor.kind for tensor in tensors)
        raise LayoutError(f"expected all weight, then raw, then buffer tensors, got {kinds}; use Layout.of")


def _segments(halves: Iterable[tuple[TensorSpec, ...]]) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    start = 0
    for half, kind in itertools.product(halves, Kind):
        for size in segment_sizes(sum(tensor.size for tensor in half if tensor.kind is kind)):
            segments.append(Segment(len(segments), start, start + size, kind))
            start += size
    return tuple(segments)


def segment_sizes(count: int) -> list[int]:
    """Cut ``count`` coordinates of one kind into segments; return their sizes, in order."""
    full = _full_size(count)
    sizes = [full] * (count // full)
    tail = count % full
    if tail >= MIN_SEGMENT or not sizes:
        return [*sizes, tail] if tail else sizes
    if tail and full + tail <= MAX_SEGMENT:
        sizes[-1] += tail
    elif tail:  # a full segment cannot take it: share both evenly
        sizes[-1:] = [(full + tail + 1) // 2, (full + tail) // 2]
    return sizes


def _full_size(count: int) -> int:
    """Return the length of a full segment: near ``count / TARGET_SEGMENTS``, in blocks or a power of two."""
    target = count / TARGET_SEGMENTS
    if target >= BLOCK:
        return min(MAX_SEGMENT, BLOCK * round(target / BLOCK))
    return max(MIN_SEGMENT, int(2 ** round(math.log2(max(target, 1)))))


def _flat(tensor: TensorSpec, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.shape != tensor.shape:
        shapes = f"expected shape {list(tensor.shape)}, got {list(array.shape)}"
        raise LayoutError(f"tensor {tensor.name!r}: {shapes}")
    if array.dtype.kind in "iu" and array.size:
        largest = max(int(array.max()), -int(array.min()))
        if largest > EXACT_INTEGERS:
            bound = f"expected integers up to {EXACT_INTEGERS}, which float32 holds exactly"
            raise LayoutError(f"tensor {tensor.name!r}: {bound}, got {largest}")
    return array.reshape(-1)


def _as_dtype(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    kind = np.dtype(dtype).kind
    if kind == "b":
        return np.asarray(values >= 0.5, np.bool_)
    if kind in "iu":
        limits = np.iinfo(dtype)
        low, high = max(limits.min, -EXACT_INTEGERS), min(limits.max, EXACT_INTEGERS)
        return np.asarray(np.clip(np.rint(values), low, high), np.dtype(dtype))
    return np.asarray(values, np.dtype(dtype))
