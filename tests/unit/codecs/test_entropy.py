"""Entropy-coded EDEN: error, rate, fairness, and payloads that are none. Statistics as in test_eden_statistics.py."""

import tracemalloc

import numpy as np
import pytest

from fedge.codecs import Eden, Part, entropy, native, native_available, native_status, sharing
from fedge.errors import CodecError
from fedge.frames import read_frame
from fedge.layout import Kind, Layout, TensorSpec
from fedge.update import decode_frame, encode_update, update_bytes, uplink
from tests.support.vectors import errors, lognormal, mean_error_ratios, normal, sparse, spike, squared, two_peaks

needs_native = pytest.mark.skipif(not native_available(), reason=native_status())
PUBLISHED = {
    0.1: 9.931,
    0.25: 3.749,
    0.5: 1.613,
    1: 0.5347,
    1.5: 0.2163,
    2: 0.09764,
    3: 0.022745,
    4: 0.005591,
    8: 2.172e-5,
}


def uneven(d: int, seed: int = 0) -> np.ndarray:
    """Rows of 100 coordinates whose energies differ by a factor of a million."""
    rng = np.random.default_rng(seed)
    rows = np.exp2(3 * rng.standard_normal(-(-d // 100))).repeat(100)[:d]
    return (rows * rng.standard_normal(d)).astype(np.float32)


@needs_native
@pytest.mark.parametrize(("d", "trials"), [(1000, 1000), (4096, 300), (65_537, 20), (1_200_000, 2)])
@pytest.mark.parametrize(("bits", "vnmse"), PUBLISHED.items())
def test_a_gaussian_vector_has_the_error_of_the_ideal_coder_at_its_rate(bits, vnmse, d, trials):
    codec, x = Eden(bits, "entropy"), normal(d)
    found = errors(codec, x, trials * (4 if bits == 0.1 else 1))
    assert found.mean() == pytest.approx(vnmse, rel=0.02)  # standard errors: 0.1 to 0.5 %
    sizes = [len(codec.encode(x, seed)) for seed in range(20)]
    assert max(sizes) <= codec.size_bytes(d)
    if d >= 100_000:
        assert 8 * max(sizes) / d <= bits + 0.01
        assert 8 * np.mean(sizes) / d <= bits * 1.005 + 0.006


@needs_native
@pytest.mark.parametrize("bits", [0.05, 0.37, 1.93, 2.718, 5.5, 7.99])
def test_any_rate_is_met_without_steps(bits):
    d = 200_000
    size = 8 * len(Eden(bits, "entropy").encode(normal(d), 1)) / d
    assert bits * 0.995 - 0.001 < size < bits * 1.005 + 0.006


@needs_native
@pytest.mark.parametrize("make", [two_peaks, spike, sparse, lognormal])
@pytest.mark.parametrize(("bits", "d"), [(0.3, 3_000), (1, 3_000), (4, 3_000), (1, 8_900)])
def test_errors_of_a_thousand_devices_average_out(bits, make, d):
    for n, ratio in mean_error_ratios(Eden(bits, "entropy"), make(d), devices=3000).items():
        assert ratio == pytest.approx(1, abs=0.05), n  # standard error at most 1.5 %


@needs_native
@pytest.mark.parametrize("d", [33, 65, 129, 513, 1000, 2049])
@pytest.mark.parametrize("bits", [0.5, 1, 4])
@pytest.mark.parametrize("make", [two_peaks, spike])
def test_short_vectors_are_unbiased_too(bits, d, make):
    codec, x, trials = Eden(bits, "entropy"), make(d), 1000
    total, single = np.zeros(d), 0.0
    for seed in range(trials):
        x_hat = codec.decode(codec.encode(x, seed), d, seed)
        single += squared(x_hat - x) / trials
        total += x_hat
    assert trials * squared(total / trials - x) / single == pytest.approx(1, abs=5 * np.sqrt(2 / d))


@pytest.mark.parametrize("bits", [0.25, 0.5, 1, 2])
def test_uneven_energy_is_worth_several_times_less_error_and_is_grouped(bits):
    x, codec = uneven(30_000), Eden(bits, "entropy")
    data = codec.encode(x, 1)
    assert data[1] & 4  # grouped
    plain = {0.25: 3.749, 0.5: 1.613, 1: 0.5347, 2: 0.09764}[bits]
    assert squared(codec.decode(data, x.size, 1) - x) / squared(x) < plain / 4
    assert len(data) <= codec.size_bytes(x.size)


@pytest.mark.parametrize("bits", [0.05, 0.1, 0.15, 0.3])
@pytest.mark.parametrize("weak", [0.0, 2.0**-13])
def test_classes_that_would_cost_more_than_they_give_are_not_sent(bits, weak, monkeypatch):
    rng = np.random.default_rng(1)  # neighbours of unlike energy: up to 31 bits to name the class of 100 coordinates
    rows = np.where(rng.random(300) < 0.3, 1.0, weak).repeat(100)
    x, codec = (rows * rng.standard_normal(30_000)).astype(np.float32), Eden(bits, "entropy")
    (data,) = codec.encode_all([Part(x, 1, rows=(100, 0))])
    assert len(data) <= codec.size_bytes(x.size)
    monkeypatch.setattr(sharing, "WORTH_GROUPING", 0.0)
    (plain,) = codec.encode_all([Part(x, 1, rows=(100, 0))])
    assert codec.error(data, x.size) < 1.05 * codec.error(plain, x.size)


@pytest.mark.parametrize("rows", [(0, 0), (128, 128), (128, -1), (65_536, 0)])
def test_rows_that_there_are_none_of_are_refused(rows):
    with pytest.raises(CodecError, match="chunks of 1 to 65535"):
        Eden(1.0, "entropy").encode_all([Part(normal(5000), 1, rows)])


def test_knowing_the_rows_helps():
    x, codec = uneven(60_000, seed=3), Eden(1.0, "entropy")
    (blind,) = codec.encode_all([Part(x, 1)])
    (told,) = codec.encode_all([Part(x, 1, rows=(100, 0))])
    assert len(told) <= codec.size_bytes(x.size)
    assert squared(codec.decode(told, x.size, 1) - x) < 0.9 * squared(codec.decode(blind, x.size, 1) - x)


def test_blocks_of_zeros_and_of_next_to_nothing_cost_nothing_and_come_back():
    x = np.concatenate([normal(4096), np.zeros(4096), normal(4096) * 1e-9]).astype(np.float32)
    codec = Eden(1.0, "entropy")
    x_hat = codec.decode(codec.encode(x, 1), x.size, 1)
    assert not x_hat[4096:8192].any() and x_hat[8192:].any()
    assert squared(x_hat[:4096] - x[:4096]) < 0.15 * squared(x[:4096])  # at nearly three times its own rate


LAYOUT = Layout.of(
    [
        TensorSpec("quiet", (300, 400), Kind.WEIGHT),
        TensorSpec("loud", (50, 90), Kind.WEIGHT),
        TensorSpec("bias", (300,), Kind.RAW),
    ]
)


def update(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    delta = rng.standard_normal(LAYOUT.size).astype(np.float32) * np.float32(1e-3)
    delta[120_000:124_500] *= 100
    return delta * np.exp(rng.standard_normal(LAYOUT.size)).astype(np.float32)


@pytest.mark.parametrize("bits", [0.05, 0.2, 0.5, 1.0, 3.3, 8.0])
def test_a_whole_update_keeps_its_budget_and_gives_most_of_it_where_the_energy_is(bits):
    seeds = range(10 if native_available() else 2)
    for seed in seeds:
        delta, stream = update(seed), uplink(seed, 1, "d")
        frames = encode_update(LAYOUT, delta, stream, "eden-entropy", bits)
        assert sum(map(len, frames)) <= update_bytes(LAYOUT, "eden-entropy", bits)
        assert sum(map(len, frames)) > 0.97 * update_bytes(LAYOUT, "eden-entropy", bits) - 250
        decoded = np.concatenate([decode_frame(read_frame(frame), stream) for frame in frames])
        alone = [Eden(bits, "entropy").size_bytes(s.size) + 20 for s in LAYOUT.segments if s.kind is Kind.WEIGHT]
        assert len(frames[7]) > 1.5 * alone[7] or bits > 6  # the loud tensor ends the weights
        assert squared(decoded - delta) < squared(delta) * 2.5 / (4**bits - 1)


def test_frames_of_one_update_decode_alone_and_in_any_order():
    stream = uplink(1, 2, "d")
    frames = encode_update(LAYOUT, update(1), stream, "eden-entropy", 1.0)
    forwards = [decode_frame(read_frame(frame), stream) for frame in frames]
    backwards = [decode_frame(read_frame(frame), stream) for frame in frames[::-1]][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_erased_codes_are_made_up_for():
    x, codec, total = lognormal(9000), Eden(1.0, "entropy"), 0.0
    trials = 60 if native_available() else 6
    for seed in range(trials):
        received = np.random.default_rng(seed).random(9000) < 0.8
        total += squared(codec.decode(codec.encode(x, seed), 9000, seed, received) - x) / squared(x) / trials
    assert total == pytest.approx(1.5347 / 0.8 - 1, rel=0.05)


def test_either_object_reads_both_kinds_of_payload():
    x = normal(5000)
    fixed, coded = Eden(2.0), Eden(2.0, "entropy")
    for made_by in (fixed, coded):
        data = made_by.encode(x, 3)
        assert np.array_equal(fixed.decode(data, 5000, 3), coded.decode(data, 5000, 3))


def test_a_coding_that_is_none_is_refused():
    with pytest.raises(CodecError, match="fixed or entropy, got 'huffman'"):
        Eden(1.0, "huffman")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: b"\x03"}, "flags"),
        ({1: b"\x10"}, "flags"),
        ({4: b"\x00\x00\xc0\x7f"}, "scale that is finite"),
        ({-1: b"\xff"}, "where the|began|words|ends"),
    ],
)
def test_a_payload_that_was_damaged_is_refused(change, message):
    data = bytearray(Eden(1.0, "entropy").encode(normal(5000), 1))
    for at, value in change.items():
        data[at : at + len(value) or None] = value
    with pytest.raises(CodecError, match=message):
        Eden(1.0).decode(bytes(data), 5000, 1)


@pytest.mark.skipif(not native_available(), reason="the twin keeps what it has decoded as it goes")
def test_a_payload_of_zeros_with_garbage_behind_it_is_refused_before_its_coordinates_are_sorted():
    size = 1 << 20
    head = bytes([2, 4, 0, 0]) + bytes([128, 0, 0, 0])  # grouped; chunks of 128, all of them of one class
    data = head + bytes(size // 128 // 8) + bytes(4 + 2 * size // 4096) + bytes(2048)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="end where the payload does"):
            Eden(7.0, "entropy").decode(data, size, 0)
        assert tracemalloc.get_traced_memory()[1] < 4.5 * size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 7, 30, 500])
