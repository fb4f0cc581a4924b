"""A cohort at 0.1 to 8 bits: plain weights are unbiased, shrinkage has less error, and both are what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.aggregation import SegmentSums
from fedge.algorithms import FedAvg
from fedge.codecs import Eden
from fedge.errors import AggregationError, CodecError, UnknownName
from fedge.frames import Frame, read_frame
from fedge.layout import Kind, Layout, TensorSpec
from fedge.seeds import derive, uniform
from fedge.update import decode_delta, encode_update, uplink
from fedge.weighting import PIVOTS, error_of

RATES = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
LAYOUT = Layout.of([TensorSpec("w", (3000,), Kind.WEIGHT), TensorSpec("b", (40,), Kind.RAW)])
WHOLE = LAYOUT.segments
WEIGHTS = np.array([30.0, 10.0, 20.0, 40.0, 5.0, 15.0])


def updates(cosine: float, count: int = len(RATES), lengths: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """Return ``count`` vectors with exactly this cosine between any two, float32 [count, d]."""
    basis, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(LAYOUT.size, count + 1)))
    x = np.sqrt(cosine) * basis[:, :1] + np.sqrt(1 - cosine) * basis[:, 1:]
    return (x * np.resize(lengths, count)).T.astype(np.float32)


def average(x: np.ndarray, rates=RATES, weights=WEIGHTS, seed: int = 0, how: str = "plain", codec="eden") -> np.ndarray:
    """Return the mean as a server makes it of one round's frames."""
    sums = SegmentSums(LAYOUT, how)
    for k, rate in enumerate(rates):
        stream = uplink(seed, 1, f"device-{k}")
        frames = encode_update(LAYOUT, x[k], stream, codec, rate)
        for index in stream.order(len(frames)):
            frame = read_frame(frames[index])
            sums.add(frame.segment, decode_delta(frame, stream, FedAvg().trust), weights[k], error_of(frame))
    return sums.mean()


def expected_error(x: np.ndarray, rates=RATES, weights=WEIGHTS) -> float:
    """Return Σ w_c² A(b_c) ‖x_c‖² over the segments, w summing to 1."""
    w, total = weights / weights.sum(), 0.0
    for segment in LAYOUT.segments:
        if segment.kind is Kind.WEIGHT:
            for k, rate in enumerate(rates):
                error = error_of(Frame(Eden.code, segment.index, segment.size, rate, b""))
                total += float(w[k] ** 2 * error * np.sum(np.square(x[k, segment.slice], dtype=float)))
    return total


