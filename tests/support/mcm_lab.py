"""SGD, Diana, MCM, Rand-MCM and Artemis on least squares: the setting of tests/data/mcm/mcm_reference.json.

    F(w) = (1/2Nn) Σ (x·w - y)²,  N = 20 devices of n = 200 samples, d = 20 (a column of ones and 19 features of
    correlation 0.6^|i-j|), label noise 0.4; every device takes one sample a round, with replacement

    device:  Δ̂_i = C(g_i(ŵ_i) - h_i),  h_i += α·Δ̂_i        uplink of all but SGD; h_i begins as the first gradient
    server:  ĝ = mean(h_i + Δ̂_i),  w -= γ_k·ĝ              Artemis: w -= γ_k·C(ĝ), so its model is degraded
    MCM:     ŵ, H ← fedge.downlink.mcm.advance(H, C(w - H), α);  H one for all, or one a device (Rand-MCM)

C is the stochastic quantization of one level, C(x)_j = ‖x‖·sign(x_j)·⌊|x_j|/‖x‖ + U[0, 1)⌋, ω = √d, α = 1/(2(1 + ω)).
Under participation p, p·N devices on average download and then upload; the uplink memory is then the mean of the h_i,
with steps of α/N (what the literature calls PP2), and begins at 0. ``MEMORY_MEAN`` compresses against the mean of the
H_i, which is a known mistake.

Seeds run side by side: arrays are ``[seeds, devices, d]``, float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedge.downlink.mcm import advance

DEVICES, SAMPLES, DIM, NOISE = 20, 200, 20, 0.4
OMEGA = math.sqrt(DIM)
FLOAT_BITS = 32 * DIM
WINDOW = 20
_LEVELS = 1 + math.sqrt(DIM)
QUANTIZED_BITS = (3 + 1.5 * math.log2(2 * (1 + DIM) / _LEVELS)) * _LEVELS + 32
"""Elias' bound on a quantized message, 72.6 bits."""
Array = npt.NDArray[np.float64]
_EVERYONE = np.arange(DEVICES)


@dataclass(frozen=True)
class LeastSquares:
    """The problem; ``inputs`` ``[20, 200, 20]``, ``labels`` ``[20, 200]``."""

    inputs: Array
    labels: Array
    hessian: Array = field(init=False)
    optimum: Array = field(init=False)
    dim: int = DIM

    def __post_init__(self) -> None:
        count = DEVICES * SAMPLES
        object.__setattr__(self, "hessian", np.einsum("knd,kne->de", self.inputs, self.inputs) / count)
        slope = np.einsum("knd,kn->d", self.inputs, self.labels) / count
        object.__setattr__(self, "optimum", np.linalg.solve(self.hessian, slope))

    @property
    def smoothness(self) -> float:
        return float(np.linalg.eigvalsh(self.hessian)[-1])

    @property
    def least(self) -> float:
        """F*"""
        return float(np.square(self.inputs @ self.optimum - self.labels).mean() / 2)

    def excess(self, w: Array) -> Array:
        """Return F(w) - F* of each ``w`` ``[.., 20]``."""
        off = w - self.optimum
        return ((off @ self.hessian) * off).sum(-1) / 2

    def stochastic_gradient(self, at: Array, rng: np.random.Generator) -> Array:
        """Return each device's gradient on one sample, drawn with replacement, ``[seeds, 20, 20]``."""
        drawn = rng.integers(SAMPLES, size=at.shape[:2])
        x, y = self.inputs[_EVERYONE, drawn], self.labels[_EVERYONE, drawn]
        return ((x * at).sum(-1) - y)[..., None] * x


def least_squares() -> LeastSquares:
    """Return the problem of the reference; its draws are in the reference's order."""
    rng = np.random.default_rng(1)
    lags = np.abs(np.subtract.outer(np.arange(DIM - 1), np.arange(DIM - 1)))
    features = rng.standard_normal((DEVICES, SAMPLES, DIM - 1)) @ np.linalg.cholesky(0.6**lags).T
    rng.standard_normal((DEVICES, DIM - 1))  # how the devices' truths differ, times 0 here
    noise = NOISE * rng.standard_normal((DEVICES, SAMPLES))
    j = np.arange(DIM - 1)
    truth = np.concatenate([[2.0], (-1.0) ** (j + 1) * np.exp(-j / 10)])
    inputs = np.concatenate([np.ones((DEVICES, SAMPLES, 1)), features], axis=2)
    return LeastSquares(inputs, inputs @ truth + noise)


class Problem(Protocol):
    """What a lab needs of one."""

    @property
    def dim(self) -> int: ...
    def stochastic_gradient(self, at: Array, rng: np.random.Generator) -> Array: ...
    def excess(self, w: Array) -> Array: ...


def alpha_of(dim: int) -> float:
    """Return 1/(2(1 + ω)), the step of memories, up and down."""
    return 1 / (2 * (1 + math.sqrt(dim)))


class Down(StrEnum):
    """What travels down."""

    PARAMS = "params as float32"
    DEGRADED = "the compressed step, which the server takes as well"
    COMMON = "MCM"
    OWN = "Rand-MCM"
    MEMORY_MEAN = "Rand-MCM against the mean of the memories"


