"""What the codecs cost: error over the bits that travel, and time over size, as tables, plots and JSON. One thread.

    fedge bench codecs                                  # one to three minutes
    fedge bench codecs --quick --updates DIR --out DIR  # DIR: what benchmarks.capture_updates wrote

Error: vNMSE = ||x_hat - x||²/||x||² over the bits per weight that travel in frames, headers and all, on Gaussian,
log-normal, heavy-tailed and sparse vectors and on real updates, beside the rate-distortion floor 1/(4^b - 1) and beside
EDEN with one scale and one rate for the whole vector ("gain": its error over ours at the same number of bytes; without
padding, and after the slash padded to a power of two). Of real updates only the weights count: biases and the like
travel as float32, and a table says how much that is. Without ``--updates``, updates of wisdm are captured on the spot,
whose data is shipped; for all three tasks:

    python -m benchmarks.capture_updates --out DIR --data DIR

Updates are encoded as devices do it, which looks for low rank and directions; times are of one vector, for which
neither is looked for. Time: ns per coordinate, which is milliseconds per million, least of the repetitions, and as
ratio to ``np.copyto`` into a buffer that exists ("/copy") and to EDEN as one would write it in torch ("torch/": how
many times longer that takes, ``codec_bench/torch_eden.py``; "published/": the same with the Hadamard transform as
EDEN's authors published it, which is slower), on a log-normal vector with random signs. All of a line is repeated in
turn. Every instruction set that this CPU has and ``--kernels`` names is measured, then the NumPy twin; that and torch
up to 2^20.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from benchmarks.codec_bench import error, plots, speed, tables
from benchmarks.codec_bench.configurations import CONFIGURATIONS
from benchmarks.codec_bench.inputs import SHIPPED, Input, capture_shipped, captured, drawn
from fedge.codecs import native_status

KERNELS = ["avx512", "avx2"] if platform.machine() == "x86_64" else ["baseline"]
QUICK_SIZES, QUICK_BITS, QUICK_SECONDS = [1 << 16, 1 << 20], [0.25, 1.0, 2.0, 4.0], 0.2
LARGEST_DRAWN = 1 << 20


def arguments() -> argparse.Namespace:
    """Parse the command line; ``--quick`` only changes what is not named."""
    parser = argparse.ArgumentParser(
        prog="fedge bench codecs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rates, a fifth of a second per line")
    parser.add_argument("--updates", type=Path, metavar="DIR", help="real updates, of benchmarks.capture_updates")
    parser.add_argument("--out", type=Path, metavar="DIR", help="plots and JSON  [default: reports/codecs-TIME]")
    parser.add_argument("--sizes", type=int, nargs="+", help="coordinates of the vectors that are timed")
    parser.add_argument("--bits", type=float, nargs="+", help="bits per coordinate, for error and time")
    parser.add_argument("--seconds", type=float, help="per line of the table of times  [default: 0.5]")
    parser.add_argument("--kernels", nargs="+", default=KERNELS, help="instruction sets")
    parser.add_argument("--no-twin", action="store_true", help="leave the NumPy twin out")
    args = parser.parse_args()
    args.sizes = sorted(set(args.sizes or (QUICK_SIZES if args.quick else speed.SIZES)))
    args.error_bits = sorted(set(args.bits or (QUICK_BITS if args.quick else error.BITS)))
    args.speed_bits = sorted(set(args.bits or (QUICK_BITS if args.quick else speed.BITS)))
    args.seconds = args.seconds or (QUICK_SECONDS if args.quick else 0.5)
    args.out = args.out or Path("reports") / f"codecs-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    if args.sizes[0] < 1:
        parser.error(f"argument --sizes: expected sizes from 1, got {args.sizes[0]}")
    try:
        args.real = captured(args.updates) if args.updates else None
    except (OSError, ValueError) as refused:
        parser.error(f"argument --updates: {refused}")
    return args


def real_updates(args: argparse.Namespace) -> list[Input]:
    """Return the updates that were named, or capture those that need no data."""
    if args.real is not None:
        real: list[Input] = args.real
        return real
    print(f"No --updates: capturing some of {SHIPPED}; for all tasks see python -m benchmarks.capture_updates --help")
    print("Its rounds (updates, loss, accuracy, seconds):")
    return capture_shipped(args.out / "updates")


def cpu() -> str:
    """Return the processor's name as the system knows it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _with_ratios(point: error.Point) -> dict[str, object]:
    ratios = {"gain": point.gain, "gain_over_padded": point.gain_over_padded, "over_floor": point.over_floor}
    return {**asdict(point), **ratios}


def main() -> None:
    """Measure, print, and write what was found."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    machine = {
        "cpu": cpu(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "codecs": native_status(),
    }
    print("; ".join(f"{name} {what}" if name != "codecs" else what for name, what in machine.items()))
    real = real_updates(args)
    inputs = [*drawn(min(args.sizes[-1], LARGEST_DRAWN)), *real]
    points = error.run(CONFIGURATIONS, inputs, args.error_bits)
    print(f"\n{tables.error_table(points)}\n\n{tables.gain_table(points)}\n\n{tables.raw_table(real)}\n", flush=True)
    rows = speed.run_every(args.kernels, not args.no_twin, args.sizes, args.speed_bits, args.seconds)
    report = {
        "machine": machine,
        "error": [_with_ratios(point) for point in points],
        "time": [row.to_json() for row in rows],
    }
    (args.out / "codecs.json").write_text(json.dumps(report, indent=1) + "\n")
    plots.error_over_bits(points, args.out / "error_over_bits.png")
    plots.gain_on_real_updates(points, args.out / "gain_on_real_updates.png")
    if rows:
        plots.time_over_size(rows, args.out / "time_over_size.png")
    print(f"\nPlots and codecs.json are in {args.out.resolve()}")


if __name__ == "__main__":
    main()
