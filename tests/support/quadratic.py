"""Devices whose losses are quadratic: training in closed form, in microseconds and without torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedge.algorithms.base import LocalTerms
from fedge.layout import Kind, Layout, TensorSpec, Vector
from fedge.seeds import derive, uniform
from fedge.simulation.world import Trained
from schemas.specs import LocalSpec

LAYOUT = Layout.of([TensorSpec("w", (64, 48), Kind.WEIGHT), TensorSpec("b", (32,), Kind.RAW)])


class Quadratic:
    """Device k's loss is ½·Σ c_k·(x - target_k)²; its local problem with pull p and dual u is solved exactly."""

    layout = LAYOUT

    def initial(self, seed: int) -> Vector:
        return np.zeros(LAYOUT.size, np.float32)

    def num_examples(self, device: str) -> int:
        return 20 + derive("size", device) % 200

    def target(self, device: str) -> Vector:
        return (uniform(derive("target", device), LAYOUT.size) * 4 - 2).astype(np.float32)

    def curvature(self, device: str) -> Vector:
        return (0.5 + uniform(derive("curvature", device), LAYOUT.size)).astype(np.float32)

    def begin(
        self, device: str, anchor: Vector, terms: LocalTerms, local: LocalSpec, seed: int
    ) -> Callable[[], Trained]:
        return lambda: self.train(device, anchor, terms)

    def train(self, device: str, anchor: Vector, terms: LocalTerms) -> Trained:
        c, target = self.curvature(device).astype(np.float64), self.target(device)
        dual = 0.0 if terms.dual is None else terms.dual
        pull = terms.pull or 1.0
        x = (c * target + pull * (anchor - dual)) / (c + pull)
        delta = (x - anchor).astype(np.float32)
        return Trained(delta, float(0.5 * np.mean(c * (x - target) ** 2)))

    def evaluate(self, params: Vector) -> dict[str, float]:
        return {}

    def optimum(self, devices: tuple[str, ...]) -> Vector:
        """The minimizer of the loss over all examples: Σ n_k·L_k."""
        weights = {d: self.num_examples(d) * self.curvature(d).astype(np.float64) for d in devices}
        total = sum(weight * self.target(d) for d, weight in weights.items())
        return np.asarray(total / sum(weights.values()), np.float32)
