"""Logistic regression on devices that disagree: where MCM wants a smaller step than Rand-MCM does, and both than Diana.

    F_i(w) = mean over n = 250 samples of log(1 + exp(-y x·w)) + (0.05/2)‖w‖²,  N = 20, d = 64, so ω = 8

Features are N(m_i, I), labels are drawn from logistic models of w_i; m_i and w_i differ by device. Features are scaled
to L = 0.447, which is what the reference has; its own draw is not among its data. Excess is that of F's second-order
model at the optimum, so that 1e-30 can be told from 0; devices take their whole gradient: what stays is compression's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.support.mcm_lab import DEVICES, Array

SAMPLES, DIM, RIDGE, SMOOTHNESS = 250, 64, 0.05, 0.447
DISAGREEMENT = 0.5


@dataclass(frozen=True)
class Logistic:
    """The problem; ``inputs`` ``[20, 250, 64]`` times their labels, ±1."""

    inputs: Array
    optimum: Array
    hessian: Array
    dim: int = DIM

    def stochastic_gradient(self, at: Array, rng: np.random.Generator) -> Array:
        """Return each device's whole gradient: this problem is run without noise."""
        return _gradient(self.inputs, at)

    def excess(self, w: Array) -> Array:
        """Return the excess of each ``w`` ``[.., 64]``, 1e-30 at least."""
        off = w - self.optimum
        return ((off @ self.hessian) * off).sum(-1) / 2 + 1e-30


def _gradient(inputs: Array, at: Array) -> Array:
    margins = np.einsum("knd,skd->skn", inputs, at)
    return -np.einsum("knd,skn->skd", inputs, 1 / (1 + np.exp(margins))) / SAMPLES + RIDGE * at


def logistic(seed: int = 0) -> Logistic:
    """Return one draw, with its optimum by Newton's method."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((DEVICES, SAMPLES, DIM)) + DISAGREEMENT * rng.standard_normal((DEVICES, 1, DIM))
    truths = (rng.standard_normal(DIM) + DISAGREEMENT * rng.standard_normal((DEVICES, DIM))) / np.sqrt(DIM)
    x *= np.sqrt(4 * (SMOOTHNESS - RIDGE) / np.linalg.eigvalsh(_second_moment(x, 1.0))[-1])
    chances = 1 / (1 + np.exp(-3 * np.einsum("knd,kd->kn", x, truths)))
    inputs = x * np.where(rng.random(chances.shape) < chances, 1.0, -1.0)[..., None]
    w = np.zeros(DIM)
    for _ in range(30):
        share = 1 / (1 + np.exp(inputs @ w))
        hessian = _second_moment(inputs, share * (1 - share)) + RIDGE * np.eye(DIM)
        w = w - np.linalg.solve(hessian, _gradient(inputs, np.broadcast_to(w, (1, DEVICES, DIM)))[0].mean(0))
    return Logistic(inputs, w, hessian)


def _second_moment(x: Array, weights: Array | float) -> Array:
    flat = (x * np.sqrt(weights)[..., None]).reshape(-1, DIM)
    return flat.T @ flat / len(flat)
