import itertools
import json
from pathlib import Path

import mpmath
import numpy as np
import pytest

from fedge.codecs.m22.design import design, design_many, quantizer
from fedge.codecs.m22.families import absolute_moment, law
from fedge.codecs.m22.newton import edges, masses
from fedge.errors import CodecError, UnknownName

REFERENCE = json.loads((Path(__file__).parents[3] / "data/m22/quantizers.json").read_text())
FIELDS = ["D_M", "D_M_norm", "m_M2", "mse", "m2", "nmse", "cos2", "a_star", "S_unb", "entropy_bits"]


def exact_gap(q):
    """The largest relative distance of a level from the centroid of its cell, with 50 digits."""
    with mpmath.workdps(50):
        s, k = (mpmath.mpf(v) for v in law(q.family, q.shape))
        a, h = (s + mpmath.mpf(q.magnitude)) / k, 1 / k
        c = [mpmath.mpf(v) for v in q.positive.tolist()]
        t = [mpmath.mpf(q.truncation), *((x + y) / 2 for x, y in itertools.pairwise(c)), mpmath.inf]
        u = [v**k for v in t]
        means = [mpmath.gammainc(a + h, *cell) / mpmath.gammainc(a, *cell) for cell in itertools.pairwise(u)]
        return max(abs(x / m - 1) for x, m in zip(c, means, strict=True))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_every_field_of_the_reference_is_met(bits):
    for e in REFERENCE["entries"]:
        if e["R"] == bits:
            q = quantizer(e["family"], e["shape"], e["M"], bits)
            assert q.positive == pytest.approx(e["centroids_pos"], rel=1e-11)
            assert q.cell_probabilities == pytest.approx(e["cell_prob_pos"], rel=1e-10)
            assert [getattr(q, name) for name in FIELDS] == pytest.approx([e[name] for name in FIELDS], rel=1e-10)


def test_the_truncated_reference_is_met():
    for e in REFERENCE["entries_truncated"]:
        q = quantizer(e["family"], e["shape"], e["M"], e["R"], e["tau"])
        assert q.positive == pytest.approx(e["centroids_pos"], rel=1e-11)
        assert [q.D_M, q.nmse, q.cos2, q.a_star] == pytest.approx(
            [e["D_M"], e["nmse_total"], e["cos2_total"], e["a_star"]], rel=1e-10
        )
        assert 2 * q.cell_probabilities.sum() == pytest.approx(e["q_survivors"], rel=1e-12)


def test_levels_are_centroids_whatever_the_parameters():
    rng = np.random.default_rng(2)
    for bits in (1, 2, 3, 4, 5, 6, 2, 3, 4):
        family, shape = str(rng.choice(["gennorm", "weibull"])), float(np.exp(rng.uniform(np.log(0.15), np.log(10))))
        tau = float(rng.choice([0, 0.3, 1.2])) * absolute_moment(family, shape, 1.0)
        assert exact_gap(quantizer(family, shape, float(rng.uniform(0, 9)), bits, tau)) < 1e-12


