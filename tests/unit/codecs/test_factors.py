"""Entropy-coded EDEN of matrices of low rank: what factors give, and that they take nothing from the promises."""

import numpy as np
import pytest

from fedge.codecs import Eden, Part, entropy, factors, native, native_available, native_status, sharing
from fedge.codecs.grouping import Chunks
from fedge.errors import CodecError
from tests.support.vectors import normal, squared

needs_native = pytest.mark.skipif(not native_available(), reason=native_status())
ROWS, COLUMNS = 160, 100


def low_rank(rank: int = 3, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    """160 rows of 100 coordinates, rows of unlike energy, nearly of ``rank``."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((ROWS, rank)) * np.exp2(rng.standard_normal((ROWS, 1)))
    x = a @ rng.standard_normal((rank, COLUMNS)) + noise * rng.standard_normal((ROWS, COLUMNS))
    return x.ravel().astype(np.float32)


def encode(bits: float, x: np.ndarray, seed: int, rows: tuple[int, int] = (COLUMNS, 0)) -> bytes:
    (data,) = Eden(bits, "entropy").encode_all([Part(x, seed, rows)])
    return data


def has_factors(data: bytes) -> bool:
    return data[0] == entropy.DIRECTED_VERSION and bool(data[1] & entropy._FACTORED)


@pytest.mark.parametrize(("bits", "times"), [(0.3, 30), (0.4, 150), (0.5, 300), (1, 800), (2, 800)])
def test_a_matrix_of_low_rank_has_a_fraction_of_the_error_at_the_same_bytes(bits, times):
    x, codec = low_rank(), Eden(bits, "entropy")
    data = encode(bits, x, 1)
    assert has_factors(data)
    assert len(data) <= codec.size_bytes(x.size)
    plain = {0.3: 3.0, 0.4: 2.15, 0.5: 1.613, 1: 0.5347, 2: 0.09764}[bits]
    assert squared(codec.decode(data, x.size, 1) - x) / squared(x) < plain / times


def test_a_matrix_without_structure_has_no_factors():
    assert not has_factors(encode(1.0, normal(16_000), 1))


@needs_native
@pytest.mark.parametrize("bits", [0.5, 1, 3])
@pytest.mark.parametrize("rank", [1, 3])
def test_errors_average_out_whatever_the_factors(bits, rank):
    x, codec, trials = low_rank(rank), Eden(bits, "entropy"), 200
    total, single = np.zeros(x.size), 0.0
    for seed in range(trials):
        data = encode(bits, x, seed)
        assert has_factors(data)
        x_hat = codec.decode(data, x.size, seed)
        single += squared(x_hat - x) / trials
        total += x_hat
    assert trials * squared(total / trials - x) / single == pytest.approx(1, abs=0.05)


@needs_native
def test_factors_that_say_nothing_of_the_vector_cost_error_and_no_bias(monkeypatch):
    guess = factors.Factors.product
    monkeypatch.setattr(factors.Factors, "product", lambda self, decoded: -guess(self, decoded))
    monkeypatch.setattr(sharing, "_without", lambda *_: iter(()))
    x, codec, trials = low_rank(), Eden(1.0, "entropy"), 200
    total, single = np.zeros(x.size), 0.0
    for seed in range(trials):
        x_hat = codec.decode(encode(1.0, x, seed), x.size, seed)
        single += squared(x_hat - x) / trials
        total += x_hat
    assert single > squared(x)
    assert trials * squared(total / trials - x) / single == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("bits", [0.5, 1, 2])
def test_the_error_to_expect_is_that_which_comes(bits):
    x, codec = low_rank(noise=0.2), Eden(bits, "entropy")
    seeds = range(20)
    sent = [(encode(bits, x, seed), seed) for seed in seeds]
    found = [squared(codec.decode(data, x.size, seed) - x) / squared(x) for data, seed in sent]
    assert np.mean([codec.error(data, x.size) for data, _ in sent]) == pytest.approx(np.mean(found), rel=0.1)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_magnitude_works(scale):
    x = low_rank() * np.float32(scale)
    data = encode(1.0, x, 1)
    x_hat = Eden(1.0).decode(data, x.size, 1).astype(np.float64)
    assert has_factors(data)
    assert squared(x_hat / scale - x / scale) < 0.05 * squared(x / scale)


@needs_native
@pytest.mark.parametrize("phase", [0, 37])
def test_the_twin_and_every_instruction_set_make_the_same_bytes_and_floats(phase, monkeypatch):
    x = np.concatenate([normal(phase), low_rank(), normal(55)]).astype(np.float32)
    mask, fastest = np.random.default_rng(0).random(x.size) < 0.7, native.kernels.isa()
    for bits in (0.4, 1.0, 3.0, 8.0):
        codec, found = Eden(bits, "entropy"), []
        for isa in ("avx512", "avx2", "baseline", "numpy"):
            with monkeypatch.context() as patch:
                if isa == "numpy":
                    patch.setattr("fedge.codecs.block_codes.kernels", None)
                elif not native.kernels.use_isa(isa):
                    continue
                data, total = encode(bits, x, 7, (COLUMNS, phase)), np.linspace(-1, 1, x.size)
                codec.accumulate(data, x.size, 7, 0.3, total, mask)
                found.append((data, codec.decode(data, x.size, 7).tobytes(), total.tobytes()))
            native.kernels.use_isa(fastest)
        assert has_factors(data)
        assert len(found) > 1 and all(one == found[0] for one in found)


def test_what_is_lost_is_lost_of_the_rest_alone():
    x, codec = low_rank(), Eden(1.0, "entropy")
    nothing = np.zeros(x.size, np.bool_)
    p_hat = codec.decode(encode(1.0, x, 3), x.size, 3, nothing)
    assert squared(p_hat - x) < 0.05 * squared(x)


def damaged(at: int, value: int) -> bytes:
    data = bytearray(encode(1.0, low_rank(), 1))
    chunks = Chunks(COLUMNS, 0)
    start = entropy._HEAD.size + entropy._CHUNKS.size
    _, taken = entropy.grouping.unpack_classes(np.frombuffer(bytes(data), np.uint8, -1, start), ROWS)
    assert factors.shape_of(chunks, ROWS * COLUMNS)
    data[start + taken + at if at >= 0 else -at] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 0, "1 to 32 factors"),
        (0, 33, "1 to 32 factors"),
        (6, 0xFF, "finite and positive|end|words|where"),
        (-1, entropy._FACTORED, "flags"),
        (-4, 7, "matrix of this shape|chunks|classes"),
    ],
)
def test_a_payload_that_was_damaged_is_refused(at, value, message):
    with pytest.raises(CodecError, match=message):
        Eden(1.0).decode(damaged(at, value), ROWS * COLUMNS, 1)


@pytest.mark.parametrize("cut", [3, 7, 8, 60, 90, 100, 110, 500])
def test_a_payload_that_ends_early_is_refused_and_nothing_is_added(cut):
    data, total = encode(1.0, low_rank(), 1), np.ones(ROWS * COLUMNS)
    with pytest.raises(CodecError):
        Eden(1.0).accumulate(data[:cut], total.size, 1, 1.0, total)
    assert (total == 1).all()


def test_any_bytes_decode_to_finite_numbers_or_are_refused():
    good, rng = encode(1.0, low_rank(), 1), np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(good)
        for at in rng.integers(0, 140, rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        try:
            x = Eden(1.0).decode(bytes(data), ROWS * COLUMNS, 1)
        except CodecError:
            continue
        assert np.isfinite(x).all()


@pytest.mark.parametrize("exponent", [-30, -10, 0, 11, 14, 30])
def test_a_matrix_that_factors_say_all_of_is_encoded_at_any_scale(exponent):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x = (rng.standard_normal((64, 1)) @ rng.standard_normal((1, 256)) * 10.0**exponent).astype(np.float32).ravel()
        for bits in (0.25, 1.0, 4.0):
            (data,) = Eden(bits, "entropy").encode_all([Part(x, seed, (256, 0))])
            assert np.isfinite(Eden(bits).decode(data, x.size, seed)).all()
