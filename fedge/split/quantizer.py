"""FedLite's product quantizer: cut every row into subvectors, group them by position, a K-means for each group.

    z ∈ R^{B x d},  z_i = (z_i0, .., z_i,q-1),  z_ij ∈ R^{d/q},    position j is in group  r = ⌊j·R/q⌋
    c_r1 .. c_rL    K-means of the B·q/R subvectors of group r,     z~_ij = the c_rl nearest to z_ij
    bits            φ·R·L·d/q + B·q·⌈log2 L⌉                        φ bits a float of the codebook

R = 1 is one codebook for all positions, R = q classical product quantization, q = 1 K-means on whole rows. A group is a
set of *positions* and has all examples of the batch.

Fitting takes a sample (2,048 vectors, at least 64 a centroid), a few steps of Lloyd's iteration on it, two on all, and
one assignment after them. A first codebook is drawn from the vectors, distinct ones while there are any, and ordered by
norm, so that index l means much the same on every device; one that starts from a shared codebook keeps its order.

Wang et al., FedLite: A Scalable Approach for Federated Learning on Resource-constrained Clients, 2022
(https://arxiv.org/abs/2201.11865). The formulations of K-means are in ``fedge/codecs/product.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedge import seeds
from fedge.codecs import product
from fedge.codecs.indices import bits_of
from fedge.codecs.product import MOST_CENTROIDS, PADDING, Floats, Indices, Ints
from fedge.errors import CodecError

SAMPLE, PER_CENTROID, STEPS_ON_ALL = 2048, 64, 2
MOST_EXAMPLES = MOST_SUBVECTORS = (1 << 16) - 1
LARGEST_MAGNITUDE = 2.0**24
"""Of an activation or a centroid. Training does not get there; a server that adds what strangers send must not."""


@dataclass(frozen=True, slots=True)
class Shape:
    """B ``examples`` of d ``values``, cut into q ``subvectors`` in R ``groups`` with L ``centroids`` each."""

    examples: int
    values: int
    subvectors: int
    groups: int = 1
    centroids: int = 2

    def __post_init__(self) -> None:
        if not (1 <= self.examples <= MOST_EXAMPLES and 1 <= self.values < 1 << 32):
            raise CodecError(f"expected 1 to {MOST_EXAMPLES} examples of values, got {self.examples} of {self.values}")
        if not 1 <= self.subvectors <= MOST_SUBVECTORS or self.values % self.subvectors:
            raise CodecError(f"expected subvectors that divide {self.values} values, got {self.subvectors}")
        if not (1 <= self.groups <= self.subvectors and 1 <= self.centroids <= MOST_CENTROIDS):
            got = f"{self.groups} and {self.centroids}"
            raise CodecError(f"expected 1 to {self.subvectors} groups, 1 to {MOST_CENTROIDS} centroids, got {got}")

    @property
    def length(self) -> int:
        """Values of one subvector, d/q."""
        return self.values // self.subvectors

    @property
    def index_bits(self) -> int:
        """⌈log2 L⌉."""
        return bits_of(self.centroids)

    @property
    def codebook_shape(self) -> tuple[int, int, int]:
        """[R, L, d/q]."""
        return self.groups, self.centroids, self.length

    def bits(self, float_bits: int = 32) -> int:
        """φ·R·L·d/q + B·q·⌈log2 L⌉: what codebook and packed indices take, headers not counted."""
        codebook = float_bits * self.groups * self.centroids * self.length
        return codebook + self.examples * self.subvectors * self.index_bits

    def ratio(self, float_bits: int = 32) -> float:
        """What the activations themselves take over that, both with floats of ``float_bits``."""
        return float_bits * self.examples * self.values / self.bits(float_bits)

    def first_of(self, group: int) -> int:
        """Return the first position of ``group``: the least j with ⌊j·R/q⌋ = group. Of R: q."""
        return -(-group * self.subvectors // self.groups)


def group_of(positions: int, groups: int) -> Ints:
    """Return ⌊j·R/q⌋ of every position, int64 ``[q]``."""
    found: Ints = np.arange(positions) * groups // positions
    return found


def as_columns(z: Floats, shape: Shape) -> Floats:
    """Return the subvectors of ``z`` float32 ``[B, d]`` as columns: position after position, examples in their order.

    Raises:
        CodecError: ``z`` has another shape, or a value beyond ``LARGEST_MAGNITUDE``.
    """
    if z.shape != (shape.examples, shape.values) or z.dtype != np.float32:
        expected = f"float32 of shape ({shape.examples}, {shape.values})"
        raise CodecError(f"expected activations in {expected}, got {z.dtype} of {z.shape}")
    if not (z.min() >= -LARGEST_MAGNITUDE and z.max() <= LARGEST_MAGNITUDE):
        raise CodecError(f"expected activations of magnitude {LARGEST_MAGNITUDE:g} or less, got {np.abs(z).max()}")
    count = shape.examples * shape.subvectors
    x = np.zeros((shape.length, count + PADDING), np.float32)
    subvectors = z.reshape(shape.examples, shape.subvectors, shape.length)
    x[:, :count].reshape(shape.length, shape.subvectors, shape.examples)[:] = subvectors.transpose(2, 1, 0)
    return x


@dataclass(frozen=True, slots=True)
class Fitting:
    """How to fit: steps on the ``sample``, which has at least 64 vectors a centroid, then two on all vectors.

    ``least_members``: from how many examples of the batch at least a centroid must be a mean, 0 for any.
    """

    iterations: int = 8
    sample: int = SAMPLE
    least_members: int = 0


def fit(x: Floats, shape: Shape, how: Fitting, seed: int, start: Floats | None = None) -> Floats:
    """Return a codebook for the columns ``x``, float32 ``[R, L, d/q]``; from ``start``, if there is one.

    Raises:
        CodecError: fewer examples than ``least_members``.
    """
    if shape.examples < how.least_members:
        got = f"a batch of {shape.examples}"
        raise CodecError(f"expected at least {how.least_members} examples for a centroid to hide in, got {got}")
    books = []
    for r in range(shape.groups):
        first = shape.first_of(r) * shape.examples
        count = shape.first_of(r + 1) * shape.examples - first
        own = None if start is None else start[r]
        book = _fit_group(x, first, count, shape.centroids, how, seeds.derive(seed, r), own)
        if how.least_members:
            book = merge(x, first, count, book, shape.examples, how.least_members)
        books.append(_by_norm(book) if start is None else book)
    return np.stack(books)


def assign(x: Floats, shape: Shape, codebook: Floats) -> Indices:
    """Return which centroid of its group is nearest to each of the columns ``x``, uint8 ``[q, B]``."""
    parts = []
    for r in range(shape.groups):
        first, last = (shape.first_of(g) * shape.examples for g in (r, r + 1))
        parts.append(product.nearest(x, first, last - first, codebook[r]))
    return np.concatenate(parts).reshape(shape.subvectors, shape.examples)


def restore(codebook: Floats, index: Indices, shape: Shape) -> Floats:
    """Return z~, float32 ``[B, d]``, of indices uint8 ``[q, B]``, each below L."""
    row = group_of(shape.subvectors, shape.groups) * shape.centroids + index.T
    return codebook.reshape(-1, shape.length).take(row, 0).reshape(shape.examples, shape.values)


def merge(x: Floats, first: int, count: int, book: Floats, examples: int, least: int) -> Floats:
    """Return ``book`` ``[L, s]`` with every centroid the mean of vectors from ``least`` examples or more.

    Those with fewer are given up, the smaller half at a time, and their vectors go to the nearest that is left. Their
    places are filled with a neighbour's centroid, so that what is left keeps its index.
    """
    left = np.arange(len(book))
    while True:
        index = product.nearest(x, first, count, book[left])
        members = members_of(index.reshape(-1, examples), len(left))
        few = np.flatnonzero(members < least)
        if few.size == 0:
            break
        drop = few[np.argsort(members[few], kind="stable")][: max(1, few.size // 2)]
        left = np.delete(left, drop) if drop.size < left.size else left[-1:]
    kept = product.kmeans(x, first, count, book[left], np.empty(0, np.int64), 1)
    below = np.searchsorted(left, np.arange(len(book)), side="right") - 1
    return kept[np.maximum(below, 0)]


def members_of(index: Indices, centroids: int) -> Ints:
    """Return from how many examples each centroid has vectors, of indices ``[positions, B]``; int64 ``[L]``."""
    examples = index.shape[1]
    cell = index.astype(np.int64) * examples + np.arange(examples)
    counts = np.bincount(cell.reshape(-1), minlength=centroids * examples).reshape(centroids, examples)
    found: Ints = np.count_nonzero(counts, axis=1)
    return found


def _fit_group(
    x: Floats, first: int, count: int, centroids: int, how: Fitting, seed: int, start: Floats | None
) -> Floats:
    size = max(how.sample, PER_CENTROID * centroids)
    if count <= size:
        order, sample, begin = seeds.permutation(seed, count), x, first
    else:
        # With replacement: in so many vectors one drawn twice does no harm, and nothing has to be sorted.
        order = (seeds.words(seed, size) % np.uint64(count)).astype(np.int64)
        sample, begin = np.zeros((len(x), size + PADDING), np.float32), 0
        np.take(x, first + order, axis=1, out=sample[:, :size], mode="clip")
        order = np.arange(size)
    book = _draw(sample, begin, order, centroids) if start is None else start
    book = product.kmeans(sample, begin, order.size, book, order[centroids:], how.iterations)
    if sample is x:
        return book
    return product.kmeans(x, first, count, book, np.empty(0, np.int64), STEPS_ON_ALL)


def _draw(x: Floats, start: int, order: Ints, centroids: int) -> Floats:
    """Return vectors in ``order``, distinct ones while there are any among the first, float32 ``[L, s]``.

    After a ReLU many are zero, and of two equal centroids one has nothing.
    """
    distinct: dict[bytes, int] = {}
    for i in order[: 4 * centroids].tolist():
        distinct.setdefault(x[:, start + i].tobytes(), i)
    chosen = np.resize([*distinct.values(), *order.tolist()][:centroids], centroids)
    return x[:, start + chosen].T


def _by_norm(book: Floats) -> Floats:
    norms = np.square(book.astype(np.float64)).sum(1)
    return book[np.argsort(norms, kind="stable")]
