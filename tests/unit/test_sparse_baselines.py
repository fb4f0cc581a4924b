"""The compressors that M22 is compared with: their bytes are those of a real encoding, their numbers are sane."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.sparse_baselines import (
    BASELINES,
    FP4,
    FP8,
    HEAD_BYTES,
    MOST_BITS,
    Ranked,
    baselines,
    fit_weibull,
    omega_bits,
    sketch,
)
from fedge.codecs import M22, packing
from fedge.codecs.base import Vector
from fedge.codecs.m22 import payload, subset

SIZE = 6000
SPARSE = ("stc", "topk-fp8", "topk-fp4", "topk-uniform", "tinyscript")


def update(seed: int = 0, size: int = SIZE) -> Vector:
    """Heavy-tailed, as updates of SGD are."""
    rng = np.random.default_rng(seed)
    return (0.01 * rng.standard_gamma(0.8, size) ** 1.5 * rng.choice([-1, 1], size)).astype(np.float32)


def error(x: Vector, x_hat: Vector) -> float:
    return float(((x - x_hat).astype(np.float64) ** 2).sum() / (x.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("bits", [0.1, 0.3, 1.0, 2.0])
def test_no_budget_is_exceeded_and_what_is_decoded_is_finite(name: str, bits: float) -> None:
    x, budget = update(), int(bits * SIZE / 8)
    x_hat, used = BASELINES[name](x, budget, 7)
    assert used <= budget and x_hat.shape == x.shape and x_hat.dtype == np.float32 and np.isfinite(x_hat).all()
    if name in SPARSE:
        assert error(x, x_hat) < 1 and (name == "stc" or used > 0.98 * budget)


@pytest.mark.parametrize(("name", "levels_bits", "side"), [("stc", 1, 4), ("topk-fp8", 8, 4), ("topk-fp4", 4, 4)])
def test_the_bytes_are_those_of_positions_values_and_side_information(name: str, levels_bits: int, side: int) -> None:
    x = update()
    x_hat, used = BASELINES[name](x, 300, 0)
    kept = np.flatnonzero(x_hat)
    positions = subset.choose(kept, SIZE).to_bytes()
    values = packing.pack(np.zeros((kept.size, 1), np.uint8), levels_bits).tobytes()
    assert used == HEAD_BYTES + side + len(positions) + len(values)
    assert set(kept) == set(np.argsort(-np.abs(x))[: kept.size])


@pytest.mark.parametrize(("name", "side"), [("topk-uniform", 8), ("tinyscript", 8)])
def test_values_of_r_bits_have_at_most_two_to_the_r_levels_in_each_tensor(name: str, side: int) -> None:
    x, cuts = update(), (1000, 4000)
    x_hat, used = baselines(cuts)[name](x, 900, 0)
    levels = max(np.unique(part[part != 0]).size for part in np.split(x_hat, cuts))
    levels_bits = math.ceil(math.log2(levels))
    kept = np.flatnonzero(x_hat)
    positions = len(subset.choose(kept, SIZE).to_bytes())
    assert levels_bits <= MOST_BITS and used == HEAD_BYTES + 3 * side + positions + (kept.size * levels_bits + 7) // 8


def test_stc_is_m22_with_one_bit_and_no_magnitude_up_to_the_precision_of_a_level() -> None:
    x = update()
    codec = M22(0.5, levels_bits=1, family="empirical")
    data = codec.encode(x, seed=1)
    kept = payload.take_apart(data, SIZE)[0].positions.size
    budget = HEAD_BYTES + 4 + Ranked(x).size_bytes(kept, 1)
    x_hat, _ = BASELINES["stc"](x, budget, 1)
    assert np.count_nonzero(x_hat) == pytest.approx(kept, rel=2e-3)
    assert np.abs(x_hat).max() == pytest.approx(np.abs(codec.decode(data, SIZE, 1)).max(), rel=2**-8 + 2e-3)
    assert error(x, x_hat) == pytest.approx(error(x, codec.decode(data, SIZE, 1)), rel=2e-3)


def test_small_floats_are_those_of_their_formats() -> None:
    assert FP8.size == 247 and FP8[-1] == 1.75 * 2**15 and FP8[FP8 > 0][0] == 2.0**-16
    assert FP4[FP4 >= 0].tolist() == [0, 0.5, 1, 1.5, 2, 3]


def test_a_weibull_law_is_found_again() -> None:
    drawn = 0.02 * np.random.default_rng(3).weibull(1.7, 20_000)
    assert fit_weibull(drawn) == pytest.approx((1.7, 0.02), rel=0.03)


def test_elias_omega_codes_are_as_long_as_when_written_out() -> None:
    def written(n: int) -> str:
        code = "0"
        while n > 1:
            code, n = f"{n:b}{code}", n.bit_length() - 1
        return code

    numbers = np.array([1, 2, 3, 4, 7, 8, 15, 16, 100, 65_535, 65_536])
    assert omega_bits(numbers).tolist() == [len(written(int(n))) for n in numbers]


def test_qsgd_is_unbiased() -> None:
    x = update(size=400)
    decoded = np.stack([BASELINES["qsgd"](x, 100, seed)[0] for seed in range(400)]).astype(np.float64)
    sigma = decoded.std(0).max() / 20
    assert np.abs(decoded.mean(0) - x).max() < 5 * sigma


def test_a_sketch_finds_a_few_large_coordinates_and_of_a_mean_too() -> None:
    x, y = np.zeros((2, SIZE), np.float32)
    x[[5, 17]], y[[5, 99]] = (3, -2), (1, 4)
    found, _ = sketch((x + y) / 2, 4 * 5 * 300, 11)
    assert found[[5, 17, 99]].tolist() == [2, -1, 2]


@pytest.mark.parametrize("make", [np.zeros, np.ones])
@pytest.mark.parametrize("name", BASELINES)
def test_flat_vectors_are_taken(name: str, make: Callable[..., Vector]) -> None:
    x = make(500, np.float32)
    x_hat, used = BASELINES[name](x, 200, 0)
    assert used <= 200 and np.isfinite(x_hat).all()
