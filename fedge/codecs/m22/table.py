"""Nearly best quantizers by looking them up, for a device that needs dozens in a millisecond.

Under the weight |x|^M both families are one law ∝ x^(p-1)·exp(-x^k) on x >= τ, with p = s + M; up to the unit of x, its
best n levels depend on k, p and τ alone. The table holds

    T_j = ln((c_j - τ)/(c̄ - τ)),    c̄ = E[x] of that law, its best single level, in closed form at run time

for n = 2, 4, 8 over ln k, ln p and z = y/(y + (1 + k/2)(1 - y)), y = √(τ/c̄), and is read by interpolating cubics
through the four nearest nodes of each. Any real M, either family and any truncation thus read one table. The root
straightens the corner that a law with p < 1 has at τ = 0, the fraction spreads the little room near y = 1 in which one
with a large k becomes its tail; at z = 1 every tail is exponential and T is that of k = p = 1, τ = 0.
D_M is stationary at the best levels, so an error of 1e-3 in c costs 1e-6 of it; a test states what the table loses.

File: ``table.npy``, float16 ``[k, p, z, 14]``, the 2, 4 and 8 levels one after another; :mod:`.make_table` writes it.
T_j over the shape, relative to c̄, is our design; M22 itself (https://arxiv.org/abs/2301.09269) has no table.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedge.codecs.m22.families import checked_levels_bits, checked_magnitude, checked_truncation, law
from fedge.codecs.m22.gamma import Doubles, incomplete, ratios
from fedge.codecs.m22.newton import designed, start

VERSION = 1  # of the nodes and the file; both ends of a wire that relies on a table must have the same
FILE = Path(__file__).with_name("table.npy")
LOG_K = np.linspace(np.log(0.15), np.log(10), 19)
LOG_P = np.linspace(np.log(0.2), np.log(20), 16)
Z = np.linspace(0, 1, 11)
LARGEST_BITS = 4


def single(k: Doubles, p: Doubles, tau: Doubles) -> Doubles:
    """Return c̄ = E[x] of laws ∝ x^(p-1)·exp(-x^k) on x >= τ, float64 ``[laws]`` like all arguments."""
    a = np.stack((p / k, (p + 1) / k))
    _, upper, _ = incomplete(a, tau**k)
    mean: Doubles = ratios(a[0], a[1]) * upper[1] / upper[0]
    return mean


def position(k: Doubles, share: Doubles) -> Doubles:
    """Return z where τ/c̄ is ``share``, float64 ``[laws]``."""
    y = np.sqrt(share)
    z: Doubles = y / (y + (1 + k / 2) * (1 - y))
    return z


def share_at(k: Doubles, z: Doubles) -> Doubles:
    """Return τ/c̄ at z: the inverse of :func:`position`."""
    share: Doubles = (z / (z + (1 - z) / (1 + k / 2))) ** 2
    return share


@functools.cache
def _table() -> npt.NDArray[np.float32]:
    table: npt.NDArray[np.float32] = np.load(FILE).astype(np.float32)
    return table


def _nearest(nodes: Doubles, x: Doubles) -> tuple[npt.NDArray[np.intp], Doubles]:
    """Return the four nodes about each of ``x`` by number, and Lagrange's weights: ``[laws, 4]`` each."""
    step = nodes[1] - nodes[0]
    first = np.clip(((x - nodes[0]) / step).astype(np.intp) - 1, 0, nodes.size - 4)
    at = (x - nodes[first]) / step  # in steps from the first of the four
    below, beside = (at - 1) * (at - 2), at * (at - 3)
    weights = (below * (3 - at) / 6, beside * (at - 2) / 2, beside * (1 - at) / 2, below * at / 6)
    return first[:, None] + np.arange(4), np.stack(weights, axis=1)


