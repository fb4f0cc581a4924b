"""The product quantizer, held to the reference's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedge.errors import CodecError
from fedge.split.quantizer import (
    LARGEST_MAGNITUDE,
    Fitting,
    Shape,
    as_columns,
    assign,
    fit,
    group_of,
    members_of,
    restore,
)
from tests.support.kernels import IMPLEMENTATIONS, implementation

REFERENCE = json.loads((Path(__file__).parents[2] / "data" / "fedlite" / "fedlite_reference.json").read_text())


def activations(examples: int, values: int, seed: int = 0) -> np.ndarray:
    """Rectified and of unlike scale by position."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=values))
    return (np.maximum(rng.normal(size=(examples, values)) - 0.3, 0) * scale).astype(np.float32)


def quantized(z: np.ndarray, shape: Shape, how: Fitting | None = None, seed: int = 1) -> np.ndarray:
    x = as_columns(z, shape)
    book = fit(x, shape, how or Fitting(), seed)
    return restore(book, assign(x, shape, book), shape)


def distortion(z: np.ndarray, restored: np.ndarray) -> float:
    return float(np.square(z - restored, dtype=np.float64).sum() / np.square(z, dtype=np.float64).sum())


def test_bits_and_ratios_are_the_references_in_every_run_of_it():
    runs = {
        f"{table}/{name}": (name, run)
        for table in ("T300_and_baselines", "lambda_grid_3seeds_and_T1000", "downlink_3seeds_lam1e3_T300")
        for name, run in REFERENCE[table].items()
        if not any(word in name for word in ("vanilla", "uni", "topk"))
    }
    assert len(runs) > 60
    for where, (name, run) in runs.items():
        cfg = run["cfg"] or {}
        centroids = cfg.get("L") or (8 if "L8" in name else 2)
        shape = Shape(20, 1568, cfg.get("q", 196), cfg.get("R", 1), centroids)
        assert shape.bits() == run["uplink_bits"], where
        assert shape.ratio() == pytest.approx(run["ratio32"], rel=1e-15), where


@pytest.mark.parametrize(
    ("q", "L", "R", "bits", "ratios"),
    [
        (1152, 2, 1, 23_552, (490, 250, 127)),
        (1152, 32, 1, 123_392, (89.6, 47.8, 24.7)),
        (288, 2, 1, 7_808, (1197, 755, 434)),
        (288, 16, 1, 39_424, (211, 150, 94)),
        (576, 2, 1, 12_544, (869, 470, 245)),
        (4608, 2, 1, 92_288, (128, 64, 32)),
        (1152, 2, 1152, 612_864, (9.8, 9.6, 9.3)),
        (1, 2, 1, 589_844, (10, 10, 10)),
    ],
)
def test_bits_of_the_femnist_network_are_as_published_where_floats_have_64(q, L, R, bits, ratios):
    shape = Shape(20, 9216, q, R, L)
    assert shape.bits() == bits
    for float_bits, ratio in zip((64, 32, 16), ratios, strict=True):
        assert shape.ratio(float_bits) == pytest.approx(ratio, rel=0.01)


def test_the_published_490_counts_floats_of_64_bits_and_nothing_else():
    shape = Shape(20, 9216, 1152, 1, 2)
    assert shape.bits(64) == 24_064 and 64 * 20 * 9216 == 11_796_480
    assert [round(shape.ratio(bits), 1) for bits in (64, 32)] == [490.2, 250.4]


