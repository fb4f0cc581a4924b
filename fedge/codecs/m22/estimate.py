"""Which law, shape and scale given numbers have.

Zeros (dead inputs, units that did not fire) say nothing about a density and are left out, and so is what is below 1e-7
of the mean magnitude: it is nothing to a quantizer, but Weibull densities are infinite at zero, and a few such numbers
decide their likelihood. With l = ln|x|, means over the others, ψ the digamma function, the shape solves

    gennorm   moments      m₂/m₁² = Γ(1/β)Γ(3/β)/Γ(2/β)²
              likelihood   1 + ψ(1/β)/β - Σ|x|^β l/Σ|x|^β + ln(β mean|x|^β)/β = 0
    weibull   logs         c = π/√(6 Var l)
              moments      m₂/m₁² = Γ(1 + 2/c)/Γ(1 + 1/c)²
              likelihood   Σ|x|^c l/Σ|x|^c - 1/c - mean l = 0

and at any shape the likeliest scale is α = (β mean|x|^β)^(1/β), λ = (mean|x|^c)^(1/c). Of two quick shapes of a Weibull
law the likelier counts: logs use small samples best, but a few numbers near zero mislead them. Shapes are clamped to
[0.15, 10] and [0.2, 10]. Everything is computed from l less its maximum, so that no size of x can overflow.

M22 (Liu et al., https://arxiv.org/abs/2301.09269) fits these two families; these equations are the textbook ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.codecs.m22.gamma import Doubles, digamma
from fedge.errors import CodecError
from fedge.registry import find

SAMPLE = 16_384
SHAPES: Mapping[str, tuple[float, float]] = {"gennorm": (0.15, 10.0), "weibull": (0.2, 10.0)}
_ROUNDS = 30
_MOST_CHANGE = 0.4
_ENOUGH = 1e-6
_NOTHING = 1e-7


@dataclass(frozen=True, slots=True)
class Fit:
    """A law, and how well ``count`` numbers that are not zero, or almost, agree with it.

    Args:
        scale: in the unit of the numbers; 0 if all are zero.
        log_likelihood: of the ``count`` numbers together, in nats.
    """

    family: str
    shape: float
    scale: float
    log_likelihood: float
    count: int


@dataclass(frozen=True)
class _Logs:
    """l = ln|x| - top, top = ln max|x|, float32: a seventh digit is far below what any sample tells.

    ``counts``, float64, says how many numbers each entry stands for; None is one each. Sums, not ``@``: BLAS wakes its
    threads for a product of vectors, and on a busy device they cost milliseconds.
    """

    l: npt.NDArray[np.float32]  # noqa: E741
    top: float
    counts: Doubles | None = None

    @cached_property
    def count(self) -> float:
        """How many numbers there are."""
        return float(self.l.size) if self.counts is None else float(self.counts.sum())

    def sum(self, values: npt.NDArray[np.float32]) -> float:
        """Σ values over all numbers, one value for each entry."""
        return float((values if self.counts is None else self.counts * values).sum(dtype=np.float64))

    @cached_property
    def mean(self) -> float:
        """Mean l."""
        return self.sum(self.l) / self.count

    def power_mean(self, p: float) -> float:
        """ln mean|x|^p less p·top."""
        return math.log(self.sum(np.exp(np.float32(p) * self.l)) / self.count)

    @cached_property
    def log_ratio(self) -> float:
        """ln(m₂/m₁²)."""
        return self.power_mean(2.0) - 2 * self.power_mean(1.0)

    def tilted(self, p: float) -> tuple[float, float, float]:
        """ln mean|x|^p less p·top, and mean and variance of l under weights |x|^p."""
        weights = np.exp(np.float32(p) * self.l)
        total = self.sum(weights)
        mean = self.sum(weights * self.l) / total
        variance = self.sum(weights * np.square(self.l - np.float32(mean))) / total
        return math.log(total / self.count), mean, variance


def _logs(x: npt.NDArray[np.floating[Any]], sample: int | None) -> _Logs:
    x = np.asarray(x).reshape(-1)
    if x.size and not (np.isfinite(x.max()) and np.isfinite(x.min())):
        raise CodecError(f"expected finite numbers, got {x[~np.isfinite(x)][0]} among {x.size}")
    stride = 1 if sample is None else max(1, math.ceil(x.size / sample))
    magnitudes = np.abs(x[::stride].astype(np.float64))
    if stride > 1 and not magnitudes.any():
        magnitudes = np.abs(x.astype(np.float64))
    largest = magnitudes.max(initial=0.0)
    if largest > 0:
        magnitudes = magnitudes[magnitudes > _NOTHING * largest * (magnitudes / largest).mean()]
    logs = np.log(magnitudes[magnitudes > 0])
    top = float(logs.max()) if logs.size else 0.0
    return _Logs((logs - top).astype(np.float32), top)


def _ratio_gennorm(shape: float) -> float:
    """Return ln(m₂/m₁²)."""
    return math.lgamma(1 / shape) + math.lgamma(3 / shape) - 2 * math.lgamma(2 / shape)


def _ratio_weibull(shape: float) -> float:
    """Return ln(m₂/m₁²)."""
    return math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)


_RATIOS: Mapping[str, Callable[[float], float]] = {"gennorm": _ratio_gennorm, "weibull": _ratio_weibull}


@functools.cache
def _ratio_table(family: str) -> tuple[Doubles, Doubles]:
    """ln(m₂/m₁²), ascending, and ln(shape) there, of 512 shapes between the clamps."""
    low, high = SHAPES[family]
    shapes = np.geomspace(high, low, 512)
    return np.array([_RATIOS[family](shape) for shape in shapes.tolist()]), np.log(shapes)


def _by_moments(family: str, logs: _Logs) -> float:
    log_ratio, log_shape = _ratio_table(family)
    return math.exp(float(np.interp(logs.log_ratio, log_ratio, log_shape)))


def _by_logs(logs: _Logs) -> float:
    low, high = SHAPES["weibull"]
    deviation = math.sqrt(logs.sum(np.square(logs.l - np.float32(logs.mean))) / logs.count)
    return min(max(math.pi / math.sqrt(6) / deviation, low), high) if deviation > 0 else high


def _fit_gennorm(logs: _Logs, shape: float) -> Fit:
    log_scale = (math.log(shape) + logs.power_mean(shape)) / shape + logs.top
    each = math.log(shape / 2) - math.lgamma(1 / shape) - log_scale - 1 / shape
    return _fit("gennorm", logs, shape, log_scale, each)


def _fit_weibull(logs: _Logs, shape: float) -> Fit:
    log_scale = logs.power_mean(shape) / shape + logs.top
    mean = logs.mean + logs.top
    each = math.log(shape / 2) - shape * log_scale + (shape - 1) * mean - 1
    return _fit("weibull", logs, shape, log_scale, each)


def _fit(family: str, logs: _Logs, shape: float, log_scale: float, each: float) -> Fit:
    return Fit(family, shape, math.exp(min(max(log_scale, -744.0), 709.0)), each * logs.count, round(logs.count))


def _slope_gennorm(logs: _Logs, shape: float) -> tuple[float, float]:
    """Return the likelihood's equation at ``shape``, positive where it grows, and its derivative."""
    log_mean, mean, variance = logs.tilted(shape)
    psi, slope = digamma(1 / shape)
    log_sum = math.log(shape) + log_mean
    value = 1 + (psi + log_sum) / shape - mean
    return value, (1 / shape + mean - (psi + log_sum + slope / shape) / shape) / shape - variance


