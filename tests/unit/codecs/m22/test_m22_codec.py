"""M22 as a codec: the true budget, what is kept, levels, amplitude, families, and what it refuses."""

import itertools
import math

import numpy as np
import pytest

from fedge.codecs import M22, Eden, Part
from fedge.codecs.m22 import payload, subset
from fedge.errors import CodecError

SIZE = 20_000


def generalized_normal(shape: float, size: int = SIZE, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    magnitudes = rng.gamma(1 / shape, size=size) ** (1 / shape)
    return (magnitudes * rng.choice([-1.0, 1.0], size)).astype(np.float32)


def lost(codec: M22, x: np.ndarray, seed: int = 1) -> float:
    x_hat = codec.decode(codec.encode(x, seed), x.size, seed).astype(np.float64)
    return float(np.sum((x_hat - x) ** 2) / np.sum(x.astype(np.float64) ** 2))


def formula(kept: payload.Kept) -> int:
    """The accounting of the module's docstring, each part by itself."""
    count, peeled = 1 << (kept.levels_bits - 1), 0
    cells = kept.cells
    for level in range(count - 1):
        above = np.flatnonzero(cells > level)
        peeled += subset.choose(above, cells.size).size_bytes
        cells = cells[above]
    packed = sum((kept.cells.size * bits + 7) // 8 for bits in (4, 2, 1) if (kept.levels_bits - 1) & bits)
    values = min(packed, peeled) if kept.levels_bits <= 4 else packed
    positions = subset.choose(kept.positions, kept.size).size_bytes
    return 3 + 2 * count + positions + math.ceil(kept.positions.size / 8) + (1 + values if count > 1 else 0)


@pytest.mark.parametrize("levels_bits", [None, 1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("bits", [0.05, 0.1, 0.5, 1.0, 2.0, 5.0])
def test_wire_bytes_are_those_of_the_formula_and_within_the_budget(bits, levels_bits):
    codec = M22(bits, levels_bits=levels_bits)
    data = codec.encode(generalized_normal(0.8), seed=3)
    kept, sizes = payload.take_apart(data, SIZE)
    assert len(data) == sizes.total == formula(kept)
    levels = 1 << (math.ceil(max(bits, 1)) - 1)
    assert len(data) <= codec.size_bytes(SIZE) == math.floor(bits * SIZE / 8) + 10 + 2 * levels
    assert kept.levels_bits == levels_bits or levels_bits is None or bits < 0.5  # where so many levels cost too much


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("bits", [0.1, 0.5, 1.0, 2.0])
def test_a_budget_is_used_up_unless_all_is_kept(bits, shape):
    codec = M22(bits)
    data = codec.encode(generalized_normal(shape), seed=3)
    kept, _ = payload.take_apart(data, SIZE)
    assert len(data) >= 0.98 * codec.size_bytes(SIZE) or kept.positions.size == SIZE


def test_the_largest_coordinates_are_kept():
    x = generalized_normal(0.8)
    kept, _ = payload.take_apart(M22(0.5).encode(x, seed=1), SIZE)
    left = np.delete(np.abs(x), kept.positions)
    assert np.abs(x[kept.positions]).min() >= left.max()


@pytest.mark.parametrize(
    ("shape", "bits", "most"),
    # Published for the same law, positions coded ideally and indices entropy coded: specs of M22, best of R = 1 to 4.
    [
        (0.5, 0.1, 0.658),
        (0.5, 0.5, 0.301),
        (0.5, 1.0, 0.148),
        (0.5, 2.0, 0.0422),
        (0.8, 0.25, 0.623),
        (0.8, 1.0, 0.239),
        (0.8, 2.0, 0.0737),
        (1.0, 0.1, 0.837),
        (1.0, 1.0, 0.276),
        (2.0, 0.1, 0.909),
        (2.0, 1.0, 0.363),
        (2.0, 2.0, 0.117),
    ],
)
def test_the_error_comes_within_a_tenth_of_the_published_one_with_ideal_position_bits(shape, bits, most):
    x = generalized_normal(shape, 200_000)
    error = lost(M22(bits), x)
    assert error < 1.1 * most
    assert lost(M22(bits, family="empirical"), x) < 1.1 * most


@pytest.mark.parametrize("bits", [0.1, 0.5, 1.0, 2.0])
def test_the_number_of_levels_is_chosen_as_well_as_trying_all_would(bits):
    x = generalized_normal(0.8, 100_000)
    best = min(lost(M22(bits, levels_bits=levels_bits), x) for levels_bits in range(1, 6))
    assert lost(M22(bits), x) < 1.03 * best


@pytest.mark.parametrize("magnitude", [0.0, 2.0, 4.5])
@pytest.mark.parametrize("family", ["gennorm", "weibull", "auto", "empirical"])
def test_guarded_payloads_are_contractions_by_exactly_their_cosine(family, magnitude):
    x = generalized_normal(0.7)
    for bits in (0.1, 1.0, 3.0):
        codec = M22(bits, magnitude, family=family)
        data = codec.encode(x, seed=1)
        x_hat, wide = codec.decode(data, SIZE, seed=1).astype(np.float64), x.astype(np.float64)
        cosine = float(x_hat @ wide) ** 2 / float((x_hat @ x_hat) * (wide @ wide))
        error = float(np.sum((x_hat - wide) ** 2) / (wide @ wide))
        assert error == pytest.approx(1 - cosine, abs=2**-15)
        assert error <= codec.error(data, SIZE) <= 1.1 * error + 1e-6


@pytest.mark.parametrize("bits", [0.1, 0.5, 2.0])
def test_a_lengthened_estimate_is_the_guarded_one_made_longer_where_it_is_poor(bits):
    x = generalized_normal(0.7)
    codec = M22(bits, levels_bits=1, amplitude="lengthened")
    data = codec.encode(x, seed=1)
    guarded = M22(bits, levels_bits=1)
    near, far = (one.decode(one.encode(x, seed=1), SIZE, seed=1).astype(np.float64) for one in (guarded, codec))
    wide = x.astype(np.float64)
    lost_then = float(np.sum((near - wide) ** 2) / (wide @ wide))
    assert np.allclose(far, (1 + 0.6 * lost_then) * near, rtol=2**-6)
    error = float(np.sum((far - wide) ** 2) / (wide @ wide))
    assert error == pytest.approx(lost_then * (1 + 0.36 * lost_then * (1 - lost_then)), rel=0.02)
    assert error <= codec.error(data, SIZE) <= 1.1 * error + 1e-6


def test_the_bound_of_the_contraction_holds_for_vectors_that_are_all_alike_or_one_spike():
    spike = np.full(5000, 1e-3, np.float32)
    spike[77] = 1.0
    for x in (np.ones(5000, np.float32), spike, np.resize(np.float32([1, -1, 0, 0, 0]), 5000)):
        for bits in (0.05, 1.0):
            assert lost(M22(bits), x) <= 1 - 1 / x.size
            assert lost(M22(bits, amplitude="lengthened"), x) <= 1 - 0.64 / x.size


def test_projection_makes_the_estimate_as_long_as_the_vector_in_its_direction():
    x = generalized_normal(0.7)
    for bits, magnitude in itertools.product((0.1, 1.0), (0.0, 2.0)):
        codec = M22(bits, magnitude, amplitude="projection")
        data = codec.encode(x, seed=1)
        x_hat = codec.decode(data, SIZE, seed=1).astype(np.float64)
        assert float(x_hat @ x) / float(np.sum(x.astype(np.float64) ** 2)) == pytest.approx(1, abs=2**-8)


def test_a_larger_magnitude_makes_a_designed_estimate_longer():
    x = generalized_normal(0.8)
    lengths = [
        float(np.linalg.norm(codec.decode(codec.encode(x, 1), SIZE, 1)))
        for codec in (M22(0.5, m, 2, amplitude="designed") for m in (0.0, 1.0, 2.0, 4.0))
    ]
    assert lengths == sorted(lengths) and lengths[-1] > 1.3 * lengths[0]


def test_at_one_bit_a_level_and_no_magnitude_it_is_top_k_and_one_mean():
    x = generalized_normal(0.8)
    codec = M22(0.2, levels_bits=1, family="empirical")
    data = codec.encode(x, seed=1)
    kept, _ = payload.take_apart(data, SIZE)
    expected = np.zeros(SIZE)
    expected[kept.positions] = np.sign(x[kept.positions]) * np.abs(x[kept.positions]).mean()
    assert np.allclose(codec.decode(data, SIZE, 1), expected, rtol=2**-8)


def test_bits_go_to_the_vector_that_has_the_energy():
    loud, quiet = 10 * generalized_normal(1.0, 4096), generalized_normal(1.0, 4096, seed=1)
    codec = M22(0.5)
    payloads = codec.encode_all([Part(loud, 1), Part(quiet, 2), Part(np.zeros(4096, np.float32), 3)])
    assert len(payloads[0]) > 10 * len(payloads[1]) and len(payloads[2]) == 3
    assert sum(map(len, payloads)) <= 3 * codec.size_bytes(4096)
    together = np.concatenate([codec.decode(data, 4096, 0) for data in payloads])
    error = np.sum((together[:8192] - np.concatenate((loud, quiet))) ** 2)
    assert error < np.sum((codec.decode(codec.encode(loud, 1), 4096, 1) - loud) ** 2)


def test_which_of_equal_magnitudes_are_kept_is_drawn_by_the_seed():
    x = np.where(np.arange(5000) % 2, 1.0, -1.0).astype(np.float32)
    first, second = (payload.take_apart(M22(0.3).encode(x, seed), 5000)[0].positions for seed in (1, 2))
    assert abs(first.size - second.size) < 10 and not np.array_equal(first, second)


def test_levels_travel_to_eight_bits_over_all_magnitudes_of_float32():
    magnitudes = np.array([0.0, 2.0**-149, 1e-44, 1e-40, 1e-38, 0.3, 1.0, 255.5, 1e30, 3.3e38]).astype(np.float32)
    codes = payload.pack_levels(magnitudes)
    assert (np.diff(codes.astype(int)) > 0).all()
    assert np.allclose(payload.unpack_levels(codes), magnitudes, rtol=2**-8, atol=0)
    assert payload.unpack_levels(payload.pack_levels(np.array([np.finfo(np.float32).max]))) < np.inf


def test_stated_errors_are_rounded_up_by_less_than_a_tenth():
    for error in (1e-6, 0.01, 0.25, 0.3, 0.999, 1.0, 1.0000001, 7.0):
        stated = payload.error_of(bytes([1, 0, payload.error_code(error)]))
        assert error <= stated <= 1.0906 * error
    assert payload.error_of(bytes([1, 0, payload.error_code(0.0)])) == 0.0


def test_below_a_quarter_of_a_bit_heavy_tails_lose_less_than_with_eden_shrunk_as_well_as_can_be():
    x = generalized_normal(0.5, 65_536)
    for bits in (0.1, 0.25):
        unbiased = Eden(bits).error(b"", x.size)
        assert lost(M22(bits), x) < 0.8 * unbiased / (1 + unbiased)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 0.04}, r"0\.05 to 8 bits.*got 0\.04"),
        ({"magnitude": -1.0}, "magnitude M.*got -1"),
        ({"magnitude": math.nan}, "magnitude M.*nan"),
        ({"levels_bits": 9}, "levels_bits of 1 to 8.*got 9"),
        ({"levels_bits": 0}, "levels_bits.*got 0"),
        ({"family": "normal"}, "family.*gennorm, weibull.*got 'normal'"),
        ({"amplitude": "mmse"}, "amplitude.*guarded.*got 'mmse'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, message):
    with pytest.raises(CodecError, match=message):
        M22(**settings)


def test_a_seed_that_is_no_whole_number_is_refused_as_eden_refuses_it():
    for codec in (M22(1.0), Eden(1.0)):
        for seed in (1.5, "a", None):
            with pytest.raises(TypeError):
                codec.encode(generalized_normal(1.0, 100), seed)
    x = np.ones(100, np.float32)
    assert M22(0.5).encode(x, np.int64(3)) == M22(0.5).encode(x, 3)


@pytest.mark.parametrize("size", [32, 1000])
def test_a_payload_changed_in_its_head_or_length_is_refused(size):
    data = M22(1.0).encode(generalized_normal(1.0, size), seed=1)
    for bad in (b"\x02" + data[1:], data[:1] + b"\x09" + data[2:], data[:-1], data + b"\0", data[:2]):
        with pytest.raises(CodecError, match=r"expected .* got "):
            M22(1.0).decode(bad, size, seed=1)


@pytest.mark.parametrize("zeros", [0.0, 0.0001, 0.01])
def test_at_a_bit_each_all_light_tailed_coordinates_are_kept_even_if_some_are_zero(zeros):
    x = generalized_normal(6.0, 65_536)
    x[np.random.default_rng(3).random(x.size) < zeros] = 0.0
    data = M22(1.0).encode(x, seed=1)
    kept, _ = payload.take_apart(data, x.size)
    assert kept.positions.size == x.size and kept.levels_bits == 1
    assert lost(M22(1.0), x) < 0.3


@pytest.mark.parametrize("family", ["auto", "empirical", "gennorm"])
@pytest.mark.parametrize("bits", [0.05, 0.5, 1.0, 3.0, 5.3, 8.0])
def test_a_segment_of_zeros_disturbs_no_update(bits, family):
    codec = M22(bits, family=family)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        vectors = [rng.standard_normal(n).astype(np.float32) for n in (500, 3000)] + [np.zeros(64, np.float32)]
        payloads = codec.encode_all([Part(x, seed) for x in vectors])
        assert sum(map(len, payloads)) <= sum(codec.size_bytes(x.size) for x in vectors)
        assert not codec.decode(payloads[2], 64, 0).any()


def outliers(kind: str, size: int = SIZE) -> np.ndarray:
    rng = np.random.default_rng(5)
    x = rng.standard_t(2, size) if kind == "heavy" else rng.standard_normal(size)
    if kind == "mixed":
        x *= np.where(rng.random(size) < 0.01, 20.0, 1.0)
    if kind == "spike":
        x[7] = 1000.0
    return x.astype(np.float32)


@pytest.mark.parametrize("kind", ["heavy", "mixed", "spike"])
@pytest.mark.parametrize("bits", [0.1, 0.5, 1.0, 2.0])
def test_a_law_that_does_not_fit_gives_way_to_the_data(kind, bits):
    x = outliers(kind)
    assert lost(M22(bits), x) <= 1.1 * lost(M22(bits, family="empirical"), x) + 1e-6


@pytest.mark.parametrize("shape", [0.8, 1.0, 2.0])
def test_more_bits_never_lose_much_more(shape):
    x = generalized_normal(shape)
    errors = [
        lost(M22(bits), x) for bits in (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 4.5, 5.0, 6.0, 7.0, 7.5, 8.0)
    ]
    assert all(later <= 1.25 * earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 1e-4


def test_equal_magnitudes_are_left_out_all_over_the_vector():
    kept, _ = payload.take_apart(M22(0.3).encode(np.ones(50_000), seed=4), 50_000)
    tenths = np.bincount(kept.positions // 5000, minlength=10)
    assert tenths.min() > 0.8 * tenths.mean()
