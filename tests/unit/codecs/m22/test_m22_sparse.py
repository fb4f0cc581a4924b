"""M22's hot loops: C and NumPy give the same numbers, and what they count is there."""

import numpy as np
import pytest

from fedge.codecs import M22, Part, native, native_available
from fedge.codecs.m22 import gamma, sparse
from fedge.codecs.m22.histogram import histogram, together
from fedge.codecs.m22.ranking import Ranking
from tests.support.kernels import IMPLEMENTATIONS, implementation

SIZES = (0, 1, 63, 64, 65, 1000, 70_001)


def drawn(size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_t(1.5, size) * 10.0 ** rng.integers(-40, 30, size)
    x[rng.random(size) < 0.2] = 0.0
    return x.astype(np.float32)


def alike(call):
    """Call under every implementation; all must return the same, which is returned."""
    found = []
    for name in IMPLEMENTATIONS:
        with implementation(name):
            found.append([np.asarray(part) for part in call()])
    for other in found[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(found[0], other, strict=True))
    return found[0]


@pytest.mark.parametrize("size", SIZES)
def test_every_implementation_measures_selects_and_counts_alike(size):
    x = drawn(size, size)
    words = x.view(np.uint32)
    bins, counts, _ = alike(lambda: sparse.measure(words))
    assert counts.sum() == size and (np.diff(bins) > 0).all()
    least = int(np.sort(words & sparse.MAGNITUDE_MASK)[size // 3]) if size else 7
    bitmap, taken = alike(lambda: sparse.select(words, least))
    assert np.array_equal(words[sparse.places_of(bitmap, size)], taken)
    inside = alike(lambda: [sparse.between(words, least, least + 5_000_000, size)])[0]
    assert ((inside >= least) & (inside < least + 5_000_000)).all()
    for count in (0, 1, 3, 7, 15, 31, 127):
        edges = (
            np.sort(np.abs(np.random.default_rng(1).choice(x, count))).astype(np.float64) if size else np.ones(count)
        )
        cells = alike(lambda edges=edges: sparse.cells_of(x, edges))[0]
        assert np.array_equal(cells, np.searchsorted(edges, np.abs(x.astype(np.float64))))
        alike(lambda cells=cells: sparse.above(cells, 1))


@pytest.mark.parametrize("density", [0.003, 0.2, 0.5, 0.97])
def test_every_implementation_codes_gaps_alike(density):
    for size in SIZES[1:]:
        places = np.flatnonzero(np.random.default_rng(size).random(size) < density)
        bitmap = sparse.bitmap_of(places, size)
        assert np.array_equal(sparse.places_of(bitmap, size), places)
        for others in (False, True):
            listed = sparse.places_of(bitmap, size, others)
            if not listed.size:
                continue
            for low_bits in (0, 3, 29):
                lengths = alike(lambda o=others, r=low_bits, s=size, b=bitmap: [sparse.gap_bytes(b, s, o, r)])[0]
                with implementation("numpy"):
                    data = sparse.pack_gaps(bitmap, size, others, low_bits, int(lengths[0]))
                with implementation(IMPLEMENTATIONS[0]):
                    assert sparse.pack_gaps(bitmap, size, others, low_bits, int(lengths[0])) == data
                assert len(data) == lengths[0]
                assert np.array_equal(sparse.unpack_gaps(data, 0, listed.size, low_bits, size)[0], listed)


def test_every_implementation_gives_the_same_incomplete_gamma_functions():
    a, x = np.meshgrid(np.geomspace(0.05, 300, 40), np.geomspace(1e-6, 1000, 60))
    alike(lambda: gamma.incomplete(a, x))


@pytest.mark.parametrize("systems, n", [(1, 1), (1, 2), (5, 16)])
def test_every_implementation_solves_tridiagonal_systems_alike_and_right(systems, n):
    lower, upper, right = np.random.default_rng(8).standard_normal((3, systems, n))
    diagonal = 3.0 + np.abs(lower) + np.abs(upper)
    (x,) = alike(lambda: [sparse.solve_tridiagonal(lower, diagonal, upper, right)])
    product = diagonal * x
    product[:, 1:] += lower[:, 1:] * x[:, :-1]
    product[:, :-1] += upper[:, :-1] * x[:, 1:]
    assert np.allclose(product, right, rtol=1e-13, atol=1e-13)


@pytest.mark.skipif(not native_available(), reason="there is no extension")
@pytest.mark.parametrize("n", [-1, 0, 4, 1 << 61])
def test_systems_that_do_not_fit_their_unknowns_are_refused(n):
    six = np.ones(6)
    with pytest.raises(ValueError, match="systems of n unknowns"):
        native.kernels.tridiagonal(six, six, six, six.copy(), n)


def test_many_edges_from_a_negative_zero_on_are_taken_as_they_are():
    edges = np.array([-0.0, *range(1, 12)])
    alike(lambda: sparse.cells_of(np.array([0.0, 0.5, -3.5, 20.0], np.float32), edges))


@pytest.mark.parametrize("bits", [0.1, 1.0, 2.5, 5.0])
def test_every_implementation_encodes_an_update_to_the_same_bytes(bits):
    rng = np.random.default_rng(3)
    parts = [Part((rng.standard_t(3, size) * scale).astype(np.float32), 9) for size, scale in ((7000, 1), (400, 5))]
    parts.append(Part(np.round(3 * parts[0].vector), 1))
    for family in ("auto", "empirical"):
        alike(lambda family=family: [np.frombuffer(b"".join(M22(bits, family=family).encode_all(parts)), np.uint8)])


def test_the_histogram_has_exact_means_and_leaves_zeros_out():
    x = drawn(50_000, 4)
    found = histogram(x)
    magnitudes = np.abs(x.astype(np.float64))
    assert found.counts.sum() == np.count_nonzero(x) and found.size == x.size
    assert found.counts @ found.magnitudes == pytest.approx(magnitudes.sum(), rel=1e-12)
    both = together([found, histogram(x[:1000])])
    assert both.counts @ both.magnitudes == pytest.approx(magnitudes.sum() + magnitudes[:1000].sum(), rel=1e-12)
    assert histogram(np.array([1.0, np.inf], np.float32)) is None


def test_a_rank_is_found_exactly_wherever_it_is():
    vectors = [drawn(5000, 1), drawn(300, 2), np.repeat(np.float32(1.5), 700)]
    ranking = Ranking(vectors, together([histogram(x) for x in vectors]), seed=1)
    magnitudes = np.sort(np.abs(np.concatenate(vectors)))[::-1]
    for kept in (1, 2, 400, 1200, 1500, 2000, int(np.count_nonzero(magnitudes)), 6000):
        chosen, count = ranking.choose(kept)
        values = np.concatenate([np.abs(values) for _, values in chosen])
        assert values.size == count and (count == kept or kept == 6000)
        assert values.min() >= magnitudes[min(count, 5999)] and values.sum() == pytest.approx(
            magnitudes[:count].astype(np.float64).sum(), rel=1e-5
        )
