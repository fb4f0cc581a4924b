import mpmath
import numpy as np
import pytest

from fedge.codecs.m22.gamma import digamma, incomplete, inverse_upper, ratio

rng = np.random.default_rng(5)
A = np.exp(rng.uniform(np.log(0.05), np.log(400), 120))
X = A * np.exp(rng.normal(size=120) * np.minimum(2, 3 / np.sqrt(A)))


@pytest.fixture(autouse=True)
def forty_digits():
    with mpmath.workdps(40):
        yield


def test_both_tails_keep_their_digits():
    p, q, d = incomplete(A, X)
    for a, x, *got in zip(A, X, p, q, d, strict=True):
        lower = mpmath.gammainc(a, 0, x, regularized=True)
        exact = lower, mpmath.gammainc(a, x, regularized=True), mpmath.mpf(x) ** a * mpmath.exp(-x) / mpmath.gamma(a)
        assert got == pytest.approx([float(v) for v in exact], rel=3e-14)


def test_the_ends_are_exact():
    p, q, d = incomplete(np.array([0.1, 3.0, 300.0])[:, None], np.array([0.0, np.inf]))
    assert p.tolist() == [[0, 1]] * 3 and q.tolist() == [[1, 0]] * 3 and d.tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("shares", [rng.uniform(size=120), 10.0 ** rng.uniform(-60, 0, 120)], ids=["any", "tail"])
def test_the_inverse_inverts(shares):
    _, q, _ = incomplete(A, inverse_upper(A, shares))
    assert q == pytest.approx(shares, rel=1e-12)


def test_ratios_of_gammas_overflow_only_where_the_ratio_does():
    for a in (0.2, 7.0, 80.0, 1000.0):
        for h in (0.1, 1.0, 6.7):
            assert ratio(a, a + h) == pytest.approx(float(mpmath.gamma(a + h) / mpmath.gamma(a)), rel=1e-13)
    assert ratio(6.7, 353.0) == np.inf


def test_digamma_and_its_slope():
    for a in (0.1, 1.0, 6.7, 50.0):
        exact = [float(mpmath.psi(0, a)), float(mpmath.psi(1, a))]
        assert list(digamma(a)) == pytest.approx(exact, rel=1e-13)
