"""FedDyn reaches the exact optimum of a strongly convex problem, and each known way to get it wrong does not.

Softmax regression on 20 heterogeneous devices, 4 a round, exact local solutions, float64
(``tests/support/softmax_regression.py``). In a small network bookkeeping mistakes hide in the noise; here they leave
a floor.

How fast FedDyn converges depends on the data. No claim here rests on a draw chosen for its speed: everything is
asserted on each of the draws 0, 1 and 2. Over the draws 0 to 15 (``benchmarks/feddyn_convex.py``) the gap after 300
rounds was

                                          α = 0.1, median (range)       α = 0.3, median (range)
    exact                                 3e-4 (4e-5 .. 5e-3)           4e-9 (1e-10 .. 6e-7)
    a fifth of the uploads lost           1e-3 (2e-4 .. 1e-2)           4e-8 (7e-10 .. 2e-5)
    4 bits                                3e-4 (4e-5 .. 5e-3)           5e-9 (1e-10 .. 7e-7)

The thresholds, 2e-5 for the exact form, 1e-4 with a fifth lost and at 4 bits, are therefore asserted at α = 0.3,
where all 16 draws meet them. At α = 0.1 none of the 16 meets 2e-5 within 300 rounds, and slow right runs end above the
floors of fast wrong ones. That is the method and not fedge: the textbook's FedDyn, which keeps every device's dual,
ends where fedge does on every draw and agrees model by model to 1e-14. One reported run at α = 0.1 ended at 5e-6, on a
draw we do not have: faster than all of these, by the textbook too.
"""

from __future__ import annotations

from functools import cache

import pytest

from tests.support.convex_federation import Case, Mistake, Run, disagreement, federate, federate_by_the_book

ALPHA, ROUNDS = 0.3, 300
every_draw = pytest.mark.parametrize("seed", [0, 1, 2])
run = cache(federate)

RIGHT = {
    "exact": ({}, 2e-5),
    "uploads lost": ({"lost": 0.2}, 1e-4),
    "segments lost": ({"lost": 0.2, "by_segment": True}, 1e-4),
    "4 bits": ({"bits": 4}, 1e-4),
    "uneven": ({"sigma": 1.0}, 2e-5),
}
STALLING = {
    "no duals": ({}, Mistake.NO_DUALS),
    "uploads lost, committed all the same": ({"lost": 0.2}, Mistake.COMMIT_LOST),
    "4 bits, true delta committed": ({"bits": 4}, Mistake.COMMIT_TRUE),
    "sizes in the means as well": ({"sigma": 1.0}, Mistake.WEIGHTED_MEANS),
}
SIX = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
# What few bits leave behind comes rounds later: other thresholds. Last: rounds in which full trust has diverged.
COARSE = {
    "six rates": ({"bits": SIX}, 1e-2, 20),
    "six rates, entropy-coded": ({"bits": SIX, "codec": "eden-entropy"}, 3e-2, 20),
    "half a bit": ({"bits": 0.5}, 1e-3, 50),
    "half a bit, entropy-coded": ({"bits": 0.5, "codec": "eden-entropy"}, 1e-3, 80),
    "a tenth of a bit": ({"bits": 0.1}, 0.15, 20),
    "a tenth of a bit, entropy-coded": ({"bits": 0.1, "codec": "eden-entropy"}, 0.6, 15),
}


def right(name: str, seed: int) -> Run:
    return run(Case(seed, ALPHA, **RIGHT[name][0]), ROUNDS)


@every_draw
@pytest.mark.parametrize("name", RIGHT)
def test_every_right_form_reaches_the_optimum_within_300_rounds_on_every_draw(name: str, seed: int) -> None:
    assert 0 <= right(name, seed).last < RIGHT[name][1]


@every_draw
@pytest.mark.parametrize("name", RIGHT)
def test_every_right_form_still_gains_more_than_a_decimal_in_the_last_150_rounds(name: str, seed: int) -> None:
    """It is on its way to 0, not to a floor below the threshold."""
    assert right(name, seed).last < 0.1 * right(name, seed).gap(150)


@every_draw
@pytest.mark.parametrize("name", RIGHT)
def test_the_mean_of_the_duals_is_the_servers_h_after_every_round(name: str, seed: int) -> None:
    drifts = right(name, seed).drifts
    assert drifts.shape == (ROUNDS,) and drifts.max() < 1e-12


@every_draw
@pytest.mark.parametrize("name", [name for name in RIGHT if "bits" not in RIGHT[name][0]])
def test_every_model_is_the_textbooks(name: str, seed: int) -> None:
    """Published and broadcast, in each of 100 rounds: one sum does for the server what all devices' duals would."""
    ours = right(name, seed)
    assert disagreement(ours, federate_by_the_book(ours.case, 100)) < 1e-9


@every_draw
def test_with_a_small_alpha_fedge_is_as_slow_as_the_textbook(seed: int) -> None:
    """At α = 0.1 each of these draws has more than 1e-3 left after 100 rounds, for both alike."""
    ours = federate(Case(seed, 0.1), 100)
    textbook = federate_by_the_book(ours.case, 100)
    assert disagreement(ours, textbook) < 1e-9
    assert ours.last == pytest.approx(textbook.last, rel=1e-6) and ours.last > 1e-3


@every_draw
@pytest.mark.parametrize("name", STALLING)
def test_every_mistake_stalls_far_above_the_right_form(name: str, seed: int) -> None:
    changes, mistake = STALLING[name]
    case = Case(seed, ALPHA, **changes)
    wrong = run(Case(seed, ALPHA, **changes, mistake=mistake), ROUNDS)
    assert wrong.last > 5e-4 and wrong.last > 20 * run(case, ROUNDS).last
    assert wrong.last > 0.5 * wrong.gap(150), "still falling, so not a floor"


@every_draw
@pytest.mark.parametrize("mistake", [Mistake.COMMIT_LOST, Mistake.COMMIT_TRUE])
def test_a_one_sided_commit_parts_the_duals_from_the_servers_h(mistake: Mistake, seed: int) -> None:
    changes = next(changes for changes, known in STALLING.values() if known is mistake)
    assert run(Case(seed, ALPHA, **changes, mistake=mistake), ROUNDS).drifts[-1] > 1e-2


@every_draw
def test_adding_whole_models_to_h_diverges(seed: int) -> None:
    """The paper's sum read as (Σ x_k) - θ instead of Σ (x_k - θ)."""
    assert federate(Case(seed, ALPHA, mistake=Mistake.MISREAD_SUM), 25).last > 1e3


@every_draw
@pytest.mark.parametrize("name", COARSE)
def test_devices_of_few_bits_come_nearer_to_the_optimum_and_keep_the_books(name: str, seed: int) -> None:
    """With 15 bits an update, the last case, 300 rounds are not enough to arrive; but nothing grows."""
    changes, threshold, _ = COARSE[name]
    ours = run(Case(seed, ALPHA, **changes), ROUNDS)
    assert 0 <= ours.last < threshold
    assert max(ours.gap(number) for number in range(50, ROUNDS + 1, 50)) < ours.gap(1)
    assert ours.drifts.max() < 1e-12


@every_draw
@pytest.mark.parametrize("name", COARSE)
def test_devices_of_few_bits_that_count_in_full_diverge(name: str, seed: int) -> None:
    changes, _, count = COARSE[name]
    wrong = federate(Case(seed, ALPHA, **changes, mistake=Mistake.FULL_TRUST), count)
    assert wrong.last > 8 * wrong.gap(1)
