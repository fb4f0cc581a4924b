"""What loss on the uplink costs the mean: coordinates erased and rescaled, against whole segments left out.

    python -m benchmarks.loss --out DIR                  # the tables of decision 0005, a quarter of an hour
    python -m benchmarks.loss --out DIR --updates wisdm-round-05.npz    # real ones: benchmarks.capture_updates

Each of n devices sends its vector x_c as frames of EDEN at b bits, one for each segment. Two rules make a mean of
what is left, in expectation a fraction p of everything:

    erasures  each device lost rotated coordinates: zeros for them, the rest times sent/received, mean over all n
    segments  each device lost whole frames: ``SegmentSums``, the mean over the K who delivered, 0 if K = 0

Erasures come scattered, or in one burst in each segment's transmission order. Segments are lost scattered, or because
the link is cut: a device's frames in their real order (``Stream.order``) are one run of bytes, of which a prefix
arrives; links break as often as makes the mean loss 1 - p.

Closed forms, by segment: V the mean of ||x_c||², m the mean vector, S² = Σ||x_c - m||²/(n-1), A EDEN's error; p counts
once for each segment and device, so scattered and cut have the same expectation and only another spread:

    erasures  V·((1 + A)/p - 1)/n
    segments  V·A·h + S²·(h - g/n) + ||m||²·(1 - g),   h = E[1/K; K > 0],  g = P(K > 0),  K ~ Binomial(n, p)

A mean over some devices errs by how much devices differ, S²; a rescaled vector errs by its own length, V.

Vectors: in every segment and for every pair of devices the cosine is exactly ``rho`` (1 identical, 0 orthogonal). DIR
gets ``loss.json`` with every figure, and a plot for each number of devices. One thread. What is lost is drawn from
(rule, pattern, loss, round, device) alone, so all vectors and rates meet the same losses.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.aggregation import SegmentSums
from fedge.codecs import Eden, lloyd, native_status
from fedge.codecs.base import Mask
from fedge.codecs.packing import bits_of
from fedge.frames import Frame, FrameReader, read_frame
from fedge.layout import Kind, Layout, Segment, TensorSpec
from fedge.seeds import derive, uniform
from fedge.update import Stream, decode_frame, encode_update, uplink

COHORTS = [10, 100]
BITS = [0.5, 1.0, 2.0, 4.0]
LOSSES = [0.0, 0.01, 0.05, 0.1, 0.2, 0.5]
COSINES = [1.0, 0.8, 0.5, 0.0]
SHAPE = (256, 512)  # 131,072 coordinates: eight segments of 16,384
WAYS = [("erasures", "scattered"), ("erasures", "burst"), ("segments", "scattered"), ("segments", "cut")]
PACKET_BYTES, LARGE_SEGMENT, PACKET_LOSSES = 1_400, 65_536, [0.001, 0.01, 0.05]

Vectors = npt.NDArray[np.float32]
"""One row for each device, float32 ``[n, d]``."""


@dataclass(frozen=True)
class Row:
    """One measured figure. Errors are ||mean_hat - mean||², over ||mean||² and over the mean of ||x_c||²."""

    vectors: str
    devices: int
    bits: float
    rule: str
    pattern: str
    loss: float
    rounds: int
    over_mean: float
    over_mean_error: float  # the standard error of over_mean
    closed_form: float  # of over_mean
    over_vectors: float


def draw(layout: Layout, devices: int, rho: float) -> Vectors:
    """Return vectors of one length whose cosine is ``rho`` in every segment, heavy-tailed."""
    rng, x = np.random.default_rng(0), np.empty((devices, layout.size), np.float32)
    for segment in layout.segments:
        heavy = rng.lognormal(size=(segment.size, devices + 1)) * rng.choice([-1.0, 1.0], (segment.size, devices + 1))
        q = np.linalg.qr(heavy)[0].T
        x[:, segment.slice] = math.sqrt(rho) * q[:1] + math.sqrt(1 - rho) * q[1:]
    return x


def read_updates(path: Path) -> tuple[Layout, Vectors]:
    """Return the weights of what ``benchmarks.capture_updates`` wrote, in the segments they travel in."""
    with np.load(path) as file:
        size = int(file["segment_stop"][file["segment_kind"] == "weight"].max())
        layout, x = Layout.of([TensorSpec("weights", (1, size), Kind.WEIGHT)]), file["deltas"][:, :size]
    return layout, np.ascontiguousarray(x)


def squared(x: npt.NDArray[Any]) -> float:
    """``||x||²``, in float64."""
    return float(np.sum(x.astype(np.float64) ** 2))


def vnmse(bits: float, received: float = 1.0) -> float:
    """EDEN's error ``(1 + A)/p - 1``, p the fraction received; below one bit the unsent are lost too."""
    at, gains = zip(*sorted((bits_of(width), lloyd.gain(width)) for width in lloyd.WIDTHS), strict=True)
    distortion = 1 - float(np.interp(bits, at, gains))
    return 1 / (1 - distortion) / (min(bits, 1.0) * received) - 1