def _interpolated(k: Doubles, p: Doubles, z: Doubles) -> Doubles:
    """Return T, float64 ``[laws, 14]``, of laws within the nodes."""
    (i, u), (j, v), (m, w) = _nearest(LOG_K, np.log(k)), _nearest(LOG_P, np.log(p)), _nearest(Z, z)
    size = Z.size
    rows = (i[:, :, None, None] * LOG_P.size + j[:, None, :, None]) * size + m[:, None, None, :]
    weights = (u[:, :, None, None] * v[:, None, :, None] * w[:, None, None, :]).reshape(k.size, 1, -1)
    table = _table()
    values = table.reshape(-1, table.shape[-1])[rows.reshape(k.size, -1)]
    t: Doubles = np.matmul(weights, values)[:, 0]
    return t


def within(k: Doubles, p: Doubles) -> npt.NDArray[np.bool_]:
    """Say which laws lie within the nodes."""
    x, y = np.log(k), np.log(p)
    edge = 1e-9
    good: npt.NDArray[np.bool_] = (np.abs(x - LOG_K.mean()) <= np.ptp(LOG_K) / 2 + edge) & (
        np.abs(y - LOG_P.mean()) <= np.ptp(LOG_P) / 2 + edge
    )
    return good


def tabulated_many(s: Doubles, k: Doubles, magnitude: Doubles, tau: Doubles) -> tuple[Doubles, ...]:
    """Return the positive levels of 1, 2, 3 and 4 bits of many laws of unit scale.

    Args:
        s: ``[laws]``, like all others; :func:`fedge.codecs.m22.families.law` gives s and k.
        magnitude: M.
        tau: the truncations.

    Returns:
        Four arrays, float64 ``[laws, 2**(bits - 1)]``, ascending. Laws beyond the nodes are designed, which is slower.
    """
    p = s + magnitude
    mean = single(k, p, tau)
    inside = within(k, p)
    t = _interpolated(np.where(inside, k, 1.0), np.where(inside, p, 1.0), position(k, tau / mean))
    levels = [mean[:, None]]
    for bits in range(2, LARGEST_BITS + 1):
        n = 2 ** (bits - 1)
        levels.append(tau[:, None] + (mean - tau)[:, None] * np.exp(t[:, n - 2 : 2 * n - 2]))
        if not inside.all():
            out = ~inside
            count = np.full(int(out.sum()), n)
            levels[-1][out] = designed(s[out], k[out], magnitude[out], count, tau[out])
    return tuple(levels)


def tabulated(
    family: str, shape: float, magnitude: float, levels_bits: int, truncation: float = 0.0
) -> tuple[Doubles, Doubles]:
    """Return centroids and thresholds as :func:`fedge.codecs.m22.design.design` does, nearly the best ones.

    More than 4 bits are designed. Errors are those of ``design``.
    """
    s, k = law(family, shape)
    m, bits = checked_magnitude(magnitude), checked_levels_bits(levels_bits)
    one = [np.array([v]) for v in (s, k, m, checked_truncation(s, k, truncation))]
    if bits > LARGEST_BITS:
        positive = designed(one[0], one[1], one[2], np.array([2 ** (bits - 1)]), one[3])[0]
    else:
        positive = tabulated_many(one[0], one[1], one[2], one[3])[bits - 1][0]
    midpoints = (positive[1:] + positive[:-1]) / 2
    return np.concatenate((-positive[::-1], positive)), np.concatenate((-midpoints[::-1], [0.0], midpoints))


def first_levels(s: Doubles, k: Doubles, magnitude: Doubles, levels: npt.NDArray[np.int64], tau: Doubles) -> Doubles:
    """Return levels for Newton's method to start from, as :func:`fedge.codecs.m22.newton.start` does, but from the
    table where it has the law and the number of levels."""
    known = within(k, s + magnitude) & np.isin(levels, [2**bits for bits in range(LARGEST_BITS)])
    c = np.full((k.size, int(levels.max())), np.inf)
    if known.any():
        found = tabulated_many(s[known], k[known], magnitude[known], tau[known])
        for bits, row in enumerate(found):
            mine = levels[known] == 2**bits
            if mine.any():
                c[np.flatnonzero(known)[mine], : 2**bits] = row[mine]
    if not known.all():
        out = ~known
        rest = start(s[out], k[out], magnitude[out], levels[out], tau[out])
        c[out, : rest.shape[1]] = rest
    return c
