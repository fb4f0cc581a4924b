"""EDEN in NumPy: the same bytes and the same floats as ``kernels/kernels.h``, and the text to read beside the paper.

For one block x of n coordinates, with y = R·x (rotation), q_i the centroid nearest to y_i/σ, σ² = ||y||²/n:

    S = ||y||² / <y, q>
    x_hat = S · R^-1·q    so that <x, x_hat> = ||x||² always, and E[x_hat] = x

If only the first k coordinates are sent, q is 0 for the rest and ||y||² is replaced by (n/k)·||y_1..k||², which has
the same mean and rises and falls with <y, q>: 2 % less error at k = 100.

Vargaftik et al., EDEN, ICML 2022 (https://arxiv.org/abs/2108.08842), section 3; at one bit it is DRIVE
(https://arxiv.org/abs/2105.08339). Sums run over 32 columns, entry i in column i mod 32: 16 rows of them, a run, in
float32, runs in float64, then the columns in order.

Each block is first multiplied by the power of two that brings its largest magnitude near 1, so that neither 1e38
nor subnormal numbers lose anything on the way. Scales travel divided by 32, because S reaches 32·||x||/√n when
only 5 % of the coordinates are sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedge.codecs import lloyd, packing, rotation, scales, whole
from fedge.codecs.base import LARGEST, Mask, Sum, Vector
from fedge.codecs.plan import WHOLE, Plan, Run
from fedge.codecs.rotation import BLOCK, Workspace

HEADROOM = 32.0
LANES = 16
COLUMNS, RUN = 32, 512  # of sums of products
CHUNK = 144  # blocks worked on at once: long rows, few calls of NumPy's, and no power of two between rows
TILE = 256  # entries of all blocks that leave together: long enough for NumPy's loops
ADDED = 48  # blocks added to a sum at once: a third of a chunk, and their float64 stay in the cache
ONE = np.float32(1)
SAFE = np.float32(2.0**100)  # no coordinate times a scale up to this is too large for float32

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Group:
    """Blocks of one size that are worked on at once: where they lie, how long and how many they are."""

    here: slice
    size: int
    first: int  # of their scales
    count: int
    signs: int  # number of the first, for its signs
    run: Run
    whole: bool  # whether they are rotated in whole numbers
    work: Workspace | None  # of full blocks, for one group at a time

    def lanes(self, seed: int) -> rotation.Signs:
        """The lanes of full blocks' signs."""
        return rotation.block_lanes(seed, self.signs, self.count)

    def array(self) -> Vector:
        """Where its blocks are rotated, as columns: float32 ``[size, count]``."""
        return self.work.x if self.work else np.empty((self.size, self.count), dtype=np.float32)


def encode(x: Vector, plan: Plan, seed: int) -> bytes:
    """Encode finite ``x``, float32 ``[plan.size]``."""
    found, codes = [np.empty(0)], []
    for group in _groups(plan):
        scale, packed = _encode_blocks(x[group.here].reshape(group.count, -1), group, seed)
        found.append(scale)
        codes.append(_columns(packed).tobytes())
    side = scales.pack(np.concatenate(found), seed)
    raw = x[plan.size - plan.raw :].astype("<f4").tobytes()
    return b"".join((bytes([plan.version]), side, *codes, raw))


def decode(data: bytes, plan: Plan, seed: int, received: Mask | None) -> Vector:
    """Decode a payload whose length and numbers were checked. ``received`` is in block order."""
    out = np.empty(plan.size, dtype=np.float32)
    for group, x in _decoded(data, plan, seed, received):
        _to_rows(x, out[group.here].reshape(group.count, group.size))
    return out


def accumulate(data: bytes, plan: Plan, seed: int, received: Mask | None, weight: float, out: Sum) -> None:
    """Add ``weight`` times what :func:`decode` returns to ``out``; raw coordinates are left alone."""
    for group, x in _decoded(data, plan, seed, received):
        rows = out[group.here].reshape(group.count, group.size)
        for first in range(0, group.count, ADDED):
            here = rows[first : first + ADDED]
            part = np.empty(here.shape)
            _to_rows(x[:, first : first + ADDED], part)
            part *= weight
            with np.errstate(over="ignore"):
                here += part


def _decoded(data: bytes, plan: Plan, seed: int, received: Mask | None) -> Iterator[tuple[_Group, Vector]]:
    """Yield groups of blocks and their coordinates, float32 ``[size, count]``, which the next group may overwrite."""
    factors = scales.values(*scales.read(data, plan.scales, 1))
    start = 1 + plan.scale_bytes
    for group in _groups(plan):
        count = group.count
        packed = np.frombuffer(data, np.uint8, count * group.run.size_bytes, start).reshape(count, -1)
        start += packed.size
        mask = None if received is None else received[group.here].reshape(count, -1).T
        factor = factors[group.first : group.first + count]
        yield group, _decode_blocks(_columns(packed), group, factor, mask, seed)