@pytest.mark.parametrize("survivors", [1.0, 0.3])
@pytest.mark.parametrize("shape", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("family", ["gennorm", "weibull"])
def test_levels_are_centroids_to_a_tenth_of_what_is_asked_up_to_eight_bits(family, shape, survivors):
    tau = threshold(family, shape, survivors)
    for magnitude, bits in ((0.0, 8), (2.0, 4), (9.0, 6)):
        assert exact_gap(quantizer(family, shape, magnitude, bits, tau)) < 1e-13


@pytest.mark.parametrize("family", ["gennorm", "weibull"])
@pytest.mark.parametrize(("shape", "magnitude"), [(0.15, 0), (0.15, 9), (10, 0), (10, 9), (0.6, 30)])
@pytest.mark.parametrize("survivors", [1.0, 1e-6])
def test_extremes_have_ascending_levels_at_centroids(family, shape, magnitude, survivors):
    tau = threshold(family, shape, survivors)
    q = quantizer(family, shape, magnitude, 8, tau)
    assert q.positive[0] > tau and (np.diff(q.positive) > 0).all()
    assert float_gap(q) < 1e-12


def threshold(family, shape, survivors):
    low, high = -30.0, 60.0  # of ln τ
    s, k = (np.array([v]) for v in law(family, shape))
    for _ in range(80):
        tau = np.exp([(low + high) / 2])
        mass = masses(s, k, np.zeros((1, 1)), np.array([[tau[0], np.inf]]))[0].item()
        low, high = ((low + high) / 2, high) if mass > survivors else (low, (low + high) / 2)
    return 0.0 if survivors == 1 else float(tau[0])


def float_gap(q):
    s, k = (np.array([v]) for v in law(q.family, q.shape))
    powers = np.array([[q.magnitude], [q.magnitude + 1]])
    mass = masses(s, k, powers, edges(q.positive[None], np.array([q.truncation])))[0]
    scale = quantizer(q.family, q.shape, q.magnitude, 1).positive[0]
    return np.abs(q.positive / (scale * mass[1, 0] / mass[0, 0]) - 1).max()


def test_both_families_are_one():
    for shape, magnitude in ((0.4, 0.7), (1.0, 0.0), (1.3, 2.5), (3.0, 4.0)):
        weibull = design("weibull", shape, magnitude, 3)[0]
        assert weibull == pytest.approx(design("gennorm", shape, magnitude + shape - 1, 3)[0], rel=1e-12)


def test_one_bit_has_a_closed_form():
    for family, shape, magnitude in (("gennorm", 0.7, 1.5), ("weibull", 0.7, 1.5)):
        mean = absolute_moment(family, shape, magnitude + 1) / absolute_moment(family, shape, magnitude)
        assert design(family, shape, magnitude, 1)[0] == pytest.approx([-mean, mean], rel=1e-14)


def test_without_a_weight_the_levels_have_the_right_length_already():
    for bits in (1, 3, 5):
        assert quantizer("weibull", 0.6, 0, bits).a_star == pytest.approx(1, rel=1e-12)


def test_more_levels_leave_less_distortion():
    left = [quantizer("gennorm", 0.8, 2, bits).D_M_norm for bits in range(1, 9)]
    assert (np.diff(left) < 0).all()


def test_a_design_is_full_and_symmetric():
    centroids, thresholds = design("gennorm", 0.8, 2.0, 3, truncation=0.5)
    assert centroids.shape == (8,) and thresholds.shape == (7,) and thresholds[3] == 0
    assert (centroids == -centroids[::-1]).all() and (thresholds == -thresholds[::-1]).all()
    assert (thresholds[4:] == (centroids[5:] + centroids[4:-1]) / 2).all()


def test_many_designs_at_once_are_the_same_designs():
    laws = [("gennorm", 0.5, 0.0, 1, 0.0), ("weibull", 0.7, 2.0, 4, 1.0), ("gennorm", 2.0, 1.0, 3, 0.4)]
    s, k = np.array([law(family, shape) for family, shape, *_ in laws]).T
    magnitude, tau = np.array([row[2] for row in laws]), np.array([row[4] for row in laws])
    many = design_many(s, k, magnitude, np.array([2 ** (row[3] - 1) for row in laws]), tau)
    for row, got in zip(laws, many, strict=True):
        alone = quantizer(*row).positive
        assert got[: alone.size] == pytest.approx(alone, rel=1e-11) and np.isinf(got[alone.size :]).all()


def test_a_sample_has_the_distortion_that_was_computed():
    q, rng = quantizer("gennorm", 0.8, 1.0, 3), np.random.default_rng(9)
    x = rng.gamma(1 / 0.8, size=400_000) ** (1 / 0.8) * rng.choice([-1, 1], 400_000)
    error = np.abs(x) * (x - q.centroids[np.searchsorted(q.thresholds, x)]) ** 2
    assert abs(error.mean() - q.D_M) < 4 * error.std() / np.sqrt(x.size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gennorm", 0.0, 0, 2), "expected a shape from 0.1 to 20.0, got 0.0"),
        (("gennorm", float("nan"), 0, 2), "expected a shape from 0.1 to 20.0, got nan"),
        (("gennorm", 1.0, -1, 2), "expected a magnitude M from 0 to 1000, got -1"),
        (("gennorm", 1.0, float("nan"), 2), "expected a magnitude M from 0 to 1000, got nan"),
        (("gennorm", 1.0, 0, 9), "expected a whole number of bits from 1 to 8, got 9"),
        (("gennorm", 1.0, 0, 1.5), "expected a whole number of bits from 1 to 8, got 1.5"),
        (("gennorm", 1.0, 0, 2, -0.1), "expected a truncation of 0 or more, got -0.1"),
        (("gennorm", 1.0, 0, 2, float("inf")), "expected a truncation of 0 or more, got inf"),
        (("gennorm", 1.0, 0, 2, 900.0), "expected a truncation that survives with 1e-200 or more, got 900.0"),
    ],
)
def test_what_cannot_be_designed_is_named(arguments, message):
    with pytest.raises(CodecError, match=f"^{message}$"):
        design(*arguments)


def test_a_mistyped_family_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'weibull'"):
        design("weibul", 1.0, 0, 2)
