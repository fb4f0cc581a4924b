"""The best levels of many laws at once: Newton's method on Lloyd's two conditions, under a magnitude weight.

Under the distortion |x|^M (x - c)^2 of M22 (Liu et al., https://arxiv.org/abs/2301.09269) the nearest level is the best
one, as without the weight, and the best level is a weighted mean of its cell. With positive levels c_1 < ... < c_n
on [τ, inf), t_0 = τ, t_j = (c_j + c_(j+1))/2, t_n = inf, w(x) = x^M f_|x|(x):

    c_j = c̄_j = ∫_cell x w / ∫_cell w = Γ(b)/Γ(a)·ΔP(b)/ΔP(a),   a = (s + M)/k,  b = a + 1/k,  ΔP over u = x^k

Newton solves G = c - c̄ = 0, whose Jacobian is tridiagonal: with W_j = ∫_cell w,
r_j = w(t_j) (t_j - c̄_j)/(2 W_j) and l_j = w(t_(j-1)) (c̄_j - t_(j-1))/(2 W_j), l_1 = r_n = 0,

    dG_j/dc_j = 1 - r_j - l_j,     dG_j/dc_(j+1) = -r_j,     dG_j/dc_(j-1) = -l_j

The start is the density of levels that is right for many of them, proportional to w^(1/3) (Panter and Dite, 1951),
which is a generalized gamma again. A step is halved while it would disorder the levels. This design, its start and its
Jacobian are ours; the authors' code iterates Lloyd's map from a random start.

Narrow cells are differences of nearly equal P, whose rounding left |c - c̄| at 2e-12 c for 8 bits. There, and where w
changes little, ∫(x - c) w and ∫w are sums over Gauss's 16 points instead, which have nothing to cancel, and two last
steps bring |c - c̄| below 1e-13 c.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedge.codecs.m22.gamma import Doubles, incomplete, inverse_upper, ratios
from fedge.codecs.m22.sparse import solve_tridiagonal
from fedge.errors import CodecError

_STEP = 1e-13  # relative; where Newton stops
_SQUARING = 1e-8  # below this, a step that is not much shorter than the last one is rounding
_ROUNDS = 80
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_POLISH = 2  # steps
_GENTLE = 3.0  # w changes by less than e to this within a cell


def start(s: Doubles, k: Doubles, magnitude: Doubles, levels: npt.NDArray[np.int64], tau: Doubles) -> Doubles:
    """Return asymptotically right levels, float64 ``[laws, max(levels)]``, ``inf`` beyond the levels of a law."""
    a = (((s + magnitude - 1) / 3 + 1) / k)[:, None]
    j = np.arange(1, levels.max() + 1)
    share = 1 - (j - 0.5) / levels[:, None]
    used = share > 0
    _, survivors, _ = incomplete(a, (tau[:, None] ** k[:, None]) / 3)
    u = inverse_upper(np.broadcast_to(a, share.shape), np.where(used, share * np.maximum(survivors, 1e-290), 0.5))
    c = (3 * u) ** (1 / k[:, None])
    return np.where(used, np.maximum(c, tau[:, None] * (1 + 1e-9 * j)), np.inf)


def _cells(p: Doubles, q: Doubles) -> Doubles:
    """Return the differences of P from edge to edge, by whichever of P and Q is the smaller there."""
    difference: Doubles = np.where(p[..., 1:] < 0.5, p[..., 1:] - p[..., :-1], q[..., :-1] - q[..., 1:])
    return difference


def edges(c: Doubles, tau: Doubles) -> Doubles:
    """Return τ, the midpoints of positive levels ``c`` ``[laws, n]``, and inf: float64 ``[laws, n + 1]``."""
    last = np.full_like(tau, np.inf)
    return np.column_stack((tau, (c[:, 1:] + c[:, :-1]) / 2, last))


def masses(s: Doubles, k: Doubles, powers: Doubles, t: Doubles) -> tuple[Doubles, Doubles]:
    """Return ΔP(a_p) of every cell and D(a_p) at every edge: float64 ``[p, laws, n]`` and ``[p, laws, n + 1]``, for
    ``powers`` ``[p, laws]`` and edges ``t`` ``[laws, n + 1]``. ΔP times E|x|^p is the integral of |x|^p over the cell.
    """
    p, q, d = incomplete(((s + powers) / k)[..., None], t ** k[:, None])
    return _cells(p, q), d


def residual(s: Doubles, k: Doubles, powers: Doubles, scale: Doubles, c: Doubles, tau: Doubles) -> list[Doubles]:
    """Return c - c̄, l and r of the module's equations, float64 ``[laws, n]`` each; 0 for levels at infinity.

    ``powers`` is M and M + 1, ``[2, laws]``, and ``scale`` Γ(b)/Γ(a), ``[laws, 1]``.
    """
    t = edges(c, tau)
    mass, d = masses(s, k, powers, t)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = scale * mass[1] / mass[0]
        half_w = 0.5 * k[:, None] * d[0] / t
        low = half_w[:, :-1] * (mean - t[:, :-1]) / mass[0]
        high = half_w[:, 1:] * (t[:, 1:] - mean) / mass[0]
        low[:, 0] = 0.0
        return [np.where(np.isfinite(c) & np.isfinite(v), v, 0.0) for v in (c - mean, low, high)]


def _narrow_gaps(k: Doubles, p: Doubles, c: Doubles, tau: Doubles, gap: Doubles) -> Doubles:
    """Return ``gap``, c - c̄, float64 ``[laws, n]``, computed anew where cells are narrow; p is s + M, ``[laws]``."""
    t = edges(c, tau)
    with np.errstate(all="ignore"):
        middle, half = (t[:, 1:] + t[:, :-1]) / 2, (t[:, 1:] - t[:, :-1]) / 2
        u = middle ** k[:, None]
        changes = (half / middle) * (np.abs(p - 1)[:, None] + k[:, None] * u)
        narrow = np.isfinite(c) & (half < middle / 4) & (changes < _GENTLE)
    row, _ = np.nonzero(narrow)
    middle, half, u = (part[narrow][:, None] for part in (middle, half, u))
    log = np.log1p(half / middle * _NODES)
    w = _WEIGHTS * np.exp((p[row, None] - 1) * log - u * np.expm1(k[row, None] * log))  # over w at the middle
    away = (middle - c[narrow][:, None]) + half * _NODES
    found = gap.copy()
    found[narrow] = -(w * away).sum(axis=1) / w.sum(axis=1)
    return found


def _polished(s: Doubles, k: Doubles, powers: Doubles, scale: Doubles, c: Doubles, tau: Doubles) -> Doubles:
    """Return levels ``c`` after the last steps, by residuals of which rounding has left more digits."""
    for _ in range(_POLISH):
        gap, low, high = residual(s, k, powers, scale, c, tau)
        gap = _narrow_gaps(k, s + powers[0], c, tau, gap)
        c = _moved(c, solve_tridiagonal(-low, 1 - low - high, -high, gap), tau)
    return c


def _moved(c: Doubles, step: Doubles, tau: Doubles) -> Doubles:
    """Return ``c - step``, the step of a law halved until its levels ascend from above ``tau``."""
    used = np.isfinite(c)
    for _ in range(60):
        with np.errstate(invalid="ignore"):  # inf - inf in rows of fewer levels
            ascends = np.diff(c - step, axis=1, prepend=tau[:, None]) > 0
        good = np.all(ascends | ~used, axis=1, keepdims=True)
        if good.all():
            break
        step = np.where(good, step, step / 2)
    return c - step


def solve(s: Doubles, k: Doubles, magnitude: Doubles, tau: Doubles, c: Doubles, precision: float = _STEP) -> Doubles:
    """Return the best positive levels of every law, float64 ``[laws, n]``, ascending, from the levels ``c``.

    Args:
        s: ``[laws]``, like ``k``, ``magnitude`` and ``tau``: the law, M, and the magnitude below which nothing is sent.
        c: where to start, ``[laws, n]``, ascending; ``inf`` fills rows of fewer levels.
        precision: the relative step at which to stop. Newton's steps square: 1e-4 already leaves about 1e-8.

    Raises:
        CodecError: if Newton's method did not come to rest.
    """
    powers = np.stack((magnitude, magnitude + 1))
    scale = ratios((s + magnitude) / k, (s + magnitude + 1) / k)[:, None]
    last = np.inf
    for _ in range(_ROUNDS):
        gap, low, high = residual(s, k, powers, scale, c, tau)
        step = solve_tridiagonal(-low, 1 - low - high, -high, gap)
        moved = _moved(c, step, tau)
        used = np.isfinite(c)
        change = float((np.abs(moved[used] - c[used]) / moved[used]).max())
        c = moved
        if change <= precision or (change < _SQUARING and change > last / 4):
            return _polished(s, k, powers, scale, c, tau) if precision <= _STEP else c
        last = change
    raise CodecError(f"expected Newton's method to settle within {_ROUNDS} steps, got {c.tolist()}")


def designed(
    s: Doubles,
    k: Doubles,
    magnitude: Doubles,
    levels: npt.NDArray[np.int64],
    tau: Doubles,
    precision: float = _STEP,
) -> Doubles:
    """Return what :func:`solve` makes of :func:`start`."""
    return solve(s, k, magnitude, tau, start(s, k, magnitude, levels, tau), precision)
