"""The K-means of FedLite's quantizer, in NumPy here and in C in ``kernels/product.c``: the same bits.

    nearest(x) = argmax_l  x·c_l - |c_l|²/2,    ties to the lowest l
    L = 2:       1 where  x·(c_1 - c_0) - (|c_1|² - |c_0|²)/2 > 0,  else 0           one product instead of two
    step:        c_l ← mean of the vectors nearest to it;  one that has none ← a spare vector

Vectors are columns, so that one instruction serves many of them: float32 ``[s, N + PADDING]``, zeros behind the last.
A score is a float32 sum in the order of coordinates, product and sum rounded each; a mean is a float64 sum in the order
of vectors. Nothing is fused and nothing reordered, so native code, this and every machine agree to the bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedge.codecs.native import kernels

MOST_CENTROIDS = 256
PADDING = 32
_AT_ONCE = 4096

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.uint8]


def columns(vectors: Floats) -> Floats:
    """Return ``vectors`` ``[N, s]``, any strides, as the columns all else takes."""
    found = np.zeros((vectors.shape[1], len(vectors) + PADDING), np.float32)
    found[:, : len(vectors)] = vectors.T
    return found


def nearest(x: Floats, start: int, count: int, centroids: Floats) -> Indices:
    """Return which of ``centroids``, float32 ``[L, s]``, is nearest to each column from ``start`` on, uint8."""
    index = np.zeros(count, np.uint8)
    if kernels is not None:
        kernels.nearest(x, start, count, len(x), centroids, index)
    elif len(centroids) > 1:
        for first in range(0, count, _AT_ONCE):
            last = min(first + _AT_ONCE, count)
            index[first:last] = _nearest(x[:, start + first : start + last], centroids)
    return index


def kmeans(x: Floats, start: int, count: int, centroids: Floats, spares: Ints, iterations: int) -> Floats:
    """Return ``centroids``, float32 ``[L, s]``, after so many steps on the columns from ``start`` on.

    A centroid that has no vector becomes the first column of ``spares``, counted from ``start``, not yet used so.
    """
    found = np.array(centroids, np.float32, order="C")
    if kernels is not None:
        kernels.kmeans(x, start, count, len(x), found, spares, iterations)
        return found
    own, unused = x[:, start : start + count], iter(spares.tolist())
    for _ in range(iterations):
        index = nearest(x, start, count, found)
        sizes = np.bincount(index, minlength=len(found))
        sums = np.stack([np.bincount(index, row, len(found)) for row in own], 1)
        for which, size in enumerate(sizes.tolist()):
            if size:
                found[which] = sums[which] / size
            elif (spare := next(unused, None)) is not None:
                found[which] = own[:, spare]
    return found


def _nearest(x: Floats, centroids: Floats) -> Indices:
    half = np.cumsum(np.square(centroids.astype(np.float64)), axis=1)[:, -1] / 2
    with np.errstate(over="ignore", invalid="ignore"):
        if len(centroids) == 2:
            score = _score(x, centroids[1] - centroids[0], np.float32(half[0] - half[1]))
            return (score > 0).astype(np.uint8)
        best, index = _score(x, centroids[0], -half[0].astype(np.float32)), np.zeros(x.shape[1], np.uint8)
        for which in range(1, len(centroids)):
            score = _score(x, centroids[which], -half[which].astype(np.float32))
            nearer = score > best
            index[nearer] = which
            best[nearer] = score[nearer]
    return index


def _score(x: Floats, c: Floats, bias: np.float32) -> Floats:
    score = np.full(x.shape[1], bias, np.float32)
    for row, factor in zip(x, c, strict=True):
        score += row * factor
    return score