def subset_moments(devices: int, p: float) -> tuple[float, float]:
    """Return ``h = E[1/K; K > 0]`` and ``g = P(K > 0)`` for K ~ Binomial(devices, p)."""
    chances = [math.comb(devices, k) * p**k * (1 - p) ** (devices - k) for k in range(1, devices + 1)]
    return sum(chance / k for k, chance in enumerate(chances, 1)), sum(chances)


def closed_form(rule: str, n: int, p: float, bits: float, v: float, m: float) -> float:
    """Return the expected squared error; ``v`` the mean of ||x_c||², ``m`` = ||mean||²."""
    if rule == "erasures":
        return v * vnmse(bits, p) / n
    h, g = subset_moments(n, p)
    spread = (v - m) * n / (n - 1) if n > 1 else 0.0
    return v * vnmse(bits) * h + spread * (h - g / n) + m * (1 - g)


def erased(pattern: str, size: int, bits: float, loss: float, seed: int) -> Mask:
    """Return which coordinates arrived, bool ``[size]`` in transmission order."""
    if pattern == "scattered":
        return uniform(seed, size) >= loss
    received = np.ones(size, dtype=bool)
    # Below one bit only the first coordinates travel, and a burst can only hit what travels.
    sent = round(min(bits, 1.0) * size)
    received[(int(uniform(seed, 1)[0] * sent) + np.arange(round(loss * sent))) % sent] = False
    return received


def delivered(pattern: str, frames: Sequence[bytes], order: Sequence[int], loss: float, seed: int) -> Iterator[int]:
    """Yield the segments of ``frames`` that arrived, as they arrive."""
    if pattern == "scattered":
        chances = uniform(seed, len(frames))
        yield from (index for index in order if chances[index] >= loss)
        return
    breaks, where = uniform(seed, 2)
    stream, reader = b"".join(frames[index] for index in order), FrameReader()
    # A link that breaks somewhere loses the frame it breaks in and all after it: (S + 1)/2 of S frames on average.
    if breaks < loss * 2 * len(frames) / (len(frames) + 1):
        stream = stream[: int(where * len(stream))]
    yield from (read_frame(data).segment for data in reader.feed(stream))


def decode_erased(frame: Frame, stream: Stream, segment: Segment, received: Mask) -> npt.NDArray[np.float32]:
    """Decode one segment of which some coordinates are lost, by EDEN's own rule."""
    return Eden(frame.bits).decode(frame.payload, segment.size, stream.frame_seed(segment.index), received)


