"""Directions of groups of coordinates: that the nearest word is found, what it is worth, and the same everywhere."""

import numpy as np
import pytest

from fedge.codecs import (
    Eden,
    Part,
    block_codes,
    entropy,
    native_available,
    native_status,
    quantizers,
    slope,
    spherical,
)
from fedge.codecs.block_codes import Blocks, decode_blocks, encode_blocks
from fedge.codecs.rotation import Workspace
from fedge.errors import CodecError
from tests.support.kernels import IMPLEMENTATIONS, implementation
from tests.support.vectors import normal, squared

needs_native = pytest.mark.skipif(not native_available(), reason=native_status())
SIZES = [32, 33, 47, 64, 100, 511, 512, 777, 2050, 4095, 4096]


def blocks_of(sizes: list[int], lengths: list[float]) -> Blocks:
    """Blocks whose groups have about so many coordinates."""
    j = np.rint(quantizers.LENGTH_UNITS * np.log2(np.array(lengths) / spherical.SHORTEST)).astype(np.int64)
    count = np.array(sizes, np.int64)
    scale = np.exp2(np.arange(count.size) % 7 - 0.0)
    return Blocks.of(count, 3 * np.arange(count.size), scale, quantizers.FIRST_LENGTH + j)


def numbers(blocks: Blocks) -> np.ndarray:
    return (normal(int(blocks.sizes.sum())) * np.repeat(blocks.sigma, blocks.sizes)).astype(np.float32)


def book(length: int, n: int) -> np.ndarray:
    """Every word of groups of ``length`` coordinates, float32 ``[2^16, length]``, by its definition."""
    r, i = np.arange(n)[:, None], np.arange(n)
    hadamard = 1 - 2 * (np.bitwise_count(r & i).astype(np.int64) & 1)
    half = (spherical.signs().reshape(-1, 1, n) * hadamard).reshape(-1, n)[:, :length]
    return np.stack([half, -half], axis=1).reshape(-1, length).astype(np.float32)


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
@pytest.mark.parametrize(("length", "n"), [(16, 16), (20, 32), (32, 32), (33, 64), (100, 128), (250, 256)])
def test_the_word_that_is_sent_is_the_nearest(kernels, length, n):
    words, groups = book(length, n), 6
    blocks = blocks_of([length * groups], [length])
    assert blocks.groups == groups
    x = numbers(blocks)
    with implementation(kernels):
        data, (product,) = encode_blocks(x, blocks, 3, 0)
    sent = np.frombuffer(data, "<u2")
    y = block_codes._rotate(x, 3, 0, Workspace(1))
    near = y.reshape(groups, length) @ words.T
    # Where two are as near, to the rounding of the search, either may be sent.
    assert (near[np.arange(groups), sent] > 0.99 * near.max(axis=1)).all()
    assert product == pytest.approx(near[np.arange(groups), sent].sum(), rel=1e-5)
    assert np.array_equal(spherical.decode(sent, x.size), words[sent].ravel())


def test_the_shipped_gains_are_those_of_the_words():
    rng = np.random.default_rng(1)
    for length, n in ((16, 16), (23, 32), (32, 32), (45, 64), (64, 64), (128, 128), (256, 256)):
        z = rng.standard_normal((1500, length)).astype(np.float32)
        best = np.abs(z @ book(length, n)[::2].T).max(axis=1)
        spread = best.std() / length / np.sqrt(best.size)
        assert spherical.gain_of(np.array([float(length)]))[0] == pytest.approx(best.mean() / length, abs=4 * spread)


def test_lengths_are_rounded_far_from_ties():
    octave = np.exp2(np.arange(quantizers.LENGTH_UNITS) / quantizers.LENGTH_UNITS) * quantizers._GRID
    assert np.abs(octave - np.floor(octave) - 0.5).min() > 1e-5


def test_every_block_is_cut_into_groups_that_there_are_words_for():
    for size in range(32, 4097, 7):
        steps = np.arange(quantizers.FIRST_LENGTH, quantizers.COARSEST_OF_ALL + 1, 5)
        groups = quantizers.groups_of(steps, np.full(steps.size, size))
        assert (groups >= 1).all() and (np.diff(groups) <= 0).all()
        for count in set(groups.tolist()):
            lengths = np.diff(spherical.cut(size, count))
            assert lengths.sum() == size and lengths.min() >= 16 and lengths.max() <= 1024
    assert quantizers._lengths()[[0, -1]].tolist() == [16.0, 1024.0]


