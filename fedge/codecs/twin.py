"""EDEN in NumPy: the same bytes and the same floats as ``kernels/kernels.h``, and the text to read beside the paper.

For one block x of n coordinates, with y = R·x (rotation), q_i the centroid nearest to y_i/σ, σ² = ||y||²/n:

    S = ||y||² / <y, q>
    x_hat = S · R^-1·q    so that <x, x_hat> = ||x||² always, and E[x_hat] = x

If only the first k coordinates are sent, q is 0 for the rest and ||y||² is replaced by (n/k)·||y_1..k||², which has
the same mean and rises and falls with <y, q>: 2 % less error at k = 100.

Vargaftik et al., EDEN, ICML 2022 (https://arxiv.org/abs/2108.08842), section 3; at one bit it is DRIVE
(https://arxiv.org/abs/2105.08339). Sums run in float64 over 16 lanes, entry i in lane i mod 16, lanes added in order.

Each block is first multiplied by the power of two that brings its largest magnitude near 1, so that neither 1e38
nor subnormal numbers lose anything on the way. Scales travel divided by 32, because S reaches 32·||x||/√n when
only 5 % of the coordinates are sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedge.codecs import lloyd, packing, rotation, scales
from fedge.codecs.base import LARGEST, Mask, Sum, Vector, add_weighted
from fedge.codecs.plan import Plan, Run
from fedge.codecs.rotation import BLOCK

HEADROOM = 32.0
LANES = 16
CHUNK = 16  # blocks worked on at once: their intermediates of 256 KiB stay in cache

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


def encode(x: Vector, plan: Plan, seed: int) -> bytes:
    """Encode finite ``x``, float32 ``[plan.size]``."""
    found, codes = [np.empty(0)], []
    for group in _groups(plan):
        scale, packed = _encode_blocks(x[group.here].reshape(group.count, -1), group.run, seed, group.signs)
        found.append(scale)
        codes.append(packed.tobytes())
    side = scales.pack(np.concatenate(found), seed)
    raw = x[plan.size - plan.raw :].astype("<f4").tobytes()
    return b"".join((bytes([plan.version]), side, *codes, raw))


def decode(data: bytes, plan: Plan, seed: int, received: Mask | None) -> Vector:
    """Decode a payload whose length and numbers were checked. ``received`` is in block order."""
    out = np.empty(plan.size, dtype=np.float32)
    for here, part in _decode_groups(data, plan, seed, received):
        out[here] = part
    return out


def accumulate(data: bytes, plan: Plan, seed: int, received: Mask | None, weight: float, out: Sum) -> None:
    """Add ``weight`` times what :func:`decode` returns to ``out``; raw coordinates are left alone."""
    for here, part in _decode_groups(data, plan, seed, received):
        add_weighted(weight, part, out[here])


def _decode_groups(data: bytes, plan: Plan, seed: int, received: Mask | None) -> Iterator[tuple[slice, Vector]]:
    """Yield stretches of coordinates and their values, rotated blocks only."""
    factors = scales.values(*scales.read(data, plan.scales, 1))
    start = 1 + plan.scale_bytes
    for group in _groups(plan):
        count = group.count
        packed = np.frombuffer(data, np.uint8, count * group.run.size_bytes, start).reshape(count, -1)
        start += packed.size
        mask = None if received is None else received[group.here].reshape(count, -1)
        factor = factors[group.first : group.first + count]
        part = _decode_blocks(packed, group.run, factor, group.size, mask, seed, group.signs)
        yield group.here, part.reshape(-1)


def _groups(plan: Plan) -> Iterator[_Group]:
    """Yield what is worked on at once, in the order of the payload."""
    for first in range(0, plan.blocks, CHUNK):
        count = min(CHUNK, plan.blocks - first)
        yield _Group(slice(first * BLOCK, (first + count) * BLOCK), BLOCK, first, count, first, plan.full_run)
    start = plan.blocks * BLOCK
    for k, (size, run) in enumerate(zip(plan.tails, plan.tail_runs, strict=True), plan.blocks):
        yield _Group(slice(start, start + size), size, k, 1, plan.signs(k), run)
        start += size


def lane_sum(products: Doubles) -> Doubles:
    """Sum each row over 16 lanes in the order that ``kernels/kernels.h`` uses."""
    rows, count = products.shape
    padded = np.zeros((rows, -(-count // LANES), LANES))
    padded.reshape(rows, -1)[:, :count] = products
    lanes = np.add.reduce(padded, axis=1)
    total: Doubles = lanes[:, 0].copy()
    for lane in range(1, LANES):
        total += lanes[:, lane]
    return total


def _shift_to_one(x: Vector) -> npt.NDArray[np.int64]:
    """Return per row the power of two, -126 .. 126, that brings its largest magnitude near 1."""
    exponent = np.abs(x).max(axis=1).view(np.uint32).astype(np.int64) >> 23
    shift: npt.NDArray[np.int64] = np.clip(127 - exponent, -126, 126)
    return shift


def _encode_blocks(x: Vector, run: Run, seed: int, first: int) -> tuple[Doubles, npt.NDArray[np.uint8]]:
    """Return the scales, float64 ``[blocks]``, and the packed codes of blocks of one size."""
    count, n = x.shape
    shift = _shift_to_one(x)
    near_one = x * np.ldexp(np.float32(1), shift)[:, None]
    if n == BLOCK:
        y, length = rotation.rotate(near_one, rotation.block_signs(seed, first, count)), float(BLOCK)
    else:
        y, length = rotation.rotate_tail(near_one[0], seed, first).reshape(1, n), 1.0
    wide = y.astype(np.float64)
    energy = lane_sum(wide * wide)
    with np.errstate(divide="ignore"):
        inverse_sigma = np.where(energy > 0, 1 / np.sqrt(energy / n), 0).astype(np.float32)
    z = y[:, : run.sent] * inverse_sigma[:, None]
    codes = [(lloyd.quantize(z[:, start:stop], width), width) for start, stop, width in run.parts]
    q = np.concatenate([lloyd.LEVELS[width - 1][code] for code, width in codes], axis=1)
    sent = wide[:, : run.sent]
    product = lane_sum(sent * q)
    if run.sent < n:
        energy = lane_sum(sent * sent) * (n / run.sent)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.ldexp(energy / (product * length * HEADROOM), -shift)
    scale = np.where(product > 0, np.minimum(scale, LARGEST), 0.0)
    packed = np.concatenate([packing.pack(code, width) for code, width in codes], axis=1)
    packed[scale == 0] = 0
    return scale, packed


def _decode_blocks(
    packed: npt.NDArray[np.uint8],
    run: Run,
    scales: Doubles,
    n: int,
    received: Mask | None,
    seed: int,
    first: int,
) -> Vector:
    """Return blocks of one size, float32 ``[blocks, n]``."""
    count = packed.shape[0]
    factor = np.float32(HEADROOM / (BLOCK if n == BLOCK else 1))
    q = np.zeros((count, n), dtype=np.float32)
    begin = 0
    for start, stop, width in run.parts:
        end = begin + packing.packed_bytes(stop - start, width)
        codes = packing.unpack(packed[:, begin:end], stop - start, width)
        q[:, start:stop] = (lloyd.LEVELS[width - 1] * factor)[codes]
        begin = end
    if received is not None:
        q[~received] = 0
        scales = scales * _loss_factor(received[:, : run.sent], run)
    if n == BLOCK:
        x = rotation.unrotate(q, rotation.block_signs(seed, first, count))
    else:
        x = rotation.unrotate_tail(q[0], seed, first).reshape(1, n)
    factors = np.minimum(scales, LARGEST).astype(np.float32)
    with np.errstate(over="ignore"):
        x *= factors[:, None]
    x[factors == 0] = 0
    return np.clip(x, -LARGEST, LARGEST)


def _loss_factor(received: Mask, run: Run) -> Doubles:
    """Return sent/received per block, each coordinate counted by its E[z Q(z)]; 0 if nothing came."""
    came, sent = np.zeros(received.shape[0]), 0.0
    for start, stop, width in run.parts:
        came += np.count_nonzero(received[:, start:stop], axis=1) * lloyd.gain(width)
        sent += (stop - start) * lloyd.gain(width)
    return np.where(came > 0, sent / np.where(came > 0, came, 1.0), 0.0)
