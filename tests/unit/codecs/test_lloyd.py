import numpy as np
import pytest

from fedge.codecs import lloyd
from fedge.codecs.centroids import CENTROIDS, DISTORTION

WIDTHS = range(1, lloyd.MAX_WIDTH + 1)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_shipped_centroids_are_what_newtons_method_finds(width):
    designed = lloyd.design(2**width)
    np.testing.assert_allclose(designed, CENTROIDS[width - 1], rtol=1e-11)
    assert lloyd.distortion(designed) == pytest.approx(DISTORTION[width - 1], rel=1e-9)


def test_the_tables_agree_with_published_constants():
    assert CENTROIDS[0] == pytest.approx([np.sqrt(2 / np.pi)], rel=1e-15)
    assert CENTROIDS[1] == pytest.approx([0.4527800346, 1.5104176085], rel=1e-9)
    assert CENTROIDS[2] == pytest.approx([0.2450941789, 0.7560052813, 1.3439092785, 2.1519457045], rel=1e-9)
    expected = [0.570796326795, 0.133121168715, 0.0357840184997, 0.00959214303599]
    expected += [0.0025109574714, 0.000644654977624, 0.000163504959482, 4.1186779148e-5]
    assert [d / (1 - d) for d in DISTORTION] == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_centroid_is_the_mean_of_its_cell(width):
    c = np.array(CENTROIDS[width - 1])
    z = np.random.default_rng(0).standard_normal(400_000)
    magnitude = np.abs(z)
    cell = np.searchsorted((c[1:] + c[:-1]) / 2, magnitude)
    count = np.bincount(cell, minlength=c.size)
    mean = np.bincount(cell, magnitude, minlength=c.size) / np.maximum(count, 1)
    busy = count > 500
    assert np.abs(mean - c)[busy].max() < 0.02 and busy.sum() >= min(c.size, 2)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_quantizer_finds_the_level_that_comparing_with_every_threshold_finds(width):
    t = lloyd.THRESHOLDS[width - 1][:-1]
    near = np.concatenate([np.nextafter(t, np.float32(side)) for side in (-9, 9)] + [t])
    z = np.concatenate((near, -near, np.random.default_rng(1).standard_normal(50_000), [0, 40, -40]))
    z = z.astype(np.float32)
    edges = np.concatenate((-t[::-1], [0], t))
    expected = np.searchsorted(edges, np.abs(z), side="left")
    expected = np.where((np.abs(z) == 0), 2 ** (width - 1), expected)
    expected = np.where(np.signbit(z), 2**width - 1 - expected, expected)
    assert np.array_equal(lloyd.quantize(z, width), expected)


@pytest.mark.parametrize("width", WIDTHS)
def test_levels_mirror_and_rise(width):
    levels = lloyd.LEVELS[width - 1]
    assert np.array_equal(levels, -levels[::-1])
    assert (np.diff(levels) > 0).all()


def test_the_table_for_the_extension_holds_every_width_at_its_place():
    for width in WIDTHS:
        start, half = 2 ** (width - 1) - 1, 2 ** (width - 1)
        assert np.array_equal(lloyd.TABLES[start : start + half], np.float32(CENTROIDS[width - 1]))
        assert np.array_equal(lloyd.TABLES[255 + start :][:half], lloyd.THRESHOLDS[width - 1])
    assert lloyd.TABLES.size == 510