def test_the_twin_and_every_instruction_set_find_the_same_words():
    rng = np.random.default_rng(0)
    blocks = blocks_of(SIZES + SIZES, [*rng.uniform(17, 80, len(SIZES)), *2 ** rng.uniform(5, 10, len(SIZES))])
    x, found = numbers(blocks), []
    x[:32], x[32], x[300:311] = 0, 1e-30, 0  # groups of zeros, and one that is all but zeros
    mask, scale = rng.random(x.size) < 0.7, np.linspace(0.5, 2, blocks.sizes.size).astype(np.float32)
    for name in IMPLEMENTATIONS:
        with implementation(name):
            data, products = encode_blocks(x, blocks, 7, 0)
            out, total = np.zeros_like(x), np.linspace(-1, 1, x.size)
            decode_blocks(data, blocks, scale, 7, 0, None, out, None)
            decode_blocks(data, blocks, scale, 7, 0, mask, total, 0.3)
        found.append((data, products.tobytes(), out.tobytes(), total.tobytes()))
    assert all(one == found[0] for one in found)
    assert len(found[0][0]) == 2 * blocks.groups.sum()


@pytest.mark.parametrize("wrong", [-2, -1, 1, 2])
def test_words_that_do_not_end_where_the_payload_does_are_refused(wrong):
    blocks = blocks_of([4096, 700], [40, 300])
    data, _ = encode_blocks(numbers(blocks), blocks, 7, 0)
    out = np.zeros(4796, np.float32)
    with pytest.raises(CodecError, match="bytes of directions"):
        decode_blocks((data + bytes(4))[: len(data) + wrong], blocks, np.ones(2, np.float32), 7, 0, None, out, None)
    assert not out.any()


@needs_native
@pytest.mark.parametrize(("bits", "vnmse"), [(0.1, 8.16), (0.25, 2.95), (0.5, 1.28)])
def test_alike_coordinates_have_the_error_of_their_group(bits, vnmse):
    x, codec = normal(40_960), Eden(bits, "entropy")
    found = []
    for seed in range(6):
        (data,) = codec.encode_all([Part(x, seed)])
        assert data[0] == entropy.DIRECTED_VERSION and data[1] & 3 == 3
        found.append(squared(codec.decode(data, x.size, seed) - x) / squared(x))
    # At the budget itself: what travels beside codes is not counted, as in the tables of EDEN.
    assert np.mean(found) == pytest.approx(vnmse, rel=0.06)
    assert codec.error(data, x.size) == pytest.approx(np.mean(found), rel=0.03)


@needs_native
@pytest.mark.parametrize("d", [40, 300, 1000, 4096, 9000])
@pytest.mark.parametrize("bits", [0.6, 0.8, 0.9, 0.95, 1.0, 1.1, 1.3])
def test_a_few_blocks_have_no_more_error_than_levels_give(bits, d):
    x, codec, error = normal(d), Eden(bits, "entropy"), {}
    for thorough in (True, False):
        sent = [(codec.encode_all([Part(x, seed, thorough=thorough)])[0], seed) for seed in range(8)]
        error[thorough] = np.mean([squared(codec.decode(data, d, seed) - x) / squared(x) for data, seed in sent])
    # At 0.95 bits one block alone has 0.95 of the budget's bits either way; at 0.6 it has a sixth less error.
    assert error[True] < 1.1 * error[False]


@needs_native
def test_blocks_become_directions_late_where_that_leaves_less_error(monkeypatch):
    x = np.concatenate([normal(4096), normal(4096) / 2]).astype(np.float32)
    codec, error = Eden(0.75, "entropy"), []
    for late in (slope.LATE, slope.EARLY):
        monkeypatch.setattr(slope, "LATE", late)
        sent = [codec.encode_all([Part(x, seed)])[0] for seed in range(8)]
        error.append(np.mean([squared(codec.decode(data, x.size, seed) - x) for seed, data in enumerate(sent)]))
    assert error[0] < 0.95 * error[1]


def peaked(kind: str, d: int) -> np.ndarray:
    rng, x = np.random.default_rng(0), np.zeros(d)
    if kind == "two":
        x[:2] = 2 / 3, 1 / 3
    elif kind == "spike":
        x = rng.standard_normal(d) * np.sqrt(0.1 / d)
        x[5] = np.sqrt(0.9)
    else:
        x = np.where(rng.random(d) < 0.05, rng.exponential(size=d), 0)
    return x.astype(np.float32)


@needs_native
@pytest.mark.parametrize("kind", ["two", "spike", "sparse"])
@pytest.mark.parametrize(("bits", "d"), [(0.1, 1000), (0.25, 1000), (0.5, 300)])
def test_errors_average_out(kind, bits, d):
    x, codec, trials = peaked(kind, d), Eden(bits, "entropy"), 400
    total, single = np.zeros(d), 0.0
    for seed in range(trials):
        (data,) = codec.encode_all([Part(x, seed)])
        x_hat = codec.decode(data, d, seed).astype(np.float64)
        total += x_hat
        single += squared(x_hat - x) / trials
    assert data[0] == entropy.DIRECTED_VERSION
    mean = total / trials
    assert trials * squared(mean - x) / single == pytest.approx(1, abs=0.2)
    # Along x itself, where a scale that is wrong shows first, x_hat is nearly exact each time.
    assert float(mean @ x) / squared(x) == pytest.approx(1, abs=0.03)
