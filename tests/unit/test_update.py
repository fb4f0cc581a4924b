import numpy as np
import pytest

from fedge.aggregation import SegmentSums
from fedge.algorithms import FedAvg, FedDyn
from fedge.codecs import Identity
from fedge.downlink.snapshot import decode_snapshot, downlink, encode_snapshot
from fedge.errors import CodecError, FrameError
from fedge.frames import Frame, read_frame
from fedge.layout import Kind, Layout, TensorSpec
from fedge.seeds import uniform
from fedge.update import (
    LARGEST_MAGNITUDE,
    MagnitudeError,
    Stream,
    check_frame,
    decode_applied,
    decode_delta,
    decode_frame,
    decode_segments,
    encode_update,
    float32_bytes,
    update_bytes,
    uplink,
)
from fedge.weighting import error_of

LAYOUT = Layout.of(
    [
        TensorSpec("w", (90, 100), Kind.WEIGHT),
        TensorSpec("b", (100,), Kind.RAW),
        TensorSpec("n", (), Kind.BUFFER, "int64"),
    ]
)
X = (uniform(1, LAYOUT.size) - 0.5).astype(np.float32)
STREAM = uplink(7, 3, "pi")


def frames_of(x, bits=2.0):
    return [read_frame(data) for data in encode_update(LAYOUT, x, STREAM, "eden", bits)]


def test_the_size_of_an_update_is_known_before_it_is_encoded():
    for bits in (0.05, 0.3, 1.0, 1.5, 2.0, 8.0):
        assert sum(map(len, encode_update(LAYOUT, X, STREAM, "eden", bits))) == update_bytes(LAYOUT, "eden", bits)
    assert float32_bytes(LAYOUT) == X.nbytes


def test_raw_tensors_and_buffers_arrive_exactly():
    decoded = decode_segments(LAYOUT, {f.segment: f for f in frames_of(X)}, STREAM, range(len(LAYOUT.segments)))
    raw = slice(9000, LAYOUT.size)
    assert np.array_equal(decoded[raw], X[raw])
    assert not np.array_equal(decoded[:9000], X[:9000])


def test_any_subset_of_the_frames_decodes_alone():
    frames = {f.segment: f for f in frames_of(X)}
    whole = decode_segments(LAYOUT, frames, STREAM, range(len(LAYOUT.segments)))
    half = decode_segments(LAYOUT, {1: frames[1]}, STREAM, [1])
    part = LAYOUT.segments[1].slice
    assert np.array_equal(half[part], whole[part])
    assert np.count_nonzero(half) == np.count_nonzero(half[part])


def test_a_segment_without_its_frame_is_named():
    with pytest.raises(FrameError, match="frame of segment 2, got none"):
        decode_segments(LAYOUT, {}, STREAM, [2])


def test_no_two_frames_share_a_seed():
    streams = [uplink(s, r, d) for s in (1, 2) for r in (1, 2) for d in ("a", "b")] + [downlink(1, 1, "a")]
    seeds = [stream.frame_seed(index) for stream in streams for index in range(4)]
    assert len(set(seeds)) == len(seeds)


