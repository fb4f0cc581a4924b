import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.aggregation import SegmentSums
from fedge.errors import AggregationError, FedgeError, LayoutError
from fedge.layout import Kind, Layout, TensorSpec

LAYOUT = Layout.of([TensorSpec("w", (2, 1200), Kind.WEIGHT), TensorSpec("b", (5,), Kind.RAW)])


def delta(index: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=LAYOUT.segments[index].size).astype(np.float32)


def test_the_mean_is_weighted_segment_by_segment():
    sums = SegmentSums(LAYOUT)
    sums.add(0, np.full(1024, 1, np.float32), weight=3.0)
    sums.add(0, np.full(1024, 5, np.float32), weight=1.0)
    sums.add(2, np.full(5, 7, np.float32), weight=1.0)
    assert [segment.size for segment in LAYOUT.segments] == [1024, 1376, 5]
    assert set(sums.mean()[:1024]) == {2.0}
    assert set(sums.mean()[2400:]) == {7.0}
    assert sums.count.tolist() == [2, 0, 1] and sums.weight.tolist() == [4, 0, 1]


def test_a_segment_nobody_delivered_is_reported():
    sums = SegmentSums(LAYOUT)
    sums.add(1, delta(1, 0), weight=1.0)
    assert sums.delivered.tolist() == [False, True, False]
    assert sums.mask.nonzero()[0].tolist() == list(range(1024, 2400))
    assert not sums.mean()[~sums.mask].any()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.floats(1e-6, 1e6)), max_size=12))
def test_replaying_the_same_deltas_in_order_gives_the_same_bits(arrivals):
    live, replayed = SegmentSums(LAYOUT), SegmentSums(LAYOUT)
    for sums in (live, replayed):
        for index, seed, weight in arrivals:
            sums.add(index, delta(index, seed), weight)
    assert live.total.tobytes() == replayed.total.tobytes()
    assert live.mean().tobytes() == replayed.mean().tobytes()


def test_sums_are_kept_in_float64():
    sums = SegmentSums(LAYOUT)
    sums.add(2, np.full(5, 1, np.float32), weight=1.0)
    for _ in range(1000):
        sums.add(2, np.full(5, 2**-26, np.float32), weight=1.0)
    assert sums.total[-1] == 1 + 1000 * 2**-26
    sums.add(1, np.full(1376, 1, np.float32), weight=0.1)
    assert sums.total[1024] == 0.1


@pytest.mark.parametrize(
    ("index", "x", "weight", "error", "message"),
    [
        (3, np.zeros(5), 1.0, LayoutError, r"segment of 0\.\.2, got 3"),
        (-1, np.zeros(5), 1.0, LayoutError, r"segment of 0\.\.2, got -1"),
        (2, np.zeros(4), 1.0, LayoutError, r"segment 2: expected 5 values, got shape \[4\]"),
        (2, np.zeros((5, 1)), 1.0, LayoutError, r"got shape \[5, 1\]"),
        (2, np.array([0, 0, np.nan, 0, 0]), 1.0, AggregationError, "expected finite values, got nan"),
        (2, np.array([0, 0, 0, 0, -np.inf]), 1.0, AggregationError, "expected finite values, got -inf"),
        (2, np.zeros(5), 0.0, AggregationError, "finite weight above 0, got 0.0"),
        (2, np.zeros(5), -1.0, AggregationError, "finite weight above 0, got -1.0"),
        (2, np.zeros(5), np.nan, AggregationError, "finite weight above 0, got nan"),
        (2, np.zeros(5), np.inf, AggregationError, "finite weight above 0, got inf"),
    ],
)
def test_what_must_not_enter_is_refused_and_leaves_the_sums_alone(index, x, weight, error, message):
    sums = SegmentSums(LAYOUT)
    sums.add(2, delta(2, 0), weight=2.0)
    before = (sums.total.tobytes(), sums.weight.tolist(), sums.count.tolist())
    with pytest.raises(error, match=message) as caught:
        sums.add(index, x, weight)
    assert isinstance(caught.value, FedgeError)
    assert (sums.total.tobytes(), sums.weight.tolist(), sums.count.tolist()) == before


def test_a_late_update_is_in_the_sum_in_full_and_moves_the_mean_by_its_step():
    sums = SegmentSums(LAYOUT)
    sums.add(2, np.full(5, 6, np.float32), weight=3.0)
    sums.add(2, np.full(5, 8, np.float32), weight=1.0, step=0.5)
    sums.add(0, np.full(1024, 1, np.float32), weight=2.0)
    assert set(sums.total[2400:]) == {26.0} and sums.weight[2] == 4.0
    assert set(sums.mean()[2400:]) == {(18.0 + 4.0) / 4.0}
    assert set(sums.mean()[:1024]) == {1.0}


def test_where_all_are_late_alike_the_mean_is_their_step_times_it():
    late, whole = SegmentSums(LAYOUT), SegmentSums(LAYOUT)
    for seed, weight in ((1, 2.0), (2, 0.5)):
        late.add(1, delta(1, seed), weight, step=0.25)
        whole.add(1, delta(1, seed), weight)
    np.testing.assert_array_equal(late.total, whole.total)
    np.testing.assert_allclose(late.mean(), 0.25 * whole.mean(), rtol=1e-15)


def test_a_sum_that_nothing_late_came_to_is_held_once():
    sums = SegmentSums(LAYOUT)
    sums.add(2, delta(2, 0), weight=1.0, step=1.0)
    assert sums.moved is None


@pytest.mark.parametrize(("weights", "step"), [("plain", 0.0), ("plain", 1.5), ("plain", np.nan), ("shrinkage", 0.5)])
def test_a_step_that_is_none_is_refused(weights, step):
    with pytest.raises(AggregationError, match="expected a step"):
        SegmentSums(LAYOUT, weights).add(2, delta(2, 0), weight=1.0, error=0.1, step=step)
