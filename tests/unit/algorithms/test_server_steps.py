"""The server's and the device's arithmetic, written out on a model of three numbers."""

import numpy as np
import pytest

from fedge.aggregation import SegmentSums
from fedge.algorithms import AlgorithmError, FedAvg, FedDyn, FedProx, ServerState
from fedge.layout import Kind, Layout, TensorSpec

LAYOUT = Layout.of([TensorSpec(kind, (1,), kind) for kind in Kind])


def delivered(*rows: tuple[float, list[float]]) -> SegmentSums:
    """Add the three numbers of each row with its weight; None is a segment that did not arrive."""
    sums = SegmentSums(LAYOUT)
    for weight, values in rows:
        for index, value in enumerate(values):
            if value is not None:
                sums.add(index, np.array([value]), weight)
    return sums


def test_fedavg_and_fedprox_weigh_by_examples():
    sums = delivered((FedAvg().weight(30), [1.0, 1.0, 1.0]), (FedAvg().weight(10), [5.0, 5.0, None]))
    for algorithm in (FedAvg(), FedProx(mu=0.1)):
        after = algorithm.server_step(algorithm.initial(np.full(3, 10.0)), sums, num_devices=100)
        assert after.params.tolist() == after.published.tolist() == [12.0, 12.0, 11.0]


def test_feddyn_adds_the_sum_to_h_and_the_mean_plus_h_over_all_devices_to_the_params():
    state = ServerState(np.full(3, 10.0), np.full(3, 9.0), np.array([8.0, 8.0, 0.0]))
    after = FedDyn().server_step(state, delivered((1.0, [1.0, 1.0, 1.0]), (1.0, [3.0, None, 3.0])), num_devices=4)
    assert after.h.tolist() == [12.0, 9.0, 0.0]
    assert after.published.tolist() == [12.0, 11.0, 12.0]
    assert after.params.tolist() == [12 + 12 / 4, 11 + 9 / 4, 12.0]


def test_feddyns_integral_gain_scales_what_h_adds():
    state = ServerState(np.full(3, 10.0), np.full(3, 9.0), np.full(3, 8.0))
    after = FedDyn(integral_gain=0.5).server_step(state, delivered((1.0, [4.0, 4.0, 4.0])), num_devices=4)
    assert after.params.tolist() == [14 + 0.5 * 12 / 4] * 2 + [14.0]


def test_feddyn_weighs_small_devices_by_a_stronger_pull():
    dual = np.array([1.0, 2.0, 0.0])
    terms = FedDyn(alpha=0.1).local_terms(dual, relative_size=0.25)
    assert terms.pull == pytest.approx(0.4)
    assert terms.dual is dual
    assert FedDyn().weight(5) == FedDyn().weight(500) == 1.0


def test_feddyn_commits_only_the_segments_that_were_applied_and_never_buffers():
    dual, decoded = np.array([1.0, 1.0, 0.0]), np.array([10, 20, 30], np.float32)
    weight, raw, buffer = LAYOUT.segments
    assert FedDyn().commit(dual, [weight, buffer], decoded).tolist() == [11.0, 1.0, 0.0]
    assert FedDyn().commit(dual, [raw], decoded).tolist() == [1.0, 21.0, 0.0]


def test_feddyn_counts_codes_of_half_their_energy_in_full_and_every_coarser_one_as_a_contraction():
    assert FedDyn().trust(0.5) == FedDyn().trust(0.0) == 1.0
    for error in np.geomspace(1e-3, 100.0, 500):
        gamma = FedDyn().trust(error)
        assert 0.97 * 1.5 / (1 + error) < gamma <= 1.5 / (1 + error) or gamma == 1.0
        assert 1 - 2 * gamma + gamma**2 * (1 + error) <= 1 - gamma / 2 + 1e-12


def test_feddyn_refuses_sums_weighted_by_examples():
    algorithm = FedDyn()
    with pytest.raises(AlgorithmError, match="expected deltas of weight 1"):
        algorithm.server_step(algorithm.initial(np.zeros(3)), delivered((30.0, [1.0, 1.0, 1.0])), num_devices=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FedDyn().local_terms(None, 0.0), "expected relative_size to be a number above 0, got 0"),
        (lambda: FedDyn().commit(np.zeros(3, np.float32), [], np.zeros(3)), "expected a float64 dual"),
        (lambda: FedDyn().commit(np.zeros(3), [], np.zeros(4)), r"float64 \[3\] and \[4\]"),
        (lambda: FedDyn().server_step(FedAvg().initial(np.zeros(3)), delivered(), 4), "expected a state with h"),
        (lambda: FedDyn().server_step(FedDyn().initial(np.zeros(3)), delivered(), 0), "at least 1 device, got 0"),
    ],
)
def test_feddyn_refuses_what_would_break_its_invariant(call, message):
    with pytest.raises(AlgorithmError, match=message):
        call()


def test_the_back_halfs_dual_outlives_rounds_without_it_and_ends_with_its_epoch():
    dual = np.array([0.0, 2.0, 0.0])
    state = ServerState(np.zeros(3), np.zeros(3), dual, dual)
    after = FedDyn().server_step(state, delivered((1.0, [1.0, 1.0, 1.0])), num_devices=4)
    assert after.back_dual is dual
    assert after.without_duals().back_dual is None