def test_each_device_and_round_has_its_own_order():
    orders = {tuple(uplink(1, r, d).order(9)) for r in range(5) for d in "abcde"}
    assert len(orders) == 25
    assert all(sorted(order) == list(range(9)) for order in orders)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment": 99}, "segment of 0"),
        ({"count": 5}, "coordinates, got 5"),
        ({"codec": 0}, "expected codec eden"),
        ({"bits": 4.0}, "at most 2 bits"),
        ({"payload": b"short"}, "bytes for 1024 coordinates at 2 bits, got 5"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_before_it_is_decoded(change, message):
    good = frames_of(X)[0]
    fields = {name: getattr(good, name) for name in ("codec", "segment", "count", "bits", "payload")} | change
    with pytest.raises(FrameError, match=message):
        check_frame(LAYOUT, Frame(**fields), "eden", 2.0)


def test_fewer_bits_than_agreed_are_fine():
    assert check_frame(LAYOUT, frames_of(X, bits=0.5)[0], "eden", 2.0).index == 0


def test_nan_in_a_raw_tensor_is_refused():
    raw = next(segment for segment in LAYOUT.segments if segment.kind is Kind.RAW)
    good = frames_of(X)[raw.index]
    poisoned = Frame(good.codec, good.segment, good.count, good.bits, np.full(raw.size, np.nan, "<f4").tobytes())
    with pytest.raises(CodecError):
        decode_frame(poisoned, STREAM)


def test_a_snapshot_is_the_same_bytes_each_time_and_another_for_each_device():
    a, b = downlink(1, 2, "a"), downlink(1, 2, "b")
    frames = encode_snapshot(LAYOUT, X, a, "eden", 4.0)
    assert frames == encode_snapshot(LAYOUT, X, a, "eden", 4.0)
    assert frames[0] != encode_snapshot(LAYOUT, X, b, "eden", 4.0)[0]
    anchor = decode_snapshot(LAYOUT, reversed(frames), a, "eden", 4.0)
    assert np.sum((anchor - X) ** 2) < 0.02 * np.sum(X**2)


def test_a_snapshot_in_float32_is_exact():
    stream = downlink(1, 2, "a")
    assert np.array_equal(
        decode_snapshot(LAYOUT, encode_snapshot(LAYOUT, X, stream, "none", 4.0), stream, "none", 4.0), X
    )


def test_a_snapshot_that_is_not_whole_is_refused():
    stream = downlink(1, 2, "a")
    frames = encode_snapshot(LAYOUT, X, stream, "eden", 4.0)
    with pytest.raises(FrameError, match="got none"):
        decode_snapshot(LAYOUT, frames[1:], stream, "eden", 4.0)
    with pytest.raises(FrameError, match="got it twice"):
        decode_snapshot(LAYOUT, [frames[0], *frames], stream, "eden", 4.0)


def test_a_delta_beyond_all_training_is_neither_encoded_nor_decoded() -> None:
    large = X.copy()
    large[-1] = -2 * LARGEST_MAGNITUDE
    with pytest.raises(MagnitudeError, match="expected changes of at most"):
        encode_update(LAYOUT, large, STREAM, "eden", 1.0)
    elsewhere = encode_update(LAYOUT, large, Stream(STREAM.seed, "down", 1, "a"), "none", 32.0)
    with pytest.raises(MagnitudeError):
        decode_delta(read_frame(elsewhere[-1]), STREAM, FedAvg().trust)
    large[-1] = -LARGEST_MAGNITUDE
    frame = read_frame(encode_update(LAYOUT, large, STREAM, "none", 32.0)[-1])
    assert decode_delta(frame, STREAM, FedAvg().trust)[-1] == -LARGEST_MAGNITUDE


@pytest.mark.parametrize("codec", ["eden", "eden-entropy"])
@pytest.mark.parametrize("bits", [0.05, 0.5, 1.0, 2.0])
def test_a_frame_counts_for_its_decoded_values_times_the_trust_in_its_error(codec: str, bits: float) -> None:
    for data in encode_update(LAYOUT, X, STREAM, codec, bits):
        frame = read_frame(data)
        x, gamma = decode_frame(frame, STREAM), FedDyn().trust(error_of(frame))
        assert np.array_equal(decode_delta(frame, STREAM, FedAvg().trust), x)
        assert np.array_equal(decode_delta(frame, STREAM, FedDyn().trust), np.float32(gamma) * x)
        assert (gamma == 1.0) == (bits == 2.0 or frame.codec == Identity.code)


def test_what_a_device_counts_is_what_the_aggregator_adds_frame_by_frame() -> None:
    frames = {frame.segment: frame for frame in frames_of(X, bits=0.3)}
    applied, trust = [2, 0], FedDyn().trust
    mine = decode_applied(LAYOUT, frames, STREAM, applied, trust)
    sums = SegmentSums(LAYOUT)
    for index in applied:
        sums.add(index, decode_delta(frames[index], STREAM, trust), 1.0)
    assert np.array_equal(mine, sums.total)
    assert np.linalg.norm(mine) < np.linalg.norm(decode_segments(LAYOUT, frames, STREAM, applied))
    with pytest.raises(FrameError, match="expected a frame of segment 1"):
        decode_applied(LAYOUT, {0: frames[0]}, STREAM, [0, 1], trust)