@pytest.fixture(scope="module")
def plain_errors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the updates, their true mean, and 400 errors of the plain mean of the six rates."""
    x = updates(0.6, lengths=(1.0, 0.4, 2.0))
    true = (WEIGHTS / WEIGHTS.sum()) @ x.astype(float)
    return x, true, np.array([average(x, seed=seed) - true for seed in range(400)])


def test_plain_weights_are_unbiased_with_all_six_rates_in_one_round(plain_errors) -> None:
    x, true, errors = plain_errors
    for direction in (true, *x.astype(float)):
        along = errors @ direction / np.linalg.norm(direction)
        assert abs(along.mean()) < 4 * along.std() / np.sqrt(len(along))
    mean, count = errors.mean(0), len(errors)
    # Without a bias the mean of N independent errors has 1/N of their square.
    assert count * (mean @ mean) == pytest.approx(np.sum(errors**2, 1).mean(), rel=0.1)


def test_the_plain_error_is_the_sum_of_what_each_rate_contributes(plain_errors) -> None:
    x, _, errors = plain_errors
    squares = np.sum(errors**2, 1)
    assert squares.mean() == pytest.approx(expected_error(x), rel=0.02)


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize("rates", [RATES, (1.0,) * 5 + (4.0,) * 5])
def test_shrinkage_is_close_to_the_best_weights_that_know_every_pair(cosine: float, rates: tuple[float, ...]) -> None:
    n, weight = len(rates), slice(0, 3000)
    x = updates(cosine, n)[:, weight].astype(float)
    x = np.pad(x, ((0, 0), (0, LAYOUT.size - 3000))).astype(np.float32)
    true, gram = x.astype(float).mean(0), x.astype(float) @ x.T
    error = np.array([error_of(Frame(Eden.code, 0, 3000, rate, b"")) for rate in rates]) * np.diag(gram)
    best = np.linalg.solve(gram + np.diag(error), gram @ np.full(n, 1 / n))
    least = best**2 @ error + (best - 1 / n) @ gram @ (best - 1 / n)

    def measured(how: str) -> float:
        means = [average(x, rates, np.ones(n), seed, how) for seed in range(12)]
        return float(np.mean([np.sum((mean - true) ** 2) for mean in means]))

    shrunk = measured("shrinkage")
    assert shrunk < 0.75 * measured("plain")
    assert least * 0.97 < shrunk < least * 1.12


def test_only_the_proportions_of_the_weights_matter() -> None:
    x = updates(0.5)
    once, sevenfold = (average(x, weights=scale * WEIGHTS, how="shrinkage") for scale in (1.0, 7.0))
    np.testing.assert_allclose(once, sevenfold, rtol=1e-9, atol=1e-12)
    true = (WEIGHTS / WEIGHTS.sum()) @ x.astype(float)
    assert np.sum((once - true) ** 2) < 0.3 * np.sum((average(x) - true) ** 2)


def test_devices_of_one_rate_are_all_shrunk_alike() -> None:
    x, rates = updates(0.4), (1.0,) * 6
    plain, shrunk = average(x, rates, np.ones(6)), average(x, rates, np.ones(6), how="shrinkage")
    for segment in LAYOUT.segments:
        a, b = plain[segment.slice], shrunk[segment.slice]
        factor = (a @ b) / (a @ a)
        np.testing.assert_allclose(b, factor * a, rtol=1e-6, atol=1e-12)
        assert factor == 1.0 if segment.kind is Kind.RAW else 0.7 < factor < 0.99


def test_what_has_no_error_is_averaged_plainly_to_the_bit() -> None:
    x = updates(0.4)
    assert average(x, codec="none").tobytes() == average(x, how="shrinkage", codec="none").tobytes()
    raw = LAYOUT.segments[-1].slice
    assert np.array_equal(average(x)[raw], average(x, how="shrinkage")[raw])


def test_nothing_but_noise_and_nothing_at_all_shrink_to_zero() -> None:
    x = updates(0.0, 2)
    opposite = np.stack([x[0], -x[0]])
    for vectors in (opposite, np.zeros_like(x)):
        means = [average(vectors, (0.5, 0.5), np.ones(2), seed, "shrinkage") for seed in range(20)]
        noise = [average(vectors, (0.5, 0.5), np.ones(2), seed) for seed in range(20)]
        assert np.sum(np.square(means)) <= 0.01 * np.sum(np.square(noise))
        assert all(mean[s.slice] @ plain[s.slice] >= 0 for mean, plain in zip(means, noise, strict=True) for s in WHOLE)


def test_plain_sums_stay_plain_under_shrinkage_so_that_feddyns_h_does() -> None:
    plain, shrunk = SegmentSums(LAYOUT), SegmentSums(LAYOUT, "shrinkage")
    for sums in (plain, shrunk):
        for k, error in enumerate((14.7, 0.01)):
            sums.add(0, updates(0.5)[k, LAYOUT.segments[0].slice], 1.0, error)
    assert plain.total.tobytes() == shrunk.total.tobytes() and np.array_equal(shrunk.weight, shrunk.count)
    assert not np.array_equal(plain.mean(), shrunk.mean())
    assert plain.shrunk_by is None and shrunk.shrunk_by is not None and 0.1 < shrunk.shrunk_by < 1.0


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(0, len(LAYOUT.segments) - 1), st.integers(0, 9), st.floats(0.1, 1e6), st.floats(0, 20)),
        max_size=12,
    )
)
def test_adding_the_same_frames_in_the_same_order_gives_the_same_bits(
    arrivals: list[tuple[int, int, float, float]],
) -> None:
    means = []
    for _ in range(2):
        sums = SegmentSums(LAYOUT, "shrinkage")
        for index, seed, weight, error in arrivals:
            x = uniform(derive("x", seed), LAYOUT.segments[index].size) - 0.5
            sums.add(index, x.astype(np.float32), weight, error)
        means.append(sums.mean())
    assert np.isfinite(means[0]).all() and means[0].tobytes() == means[1].tobytes()
    assert not means[0][~sums.mask].any()


def test_the_largest_deltas_and_weights_stay_finite() -> None:
    sums = SegmentSums(LAYOUT, "shrinkage")
    for sign in (1, 1, -1):
        sums.add(0, np.full(LAYOUT.segments[0].size, sign * 2.0**24, np.float32), 2.0**53, 20.0)
    assert np.isfinite(sums.mean()).all()


def test_a_leaning_sum_that_cancels_while_the_plain_one_does_not_is_left_out() -> None:
    sums, x = SegmentSums(LAYOUT, "shrinkage"), updates(0.0)[0, LAYOUT.segments[0].slice]
    sums.add(0, x, 1.0, error=PIVOTS[0])
    sums.add(0, -x / 2, 1.0, error=0.0)
    mean, plain = sums.mean()[LAYOUT.segments[0].slice], x / 4
    assert not sums.shrinkage.totals[0].any()
    assert 0.5 * np.linalg.norm(plain) < np.linalg.norm(mean) < 1.5 * np.linalg.norm(plain)


@pytest.mark.parametrize("bits", RATES)
@pytest.mark.parametrize("count", [8, 40, 200, 3000, 4100, 20_000])
def test_the_stated_error_of_eden_is_the_measured_one(bits: float, count: int) -> None:
    x = (uniform(derive("x", count), count) - 0.3).astype(np.float32)
    codec = Eden(float(np.float32(bits)))
    trials = 40 + 40_000 // count
    squares = [np.sum(np.square(codec.decode(codec.encode(x, s), count, s) - x, dtype=float)) for s in range(trials)]
    stated = error_of(Frame(codec.code, 0, count, codec.bits, b""))
    if count == 8:
        assert stated == 0.0 and not any(squares)
    else:
        # Forty rotated coordinates are bounded and so not quite normal: a tenth less error at high rates.
        assert np.mean(squares) / np.sum(np.square(x, dtype=float)) == pytest.approx(
            stated, rel=0.12 if count < 100 else 0.08
        )


def test_the_error_of_a_frame_of_an_unknown_codec_is_refused() -> None:
    with pytest.raises(CodecError, match=r"expected a codec number .*got 200"):
        error_of(Frame(200, 0, 10, 1.0, b""))


@pytest.mark.parametrize("bits", [0.25, 1.0, 3.0])
def test_the_stated_error_of_an_entropy_coded_payload_is_the_measured_one(bits: float) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(20_000) * np.exp(2 * rng.standard_normal(100)).repeat(200)).astype(np.float32)
    codec, squares, stated = Eden(bits, "entropy"), [], []
    for seed in range(20):
        data = codec.encode(x, seed)
        squares.append(np.sum(np.square(codec.decode(data, x.size, seed) - x, dtype=float)))
        stated.append(error_of(Frame(codec.code, 0, x.size, codec.bits, data)))
    assert np.mean(squares) / np.sum(np.square(x, dtype=float)) == pytest.approx(np.mean(stated), rel=0.03)


def test_shrinkage_wants_the_error_of_each_frame_and_a_name_it_knows() -> None:
    sums, x = SegmentSums(LAYOUT, "shrinkage"), np.zeros(LAYOUT.segments[0].size, np.float32)
    for error in (None, -0.1, np.nan, np.inf):
        with pytest.raises(AggregationError, match="the codec's error to shrink by"):
            sums.add(0, x, 1.0, error)
    assert not sums.count.any()
    with pytest.raises(UnknownName, match="unknown weights 'shrinkge'; did you mean 'shrinkage'"):
        SegmentSums(LAYOUT, "shrinkge")


def test_the_pivots_lie_where_the_rates_differ() -> None:
    errors = [error_of(Frame(Eden.code, 0, 4096, rate, b"")) for rate in (4.0, 3.0, 1.5, 1.0)]
    assert errors[0] < PIVOTS[0] < errors[1] < errors[2] < PIVOTS[1] < errors[3]
