"""How long M22 takes to design and encode, and to decode, beside fixed-rate EDEN of the same vector. One thread.

    python -m benchmarks.m22_speed [--size 1048576] [--seconds 2]

Milliseconds of processor time, the least and the median of the repetitions, all of a line in turn; "x EDEN" is M22's
over EDEN's encoding. The vector is drawn from a generalized normal law of shape 0.8. "auto" fits a law and looks levels
up, "empirical" takes them from the data.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from fedge.codecs import M22, Eden, native_status

BITS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
SHAPE = 0.8


def seconds(action: Callable[[], object]) -> float:
    """Return the processor time of one call on this thread."""
    begin = time.thread_time()
    action()
    return time.thread_time() - begin


def measure(x: np.ndarray, bits: float, budget_seconds: float) -> dict[str, list[float]]:
    """Return the times of everything that is measured at one rate, in seconds."""
    eden, auto, empirical = Eden(bits), M22(bits), M22(bits, family="empirical")
    data = auto.encode(x, 0)
    actions: dict[str, Callable[[], object]] = {
        "eden": lambda: eden.encode(x, 0),
        "auto": lambda: auto.encode(x, 0),
        "empirical": lambda: empirical.encode(x, 0),
        "decode": lambda: auto.decode(data, x.size, 0),
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    end = time.monotonic() + budget_seconds
    while time.monotonic() < end or len(times["eden"]) < 5:
        for name, action in actions.items():
            times[name].append(seconds(action))
    return times


def main() -> None:
    """Print a line for each rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1 << 20, help="coordinates")
    parser.add_argument("--seconds", type=float, default=2.0, help="per line")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    magnitudes = rng.gamma(1 / SHAPE, size=args.size) ** (1 / SHAPE)
    x = (magnitudes * rng.choice([-1.0, 1.0], args.size)).astype(np.float32)
    print(native_status())
    print(" bits     EDEN   M22 auto  x EDEN  empirical  x EDEN   decode  (medians)")
    for bits in BITS:
        times = measure(x, bits, args.seconds)
        least = {name: 1e3 * min(found) for name, found in times.items()}
        middle = {name: 1e3 * statistics.median(found) for name, found in times.items()}
        ratios = {name: least[name] / least["eden"] for name in ("auto", "empirical")}
        print(
            f"{bits:5g} {least['eden']:8.2f} {least['auto']:10.2f} {ratios['auto']:6.1f}x {least['empirical']:10.2f} "
            f"{ratios['empirical']:6.1f}x {least['decode']:8.2f}  "
            f"({middle['auto'] / middle['eden']:.1f}x, {middle['empirical'] / middle['eden']:.1f}x)"
        )


if __name__ == "__main__":
    main()
