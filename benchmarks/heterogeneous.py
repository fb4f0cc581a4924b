"""Devices at unlike rates in one round: the error and the bias of the mean under each weighting, and what it costs.

    python -m benchmarks.heterogeneous [--size 32768] [--trials 20] [--updates FILE.npz ...]

Every number goes the way of the field: ``encode_update``, frames, ``decode_delta``, ``SegmentSums``. Errors are
‖estimate - mean‖² / ‖mean‖², averaged over trials; the mean is that of the true updates. Cohorts: ten devices, half at
1 bit and half at 4; six devices at 0.1, 0.5, 1, 2, 4 and 8 bits; the same six with lengths from 0.5 to 2 and weights
from 0.2 to 3. Updates have equal pairwise cosines, exactly, or are those of
``--updates``, files of ``benchmarks.capture_updates``: their weights, with the cosine they happen to have.

    plain       w                                what a plan gets that says nothing
    inverse     1/(A‖x‖²)                        inverse variance: never offered, shown for what it costs
    best        (G + Λ)⁻¹ G w                    the least error any weights have, with the true Gram matrix G
    shrinkage   ``fedge.weighting``              what ``[aggregation] weights = "shrinkage"`` does

``bias`` is ‖E estimate - mean‖ / ‖mean‖, from the average of all trials, the part of their errors taken off that the
average still holds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.aggregation import SegmentSums
from fedge.algorithms import FedAvg
from fedge.codecs import Eden
from fedge.frames import Frame, read_frame
from fedge.layout import Kind, Layout, TensorSpec
from fedge.update import decode_delta, encode_update, uplink
from fedge.weighting import PLAIN, SHRINKAGE, error_of

Floats = npt.NDArray[np.floating[Any]]
COSINES = (1.0, 0.97, 0.9, 0.7, 0.5, 0.3, 0.0)
HALF, SIX = (1.0,) * 5 + (4.0,) * 5, (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
WEIGHTINGS = ("plain", "inverse", "best", "shrinkage")


@dataclass(frozen=True)
class Cohort:
    """Devices by rate, by weight in the mean, and by the length of their updates."""

    name: str
    rates: tuple[float, ...]
    weights: Floats
    lengths: Floats

    def updates(self, cosine: float, size: int, seed: int) -> Floats:
        """Return updates with this cosine between any two, float32 [devices, d]."""
        count = len(self.rates)
        basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, count + 1)))
        x = np.sqrt(cosine) * basis[:, :1] + np.sqrt(1 - cosine) * basis[:, 1:]
        return (self.lengths * x).T.astype(np.float32)


def cohorts() -> Iterator[Cohort]:
    """Yield the cohorts of the tables."""
    rng = np.random.default_rng(0)
    yield Cohort("five at 1 bit, five at 4", HALF, np.ones(10), np.ones(10))
    yield Cohort("0.1, 0.5, 1, 2, 4, 8 bits", SIX, np.ones(6), np.ones(6))
    yield Cohort("the same, uneven", SIX, rng.uniform(0.2, 3.0, 6), rng.uniform(0.5, 2.0, 6))


def one_round(
    x: Floats, cohort: Cohort, layout: Layout, seed: int, inverse: Floats, best: Floats
) -> dict[str, npt.NDArray[np.float64]]:
    """Return each weighting's estimate, float64 [d], of one and the same frames."""
    plain, shrunk = SegmentSums(layout, PLAIN), SegmentSums(layout, SHRINKAGE)
    others = np.zeros((2, layout.size))
    for k, rate in enumerate(cohort.rates):
        stream = uplink(seed, 1, f"device-{k}")
        for data in encode_update(layout, x[k], stream, "eden", rate):
            frame = read_frame(data)
            decoded, error = decode_delta(frame, stream, FedAvg().trust), error_of(frame)
            for sums in (plain, shrunk):
                sums.add(frame.segment, decoded, float(cohort.weights[k]), error)
            part = layout.segments[frame.segment].slice
            others[:, part] += np.outer((inverse[k], best[k]), decoded)
    return {"plain": plain.mean(), "inverse": others[0], "best": others[1], "shrinkage": shrunk.mean()}


