"""K-means: what is nearest, what a step does, and the same bits everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.codecs import native
from fedge.codecs.product import columns, kmeans, nearest
from tests.support.kernels import IMPLEMENTATIONS, ISAS, implementation

NONE = np.empty(0, np.int64)


def vectors(count: int, length: int, seed: int) -> np.ndarray:
    """Rectified, so that many are equal, with scales apart."""
    rng = np.random.default_rng(seed)
    return (np.maximum(rng.normal(size=(count, length)), 0) * 10.0 ** rng.integers(-3, 3, length)).astype(np.float32)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("centroids", [1, 2, 3, 8, 256])
def test_the_nearest_centroid_is_the_nearest(name, centroids):
    x, c = vectors(500, 6, seed=1), vectors(centroids, 6, seed=2)
    with implementation(name):
        index = nearest(columns(x), 0, 500, c)
    distances = np.square(x[:, None].astype(np.float64) - c).sum(2)
    found, least = distances[np.arange(500), index], distances.min(1)
    assert (found <= least + 1e-5 * np.square(x.astype(np.float64)).sum(1) + 1e-9).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("centroids", [2, 3, 7])
def test_ties_go_to_the_lowest_index(name, centroids):
    c = np.repeat(np.array([[1, 2, 3]], np.float32), centroids, 0)
    with implementation(name):
        assert not nearest(columns(vectors(100, 3, seed=1)), 0, 100, c).any()
        halfway = nearest(columns(np.zeros((1, 1), np.float32)), 0, 1, np.array([[1], [-1], [1]], np.float32))
    assert halfway == [0]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_step_moves_centroids_to_the_means_of_their_vectors(name):
    x, start = vectors(700, 5, seed=3), vectors(4, 5, seed=4)
    with implementation(name):
        index = nearest(columns(x), 0, 700, start)
        moved = kmeans(columns(x), 0, 700, start, NONE, 1)
    for k in np.unique(index):
        assert np.allclose(moved[k], x[index == k].mean(0, dtype=np.float64), rtol=1e-6)
    assert all((moved[k] == start[k]).all() for k in set(range(4)) - set(index.tolist()))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_centroid_without_vectors_becomes_the_next_spare_one(name):
    x, far = vectors(50, 2, seed=5), np.full((2, 2), -1e6, np.float32)
    start = np.concatenate([x[:1], far])
    with implementation(name):
        moved = kmeans(columns(x), 10, 40, start, np.array([3, 7]), 1)
    assert (moved[1] == x[13]).all() and (moved[2] == x[17]).all()


@pytest.mark.skipif(not ISAS, reason="the twin is alone")
@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 300),
    length=st.integers(1, 20),
    centroids=st.sampled_from([1, 2, 3, 5, 16, 200]),
    start=st.integers(0, 40),
    iterations=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_every_implementation_has_the_same_bits(count, length, centroids, start, iterations, seed):
    x, c = columns(vectors(count + start, length, seed)), vectors(centroids, length, seed + 1)
    spares = np.random.default_rng(seed).integers(0, count, 5)
    found = set()
    for name in IMPLEMENTATIONS:
        with implementation(name):
            book = kmeans(x, start, count, c, spares, iterations)
            found.add((book.tobytes(), nearest(x, start, count, book).tobytes()))
    assert len(found) == 1


@pytest.mark.skipif(not ISAS, reason="the twin is alone")
def test_the_extension_refuses_what_does_not_fit():
    x, c, index = columns(vectors(10, 3, seed=1)), vectors(2, 3, seed=2), np.zeros(10, np.uint8)
    native.kernels.nearest(x, 0, 10, 3, c, index)
    for call in (
        lambda: native.kernels.nearest(x, 11, 10, 3, c, index),
        lambda: native.kernels.nearest(x, -1, 10, 3, c, index),
        lambda: native.kernels.nearest(x, 0, 9, 3, c, index),
        lambda: native.kernels.nearest(x, 0, 10, 4, c, index),
        lambda: native.kernels.nearest(x, 0, 10, 0, c, index),
        lambda: native.kernels.nearest(x, 0, 10, 3, np.zeros((257, 3), np.float32), index),
        lambda: native.kernels.nearest(x, 0, 10, 3, np.zeros(0, np.float32), index),
        lambda: native.kernels.kmeans(x, 0, 10, 3, c, np.array([10]), 1),
        lambda: native.kernels.kmeans(x, 0, 10, 3, c, np.array([-1]), 1),
        lambda: native.kernels.kmeans(x, 20, 30, 3, c, NONE, 1),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()