def _groups(plan: Plan) -> Iterator[_Group]:
    """Yield what is worked on at once, in the order of the payload."""
    memory = np.empty((2, BLOCK * min(CHUNK, plan.blocks)), dtype=np.float32)
    for first in range(0, plan.blocks, CHUNK):
        count = min(CHUNK, plan.blocks - first)
        if first == 0 or count < CHUNK:
            work = Workspace(count, memory)
        here = slice(first * BLOCK, (first + count) * BLOCK)
        yield _Group(here, BLOCK, first, count, first, plan.full_run, plan.version == WHOLE, work)
    start = plan.blocks * BLOCK
    for k, (size, run) in enumerate(zip(plan.tails, plan.tail_runs, strict=True), plan.blocks):
        yield _Group(slice(start, start + size), size, k, 1, plan.signs(k), run, False, None)
        start += size


def lane_product(a: Doubles, b: Doubles) -> Doubles:
    """Return Σ a·b of each column in float64 over 16 lanes, in the order that ``kernels/codes.h`` uses.

    ``a`` and ``b`` hold float32 numbers, so their products are exact. einsum adds whole rows, first to last.
    """
    n, columns = a.shape
    if n % LANES:
        a, b = (np.concatenate((c, np.zeros((-n % LANES, columns)))) for c in (a, b))
    a, b = (c.reshape(-1, LANES * columns) for c in (a, b))
    lanes = np.einsum("kl,kl->l", a, b).reshape(LANES, columns)
    total: Doubles = lanes[0].copy()
    for lane in lanes[1:]:
        total += lane
    return total


