"""Regularized incomplete gamma functions over arrays, in NumPy alone, to about 1e-14 of the value.

    P(a, x) = γ(a, x)/Γ(a) = 1 - Q(a, x),     D(a, x) = x^a e^-x/Γ(a) = x·dP/dx

P comes from its power series below x = max(a, ½) and Q from its continued fraction above (NIST DLMF 8.11.4 and 8.9.2,
https://dlmf.nist.gov/8); whichever is the smaller is computed, the other is one minus it, so that both tails keep
their digits. D takes x^a, e^-x and Γ(a) as they are while a <= 20 and Stirling's form, in which large terms cancel
before they are rounded, beyond. The inverse is Newton's method on ln P or ln Q over ln x: a gamma variable has a
log-concave density there, so both are concave and Newton's iterates cannot run away.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.codecs.native import kernels

Doubles = npt.NDArray[np.float64]
_EPSILON = 2.0**-54
_TINY = 1e-300
_LARGEST = 1e6  # beyond, e^-x is nothing
_STIRLING_FROM = 20.0
_EULER = 0.5772156649015329


def _each(function: Any, values: Doubles) -> Doubles:
    """Apply a function of ``math`` to every entry."""
    return np.array([function(v) for v in values.ravel().tolist()], np.float64).reshape(values.shape)


def _stirling(a: Any) -> Any:
    """Return ln Γ(a) - (a - ½) ln a + a - ½ ln 2π for a >= 20, to 2e-15."""
    b = 1 / (a * a)
    return (1 / 12 - b * (1 / 360 - b * (1 / 1260 - b / 1680))) / a


def ratio(a: float, b: float) -> float:
    """Return Γ(b)/Γ(a) for a, b > 0, ``inf`` where that overflows."""
    if max(a, b) < 170:
        return math.gamma(b) / math.gamma(a)
    log = math.lgamma(b) - math.lgamma(a)
    if min(a, b) >= _STIRLING_FROM:  # the same difference, its large terms cancelled
        h = b - a
        log = (a - 0.5) * math.log1p(h / a) + h * (math.log(b) - 1) + _stirling(b) - _stirling(a)
    return math.exp(log) if log < 709 else math.inf


def ratios(a: Doubles, b: Doubles) -> Doubles:
    """Return Γ(b)/Γ(a) of every pair, float64, same shape."""
    pairs = zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    return np.array([ratio(low, high) for low, high in pairs], np.float64).reshape(a.shape)


def density(a: Doubles, x: Doubles) -> Doubles:
    """Return D(a, x) = x^a e^-x/Γ(a) = x·dP/dx, float64, ``a`` and ``x`` broadcast; 0 at x = 0 and x = inf."""
    x = np.minimum(x, _LARGEST)
    small = np.minimum(a, _STIRLING_FROM)
    direct: Doubles = x**small * np.exp(-x) / _each(math.gamma, small)
    if (a <= _STIRLING_FROM).all():
        return direct
    large = np.maximum(a, _STIRLING_FROM)
    away = np.maximum(x, _TINY) / large - 1
    exponent = -large * (away - np.log1p(np.maximum(away, -1 + 2 * _EPSILON))) - _stirling(large)
    result: Doubles = np.where(a <= _STIRLING_FROM, direct, np.sqrt(large / (2 * math.pi)) * np.exp(exponent))
    return result


def _series(a: Doubles, x: Doubles) -> Doubles:
    """Return P/D = Σ_n x^n/(a (a + 1) ... (a + n))."""
    if kernels is not None:
        found = np.empty_like(x)
        kernels.gamma_series(a, x, found, _EPSILON)
        return found
    term = 1 / a
    total = term.copy()
    n = a.copy()
    while term.size and (term > _EPSILON * total).any():
        n += 1
        term *= x / n
        total += term
    return total


def _fraction(a: Doubles, x: Doubles) -> Doubles:
    """Return Q/D by Lentz's evaluation of 1/(x + 1 - a - 1 (1 - a)/(x + 3 - a - 2 (2 - a)/(...)))."""
    if kernels is not None:
        found = np.empty_like(x)
        kernels.gamma_fraction(a, x, found, _TINY, 8 * _EPSILON)
        return found
    b = x + 1 - a
    c = np.full_like(x, 1 / _TINY)
    d = 1 / b
    h = d.copy()
    i = 0
    while x.size:
        i += 1
        numerator = i * (a - i)
        b += 2
        d = 1 / (numerator * d + b)
        c = numerator / c + b
        factor = c * d
        h *= factor
        if not (np.abs(factor - 1) > 8 * _EPSILON).any():
            break
    return h


def incomplete(a: Doubles, x: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Return P(a, x), Q(a, x) and D(a, x), float64, for a > 0 and x in [0, inf], broadcast against each other."""
    shape = np.broadcast_shapes(a.shape, x.shape)
    d = np.broadcast_to(density(a, x), shape)
    a, x = np.broadcast_to(a, shape), np.broadcast_to(np.minimum(x, _LARGEST), shape)
    low = x < np.maximum(a, 0.5)
    p, q = np.empty(shape), np.empty(shape)
    p[low] = d[low] * _series(a[low], x[low])
    q[low] = 1 - p[low]
    high = ~low
    q[high] = d[high] * _fraction(a[high], x[high])
    p[high] = 1 - q[high]
    return p, q, d


def _guess(a: Doubles, q: Doubles) -> Doubles:
    """Where Q(a, x) is about ``q``: Wilson and Hilferty's cube, or P's first term where that fails."""
    z = _each(lambda v: -NormalDist().inv_cdf(min(max(v, 1e-300), 1 - 1e-16)), q)
    cube = a * (1 - 1 / (9 * a) + z / (3 * np.sqrt(a))) ** 3
    first = ((1 - q) * a * _each(math.gamma, np.minimum(a, 100.0))) ** (1 / a)
    tail = np.maximum(-np.log(np.maximum(q, 1e-300)), 0.1)
    return np.maximum(np.where((a > 1) & (cube > 0.05 * a), cube, np.where(q > 0.3, first, tail)), 1e-280)


def inverse_upper(a: Doubles, q: Doubles) -> Doubles:
    """Return x with Q(a, x) = q for q in (0, 1), float64, ``a`` and ``q`` broadcast; small q keeps its digits."""
    a, q = np.broadcast_arrays(a, q)
    upper = q < 0.5
    target = np.where(upper, np.log(q), np.log1p(-q))
    y = np.log(_guess(a, q))
    for _ in range(100):
        p, tail, d = incomplete(a, np.exp(y))
        value = np.maximum(np.where(upper, tail, p), _TINY)
        slope = np.maximum(d, _TINY) / value
        step = (np.log(value) - target) / np.where(upper, -slope, slope)
        y = y - np.clip(step, -5, 5)
        if not (np.abs(step) > 1e-8).any():  # its square is what is left
            break
    result: Doubles = np.exp(y)
    return result


def digamma(a: float) -> tuple[float, float]:
    """Return ψ(a) and ψ'(a) for a > 0: recurrence to a >= 10, then the asymptotic series (DLMF 5.11.2, 5.15.8)."""
    psi = slope = 0.0
    while a < 10:
        psi -= 1 / a
        slope += 1 / (a * a)
        a += 1
    b = 1 / (a * a)
    psi += math.log(a) - 0.5 / a - b * (1 / 12 - b * (1 / 120 - b * (1 / 252 - b * (1 / 240 - b * (1 / 132)))))
    slope += 1 / a + b / 2 + b / a * (1 / 6 - b * (1 / 30 - b * (1 / 42 - b * (1 / 30 - b * (5 / 66)))))
    return psi, slope
