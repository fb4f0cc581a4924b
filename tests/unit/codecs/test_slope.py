"""Equal slope: the shipped table, and that no other rates would do better."""

import numpy as np
import pytest

from fedge.codecs import gaussian, quantizers, slope
from fedge.codecs.gaussian import COARSEST, FINEST, UNITS
from fedge.codecs.slope import Levels


def ideal_slopes(steps: np.ndarray) -> np.ndarray:
    """u of ``steps``: log2 of √(6/ln 2 · -dv/dR), from an ideal coder's rate, by differences."""
    s, k = np.exp2(steps / UNITS), np.arange(1, 600)
    above = gaussian._upper((k - 0.5) * s[:, None])
    share = np.column_stack((1 - 2 * above[:, 0], above[:, :-1] - above[:, 1:]))
    entropy = -(share * np.log2(np.maximum(share, 1e-300)) * np.r_[1, np.full(k.size - 1, 2)]).sum(axis=1)
    second = 2 * s**2 * ((2 * k - 1) * above).sum(axis=1)
    gain = 2 * s * gaussian._density((k - 0.5) * s[:, None]).sum(axis=1)
    error = second / gain**2 - 1
    return 0.5 * np.log2(6 / np.log(2) * -np.gradient(error, steps) / np.gradient(entropy, steps))


def known(sizes: np.ndarray, levels: np.ndarray) -> Levels:
    """Blocks whose levels both ends know exactly."""
    return Levels(sizes, levels, levels)


def test_the_shipped_table_is_the_inverse_of_the_slope():
    steps = np.arange(-4 * UNITS - 64, COARSEST + 1, 8)
    expected = np.interp(np.arange(-16, 34) / 4, ideal_slopes(steps), steps)
    assert slope.NODES[-1] == COARSEST
    assert np.abs(np.array(slope.NODES[:-1]) - expected[:-1]).max() <= 1


def test_steps_grow_with_the_slope_and_shrink_with_the_level():
    levels = np.arange(-70_000, 20_000, 7)
    steps = slope.steps_of(-3000, levels)
    assert (np.diff(steps) <= 0).all() and steps.max() == COARSEST and steps.min() == FINEST
    assert (slope.steps_of(-2900, levels) >= steps).all()


@pytest.mark.parametrize("bits", [0.05, 0.3, 1.0, 3.7, 8.0])
def test_solve_spends_the_budget_and_no_more(bits):
    rng = np.random.default_rng(0)
    blocks = [known(np.full(40, 4096), rng.integers(-9000, 1000, 40)), known(np.array([600]), np.array([-300]))]
    budget = bits * (40 * 4096 + 600)
    found = slope.solve(budget, blocks)
    assert 0.999 * budget < slope.bits_at(found, blocks) <= budget < slope.bits_at(found - 1, blocks)


def test_a_budget_that_nothing_fits_gets_the_coarsest_steps():
    blocks = known(np.full(3, 4096), np.array([0, -100, 70]))
    assert (slope.steps_of(slope.solve(1.0, [blocks]), blocks.levels) == COARSEST).all()
    assert slope.solve(10.0, [known(np.empty(0, int), np.empty(0, int))]) is not None


@pytest.mark.parametrize("bits", [0.2, 1.0, 2.5])
def test_moving_bits_from_one_block_to_another_raises_the_error(bits):
    blocks = known(np.full(2, 4096), np.array([0, -2500]))
    best = slope.steps_of(slope.solve(bits * 8192, [blocks]), blocks.levels)
    variance = np.exp2(2 * blocks.levels / UNITS)
    rates = gaussian.rate_of(np.arange(FINEST, COARSEST + 1))

    def error(steps):
        return float(variance @ gaussian.error_of(steps))

    for shift in (-0.05, 0.05):
        moved = gaussian.rate_of(best) + np.array([shift, -shift])
        steps = np.rint(np.interp(-moved, -rates, np.arange(FINEST, COARSEST + 1))).astype(int)
        assert error(steps) > error(best)


def test_what_is_spent_follows_from_the_true_level_and_not_from_the_rounded_one():
    rounded, true = np.array([0]), np.array([-500])
    blocks = Levels(np.array([4096]), rounded, true)
    assert blocks.steps(-700) == slope.steps_of(-700, rounded) + 500
    assert slope.bits_at(-700, [blocks]) < slope.bits_at(-700, [known(np.array([4096]), rounded)])


def directed(sizes: np.ndarray, levels: np.ndarray) -> Levels:
    """Blocks that may be sent as directions."""
    return Levels(sizes, levels, levels, slope.jumps_of(np.arange(sizes.size), slope.EARLY))


def test_directions_are_sent_where_they_cost_less_and_as_long_as_is_best():
    rate, error = quantizers.nominal()
    for u in range(-UNITS, 15 * UNITS // 2, 64):
        cost = error * np.exp2(-2 * u / UNITS) * 6 / np.log(2) + rate
        for place in (0, 1, 5, 12):
            t = int(slope.steps_of(u, np.zeros(1, np.int64), slope.jumps_of(np.array([place]), slope.EARLY))[0])
            assert cost[t - FINEST] < 1.02 * cost.min()
            if u > 13 * UNITS // 8:
                assert t >= quantizers.FIRST_LENGTH and cost[t - FINEST] < 1.003 * cost.min()


def test_alike_blocks_become_directions_one_after_the_other():
    blocks = directed(np.full(64, 4096), np.zeros(64, np.int64))
    bits = np.array([slope.bits_at(u, [blocks]) for u in range(3 * UNITS // 2 - 64, 13 * UNITS // 8 + 64)]) / (
        64 * 4096
    )
    assert (np.diff(bits) <= 0).all() and np.diff(bits).min() > -0.01
    assert bits[0] > 1.05 and bits[-1] < 0.78


@pytest.mark.parametrize("bits", [0.03, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0])
def test_a_budget_is_used_up_with_directions_too(bits):
    rng = np.random.default_rng(0)
    blocks = directed(np.full(200, 4096), rng.integers(-UNITS, UNITS, 200))
    budget = bits * 200 * 4096
    found = slope.solve(budget, [blocks])
    assert 0.995 * budget < slope.bits_at(found, [blocks]) <= budget
