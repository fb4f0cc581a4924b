"""Vectors that are hard on a codec, each for its own reason, and the errors a codec makes on them."""

import numpy as np

from fedge.codecs import Codec

RNG = np.random.default_rng


def normal(d: int) -> np.ndarray:
    return RNG(1).standard_normal(d).astype(np.float32)


def lognormal(d: int) -> np.ndarray:
    return (RNG(2).lognormal(size=d) * RNG(3).choice([-1, 1], d)).astype(np.float32)


def sparse(d: int) -> np.ndarray:
    return np.where(RNG(4).random(d) < 0.05, RNG(5).exponential(size=d), 0).astype(np.float32)


def two_peaks(d: int) -> np.ndarray:
    x = np.zeros(d, dtype=np.float32)
    x[:2] = 2 / 3, 1 / 3
    return x


def spike(d: int) -> np.ndarray:
    x = normal(d)
    x[d // 2] = 3 * np.linalg.norm(x)  # 90 % of the energy
    return x


def squared(x: np.ndarray) -> float:
    return float(np.sum(x.astype(np.float64) ** 2))


def errors(codec: Codec, x: np.ndarray, trials: int) -> np.ndarray:
    """Relative squared errors over seeds 0 .. trials - 1, float64."""
    found = [squared(codec.decode(codec.encode(x, seed), x.size, seed) - x) for seed in range(trials)]
    return np.array(found) / squared(x)


def mean_error_ratios(codec: Codec, x: np.ndarray, devices: int) -> dict[int, float]:
    """n times the error of the mean of n = 10, 100, 1000 encodings, over the error of one: 1 if errors average out."""
    sums = {n: np.zeros(x.size) for n in (10, 100, 1000)}
    mean_square, single = dict.fromkeys(sums, 0.0), 0.0
    for k in range(1, devices + 1):
        x_hat = codec.decode(codec.encode(x, seed=k), x.size, seed=k)
        single += squared(x_hat - x) / devices
        for n, total in sums.items():
            total += x_hat
            if k % n == 0:
                mean_square[n] += squared(total / n - x) / (devices / n)
                total[:] = 0
    return {n: n * mean_square[n] / single for n in sums}
