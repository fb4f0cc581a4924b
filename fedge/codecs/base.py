"""What every codec promises.

A codec turns a float32 vector into bytes and back. It holds only its settings, so one codec object may be used from
many threads at once, and both ends must name the same ``seed``, which therefore never travels.

    len(encode(x, seed)) <= size_bytes(x.size)            equal where the rate is fixed
    decode(encode(x, seed), x.size, seed).shape == x.shape
    E over seeds of decode(encode(x, seed), ...) == x     for the codecs that call themselves unbiased

Coordinates may be lost on the way (``received``). They are counted in *transmission order*, which each codec
documents; a lost coordinate is decoded as zero and the rest are scaled up, so that the expectation stays ``x``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from fedge.errors import CodecError

Vector = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Sum = npt.NDArray[np.float32] | npt.NDArray[np.float64]

LARGEST = np.float32(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Part:
    """One segment of an update. ``rows``: how many coordinates are thought to be of like energy, a matrix's row, and
    after how many the first such row ends; a codec may use it or not. ``thorough``: whether a codec should look for
    more than that (EDEN: for low rank, and for directions), though that takes several times as long."""

    vector: Vector
    seed: int
    rows: tuple[int, int] = (128, 0)
    thorough: bool = True


class Codec(Protocol):
    """Encodes one float32 vector at a time."""

    code: ClassVar[int]  # its number in frame headers

    @property
    def name(self) -> str:
        """Its name in the table of codecs, with whatever settings change its bytes."""
        ...

    @property
    def bits(self) -> float:
        """Bits per coordinate that were asked for, side information not counted."""
        ...

    @classmethod
    def at_rate(cls, bits: float) -> Self:
        """Return this codec at ``bits`` per coordinate; :class:`CodecError` if it has no such rate."""
        ...

    def encode(self, x: npt.ArrayLike, seed: int) -> bytes:
        """Encode ``x``, shape ``[d]``; :class:`CodecError` if it is not one finite vector."""
        ...

    def decode(self, data: bytes, size: int, seed: int, received: Mask | None = None) -> Vector:
        """Decode into float32 ``[size]``; :class:`CodecError` if ``data`` cannot be its payload."""
        ...

    def accumulate(
        self, data: bytes, size: int, seed: int, weight: float, out: Sum, received: Mask | None = None
    ) -> None:
        """Add ``weight`` times the decoded vector to ``out``, float32 or float64 ``[size]``, in place.

        The same numbers as ``out += np.float64(weight) * decode(...)``, computed in float64, in one pass over memory.
        ``out`` is left as it was if :class:`CodecError` is raised.
        """
        ...

    def encode_all(self, parts: Sequence[Part]) -> list[bytes]:
        """Encode the segments of one update; all payloads take at most the sum of their ``size_bytes``."""
        ...

    def check(self, data: bytes, size: int) -> None:
        """Raise :class:`CodecError` unless ``data`` has a length that a payload of ``size`` coordinates can have."""
        ...

    def error(self, data: bytes, size: int) -> float:
        """Return A of a payload: E||x_hat - x||² = A·||x||² over seeds. :class:`CodecError` as :meth:`decode`."""
        ...

    def size_bytes(self, size: int) -> int:
        """The most bytes that the payload of ``size`` coordinates takes; exactly those where the rate is fixed."""
        ...


def as_vector(x: Any) -> Vector:
    """Return ``x`` as contiguous, aligned float32 ``[d]``; a view if it is one already.

    Takes arrays of any real dtype and stride, sequences of numbers and CPU tensors. A float64 too large for float32
    becomes inf, which the codecs refuse.

    Raises:
        CodecError: if ``x`` has not one axis, or its entries are not real numbers.
    """
    if hasattr(x, "detach"):  # a tensor: NumPy can read neither one that needs a gradient nor bfloat16
        x = x.detach().float()
    try:
        array = np.asarray(x)
        if array.dtype.kind == "c":
            raise TypeError("complex numbers")
        with np.errstate(over="ignore"):
            vector = np.require(array, np.float32, ["C", "A"]) if array.ndim else array
    except (TypeError, ValueError) as error:
        raise CodecError(f"expected a vector of real numbers, got {type(x).__name__}: {error}") from None
    if array.ndim != 1:
        raise CodecError(f"expected one axis, got shape {array.shape}; flatten it first")
    return vector


def check_finite(x: Vector) -> None:
    """Raise :class:`CodecError` naming the first coordinate of ``x`` that is not finite."""
    finite = np.isfinite(x)
    if not finite.all():
        index = int(np.argmin(finite))
        reason = "nan" if np.isnan(x[index]) else "infinite, or too large for float32"
        raise CodecError(f"expected finite coordinates, got {x[index]} at index {index} ({reason})")


def check_size(size: int) -> None:
    """Raise :class:`CodecError` unless ``size`` can be a number of coordinates."""
    if size < 0:
        raise CodecError(f"expected a coordinate count of 0 or more, got {size}")


def check_sum(weight: float, out: Sum, size: int) -> None:
    """Raise :class:`CodecError` unless ``weight`` times ``size`` coordinates can be added to ``out`` in place."""
    if not math.isfinite(weight):
        raise CodecError(f"expected a finite weight, got {weight}")
    if out.dtype not in (np.dtype(np.float32), np.dtype(np.float64)) or out.shape != (size,):
        raise CodecError(f"expected a float32 or float64 sum of shape ({size},), got {out.dtype} of shape {out.shape}")
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise CodecError("expected a sum that is contiguous, aligned and writeable")


def add_weighted(weight: float, x: Vector, out: Sum) -> None:
    """``out += weight·x``, computed in float64 and rounded to the type of ``out``."""
    with np.errstate(over="ignore"):
        out += np.float64(weight) * x


def as_mask(received: npt.ArrayLike, size: int) -> Mask:
    """Return ``received`` as contiguous bool ``[size]``; :class:`CodecError` if it has another shape or type."""
    mask = np.asarray(received)
    if mask.dtype != np.bool_ or mask.shape != (size,):
        raise CodecError(f"expected a mask of bool with shape ({size},), got {mask.dtype} with shape {mask.shape}")
    return np.ascontiguousarray(mask)


def drop_and_rescale(x: Vector, received: Mask) -> Vector:
    """Zero what was lost and multiply the rest by sent/received, so that the expectation stays ``x``."""
    ratio = x.size / max(int(np.count_nonzero(received)), 1)
    kept = np.where(received, x.astype(np.float64), 0.0) * ratio
    return np.clip(kept, -LARGEST, LARGEST).astype(np.float32)