def measure_round(
    layout: Layout, x: Vectors, bits: float, losses: Sequence[float], round_number: int, with_erasures: bool
) -> Mapping[tuple[str, str, float], float]:
    """Send every row of ``x`` once; return the squared error of the mean by rule, pattern and loss."""
    sums: dict[tuple[str, str, float], SegmentSums] = defaultdict(lambda: SegmentSums(layout))
    ways = [way for way in WAYS if with_erasures or way[0] != "erasures"]
    for device, row in enumerate(x):
        stream = uplink(0, round_number, f"device-{device}")
        encoded = encode_update(layout, row, stream, "eden", bits)
        frames = [read_frame(data) for data in encoded]
        whole = [decode_frame(frame, stream) for frame in frames]
        order = stream.order(len(frames))
        for rule, pattern in ways:
            for loss in losses:
                into = sums[rule, pattern, loss]
                seed = derive("loss", rule, pattern, round(1e6 * loss), round_number, device)
                if rule == "segments":
                    for index in delivered(pattern, encoded, order, loss, seed):
                        into.add(index, whole[index], 1.0)
                    continue
                for index, segment in enumerate(layout.segments):
                    received = erased(pattern, segment.size, bits, loss, derive(seed, index))
                    x_hat = decode_erased(frames[index], stream, segment, received) if loss else whole[index]
                    into.add(index, x_hat, 1.0)
    mean = x.mean(axis=0, dtype=np.float64)
    ways_and_losses = [(rule, pattern, loss) for rule, pattern in ways for loss in losses]
    # A segment that nobody delivered keeps its value: SegmentSums.mean() is 0 there.
    return {key: squared(sums[key].mean() - mean) for key in ways_and_losses}


