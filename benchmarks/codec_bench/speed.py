"""Time over size: encoding and decoding one vector, beside a memcpy of it and beside EDEN in plain torch, as quick as
it gets and as it was published.

Everything of a line is repeated in turn, so that a busy machine disturbs all of it alike. Processor time of one thread;
the least of the repetitions, and the median too. The NumPy twin needs a process in which the extension is turned off,
with a memcpy and yardsticks of its own: this module's command line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.codec_bench.configurations import CONFIGURATIONS
from benchmarks.codec_bench.torch_eden import TorchEden, hadamard_, published_hadamard_
from fedge.codecs import Codec, Identity, Vector, native_available
from fedge.codecs.native import kernels

SIZES = [1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24]
BITS = [0.5, 1.0, 2.0, 4.0, 8.0]
# A vector of 2^24 takes seconds in NumPy and in torch, and tells nothing that 2^20 did not.
LARGEST_SLOW = 1 << 20
ROOT = Path(__file__).parents[2]
YARDSTICKS = {"torch": hadamard_, "published": published_hadamard_}
NAMES = ("encode", "decode", "acc32", "acc64")
SETTLED_BYTES = (32 << 20) - 65_536
LEAST_REPETITIONS, BESIDE_TORCH = 3, 5


@dataclass(frozen=True)
class Times:
    """Nanoseconds per coordinate, which is milliseconds per million. ``acc32`` and ``acc64`` decode and add into a
    float32 and a float64 sum. ``torch_..`` and ``published_..`` are those of the two yardsticks."""

    copy: float
    encode: float
    decode: float
    acc32: float
    acc64: float
    torch_encode: float | None = None
    torch_decode: float | None = None
    published_encode: float | None = None
    published_decode: float | None = None

    def over_copy(self, name: str) -> float:
        """How many times a memcpy ``name`` takes."""
        return float(getattr(self, name)) / self.copy

    def over(self, yardstick: str, name: str) -> float | None:
        """How many times longer than ``name`` one of ``YARDSTICKS`` takes, where it was measured."""
        time = getattr(self, f"{yardstick}_{name}")
        return None if time is None else time / float(getattr(self, name))


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    implementation: str
    codec: str
    bits: float
    size: int
    repetitions: int
    least: Times
    median: Times

    def to_json(self) -> dict[str, object]:
        """Return the row with its ratios."""
        ratios: dict[str, dict[str, float | None]] = {}
        for kind, times in (("least", self.least), ("median", self.median)):
            ratios[f"{kind}_over_copy"] = {name: times.over_copy(name) for name in NAMES}
            for yardstick in YARDSTICKS:
                over = {name: times.over(yardstick, name) for name in ("encode", "decode")}
                ratios[f"{kind}_{yardstick}_over"] = over
        return {**asdict(self), **ratios}

    @classmethod
    def from_json(cls, row: dict[str, object]) -> Row:
        """Return the row that ``to_json`` described."""
        known = {name: row[name] for name in ("implementation", "codec", "bits", "size", "repetitions")}
        return cls(**known, least=Times(**row["least"]), median=Times(**row["median"]))  # type: ignore[arg-type]


def vector(size: int) -> Vector:
    """A log-normal vector with random signs, float32."""
    rng = np.random.default_rng(0)
    x: Vector = (rng.lognormal(size=size) * rng.choice([-1.0, 1.0], size)).astype(np.float32)
    return x


def seconds(action: Callable[[], object]) -> float:
    """Processor time of one call on this thread: neighbours on a busy machine do not count, page faults do."""
    begin = time.thread_time()
    action()
    return time.thread_time() - begin


def beside(name: str, eden: TorchEden, x: torch.Tensor) -> dict[str, Callable[[int], object]]:
    """Return what is measured of the yardstick ``name``."""
    encoded = eden.encode(x, 0)
    return {
        f"{name}_encode": lambda seed: eden.encode(x, seed),
        f"{name}_decode": lambda seed: eden.decode(encoded, len(x), 0),
    }


def measure(label: str, codec: Codec, x: Vector, implementation: str, budget_seconds: float) -> Row:
    """Measure one codec on one vector for about ``budget_seconds``, at least three times."""
    size, out, sum32, sum64 = x.size, np.empty_like(x), np.zeros_like(x), np.zeros(x.size)
    data = codec.encode(x, seed=0)
    actions: dict[str, Callable[[int], object]] = {
        "copy": lambda seed: np.copyto(out, x),
        "encode": lambda seed: codec.encode(x, seed),
        "decode": lambda seed: codec.decode(data, size, 0),
        "acc32": lambda seed: codec.accumulate(data, size, 0, 1.0, sum32),
        "acc64": lambda seed: codec.accumulate(data, size, 0, 1.0, sum64),
    }
    slow: dict[str, Callable[[int], object]] = {}
    if size <= LARGEST_SLOW and codec.bits in range(1, 9):
        for name, hadamard in YARDSTICKS.items():
            slow |= beside(name, TorchEden(int(codec.bits), hadamard), torch.from_numpy(x))
    times: dict[str, list[float]] = {name: [] for name in (*actions, *slow)}
    end, seed = time.perf_counter() + budget_seconds, 0
    while seed < LEAST_REPETITIONS or time.perf_counter() < end:
        for _ in range(BESIDE_TORCH if slow else 1):  # torch alone would leave too few repetitions
            for name, action in actions.items():
                times[name].append(seconds(partial(action, seed)))
        for name, action in slow.items():
            times[name].append(seconds(partial(action, seed)))
        seed += 1
    ns = 1e9 / size
    least = Times(**{name: ns * min(values) for name, values in times.items()})
    median = Times(**{name: ns * statistics.median(values) for name, values in times.items()})
    return Row(implementation, label, codec.bits, size, len(times["copy"]), least, median)


HEADER = (
    f"{'made by':9} {'codec':13} {'bits':>5} {'size':>10} {'copy':>6}"
    f" {'encode':>8} {'/copy':>7} {'torch/':>7} {'published/':>10}"
    f" {'decode':>8} {'/copy':>7} {'torch/':>7} {'published/':>10}"
    f" {'acc32':>7} {'/copy':>7} {'acc64':>7} {'/copy':>7}"
)


def show(row: Row) -> str:
    """Return the row as one line of the table, nanoseconds per coordinate and ratios."""
    least = row.least
    cells = [f"{row.implementation:9} {row.codec:13} {row.bits:5g} {row.size:>10,} {least.copy:6.2f}"]
    for name in ("encode", "decode"):
        cells.append(f"{getattr(least, name):8.2f} {least.over_copy(name):6.1f}x")
        for yardstick, width in (("torch", 7), ("published", 10)):
            over = least.over(yardstick, name)
            cells.append(f"{'' if over is None else f'{over:.1f}x':>{width}}")
    cells += [f"{getattr(least, name):7.2f} {least.over_copy(name):6.1f}x" for name in ("acc32", "acc64")]
    return " ".join(cells)


def settle_allocator() -> None:
    """Free a large buffer once, so that vectors up to it are no longer fresh pages each time.

    glibc raises the size from which it maps memory anew to the largest such buffer freed so far, 32 MiB at most: what
    came first in the table would pay for its page faults, and what came later would not.
    """
    np.ones(SETTLED_BYTES, np.uint8)


def run(sizes: Sequence[int], bits: Sequence[float], budget_seconds: float) -> list[Row]:
    """Measure and print every combination with the implementation that this process has loaded."""
    torch.set_num_threads(1)
    settle_allocator()
    implementation = kernels.isa() if native_available() else "numpy"
    rows = []
    for size in sizes:
        if size > LARGEST_SLOW and not native_available():
            continue
        x = vector(size)
        codecs = [("identity", Identity()), *((c.label, c.codec(rate)) for c in CONFIGURATIONS for rate in bits)]
        for label, codec in codecs:
            rows.append(measure(label, codec, x, implementation, budget_seconds))
            print(show(rows[-1]), flush=True)
    return rows


def run_every(
    isas: Sequence[str], twin: bool, sizes: Sequence[int], bits: Sequence[float], budget_seconds: float
) -> list[Row]:
    """Measure each of ``isas`` that this CPU has, then the NumPy twin if wanted."""
    print(HEADER)
    if not native_available():
        return run(sizes, bits, budget_seconds)
    rows, best = [], kernels.isa()
    try:
        for isa in isas:
            if kernels.use_isa(isa):
                rows += run(sizes, bits, budget_seconds)
            else:
                print(f"{isa:9} not on this machine")
    finally:
        kernels.use_isa(best)
    return rows + (run_twin(sizes, bits, budget_seconds) if twin else [])


def run_twin(sizes: Sequence[int], bits: Sequence[float], budget_seconds: float) -> list[Row]:
    """Measure the NumPy twin in a process of its own, where the extension is turned off."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.codec_bench.speed", "--rows", str(file)]
        command += ["--seconds", str(budget_seconds), "--sizes", *map(str, sizes), "--bits", *map(str, bits)]
        subprocess.run(command, env={**os.environ, "FEDGE_NO_NATIVE": "1"}, cwd=ROOT, check=True)
        return [Row.from_json(row) for row in json.loads(file.read_text())]


def main() -> None:
    """Measure what this process has loaded and write the rows to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--bits", type=float, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="JSON")
    args = parser.parse_args()
    rows = run(args.sizes, args.bits, args.seconds)
    args.rows.write_text(json.dumps([row.to_json() for row in rows]))


if __name__ == "__main__":
    main()
