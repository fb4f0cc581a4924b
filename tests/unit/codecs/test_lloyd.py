import numpy as np
import pytest

from fedge.codecs import lloyd
from fedge.codecs.centroids import CENTROIDS, CENTROIDS_WITH_TRIT, DISTORTION
from fedge.codecs.packing import levels_of

ROWS = CENTROIDS + CENTROIDS_WITH_TRIT


@pytest.mark.parametrize("width", lloyd.WIDTHS)
def test_the_shipped_centroids_are_what_newtons_method_finds(width):
    designed = lloyd.design(levels_of(width))
    np.testing.assert_allclose(designed, ROWS[width - 1], rtol=1e-11)
    assert lloyd.distortion(designed) == pytest.approx(1 - lloyd.gain(width), rel=1e-9)


def test_the_tables_agree_with_published_constants():
    assert CENTROIDS[0] == pytest.approx([np.sqrt(2 / np.pi)], rel=1e-15)
    assert CENTROIDS[1] == pytest.approx([0.4527800346, 1.5104176085], rel=1e-9)
    assert CENTROIDS[2] == pytest.approx([0.2450941789, 0.7560052813, 1.3439092785, 2.1519457045], rel=1e-9)
    expected = [0.570796326795, 0.133121168715, 0.0357840184997, 0.00959214303599]
    expected += [0.0025109574714, 0.000644654977624, 0.000163504959482, 4.1186779148e-5]
    assert [d / (1 - d) for d in DISTORTION] == pytest.approx(expected, rel=1e-11)


def test_three_times_as_many_levels_agree_with_published_constants():
    # J. Max, Quantizing for Minimum Distortion, 1960, table I: N = 3 and 6.
    assert CENTROIDS_WITH_TRIT[0] == pytest.approx([0, 1.224], abs=5e-4)
    assert CENTROIDS_WITH_TRIT[1] == pytest.approx([0.3177, 1.0, 1.894], abs=5e-4)
    assert [1 - lloyd.gain(width) for width in (9, 10)] == pytest.approx([0.1902, 0.05798], rel=1e-3)


@pytest.mark.parametrize("width", lloyd.WIDTHS)
def test_every_centroid_is_the_mean_of_its_cell(width):
    c = np.array(ROWS[width - 1])
    z = np.random.default_rng(0).standard_normal(400_000)
    magnitude = np.abs(z)
    cell = np.searchsorted((c[1:] + c[:-1]) / 2, magnitude)
    count = np.bincount(cell, minlength=c.size)
    mean = np.bincount(cell, magnitude, minlength=c.size) / np.maximum(count, 1)
    busy = (count > 500) & (c > 0)  # the middle cell of three has both signs
    assert np.abs(mean - c)[busy].max() < 0.02 and busy.sum() >= min((c > 0).sum(), 2)


@pytest.mark.parametrize("width", lloyd.WIDTHS)
def test_the_quantizer_finds_the_level_that_comparing_with_every_threshold_finds(width):
    t = lloyd.THRESHOLDS[width - 1][:-1]
    near = np.concatenate([np.nextafter(t, np.float32(side)) for side in (-9, 9)] + [t])
    z = np.concatenate((near, -near, np.random.default_rng(1).standard_normal(50_000), [0, 40, -40]))
    z = z.astype(np.float32)
    edges = np.concatenate((-t[::-1], [0], t))
    levels = levels_of(width)
    if levels % 2:
        edges = np.concatenate((-t[::-1], t))
    expected = np.searchsorted(edges, np.abs(z), side="left")
    expected = np.where((np.abs(z) == 0), levels // 2, expected)
    expected = np.where(np.signbit(z), levels - 1 - expected, expected)
    assert np.array_equal(lloyd.quantize(z, width), expected)


@pytest.mark.parametrize("width", lloyd.WIDTHS)
def test_levels_mirror_and_rise(width):
    levels = lloyd.LEVELS[width - 1]
    assert np.array_equal(levels, -levels[::-1])
    assert (np.diff(levels) > 0).all()


def test_the_table_for_the_extension_holds_every_width_at_its_place():
    start = 0
    for width in lloyd.WIDTHS:
        row, half = np.float32(ROWS[width - 1]), len(ROWS[width - 1])
        assert start == levels_of(width) // 2 - 1 + (255 if width > 8 else 0)  # centroids_of in job.h
        assert np.array_equal(lloyd.TABLES[start : start + half], row)
        assert np.array_equal(lloyd.TABLES[446 + start :][:half], lloyd.THRESHOLDS[width - 1])
        start += half
    assert start == 446 and lloyd.TABLES.size == 892
