import pytest

from fedge.errors import CodecError
from fedge.split import Coding, GradientCoding, Options, Start


def test_the_papers_settings_are_packed_fresh_and_in_float32():
    paper = Options.paper(1152)
    assert (paper.coding, paper.start) == (Coding.PACKED, Start.FRESH)
    assert (paper.codebook_bits, paper.gradient_bits) == (32, 32)
    assert paper.shape(20, 9216).bits() == 23_552


def test_shared_codebooks_are_fitted_again_every_so_often():
    options = Options(4, start=Start.SHARED, refresh_steps=3)
    assert [options.fits_at(step) for step in range(5)] == [True, False, False, True, False]
    assert all(Options(4, start=start).fits_at(1) for start in (Start.FRESH, Start.WARM))


@pytest.mark.parametrize(
    "wrong",
    [
        {"subvectors": 0},
        {"subvectors": 65_536},
        {"groups": 0},
        {"groups": 5},
        {"centroids": 0},
        {"centroids": 257},
        {"correction": -1.0},
        {"correction": float("nan")},
        {"correction": float("inf")},
        {"cap": -0.5},
        {"ramp_steps": -1},
        {"codebook_bits": 16},
        {"gradient_bits": 0.04},
        {"gradient_bits": 16},
        {"gradient_bits": 1, "gradient_coding": GradientCoding.UNIFORM},
        {"refresh_steps": 0},
        {"iterations": 0},
        {"warm_iterations": 0},
        {"least_members": -1},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(CodecError, match="expected"):
        Options(**{"subvectors": 4, **wrong})