def test_a_payload_that_ends_early_is_refused_and_nothing_is_added(cut):
    data, total = Eden(1.0, "entropy").encode(uneven(5000), 1), np.ones(5000)
    with pytest.raises(CodecError):
        Eden(1.0).accumulate(data[:cut], 5000, 1, 1.0, total)
    assert (total == 1).all()


@needs_native
@pytest.mark.parametrize("kind", [normal, sparse, uneven, two_peaks])
@pytest.mark.parametrize("size", [32, 33, 500, 511, 4096, 4100, 9001])
def test_the_twin_and_every_instruction_set_make_the_same_bytes_and_floats(kind, size, monkeypatch):
    x, mask = kind(size), np.random.default_rng(size).random(size) < 0.7
    fastest = native.kernels.isa()
    for bits in (0.05, 0.4, 1.0, 3.0, 8.0):
        codec, found = Eden(bits, "entropy"), []
        for isa in ("avx512", "avx2", "baseline", "numpy"):
            with monkeypatch.context() as patch:
                if isa == "numpy":
                    patch.setattr("fedge.codecs.block_codes.kernels", None)
                elif not native.kernels.use_isa(isa):
                    continue
                data, total = codec.encode(x, 7), np.linspace(-1, 1, size)
                codec.accumulate(data, size, 7, 0.3, total, mask)
                found.append((data, codec.decode(data, size, 7).tobytes(), total.tobytes()))
            native.kernels.use_isa(fastest)
        assert len(found) > 1 and all(one == found[0] for one in found)


def test_bits_that_grouping_needs_are_paid_from_the_codes():
    x = uneven(100_000)
    assert len(Eden(0.3, "entropy").encode(x, 1)) <= 0.3 * 100_000 / 8 + entropy.side_bytes(100_000) + 80