def measure(name: str, layout: Layout, x: Vectors, bits: float, losses: Sequence[float], devices: int) -> Iterator[Row]:
    """Measure ``bits`` over as many rounds as make ``devices`` updates; yield a row for each way and loss."""
    n, mean = len(x), x.mean(axis=0, dtype=np.float64)
    v, m = squared(x) / n, squared(mean)
    found: dict[tuple[str, str, float], list[float]] = defaultdict(list)
    for round_number in range(max(4, devices // n)):
        # Erasures average over coordinates within one round, losses of segments only over rounds: a few are enough.
        for key, error in measure_round(layout, x, bits, losses, round_number, round_number % 8 < 2).items():
            found[key].append(error)
    by_segment = [(squared(x[:, s.slice]) / n, squared(mean[s.slice])) for s in layout.segments]
    for (rule, pattern, loss), errors in found.items():
        expected = sum(closed_form(rule, n, 1 - loss, bits, v_s, m_s) for v_s, m_s in by_segment)
        average, spread = float(np.mean(errors)), float(np.std(errors, ddof=1)) / math.sqrt(len(errors))
        rounds = len(errors)
        yield Row(name, n, bits, rule, pattern, loss, rounds, average / m, spread / m, expected / m, average / v)


def show(rows: Sequence[Row]) -> None:
    """Print one way of losing: errors over ||mean||² by loss, with their standard errors in percent."""
    first = rows[0]
    figures = "  ".join(f"{row.over_mean:9.3e} ±{100 * row.over_mean_error / row.over_mean:4.1f}%" for row in rows)
    print(f"{first.vectors:22} {first.devices:4} {first.bits:4g} {first.rule} {first.pattern:9} {figures}", flush=True)


def show_datagrams(bits: Sequence[float]) -> None:
    """Print, by the closed forms, what lost packets cost where nobody sends them again: a frame needs all of its."""
    print(f"\nn·error/V over datagrams of {PACKET_BYTES:,} bytes, segments of {LARGE_SEGMENT:,}, n = 100, closed forms")
    cosines = " ".join(f"{f'rho {rho:g}':>8}" for rho in COSINES)
    print(f"{'bits':>4} {'packets':>7} {'lost':>5} {'frames':>7} {'erasures':>9} {cosines}")
    for b in bits:
        packets = math.ceil(Eden(b).size_bytes(LARGE_SEGMENT) / PACKET_BYTES)
        for loss in PACKET_LOSSES:
            p = (1 - loss) ** packets
            by_cosine = [100 * closed_form("segments", 100, p, b, 1.0, (1 + 99 * rho) / 100) for rho in COSINES]
            figures = " ".join(f"{error:8.4f}" for error in by_cosine)
            print(f"{b:4g} {packets:7} {loss:5.1%} {1 - p:7.1%} {vnmse(b, 1 - loss):9.4f} {figures}")


def plot(rows: Sequence[Row], devices: int, path: Path) -> None:
    """Draw n·error over the mean of ||x_c||² by loss: points measured, lines the closed forms."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, bits = list(dict.fromkeys(row.vectors for row in rows)), sorted({row.bits for row in rows})
    figure = Figure(figsize=(5.2 * min(2, len(bits)), 4.0 * math.ceil(len(bits) / 2)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, b in enumerate(bits):
        axes = figure.add_subplot(math.ceil(len(bits) / 2), min(2, len(bits)), panel + 1)
        for number, name in enumerate(names):
            for rule, pattern in WAYS:
                line = [r for r in rows if (r.vectors, r.bits, r.rule, r.pattern) == (name, b, rule, pattern)]
                over = [devices * row.over_vectors / row.over_mean for row in line]
                losses, color = [100 * row.loss for row in line], "#57606a" if rule == "erasures" else f"C{number}"
                if pattern == "scattered" and (rule == "segments" or number == 0):
                    label = f"segments, {name}" if rule == "segments" else "erasures, any vectors"
                    expected = [row.closed_form * k for row, k in zip(line, over, strict=True)]
                    axes.plot(losses, expected, "-" if rule == "segments" else "--", color=color, label=label)
                points = [row.over_mean * k for row, k in zip(line, over, strict=True)]
                bars = [row.over_mean_error * k for row, k in zip(line, over, strict=True)]
                mark = {"scattered": "o", "burst": "s", "cut": "x"}[pattern]
                axes.errorbar(losses, points, bars, fmt=mark, color=color, markersize=4, linewidth=1)
        axes.set(
            yscale="log", title=f"{b:g} bits, {devices} devices", xlabel="lost, %", ylabel="n · error / mean ||x||²"
        )
        axes.grid(color="#e3e8ec")
        if panel == 0:
            axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def inputs(options: argparse.Namespace) -> Iterator[tuple[str, Layout, Vectors]]:
    """Yield what is measured: a name, a layout and the devices' vectors."""
    for path in options.updates:
        yield path.stem, *read_updates(path)
    if not options.updates:
        layout = Layout.of([TensorSpec("weights", SHAPE, Kind.WEIGHT)])
        for n in options.cohorts:
            for rho in options.cosines:
                name = {1.0: "identical", 0.0: "orthogonal"}.get(rho, f"cosine {rho:g}")
                yield name, layout, draw(layout, n, rho)


def main() -> None:
    """Parse the command line, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for loss.json and the plots")
    parser.add_argument("--cohorts", type=int, nargs="+", default=COHORTS, help="how many devices make a mean")
    parser.add_argument("--bits", type=float, nargs="+", default=BITS, help="bits per coordinate")
    parser.add_argument("--losses", type=float, nargs="+", default=LOSSES, help="fractions lost, 0 to 0.5")
    parser.add_argument("--cosines", type=float, nargs="+", default=COSINES, help="between devices, 0 to 1")
    parser.add_argument("--devices", type=int, default=2000, help="updates sent for each figure of segments")
    parser.add_argument("--updates", type=Path, nargs="+", default=[], metavar="FILE", help="real ones instead")
    options = parser.parse_args()
    if not all(0 <= loss <= 0.5 for loss in options.losses):
        parser.error(f"argument --losses: expected fractions from 0 to 0.5, got {options.losses}")
    options.out.mkdir(parents=True, exist_ok=True)
    print(native_status())
    print(
        "error of the mean over ||mean||², ± its standard error; lost: " + ", ".join(f"{q:g}" for q in options.losses)
    )
    rows: list[Row] = []
    for name, layout, x in inputs(options):
        for bits in options.bits:
            measured = list(measure(name, layout, x, bits, options.losses, options.devices))
            for way in WAYS:
                show([row for row in measured if (row.rule, row.pattern) == way])
            rows += measured
    off = [(abs(row.over_mean - row.closed_form) - 3 * row.over_mean_error) / row.closed_form for row in rows]
    print(f"\n{len(rows)} figures; from the closed forms three standard errors and at most {max(0.0, *off):.2%}")
    show_datagrams(options.bits)
    (options.out / "loss.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    for n in sorted({row.devices for row in rows}):
        plot([row for row in rows if row.devices == n], n, options.out / f"loss_{n}_devices.png")


if __name__ == "__main__":
    main()
