import numpy as np
import pytest

from fedge.codecs.m22 import make_table
from fedge.codecs.m22.design import quantizer
from fedge.codecs.m22.families import law
from fedge.codecs.m22.gamma import inverse_upper
from fedge.codecs.m22.quantizer import Quantizer
from fedge.codecs.m22.table import FILE, LOG_K, LOG_P, Z, tabulated, tabulated_many


def threshold(family, shape, survivors):
    s, k = law(family, shape)
    return 0.0 if survivors == 1 else float(inverse_upper(np.array([s / k]), np.array([survivors]))[0] ** (1 / k))


def loss(family, shape, magnitude, bits, tau):
    """How much more D_M the tabulated levels leave than the best ones, relative."""
    positive = tabulated(family, shape, magnitude, bits, tau)[0][2 ** (bits - 1) :]
    got = Quantizer(family, shape, float(magnitude), tau, positive)
    return got.D_M_norm / quantizer(family, shape, magnitude, bits, tau).D_M_norm - 1


def test_the_generator_writes_the_file_that_is_shipped():
    shipped, rng = np.load(FILE), np.random.default_rng(1)
    assert shipped.shape == (LOG_K.size, LOG_P.size, Z.size, 14) and FILE.stat().st_size < 100_000
    at = tuple(rng.integers(0, size, 12) for size in shipped.shape[:3])
    again = make_table.row(np.exp(LOG_K[at[0]]), np.exp(LOG_P[at[1]]), Z[at[2]])
    assert again == pytest.approx(shipped[at], rel=2.0**-11, abs=2.0**-14)


@pytest.mark.parametrize("survivors", [1.0, 0.9, 0.3, 0.01, 1e-4])
def test_reading_the_table_costs_little_where_updates_are(survivors):
    for family in ("gennorm", "weibull"):
        for shape in (0.33, 0.47, 0.71, 0.95, 1.4, 2.7):
            tau = threshold(family, shape, survivors)
            losses = [loss(family, shape, m, bits, tau) for m in (0, 0.6, 2, 4) for bits in (2, 4)]
            assert max(losses) < 1e-3 and np.median(losses) < 1e-4


@pytest.mark.parametrize("survivors", [1.0, 0.97, 0.1, 1e-4])
def test_reading_the_table_is_fair_everywhere(survivors):
    for family, least in (("gennorm", 0.15), ("weibull", 0.2)):
        for shape in (least, 0.24, 4.4, 7.6, 10.0):
            tau = threshold(family, shape, survivors)
            assert max(loss(family, shape, m, 4, tau) for m in (0, 5.8, 9)) < 5e-3


def test_one_bit_is_exact():
    for tau in (0.0, 0.8):
        assert loss("weibull", 0.6, 1.5, 1, tau) == pytest.approx(0, abs=1e-12)


def test_what_is_beyond_the_table_is_designed():
    for family, shape, magnitude, bits in (
        ("gennorm", 0.5, 40.0, 2),
        ("weibull", 12.0, 1.0, 3),
        ("gennorm", 1.0, 0, 6),
    ):
        centroids, thresholds = tabulated(family, shape, magnitude, bits)
        best = quantizer(family, shape, magnitude, bits)
        assert centroids == pytest.approx(best.centroids, rel=1e-9)
        assert thresholds == pytest.approx(best.thresholds, rel=1e-9)


def test_many_laws_are_read_at_once():
    laws = [("gennorm", 0.5, 0.0, 0.0), ("weibull", 0.7, 2.0, 1.0), ("gennorm", 1.0, 40.0, 0.4)]
    s, k = np.array([law(family, shape) for family, shape, *_ in laws]).T
    found = tabulated_many(s, k, np.array([row[2] for row in laws]), np.array([row[3] for row in laws]))
    assert [levels.shape for levels in found] == [(3, 1), (3, 2), (3, 4), (3, 8)]
    for i, (family, shape, magnitude, tau) in enumerate(laws):
        for bits, levels in enumerate(found, start=1):
            alone = tabulated(family, shape, magnitude, bits, tau)[0][2 ** (bits - 1) :]
            assert levels[i] == pytest.approx(alone, rel=1e-9)
            assert levels[i, 0] > tau and (np.diff(levels[i]) > 0).all()