@pytest.mark.parametrize(("q", "groups"), [(6, 1), (6, 2), (6, 6), (7, 3), (10, 4), (1152, 7), (5, 4)])
def test_a_group_is_a_run_of_positions_whether_or_not_groups_divide_them(q, groups):
    shape, of = Shape(2, q, q, groups), group_of(q, groups)
    assert of.tolist() == [j * groups // q for j in range(q)]
    for r in range(groups):
        assert np.flatnonzero(of == r).tolist() == list(range(shape.first_of(r), shape.first_of(r + 1)))


def test_every_position_is_quantized_by_the_codebook_of_its_group():
    # Position j holds j everywhere; with as many groups as positions nothing is lost, by any other grouping much is.
    z = np.repeat(np.arange(6, dtype=np.float32), 2)[None].repeat(5, 0)
    assert (quantized(z, Shape(5, 12, 6, 6, 1)) == z).all()
    assert (quantized(z, Shape(5, 12, 6, 3, 2)) == z).all()
    assert (quantized(z, Shape(5, 12, 6, 1, 6)) == z).all()


def grouped_by_reshape(z: np.ndarray, shape: Shape, seed: int) -> np.ndarray:
    """The mistake: ``reshape(R, -1, s)`` of (B, q, s) makes groups of examples."""
    cut = z.reshape(shape.groups, 1, -1)
    own = Shape(1, cut.shape[2], cut.shape[2] // shape.length, 1, shape.centroids)
    return np.concatenate([quantized(part, own, seed=seed) for part in cut]).reshape(z.shape)


def test_grouping_by_reshape_is_something_else_and_loses_more():
    shape = Shape(20, 320, 40, 5, 4)
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(20, 5, 64)) + 10 * rng.normal(size=(1, 5, 1))).reshape(20, 320).astype(np.float32)
    right, wrong = quantized(z, shape), grouped_by_reshape(z, shape, seed=1)
    assert distortion(z, right) < 0.8 * distortion(z, wrong)