def _product(a: Vector, b: Vector) -> Doubles:
    """Return Σ a·b of each column of float32 ``[n, blocks]``, in the order that ``kernels/quantize.h`` uses."""
    terms = a * b
    n, columns = terms.shape
    if n % RUN:
        terms = np.concatenate((terms, np.zeros((-n % RUN, columns), np.float32)))
    rows = terms.reshape(-1, RUN // COLUMNS, COLUMNS * columns)
    run = rows[:, 0].copy()
    for row in range(1, RUN // COLUMNS):
        run += rows[:, row]
    sums = np.zeros(COLUMNS * columns)
    for one in run:
        sums += one
    total = np.zeros(columns)
    for column in sums.reshape(COLUMNS, columns):
        total += column
    return total


def _shift_to_one(x: Vector) -> npt.NDArray[np.int64]:
    """Return per row the power of two, -126 .. 126, that brings its largest magnitude near 1."""
    exponent = np.abs(np.maximum(x.max(axis=1), -x.min(axis=1))).view(np.uint32).astype(np.int64) >> 23
    shift: npt.NDArray[np.int64] = np.clip(127 - exponent, -126, 126)
    return shift


def _to_rows(columns: Vector, out: Sum) -> None:
    """Write ``columns`` as rows to ``out``."""
    for start in range(0, len(columns), TILE):
        out[:, start : start + TILE] = columns[start : start + TILE].T


def _columns(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return ``rows`` as columns, contiguous."""
    out = np.empty(rows.shape[::-1], dtype=np.uint8)
    rotation.to_columns(rows, out)
    return out


def _times(x: Vector, factor: Vector, out: Vector | None = None) -> Vector:
    """Return ``x``, ``[n, blocks]``, each column times its ``factor``; in ``out``, which may be ``x``, if given."""
    rows = math.gcd(len(x), BLOCK // LANES)  # so many at once: a row of a few blocks is too short a loop
    out = np.empty_like(x) if out is None else out
    with rotation.unbuffered():
        flat, flat_out = (a.reshape(-1, rows * factor.size) for a in (x, out))
        np.multiply(flat, np.tile(factor, rows), out=flat_out)
    return out


def _encode_blocks(x: Vector, group: _Group, seed: int) -> tuple[Doubles, npt.NDArray[np.uint8]]:
    """Return the scales, float64 ``[blocks]``, and the packed codes, ``[bytes, blocks]``, of the rows of ``x``."""
    n, run = group.size, group.run
    shift = _shift_to_one(x)
    y = group.array()
    rotation.to_columns(x, y)
    _times(y, np.ldexp(np.float32(1), shift), out=y)
    if group.work and group.whole:
        scale, packed = whole.encode(group.work, group.lanes(seed), run.width)
        return _leaving_zeros(np.ldexp(scale / HEADROOM, -shift), packed)
    if group.work:
        group.work.rotate(group.lanes(seed))
    else:
        y = rotation.rotate_tail(y[:, 0], seed, group.signs).reshape(n, 1)
    length = float(BLOCK) if group.work else 1.0
    energy = _product(y, y)
    with np.errstate(divide="ignore"):
        inverse_sigma = np.where(energy > 0, 1 / np.sqrt(energy / n), 0).astype(np.float32)
    codes = [_quantize(y[start:stop], inverse_sigma, width) for start, stop, width in run.parts]
    packed = np.concatenate(codes)
    sent = y[: run.sent]
    if run.sent == run.low and run.width == 1:  # quicker than a look at the codes
        q = np.copysign(lloyd.LEVELS[0][1], sent)
    else:
        q = np.empty((run.sent, group.count), dtype=np.float32)
        _dequantize(packed, run, ONE, q)
    product = _product(sent, q)
    if run.sent < n:
        energy = _product(sent, sent) * (n / run.sent)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.ldexp(energy / (product * length * HEADROOM), -shift)
    return _leaving_zeros(np.where(product > 0, scale, 0.0), packed)


def _leaving_zeros(scale: Doubles, packed: npt.NDArray[np.uint8]) -> tuple[Doubles, npt.NDArray[np.uint8]]:
    """Return the scales, none larger than float32 has, and the codes, zeros where the scale is 0."""
    packed[:, scale == 0] = 0
    return np.minimum(scale, LARGEST), packed


def _quantize(y: Vector, inverse_sigma: Vector, width: int) -> npt.NDArray[np.uint8]:
    """Return the packed codes of ``y``, ``[n, blocks]``."""
    z = y if width == 1 else _times(y, inverse_sigma)  # of which one bit tells only the sign
    return packing.pack(lloyd.quantize(z, width), width)


def _dequantize(packed: npt.NDArray[np.uint8], run: Run, factor: np.float32, out: Vector) -> None:
    """Write ``factor`` times the centroids of the coordinates sent to ``out``, float32 ``[run.sent, blocks]``."""
    begin = 0
    for start, stop, width in run.parts:
        end = begin + packing.packed_bytes(stop - start, width)
        packing.look_up(packed[begin:end], width, lloyd.LEVELS[width - 1] * factor, out[start:stop])
        begin = end


def _decode_blocks(
    packed: npt.NDArray[np.uint8], group: _Group, scales: Doubles, received: Mask | None, seed: int
) -> Vector:
    """Decode blocks of one size from ``packed``, ``[bytes, blocks]``, to float32 ``[n, blocks]``."""
    n, run = group.size, group.run
    x = group.array()
    if group.whole:
        return _decode_whole_blocks(packed, group, scales, received, seed)
    _dequantize(packed, run, np.float32(HEADROOM / (BLOCK if n == BLOCK else 1)), x[: run.sent])
    x[run.sent :] = 0
    if received is not None:
        x[~received] = 0
        scales = scales * _loss_factor(received[: run.sent], run)
    factors = np.minimum(scales, LARGEST).astype(np.float32)
    with np.errstate(over="ignore"):
        if group.work:
            group.work.unrotate(group.lanes(seed), factors)
        else:
            x = (rotation.unrotate_tail(x[:, 0], seed, group.signs) * factors).reshape(n, 1)
    return _within_float32(x, factors)


def _within_float32(x: Vector, factors: Vector) -> Vector:
    """Return ``x``, columns that were multiplied by ``factors``, without what is not finite."""
    if not factors.all():
        x[:, factors == 0] = 0  # not -0
    if factors.max() > SAFE:
        np.clip(x, -LARGEST, LARGEST, out=x)
    return x


def _decode_whole_blocks(
    packed: npt.NDArray[np.uint8], group: _Group, scales: Doubles, received: Mask | None, seed: int
) -> Vector:
    """The same of blocks in whole numbers."""
    assert group.work
    whole.decode(group.work, packed, group.lanes(seed), group.run.width, received)
    if received is not None:
        came = np.count_nonzero(received, axis=0)
        scales = scales * np.where(came > 0, BLOCK / np.maximum(came, 1), 0.0)
    factors = np.minimum(scales, LARGEST).astype(np.float32)
    with np.errstate(over="ignore"):
        _times(group.work.x, factors, out=group.work.x)
    return _within_float32(group.work.x, factors)


def _loss_factor(received: Mask, run: Run) -> Doubles:
    """Return sent/received per block, each coordinate counted by its E[z Q(z)]; 0 if nothing came."""
    came, sent = np.zeros(received.shape[1]), 0.0
    for start, stop, width in run.parts:
        came += np.count_nonzero(received[start:stop], axis=0) * lloyd.gain(width)
        sent += (stop - start) * lloyd.gain(width)
    return np.where(came > 0, sent / np.where(came > 0, came, 1.0), 0.0)
