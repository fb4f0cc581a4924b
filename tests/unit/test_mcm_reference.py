"""A fast slice of ``benchmarks/mcm_reference.py``: 3,000 rounds instead of 20,000."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest

from benchmarks.mcm_reference import REFERENCE, bounds, curves, saving
from tests.support.mcm_lab import DIM, OMEGA, QUANTIZED_BITS, Curve, alpha_of, least_squares, quantize


@cache
def found() -> dict[str, Curve]:
    return curves(least_squares(), rounds=3_000, seeds=6, decreasing=True)


@cache
def setting() -> dict[str, str]:
    return json.loads(REFERENCE.read_text())["settings"]["lsr"]


def test_the_problem_is_the_references() -> None:
    problem = least_squares()
    assert problem.smoothness == pytest.approx(setting()["L"], rel=1e-12)
    assert problem.least == pytest.approx(setting()["Fstar"], rel=1e-12)
    assert np.linalg.eigvalsh(problem.hessian)[0] == pytest.approx(setting()["mu"], rel=1e-12)
    assert pytest.approx(0.0914, abs=1e-4) == alpha_of(DIM) and pytest.approx(73, abs=0.5) == QUANTIZED_BITS


def test_the_quantizer_is_unbiased_and_has_the_error_it_should() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=DIM)
    many = quantize(np.broadcast_to(x, (40_000, DIM)), rng)
    assert np.abs(many.mean(0) - x).max() < 5 * many.std(0).max() / 200
    assert np.square(many - x).sum(1).mean() < 1.01 * OMEGA * np.square(x).sum()


def test_the_references_bounds_hold() -> None:
    assert [name for name, holds in bounds(found()).items() if not holds] == []


def test_levels_are_those_of_the_references_curves() -> None:
    theirs = json.loads(REFERENCE.read_text())["curves"]["lsr_decreasing"]
    for name, curve in found().items():
        k = np.array([k for k in theirs[name]["k"] if 100 < k <= 3_000])
        levels = np.array(theirs[name]["log10_excess"])[np.isin(theirs[name]["k"], k)]
        ours = np.array([curve.log10[i - i // 10 - 1 : i].mean() for i in k])
        assert np.abs(ours - levels).mean() < 0.2, name


def test_mcm_takes_a_quarter_of_the_bits_of_uplink_only_compression_or_less() -> None:
    assert saving(found()) > 4