@dataclass(frozen=True)
class Method:
    """How gradients and models travel. ``alpha`` None: ``alpha_of``."""

    up: bool
    down: Down
    alpha: float | None = None
    participation: float = 1.0

    @property
    def bits(self) -> float:
        """Of all devices in a round, both ways."""
        up = QUANTIZED_BITS if self.up else FLOAT_BITS
        down = FLOAT_BITS if self.down is Down.PARAMS else QUANTIZED_BITS
        return self.participation * DEVICES * (up + down)


METHODS = {
    "sgd": Method(False, Down.PARAMS),
    "diana": Method(True, Down.PARAMS),
    "artemis": Method(True, Down.DEGRADED),
    "mcm": Method(True, Down.COMMON),
    "rmcm": Method(True, Down.OWN),
}


@dataclass(frozen=True)
class Curve:
    """F(w_k) - F* ``[seeds, rounds]`` of the server's model, and the bits of a round."""

    excess: Array
    bits_per_round: float

    @property
    def tail(self) -> float:
        """log10 of the mean over the last tenth of the rounds, mean over seeds."""
        last = self.excess[:, -max(1, self.excess.shape[1] // 10) :]
        return float(np.log10(last.mean(1)).mean())

    @property
    def log10(self) -> Array:
        """Mean over seeds of log10, ``[rounds]``."""
        return np.log10(self.excess).mean(0)

    def bits_to(self, level: float) -> float:
        """Return the bits until the mean of ``log10`` over ``WINDOW`` rounds is below ``level``; inf if it never is."""
        smooth = np.convolve(self.log10, np.ones(WINDOW) / WINDOW, "valid")
        below = np.flatnonzero(smooth <= level)
        return float((below[0] + WINDOW / 2) * self.bits_per_round) if below.size else math.inf


def quantize(x: Array, rng: np.random.Generator) -> Array:
    """Return C(x) of each vector ``[.., d]``; 0 of 0."""
    norm = np.sqrt(np.square(x).sum(-1, keepdims=True))
    return np.sign(x) * norm * (rng.random(x.shape) * norm < np.abs(x))


class Lab:
    """One method on one problem, from ``w = ŵ = H = 0``."""

    def __init__(self, problem: Problem, method: Method, seeds: int = 5) -> None:
        self.problem, self.method, self.rng, dim = problem, method, np.random.default_rng(100), problem.dim
        self.shape, memories = (seeds, DEVICES, dim), 1 if method.down is Down.COMMON else DEVICES
        self.alpha_up = alpha_of(dim)
        self.alpha_down = self.alpha_up if method.alpha is None else method.alpha
        self.params, self.h_mean = np.zeros((seeds, dim)), np.zeros((seeds, dim))
        self.anchors, self.memory = np.zeros((2, seeds, memories, dim))
        self.h: Array | None = None
        self.here = self._drawn_here()

    def run(self, rounds: int, step: float, decreasing: bool = True) -> Curve:
        """Run ``rounds`` rounds with γ_k = step/√k, or step."""
        excess = np.empty((self.shape[0], rounds))
        for k in range(1, rounds + 1):
            move = (step / math.sqrt(k) if decreasing else step) * self._up()
            is_degraded = self.method.down is Down.DEGRADED
            self.params = self.params - (quantize(move, self.rng) if is_degraded else move)
            excess[:, k - 1] = self.problem.excess(self.params)
            self.here = self._drawn_here()
            self._down()
        return Curve(excess, self.method.bits)

    def _drawn_here(self) -> npt.NDArray[np.bool_]:
        """Return which devices download next and then upload, bool ``[seeds, devices, 1]``."""
        return self.rng.random((*self.shape[:2], 1)) < self.method.participation

    def _up(self) -> Array:
        at, share = np.broadcast_to(self.anchors, self.shape), self.method.participation
        gradient = self.problem.stochastic_gradient(at, self.rng)
        if not self.method.up:
            return (gradient * self.here).mean(1) / share
        if self.h is None:
            self.h = gradient if share == 1.0 else np.zeros(self.shape)
            self.h_mean = self.h.mean(1)
        sent = quantize(gradient - self.h, self.rng) * self.here
        mean = self.h_mean + sent.mean(1) / share
        self.h = self.h + self.alpha_up * sent
        self.h_mean = self.h_mean + self.alpha_up * sent.mean(1)
        return mean

    def _down(self) -> None:
        down, memory = self.method.down, self.memory
        if down in (Down.PARAMS, Down.DEGRADED):
            self.anchors = self.params[:, None]
            return
        against = memory.mean(1, keepdims=True) if down is Down.MEMORY_MEAN else memory
        change = quantize(np.broadcast_to(self.params[:, None] - against, memory.shape), self.rng)
        anchors, memory = advance(memory, change, self.alpha_down)
        reached = self.here if memory.shape[1] > 1 else True
        self.anchors, self.memory = np.where(reached, anchors, self.anchors), np.where(reached, memory, self.memory)