def test_what_is_restored_is_the_nearest_centroid_of_the_group():
    shape = Shape(7, 60, 10, 3, 4)
    z = activations(7, 60)
    x = as_columns(z, shape)
    book = fit(x, shape, Fitting(), 1)
    restored = restore(book, assign(x, shape, book), shape).reshape(7, 10, 6)
    for i in range(7):
        for j in range(10):
            own = z.reshape(7, 10, 6)[i, j]
            distances = np.square(book[j * 3 // 10] - own).sum(1)
            assert np.square(restored[i, j] - own).sum() <= distances.min() + 1e-5


def test_a_first_codebook_is_ordered_by_norm_and_a_warm_one_keeps_its_order():
    shape = Shape(20, 160, 20, 2, 8)
    x = as_columns(activations(20, 160), shape)
    book = fit(x, shape, Fitting(), 1)
    assert (np.diff(np.square(book).sum(2)) >= 0).all()
    turned = book[:, ::-1]
    warm = fit(x, shape, Fitting(2), 1, turned)
    assert np.square(warm - turned).sum() < 0.1 * np.square(warm - book).sum()


@pytest.mark.parametrize("centroids", [2, 8, 32])
def test_a_sample_loses_little(centroids):
    shape = Shape(20, 9216, 1152, 1, centroids)
    z = activations(20, 9216)
    all_of_it = np.median([distortion(z, quantized(z, shape, Fitting(10, 1 << 20), seed)) for seed in range(5)])
    sampled = np.median([distortion(z, quantized(z, shape, Fitting(), seed)) for seed in range(5)])
    assert sampled < 1.06 * all_of_it


def test_more_centroids_and_more_subvectors_lose_less():
    z = activations(20, 320)
    by_centroids = [distortion(z, quantized(z, Shape(20, 320, 40, 1, count))) for count in (1, 2, 8, 32, 256)]
    by_length = [distortion(z, quantized(z, Shape(20, 320, q, 1, 8))) for q in (10, 40, 160)]
    assert by_centroids == sorted(by_centroids, reverse=True) and by_length == sorted(by_length, reverse=True)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_same_seed_gives_the_same_codebook_on_every_implementation_and_another_another(name):
    shape = Shape(4, 2400, 600, 2, 8)
    x = as_columns(activations(4, 2400), shape)
    with implementation(name):
        book = fit(x, shape, Fitting(), 7)
        index = assign(x, shape, book)
    here = fit(x, shape, Fitting(), 7)
    assert book.tobytes() == here.tobytes() and index.tobytes() == assign(x, shape, here).tobytes()
    assert book.tobytes() != fit(x, shape, Fitting(), 8).tobytes()


def test_fewer_vectors_than_centroids_and_equal_vectors_are_fine():
    few = activations(1, 6)
    assert np.allclose(quantized(few, Shape(1, 6, 3, 3, 16)), few, rtol=1e-6)
    same = np.ones((4, 8), np.float32)
    assert (quantized(same, Shape(4, 8, 4, 2, 256)) == same).all()
    assert not quantized(np.zeros((4, 8), np.float32), Shape(4, 8, 4, 1, 2)).any()


def test_many_equal_vectors_leave_no_centroid_unused():
    z = activations(20, 320)
    z[z < np.quantile(z, 0.9)] = 0
    shape = Shape(20, 320, 80, 1, 32)
    x = as_columns(z, shape)
    index = assign(x, shape, fit(x, shape, Fitting(), 1))
    assert np.unique(index).size >= 30


@pytest.mark.parametrize("groups", [1, 3])
def test_no_centroid_is_the_mean_of_fewer_examples_than_asked_for(groups):
    z = activations(20, 320)
    z[3] *= 50  # one example that would have centroids of its own
    shape = Shape(20, 320, 40, groups, 32)
    x = as_columns(z, shape)
    free, bound = (fit(x, shape, Fitting(least_members=least), 1) for least in (0, 5))
    of_free = assign(x, shape, free)
    assert members_of(of_free[: shape.first_of(1)], 32).min() < 5
    for r in range(groups):
        rows = slice(shape.first_of(r), shape.first_of(r + 1))
        subvectors = z.reshape(20, 40, 8)[:, rows]
        kept = np.unique(bound[r], axis=0)
        # Each is the mean of some vectors, and those are from five examples or more: none sits on the loud one.
        assert np.abs(kept).max() < np.abs(subvectors[3]).max() / 2
    index = assign(x, shape, bound)
    assert len(np.unique(index)) <= 32 and distortion(z, restore(bound, index, shape)) < 1


def test_what_a_merge_leaves_keeps_its_index_and_the_lost_are_never_named():
    # Four clumps, the second of one example alone.
    centres = np.array([9.0, 50.0, -20.0, 0.0], np.float32)
    z = np.repeat(np.array([0, 2, 3] * 6)[:, None], 5, 1)
    z[4, 2] = 1
    z = centres[z]
    shape = Shape(18, 5, 5, 1, 4)
    x = as_columns(z, shape)
    book = fit(x, shape, Fitting(2, least_members=3), 1, centres.reshape(1, 4, 1))
    assert book[0, 2, 0] == -20 and book[0, 3, 0] == 0 and 9 < book[0, 0, 0] < 13
    assert book[0, 1, 0] == book[0, 0, 0] and set(np.unique(assign(x, shape, book))) == {0, 2, 3}


def test_a_batch_too_small_to_hide_in_is_refused():
    shape = Shape(4, 16, 4)
    with pytest.raises(CodecError, match="at least 5 examples for a centroid to hide in, got a batch of 4"):
        fit(as_columns(activations(4, 16), shape), shape, Fitting(least_members=5), 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2 * LARGEST_MAGNITUDE])
def test_activations_out_of_range_are_refused(bad):
    z = activations(4, 16)
    z[2, 3] = bad
    with pytest.raises(CodecError, match="expected activations of magnitude"):
        as_columns(z, Shape(4, 16, 4))


@pytest.mark.parametrize(
    "sizes",
    [
        (0, 4, 2),
        (65_536, 4, 2),
        (4, 0, 1),
        (4, 10, 3),
        (4, 8, 0),
        (4, 8, 4, 5),
        (4, 8, 4, 0),
        (4, 8, 4, 1, 0),
        (4, 8, 4, 1, 257),
    ],
)
def test_shapes_that_cannot_be_are_refused(sizes):
    with pytest.raises(CodecError, match="expected"):
        Shape(*sizes)