def _slope_weibull(logs: _Logs, shape: float) -> tuple[float, float]:
    """As :func:`_slope_gennorm`."""
    _, mean, variance = logs.tilted(shape)
    return 1 / shape + logs.mean - mean, -variance - 1 / shape**2


def _likeliest(family: str, logs: _Logs, shape: float) -> float:
    """Newton's method from ``shape``, within the clamps; uphill where the likelihood is not concave."""
    equation = {"gennorm": _slope_gennorm, "weibull": _slope_weibull}[family]
    low, high = SHAPES[family]
    for _ in range(_ROUNDS):
        value, derivative = equation(logs, shape)
        change = -value / (derivative * shape) if derivative < 0 else math.copysign(_MOST_CHANGE, value)
        moved = min(max(shape * (1 + min(max(change, -_MOST_CHANGE), _MOST_CHANGE)), low), high)
        if abs(moved - shape) <= _ENOUGH * shape:
            return moved
        shape = moved
    return shape


def _gennorm(logs: _Logs, likeliest: bool) -> Fit:
    shape = _by_moments("gennorm", logs)
    return _fit_gennorm(logs, _likeliest("gennorm", logs, shape) if likeliest else shape)


def _weibull(logs: _Logs, likeliest: bool) -> Fit:
    if likeliest:
        return _fit_weibull(logs, _likeliest("weibull", logs, _by_moments("weibull", logs)))
    quick = (_fit_weibull(logs, _by_logs(logs)), _fit_weibull(logs, _by_moments("weibull", logs)))
    return max(quick, key=lambda found: found.log_likelihood)


_FITS: Mapping[str, Callable[[_Logs, bool], Fit]] = {"gennorm": _gennorm, "weibull": _weibull}


def fit_histogram(magnitudes: Doubles, counts: Doubles, family: str = "auto") -> Fit:
    """Return what :func:`fit` does for ``counts`` numbers of such ``magnitudes``, float64 ``[n]`` both, above zero."""
    fits = _asked(family)
    mean = float(magnitudes @ counts) / (float(counts.sum()) or 1.0)
    used = magnitudes > _NOTHING * mean
    if not used.any():
        return _none(family)
    l = np.log(magnitudes[used])  # noqa: E741
    top = float(l.max())
    logs = _Logs((l - top).astype(np.float32), top, counts[used])
    return max((one(logs, False) for one in fits), key=lambda found: found.log_likelihood)


def fit(
    x: npt.NDArray[np.floating[Any]], family: str = "auto", *, likeliest: bool = False, sample: int | None = SAMPLE
) -> Fit:
    """Return the law of the entries of ``x`` that are not zero or almost.

    Args:
        x: float32 or float64, any shape.
        family: ``"gennorm"``, ``"weibull"`` or ``"auto"``, the likelier of both.
        likeliest: maximize the likelihood instead of matching moments or logs: about half the spread where shapes are
            below 0.6, at several times the cost.
        sample: look at about this many entries, evenly spaced; ``None``: at all.

    Returns:
        A shape between the clamps and a positive scale, whatever ``x`` is; shape 1, scale 0 and count 0 if all of
        ``x`` is zero or ``x`` is empty.

    Raises:
        UnknownName: if no family has this name.
        CodecError: if ``x`` has an infinity or a NaN.
    """
    fits = _asked(family)
    logs = _logs(x, sample)
    if not logs.l.size:
        return _none(family)
    return max((one(logs, likeliest) for one in fits), key=lambda found: found.log_likelihood)


def _asked(family: str) -> list[Callable[[_Logs, bool], Fit]]:
    return list(_FITS.values()) if family == "auto" else [find("family", family, _FITS)]


def _none(family: str) -> Fit:
    return Fit("gennorm" if family == "auto" else family, 1.0, 0.0, 0.0, 0)
