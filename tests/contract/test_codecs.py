"""What every codec promises. Listing a codec in tests.support.codec_table.FAMILIES brings it under test.

What they promise for unusual vectors is in test_codec_edges.py.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fedge import seeds
from fedge.codecs import CODECS, Codec, build, by_code, native_available
from fedge.errors import CodecError, UnknownName
from tests.support.codec_table import FAMILIES, Family

SIZES = [1, 2, 3, 31, 32, 33, 100, 4095, 4096, 4097, 5000, 9000]
RATES = [0.05, 1.0, 2.7, 8.0]
UNBIASED = {"identity", "eden", "eden-entropy"}


def normal(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def relative_error(x_hat: np.ndarray, x: np.ndarray) -> float:
    x = x.astype(np.float64)
    return float(np.sum((x_hat - x) ** 2) / np.sum(x**2))


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.fixture(params=RATES)
def codec(request, family) -> Codec:
    return family.at_rate(request.param)


@pytest.mark.parametrize("size", [0, *SIZES])
def test_the_length_is_known_before_encoding_and_the_shape_comes_back(codec, family, size):
    data = codec.encode(normal(size), seed=3)
    x_hat = codec.decode(data, size, seed=3)
    assert len(data) == codec.size_bytes(size) or (len(data) < codec.size_bytes(size) and not family.has_fixed_length)
    codec.check(data, size)
    assert (x_hat.shape, x_hat.dtype) == ((size,), np.float32)
    assert x_hat.flags.c_contiguous and x_hat.flags.writeable


def test_the_same_vector_rate_and_seed_give_the_same_bytes(codec):
    x = normal(5000)
    assert codec.encode(x, seed=5) == codec.encode(x.copy(), seed=5)


@pytest.mark.parametrize("seed", [0, -1, 2**64, 2**64 - 1, 3**90])
def test_any_integer_is_a_seed_modulo_two_to_the_64(codec, seed):
    x = normal(300)
    data = codec.encode(x, seed)
    assert data == codec.encode(x, seed % 2**64)
    assert np.array_equal(codec.decode(data, 300, seed), codec.decode(data, 300, seed % 2**64))


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.float32(1), [1j], ["a"], None, [[1], [1, 2]]])
def test_what_is_no_vector_is_refused(codec, bad):
    with pytest.raises(CodecError):
        codec.encode(bad, seed=1)


def test_the_input_is_left_as_it_was(codec):
    x = normal(5000)
    before = x.copy()
    codec.encode(x, seed=1)
    assert np.array_equal(x, before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("change", [-1, 1, 100])
def test_a_payload_of_the_wrong_length_is_refused_with_both_lengths(codec, family, size, change):
    data = codec.encode(normal(size), seed=1)
    wrong = (data + bytes(100))[: max(len(data) + change, 0)]
    message = f"expected {len(data)} bytes .* got {len(wrong)}" if family.has_fixed_length else "expected .* got "
    with pytest.raises(CodecError, match=message):
        codec.decode(wrong, size, seed=1)


def test_a_negative_size_is_refused(codec):
    with pytest.raises(CodecError, match="-4"):
        codec.decode(b"", -4, seed=1)


@pytest.mark.parametrize("size", [0, *SIZES])
def test_a_mask_of_true_changes_nothing(codec, size):
    data = codec.encode(normal(size), seed=4)
    kept = codec.decode(data, size, seed=4, received=np.ones(size, dtype=bool))
    assert np.array_equal(kept, codec.decode(data, size, seed=4))


@pytest.mark.parametrize("size", SIZES)
def test_where_nothing_was_received_the_estimate_is_zero(codec, size):
    data = codec.encode(normal(size), seed=4)
    assert not codec.decode(data, size, seed=4, received=np.zeros(size, dtype=bool)).any()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, *SIZES])
def test_accumulating_gives_the_numbers_of_decoding_and_adding(codec, size, kind):
    data, total = codec.encode(normal(size), seed=4), normal(size, seed=1).astype(kind)
    expected = total.copy()
    for weight, received in ((3, None), (0.7, np.random.default_rng(size).random(size) < 0.7)):
        expected += np.float64(weight) * codec.decode(data, size, 4, received)
        codec.accumulate(data, size, 4, weight, total, received)
        assert total.tobytes() == expected.tobytes()


def test_accumulating_takes_any_scale_and_leaves_float64_sums_finite(codec):
    for scale in (1e-45, 3.4e38):
        data, total = codec.encode(np.full(9000, scale), seed=2), np.full(9000, -0.0)
        expected = total + np.float64(1e5) * codec.decode(data, 9000, seed=2)
        codec.accumulate(data, 9000, 2, 1e5, total)
        assert total.tobytes() == expected.tobytes() and np.isfinite(total).all()


def test_adding_with_weight_one_rounds_as_float64_does_whatever_the_sum_holds(codec):
    for scale in (1e-45, 1e-38, 1.0, 3e38):
        x = np.clip(scale * normal(9000).astype(np.float64), -3.4e38, 3.4e38).astype(np.float32)
        data, total = codec.encode(x, seed=2), np.roll(x, 1)
        total[::7] = -codec.decode(data, 9000, seed=2)[::7]
        total[::11], total[::13], total[::17], total[::19] = np.inf, np.nan, -0.0, 1e-45
        expected = total.copy()
        with np.errstate(over="ignore"):
            expected += np.float64(1) * codec.decode(data, 9000, seed=2)
            codec.accumulate(data, 9000, 2, 1.0, total)
        assert total.tobytes() == expected.tobytes()


def unaligned(x: np.ndarray) -> np.ndarray:
    moved = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype)
    moved[:] = x
    return moved


def frozen(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    ("weight", "out", "message"),
    [
        (np.nan, np.ones(5000), "finite weight"),
        (np.inf, np.ones(5000), "finite weight"),
        (1.0, np.ones(4999), "shape"),
        (1.0, np.ones((5000, 1)), "shape"),
        (1.0, np.ones(5000, dtype=np.int64), "int64"),
        (1.0, np.ones(5000, dtype=">f8"), "float64"),
        (1.0, np.ones(10_000)[::2], "contiguous"),
        (1.0, unaligned(np.ones(5000)), "aligned"),
        (1.0, unaligned(np.ones(5000, np.float32)), "aligned"),
        (1.0, frozen(np.ones(5000)), "writeable"),
    ],
)
def test_a_sum_that_cannot_be_added_to_is_refused_and_left_as_it_was(codec, weight, out, message):
    with pytest.raises(CodecError, match=message):
        codec.accumulate(codec.encode(normal(5000), seed=1), 5000, 1, weight, out)
    assert (out == 1).all()


@pytest.mark.parametrize("seed", [np.int64(7), np.uint64(7), 7 + 2**64, 7 - 2**64])
def test_seeds_are_whole_numbers_of_any_kind_and_size(codec, seed):
    x = normal(5000)
    data = codec.encode(x, 7)
    assert codec.encode(x, seed) == data
    assert np.array_equal(codec.decode(data, x.size, seed), codec.decode(data, x.size, 7))


def test_a_payload_that_is_refused_leaves_the_sum_as_it_was(codec):
    data, total = codec.encode(normal(5000), seed=1), np.ones(5000)
    broken = data[:-4] + np.float32(np.nan).tobytes() if codec.name == "identity" else b"\x63" + data[1:]
    for bad in (data[:-1], data + b"0", broken):
        with pytest.raises(CodecError):
            codec.accumulate(bad, 5000, 1, 1.0, total)
    with pytest.raises(CodecError, match="mask"):
        codec.accumulate(data, 5000, 1, 1.0, total, np.ones(99, dtype=bool))
    assert (total == 1).all()


@pytest.mark.parametrize("mask", [np.ones(99, dtype=bool), np.ones(100), np.ones((10, 10), dtype=bool)])
def test_a_mask_that_does_not_fit_is_refused(codec, mask):
    with pytest.raises(CodecError, match="mask"):
        codec.decode(codec.encode(normal(100), seed=4), 100, seed=4, received=mask)


@pytest.mark.parametrize("bits", [0.2, 1.0, 2.5])
@pytest.mark.parametrize("loss", [0.0, 0.4])
def test_the_mean_over_seeds_is_the_vector(family, bits, loss):
    if family.name not in UNBIASED:
        pytest.skip(f"{family.name} does not call itself unbiased")
    codec, size, trials = family.at_rate(bits), 300, 1500 if native_available() else 300
    x = normal(size)
    x[7] = 30.0  # most of the energy in one coordinate: what a single rotation gets wrong
    total, squares = np.zeros(size), np.zeros(size)
    for seed in range(trials):
        received = seeds.uniform(seeds.derive("loss", seed), size) >= loss
        x_hat = codec.decode(codec.encode(x, seed), size, seed, received).astype(np.float64)
        total += x_hat
        squares += x_hat**2
    mean = total / trials
    standard_error = np.sqrt(np.maximum(squares / trials - mean**2, 0) / trials) + 1e-6
    deviation = (mean - x) / standard_error
    assert np.abs(deviation).max() < 4.5
    assert np.mean(deviation**2) == pytest.approx(1, abs=0.35) or (family.name == "identity" and loss == 0)


def test_threads_share_a_codec(codec):
    vectors = [normal(6000, seed) for seed in range(8)]

    def there_and_back(seed: int) -> tuple[bytes, bytes]:
        data = codec.encode(vectors[seed], seed)
        return data, codec.decode(data, 6000, seed).tobytes()

    alone = [there_and_back(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(there_and_back, [*range(8)] * 5)) == alone * 5


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_codec_is_found_by_its_name_and_whatever_has_its_number_reads_it(name):
    codec = build(name, 2.0)
    data = codec.encode(normal(300), seed=1)
    assert codec.name == name
    assert np.array_equal(by_code(codec.code, 2.0).decode(data, 300, seed=1), codec.decode(data, 300, seed=1))


def test_codecs_are_values(codec, family):
    assert family.at_rate(codec.bits) == codec
    assert hash(family.at_rate(codec.bits)) == hash(codec)


def test_every_codec_is_under_test():
    assert {family.name for family in FAMILIES} == set(CODECS)


def test_codec_numbers_are_never_reassigned():
    assert {name: build(name, 2.0).code for name in CODECS} == {"identity": 0, "eden": 1, "eden-entropy": 1, "m22": 2}


def test_none_is_another_name_of_identity():
    assert build("none", 4.0) == build("identity", 1.0)


def test_an_unknown_name_or_number_is_refused_with_what_is_known():
    with pytest.raises(UnknownName, match="did you mean 'eden'"):
        build("edne", 1.0)
    with pytest.raises(CodecError, match=r"1 eden.*got 77"):
        by_code(77, 1.0)


@pytest.mark.parametrize("bits", [0, 0.049, 8.001, -1, float("nan"), float("inf")])
def test_eden_names_the_range_when_it_has_no_such_rate(bits):
    with pytest.raises(CodecError, match=r"0\.05 to 8 bits"):
        build("eden", bits)


def test_importing_the_codecs_brings_in_no_torch_pydantic_or_msgpack():
    script = (
        "import fedge.codecs, sys; "
        "sys.exit(str([m for m in ('torch', 'pydantic', 'msgpack', 'schemas') if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
