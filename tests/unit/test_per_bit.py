"""Per-bit accuracy is points gained over megabits sent, and unknown where either is."""

import pytest

from fedge.per_bit import per_bit_accuracy


def test_it_is_the_points_gained_over_the_megabits_sent() -> None:
    assert per_bit_accuracy(0.75, 0.25, 125_000) == 50.0
    assert per_bit_accuracy(0.75, 0.25, 1_250_000) == 5.0
    assert per_bit_accuracy(0.85, 0.25, 5_000_000) == pytest.approx(1.5)


def test_a_run_that_did_harm_has_a_negative_one_and_one_that_did_nothing_has_zero() -> None:
    assert per_bit_accuracy(0.25, 0.5, 125_000) == -25.0
    assert per_bit_accuracy(0.5, 0.5, 125_000) == 0.0
    assert per_bit_accuracy(0.5, 0.0, 125_000) == 50.0  # an accuracy of zero is one that was measured


@pytest.mark.parametrize(("accuracy", "initial", "bytes_up"), [(None, 0.1, 8), (0.9, None, 8), (0.9, 0.1, 0)])
def test_it_is_unknown_where_accuracy_was_not_measured_or_nothing_was_sent(
    accuracy: float | None, initial: float | None, bytes_up: int
) -> None:
    assert per_bit_accuracy(accuracy, initial, bytes_up) is None


def test_alone_it_favours_doing_almost_nothing() -> None:
    one_coarse_round, a_whole_run = per_bit_accuracy(0.3, 0.2, 1_000), per_bit_accuracy(0.9, 0.2, 5_000_000)
    assert one_coarse_round is not None and a_whole_run is not None and one_coarse_round > 100 * a_whole_run
