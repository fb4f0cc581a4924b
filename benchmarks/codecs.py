"""What the codecs cost: bits on the wire, error, and time against a memcpy of the same vector. One thread.

    python -m benchmarks.codecs                          # the table of docs/codecs.md, about two minutes
    python -m benchmarks.codecs --sizes 65536 --bits 1 4 --json codecs.json

Columns: ``wire`` is bits per coordinate with side information and one 20-byte frame header per 65,536 coordinates;
``vNMSE`` is ||x_hat - x||²/||x||², mean over seeds, x log-normal with random signs; ``enc`` and ``dec`` are times per
million coordinates in milliseconds (smallest of the repetitions) and, after it, their ratio to ``np.copyto`` into
a buffer that exists. ``acc32`` and ``acc64`` decode and add into a float32 and a float64 sum. All are repeated in turn,
so that a busy machine disturbs them alike; the median ratio is in the JSON. Every instruction set that this CPU has and
``--kernels`` names is measured, then the NumPy twin unless ``--no-twin`` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fedge.codecs import Codec, Eden, Identity, Vector, native_available, native_status
from fedge.codecs.native import kernels

SIZES = [1 << 16, 1 << 20, 1 << 24]
BITS = [0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 8.0]
KERNELS = ["avx512", "avx2"] if platform.machine() == "x86_64" else ["baseline"]
FRAME_BYTES, FRAME_COORDINATES = 20, 65_536


@dataclass(frozen=True)
class Row:
    """One line of the table. Times are nanoseconds per coordinate, which is milliseconds per million."""

    implementation: str
    codec: str
    bits: float
    size: int
    wire_bits: float
    vnmse: float
    copy_ns: float
    encode_ns: float
    decode_ns: float
    acc32_ns: float
    acc64_ns: float
    encode_ratio: float
    decode_ratio: float
    acc32_ratio: float
    acc64_ratio: float
    encode_ratio_median: float
    decode_ratio_median: float
    acc32_ratio_median: float
    acc64_ratio_median: float


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


def measure(codec: Codec, x: Vector, implementation: str, budget_seconds: float) -> Row:
    """Measure one codec on one vector for about ``budget_seconds``, at least three times."""
    size, out, sum32, sum64 = x.size, np.empty_like(x), np.zeros_like(x), np.zeros(x.size)
    data = codec.encode(x, seed=0)
    norm = float(np.sum(x.astype(np.float64) ** 2))
    errors: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in ("copy", "encode", "decode", "acc32", "acc64")}
    end, seed = time.perf_counter() + budget_seconds, 0
    while seed < 3 or time.perf_counter() < end:
        times["copy"].append(seconds(partial(np.copyto, out, x)))
        times["encode"].append(seconds(partial(codec.encode, x, seed)))
        times["decode"].append(seconds(partial(codec.decode, data, size, 0)))
        times["acc32"].append(seconds(partial(codec.accumulate, data, size, 0, 1.0, sum32)))
        times["acc64"].append(seconds(partial(codec.accumulate, data, size, 0, 1.0, sum64)))
        if seed < (20 if size < 1 << 23 else 2):
            x_hat = codec.decode(codec.encode(x, seed), size, seed)
            errors.append(float(np.sum((x_hat.astype(np.float64) - x) ** 2)) / norm)
        seed += 1
    frames = -(-size // FRAME_COORDINATES)
    least = {name: min(values) for name, values in times.items()}
    middle = {name: statistics.median(values) for name, values in times.items()}
    names = ("encode", "decode", "acc32", "acc64")
    return Row(
        implementation=implementation,
        codec=codec.name,
        bits=codec.bits,
        size=size,
        wire_bits=8 * (len(data) + frames * FRAME_BYTES) / size,
        vnmse=statistics.fmean(errors),
        **{f"{name}_ns": least[name] * 1e9 / size for name in ("copy", *names)},
        **{f"{name}_ratio": least[name] / least["copy"] for name in names},
        **{f"{name}_ratio_median": middle[name] / middle["copy"] for name in names},
    )


def show(row: Row) -> str:
    """Return the row as one line of the table."""
    return (
        f"{row.implementation:9} {row.codec:9} {row.bits:5g} {row.size:>10,} {row.wire_bits:8.4f} {row.vnmse:10.4g}"
        f" {row.copy_ns:6.2f} {row.encode_ns:8.2f} {row.encode_ratio:6.2f}x"
        f" {row.decode_ns:8.2f} {row.decode_ratio:6.2f}x {row.acc32_ns:7.2f} {row.acc32_ratio:6.2f}x"
        f" {row.acc64_ns:7.2f} {row.acc64_ratio:6.2f}x"
    )


def run(sizes: list[int], bits: list[float], budget_seconds: float) -> list[Row]:
    """Measure and print every combination with the implementation that this process has loaded."""
    implementation = kernels.isa() if native_available() else "numpy"
    rows = []
    for size in sizes:
        x = vector(size)
        codecs: list[Codec] = [Identity(), *(Eden(rate) for rate in bits)]
        for codec in codecs:
            rows.append(measure(codec, x, implementation, budget_seconds))
            print(show(rows[-1]), flush=True)
    return rows


def run_twin(args: argparse.Namespace) -> list[Row]:
    """Measure the NumPy twin in a process of its own, where the extension is turned off."""
    command = [sys.executable, "-m", "benchmarks.codecs", "--json", "-", "--seconds", str(args.seconds)]
    command += ["--sizes", *map(str, args.sizes), "--bits", *map(str, args.bits)]
    done = subprocess.run(
        command, env={**os.environ, "FEDGE_NO_NATIVE": "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    table, _, report = done.stdout.partition("\n{")
    print(table.split("ratio\n", 1)[-1])
    return [Row(**row) for row in json.loads("{" + report)["rows"]]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="coordinates")
    parser.add_argument("--bits", type=float, nargs="+", default=BITS, help="bits per coordinate")
    parser.add_argument("--seconds", type=float, default=1.0, help="per line")
    parser.add_argument("--kernels", nargs="+", default=KERNELS, help="instruction sets")
    parser.add_argument("--no-twin", action="store_true", help="leave the NumPy twin out")
    parser.add_argument("--json", metavar="FILE", help="write every figure to FILE, '-' for standard output")
    args = parser.parse_args()
    print(f"{native_status()} {platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    print(
        "made by   codec      bits       size     wire      vNMSE   copy      enc   ratio      dec   ratio"
        "   acc32   ratio   acc64   ratio"
    )
    if native_available():
        rows = []
        for isa in args.kernels:
            if kernels.use_isa(isa):
                rows += run(args.sizes, args.bits, args.seconds)
        if not args.no_twin:
            rows += run_twin(args)
    else:
        rows = run(args.sizes, args.bits, args.seconds)
    if args.json:
        report = json.dumps({"status": native_status(), "rows": [asdict(row) for row in rows]}, indent=1)
        if args.json == "-":
            print(report)
        else:
            Path(args.json).write_text(report + "\n")


if __name__ == "__main__":
    main()
