"""What every algorithm in the table promises."""

import numpy as np
import pytest

from fedge.aggregation import SegmentSums
from fedge.algorithms import ALGORITHMS, AlgorithmError, build
from fedge.errors import UnknownName
from fedge.layout import Kind, Layout, TensorSpec

LAYOUT = Layout.of(
    [
        TensorSpec("w", (40, 50), Kind.WEIGHT),
        TensorSpec("b", (50,), Kind.RAW),
        TensorSpec("running_mean", (50,), Kind.BUFFER),
    ]
)
DEVICES = 10


def vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=LAYOUT.size).astype(np.float32)


def sums_of(algorithm, deltas, segments=LAYOUT.segments) -> SegmentSums:
    sums = SegmentSums(LAYOUT)
    for num_examples, delta in deltas:
        for segment in segments:
            sums.add(segment.index, delta[segment.slice], algorithm.weight(num_examples))
    return sums


@pytest.fixture(params=sorted(ALGORITHMS))
def algorithm(request):
    return build(request.param)


def test_its_name_is_its_key_in_the_table(algorithm):
    assert type(algorithm) is ALGORITHMS[algorithm.name]
    assert isinstance(algorithm.stateful, bool)


def test_an_algorithm_of_the_same_settings_is_the_same(algorithm):
    assert algorithm == build(algorithm.name) and hash(algorithm) == hash(build(algorithm.name))


def test_a_round_in_which_nothing_arrived_changes_nothing(algorithm):
    first = algorithm.server_step(algorithm.initial(vector(0)), sums_of(algorithm, [(9, vector(1))]), DEVICES)
    after = algorithm.server_step(first, SegmentSums(LAYOUT), DEVICES)
    for name in ("params", "published", "h"):
        assert np.array_equal(getattr(after, name), getattr(first, name)), name


def test_one_device_alone_publishes_its_own_model(algorithm):
    params, delta = vector(0), vector(1)
    after = algorithm.server_step(algorithm.initial(params), sums_of(algorithm, [(7, delta)]), DEVICES)
    np.testing.assert_allclose(after.published, params + delta, rtol=1e-6, atol=1e-6)


def test_devices_of_equal_size_are_averaged(algorithm):
    params = vector(0)
    sums = sums_of(algorithm, [(7, vector(seed)) for seed in range(1, 5)])
    after = algorithm.server_step(algorithm.initial(params), sums, DEVICES)
    mean = np.mean([vector(seed) for seed in range(1, 5)], axis=0, dtype=np.float64)
    np.testing.assert_allclose(after.published, params + mean, rtol=1e-6, atol=1e-6)


def test_a_segment_nobody_delivered_keeps_its_value(algorithm):
    first = algorithm.server_step(algorithm.initial(vector(0)), sums_of(algorithm, [(9, vector(1))]), DEVICES)
    some = sums_of(algorithm, [(9, vector(2))], LAYOUT.segments[:1])
    after = algorithm.server_step(first, some, DEVICES)
    for name in ("params", "published"):
        new, old = getattr(after, name), getattr(first, name)
        assert (new != old)[LAYOUT.segments[0].slice].all()
        assert np.array_equal(new[LAYOUT.segments[0].stop :], old[LAYOUT.segments[0].stop :])


def test_buffers_are_averaged_and_nothing_else(algorithm):
    state = algorithm.initial(vector(0))
    buffers = LAYOUT.segments[-1].slice
    for seed in (1, 2):
        before = state.params[buffers]
        state = algorithm.server_step(state, sums_of(algorithm, [(9, vector(seed))]), DEVICES)
        np.testing.assert_allclose(state.params[buffers], before + vector(seed)[buffers], rtol=1e-6, atol=1e-6)
    assert np.array_equal(state.params[buffers], state.published[buffers])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_state_keeps_the_precision_of_the_params(algorithm, dtype):
    state = algorithm.initial(vector(0).astype(dtype))
    state = algorithm.server_step(state, sums_of(algorithm, [(9, vector(1))]), DEVICES)
    assert state.params.dtype == state.published.dtype == dtype


def test_the_arguments_of_a_step_are_left_as_they_were(algorithm):
    state, sums = algorithm.initial(vector(0)), sums_of(algorithm, [(9, vector(1))])
    total, params = sums.total.copy(), state.params.copy()
    algorithm.server_step(state, sums, DEVICES)
    dual = np.zeros(LAYOUT.size)
    algorithm.commit(dual, LAYOUT.segments, vector(1))
    assert np.array_equal(sums.total, total) and np.array_equal(state.params, params) and not dual.any()


def test_only_a_stateful_algorithm_moves_the_dual_and_uses_it(algorithm):
    dual = algorithm.commit(np.zeros(LAYOUT.size), LAYOUT.segments, vector(1))
    terms = algorithm.local_terms(dual, 1.0)
    assert dual.dtype == np.float64
    assert dual.any() == algorithm.stateful
    assert (terms.dual is not None) == algorithm.stateful
    assert (algorithm.initial(vector(0)).h is not None) == algorithm.stateful


def test_trust_is_above_0_at_most_1_in_exact_steps_and_falls_as_the_error_grows(algorithm):
    errors = [0.0, *np.geomspace(1e-6, 100.0, 2000)]
    trust = [algorithm.trust(error) for error in errors]
    assert trust[0] == 1.0 and min(trust) > 0.0 and (np.diff(trust) <= 0.0).all()
    assert all(gamma == float(np.float32(gamma)) for gamma in trust)


def test_only_an_algorithm_that_feeds_errors_back_distrusts_coarse_codes(algorithm):
    assert (algorithm.trust(10.0) == 1.0) == (not algorithm.stateful)


def test_an_unknown_setting_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="unknown setting of feddyn 'alhpa'; did you mean 'alpha'"):
        build("feddyn", alhpa=0.1)


def test_an_unknown_algorithm_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="unknown algorithm 'fedyn'; did you mean 'feddyn'"):
        build("fedyn")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("feddyn", {"alpha": 0}, "feddyn: expected alpha to be a number above 0, got 0"),
        ("feddyn", {"alpha": float("nan")}, "expected alpha .* got nan"),
        ("feddyn", {"alpha": "0.1"}, "expected alpha .* got '0.1'"),
        ("feddyn", {"integral_gain": -1.0}, "expected integral_gain to be a number above 0, got -1"),
        ("fedprox", {"mu": -0.1}, "fedprox: expected mu to be a number at least 0, got -0.1"),
        ("fedprox", {"mu": True}, "expected mu .* got True"),
    ],
)
def test_a_setting_out_of_range_is_refused(name, settings, message):
    with pytest.raises(AlgorithmError, match=message):
        build(name, **settings)