def measure(cohort: Cohort, x: Floats, trials: int) -> dict[str, tuple[float, float]]:
    """Return (error, bias) by weighting."""
    layout = Layout.of([TensorSpec("w", (x.shape[1],), Kind.WEIGHT)])
    size = layout.segments[0].size
    exact, w = x.astype(np.float64), cohort.weights / cohort.weights.sum()
    gram, true = exact @ exact.T, w @ exact
    noise = np.array([error_of(Frame(Eden.code, 0, size, rate, b"")) for rate in cohort.rates]) * np.diag(gram)
    inverse = (1 / noise) / np.sum(1 / noise)
    best = np.linalg.solve(gram + np.diag(noise), gram @ w)
    rounds = [one_round(x, cohort, layout, seed, inverse, best) for seed in range(trials)]
    figures = {}
    for name in WEIGHTINGS:
        errors = np.array([estimates[name] - true for estimates in rounds])
        square, mean = float(np.mean(np.sum(errors**2, 1))), errors.mean(0)
        # The mean of N errors holds bias² + variance/N; all of them hold bias² + variance.
        squared_bias = max(0.0, (trials * float(mean @ mean) - square) / (trials - 1))
        figures[name] = square / float(true @ true), float(np.sqrt(squared_bias / (true @ true)))
    return figures


def cost(size: int, repetitions: int = 15) -> tuple[float, float, float]:
    """Return how long a frame's decoding, its plain addition and its addition under shrinkage take, ns a coordinate."""
    layout = Layout.of([TensorSpec("w", (size,), Kind.WEIGHT)])
    x = np.random.default_rng(0).normal(size=size).astype(np.float32)
    stream = uplink(1, 1, "device")
    frames = [read_frame(data) for data in encode_update(layout, x, stream, "eden", 2.0)]
    decoded = [decode_delta(frame, stream, FedAvg().trust) for frame in frames]
    times: list[list[float]] = [[], [], []]
    sums = SegmentSums(layout, PLAIN), SegmentSums(layout, SHRINKAGE)
    for _ in range(repetitions):
        began = time.perf_counter()
        for frame in frames:
            decode_delta(frame, stream, FedAvg().trust)
        times[0].append(time.perf_counter() - began)
        for which, one in enumerate(sums, start=1):
            began = time.perf_counter()
            for frame, values in zip(frames, decoded, strict=True):
                one.add(frame.segment, values, 1.0, error_of(frame))
            times[which].append(time.perf_counter() - began)
    decoding, plain, shrunk = (1e9 * min(part) / size for part in times)
    return decoding, plain, shrunk


def captured(path: Path, count: int) -> Floats:
    """Return the weights of ``count`` updates that ``benchmarks.capture_updates`` wrote, float32 [count, d]."""
    with np.load(path) as file:
        parts = zip(file["segment_start"], file["segment_stop"], file["segment_kind"], strict=True)
        kept = [file["deltas"][:count, start:stop] for start, stop, kind in parts if str(kind) == "weight"]
    return np.concatenate(kept, axis=1).astype(np.float32)


def columns(cohort: Cohort, size: int, files: list[Path] | None) -> Iterator[tuple[str, Floats]]:
    """Yield (head, updates) of each column."""
    for path in files or ():
        x = captured(path, len(cohort.rates))
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        count = len(x)
        cosine = (float(np.sum(unit @ unit.T)) - count) / (count * (count - 1))
        yield f"{path.stem[-2:]}: {cosine:.2f}", x
    for cosine in () if files else COSINES:
        yield f"{cosine:g}", cohort.updates(cosine, size, 1)


def table(cohort: Cohort, rows: dict[str, dict[str, tuple[float, float]]]) -> None:
    """Print errors by weighting, then biases."""
    print(f"\n{cohort.name}\n{'':18}" + "".join(f"{head:>9}" for head in rows))
    for name in WEIGHTINGS:
        print(f"{name:18}" + "".join(f"{rows[head][name][0]:9.4f}" for head in rows))
    for name in ("plain", "shrinkage"):
        print(f"{'bias, ' + name:18}" + "".join(f"{rows[head][name][1]:9.3f}" for head in rows))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32_768, help="coordinates")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--updates", nargs="+", type=Path, metavar="FILE.npz", help="real updates")
    options = parser.parse_args()
    for cohort in cohorts():
        given = dict(columns(cohort, options.size, options.updates))
        table(cohort, {head: measure(cohort, x, options.trials) for head, x in given.items()})
    decoding, plain, shrunk = cost(1 << 20)
    print(f"\ncost of a frame at 2 bits, ns a coordinate: decode {decoding:.1f}, add plain {plain:.1f}, ", end="")
    print(f"add under shrinkage {shrunk:.1f} ({shrunk / plain:.1f}x); sums: 8 bytes a coordinate, and 24")


if __name__ == "__main__":
    main()
