"""A strongly convex federation: softmax regression on devices whose features and classifiers differ.

The synthetic recipe of the FedDyn paper (Acar et al., ICLR 2021, https://arxiv.org/abs/2111.04263) with α = β = 1, in
the order in which the authors' code draws, for device k of 20:

    n_k = int(lognormal(log 200.001, σ))      a_k, b_k ~ N(0, 1)      v_k ~ N(b_k, 1)^30
    W_k, c_k ~ N(a_k, 1)                      x ~ N(v_k, diag(j^-1.2)),  j = 1..30      y = argmax(W_k·x + c_k)

and L_k(x) = mean cross-entropy + (1e-2/2)·‖x‖², weights and biases alike. 4 devices take part in a round, drawn without
replacement. Everything is float64 and Newton's method solves the local problems to a relative gradient of 1e-11, so
whatever gap remains is the algorithm's. Nothing here knows an algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

DEVICES, PER_ROUND, DIM, CLASSES, WEIGHT_DECAY = 20, 4, 30, 5, 1e-2
SIZE = (DIM + 1) * CLASSES
"""The params, flat: weights [30, 5], then biases [5]."""
TOLERANCE = 1e-11
REFRESH = 0.2
"""A step that leaves more of the gradient than this is not worth an old Hessian."""
Array = npt.NDArray[np.float64]
_PAIRS = np.triu_indices(CLASSES)


@dataclass
class Device:
    """One device's ``inputs`` ``[n, 31]`` (the last column is 1) and ``labels`` ``[n]``.

    Its solver starts from its last solution and keeps the inverse Hessian while that still serves.
    """

    inputs: Array
    labels: npt.NDArray[np.int64]
    x: Array = field(default_factory=lambda: np.zeros(SIZE))
    inverse: Array | None = None

    def __post_init__(self) -> None:
        self.targets = np.eye(CLASSES)[:, self.labels]

    def probabilities(self, x: Array) -> Array:
        """Return softmax(W·inputs), ``[5, n]``."""
        scores = x.reshape(DIM + 1, CLASSES).T @ self.inputs.T
        scores = np.exp(scores - scores.max(0))
        return scores / scores.sum(0)

    def loss(self, x: Array) -> float:
        chosen = (self.probabilities(x) * self.targets).sum(0)
        return float(-np.log(np.maximum(chosen, 1e-300)).mean() + WEIGHT_DECAY / 2 * x @ x)

    def gradient(self, x: Array) -> Array:
        error = self.probabilities(x) - self.targets
        return (error @ self.inputs / len(self.labels)).T.ravel() + WEIGHT_DECAY * x

    def hessian(self, x: Array) -> Array:
        p = self.probabilities(x)
        weights = (np.eye(CLASSES)[_PAIRS][:, None] * p[_PAIRS[0]] - p[_PAIRS[0]] * p[_PAIRS[1]]) / len(self.labels)
        blocks = (self.inputs.T * weights[:, None, :]) @ self.inputs
        full = np.zeros((DIM + 1, CLASSES, DIM + 1, CLASSES))
        full[:, _PAIRS[0], :, _PAIRS[1]] = blocks
        full[:, _PAIRS[1], :, _PAIRS[0]] = blocks
        return full.reshape(SIZE, SIZE) + WEIGHT_DECAY * np.eye(SIZE)

    def solve(self, slope: Array, pull: float) -> Array:
        """Return argmin L(x) + ⟨slope, x⟩ + pull/2 · ‖x‖²; ``pull`` is the same in every call.

        A step that does not bring the gradient down is taken anew, with a fresh Hessian, then at half its length.
        """
        enough = TOLERANCE * (1 + np.linalg.norm(slope))
        gradient, fresh, length = self.gradient(self.x) + slope + pull * self.x, False, 1.0
        for _ in range(200):
            size = np.sqrt(gradient @ gradient)
            if size < enough:
                return self.x
            if self.inverse is None:
                self.inverse, fresh = np.linalg.inv(self.hessian(self.x) + pull * np.eye(SIZE)), True
            x = self.x - length * (self.inverse @ gradient)
            ahead = self.gradient(x) + slope + pull * x
            remaining = np.sqrt(ahead @ ahead) / size
            if remaining > REFRESH and not fresh:
                self.inverse = None
            elif remaining >= 1:
                length /= 2
            if remaining < 1:
                self.x, gradient, fresh, length = x, ahead, False, min(1.0, 2 * length)
        raise ArithmeticError(f"the local problem was not solved: gradient {size}")


@dataclass(frozen=True, eq=False)
class Problem:
    """One draw of the data, and its optimum."""

    examples: tuple[tuple[Array, npt.NDArray[np.int64]], ...]
    sizes: Array
    """n_k·m/Σn, ``[20]``."""
    optimum: Array
    """argmin of F = Σ sizes_k·L_k / m, ``[155]``."""

    def devices(self) -> list[Device]:
        return [Device(*pair) for pair in self.examples]

    def loss(self, x: Array) -> float:
        """Return F(x)."""
        return float(np.mean(self.sizes * [device.loss(x) for device in self.devices()]))

    def gap(self, x: Array) -> float:
        """Return F(x) less its minimum."""
        return self.loss(x) - self.loss(self.optimum)


@cache
def draw(seed: int, sigma: float = 0.0) -> Problem:
    """Draw the data of all devices; ``sigma`` spreads their sizes."""
    rng = np.random.default_rng(seed)
    counts = rng.lognormal(np.log(200 + 1e-3), sigma, DEVICES).astype(int)
    classifier_means, feature_means = rng.normal(size=(2, DEVICES))
    centres = rng.normal(feature_means[:, None], 1, (DEVICES, DIM))
    examples = []
    for count, mean, centre in zip(counts, classifier_means, centres, strict=True):
        classifier = rng.normal(mean, 1, (DIM + 1, CLASSES))
        features = centre + rng.normal(size=(count, DIM)) * np.arange(1, DIM + 1) ** -0.6
        inputs = np.c_[features, np.ones(count)]
        examples.append((inputs, (inputs @ classifier).argmax(1)))
    everything = Device(*(np.concatenate(parts) for parts in zip(*examples, strict=True)))
    return Problem(tuple(examples), counts / counts.mean(), everything.solve(np.zeros(SIZE), 0.0))


def rounds(seed: int, count: int, lost: float, parts: int = 1) -> Iterator[tuple[list[int], npt.NDArray[np.bool_]]]:
    """Yield each round's participants and which of their uploads arrive, bool ``[4, parts]``.

    An upload is lost with probability ``lost``, or each of its ``parts`` for itself.
    """
    rng = np.random.default_rng((seed, 1))
    for _ in range(count):
        participants = rng.choice(DEVICES, PER_ROUND, replace=False).tolist()
        yield participants, rng.random((PER_ROUND, parts)) >= lost
