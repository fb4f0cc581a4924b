"""MCM against the methods that it competes with, on the reference's problem and against the reference's numbers.

    python -m benchmarks.mcm_reference [--rounds 20000] [--seeds 10] [--output reports/mcm]

Least squares on 20 devices, one sample a device and round, one-level quantization both ways, γ_k = 1/(L√k) and then
0.05/L (``tests/support/mcm_lab.py``; MCM and Rand-MCM step through ``fedge.downlink.mcm.advance``). The reference
(``tests/data/mcm/mcm_reference.json``) is an independent implementation's, on the same problem with other draws of the
samples. The table has log10(F(w) - F*) of the server's model, mean over the last tenth of the rounds, the
reference's beside it, all bits both ways, and the bits to reach 10^-2.8. Then what must fail: α = 0 and, as ω > 1 here,
α = 1; and, with a tenth of the devices a round, compressing against the mean of the memories. Last, logistic regression
without noise at three steps (``tests/support/mcm_logistic.py``), where ω = 8 wants a smaller step.

Exits with 1 unless the reference's bounds hold:

    |MCM - Diana|, |Rand-MCM - Diana|  < 0.15       uplink-only's level
    Artemis - Diana in [0.4, 0.8],  SGD - Diana in [-0.8, -0.4]
    bits: MCM = Artemis = Diana/4.9 = SGD/8.8; to 10^-2.8, Diana/MCM at least 4
    what must fail ends 0.15 above what it is compared with, or more
    logistic: at γL = 1 Diana converges, Rand-MCM stalls and MCM and Artemis do not; at 1/16 all converge

Two plots, ``iterations.png`` and ``bits.png``: ours as lines, the reference's as marks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codec_bench.plots import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from tests.support.mcm_lab import METHODS, Curve, Down, Lab, LeastSquares, least_squares
from tests.support.mcm_logistic import SMOOTHNESS, logistic

REFERENCE = Path(__file__).parents[1] / "tests/data/mcm/mcm_reference.json"
STYLES = {
    "sgd": (GREEN, "-", "o"),
    "diana": (BLUE, "--", "s"),
    "artemis": (VERMILION, "-.", "^"),
    "mcm": (PURPLE, "-", "D"),
    "rmcm": (ORANGE, ":", "v"),
}
LEVEL = -2.8
FAILING = {
    "mcm, alpha 0": ("mcm", {"alpha": 0.0}, {}),
    "mcm, alpha 1": ("mcm", {"alpha": 1.0}, {}),
    "rmcm, alpha 0, p 0.1": ("rmcm", {"alpha": 0.0, "participation": 0.1}, {"participation": 0.1}),
    "rmcm, one mean memory, p 0.1": (
        "rmcm",
        {"down": Down.MEMORY_MEAN, "participation": 0.1},
        {"participation": 0.1},
    ),
}
"""Name: the method, what is wrong with it, and what it is compared with."""


def curves(problem: LeastSquares, rounds: int, seeds: int, decreasing: bool) -> dict[str, Curve]:
    """Run every method."""
    step = (1.0 if decreasing else 0.05) / problem.smoothness
    return {name: Lab(problem, method, seeds).run(rounds, step, decreasing) for name, method in METHODS.items()}


def bounds(found: Mapping[str, Curve]) -> dict[str, bool]:
    """Return the reference's bounds on levels and bits, and whether they hold."""
    off = {name: curve.tail - found["diana"].tail for name, curve in found.items()}
    bits = {name: curve.bits_per_round / found["mcm"].bits_per_round for name, curve in found.items()}
    return {
        "|mcm - diana| < 0.15": abs(off["mcm"]) < 0.15,
        "|rmcm - diana| < 0.15": abs(off["rmcm"]) < 0.15,
        "artemis - diana in [0.4, 0.8]": 0.4 <= off["artemis"] <= 0.8,
        "sgd - diana in [-0.8, -0.4]": -0.8 <= off["sgd"] <= -0.4,
        "bits: mcm = artemis = diana / 4.9 = sgd / 8.8": bool(
            np.allclose([bits[name] for name in METHODS], [8.8, 4.9, 1, 1, 1], atol=0.05)
        ),
    }


def saving(found: Mapping[str, Curve]) -> float:
    """Return how many times the bits of MCM uplink-only compression needs to 10^-2.8."""
    return found["diana"].bits_to(LEVEL) / found["mcm"].bits_to(LEVEL)


def show(title: str, found: Mapping[str, Curve], reference: Mapping[str, Any]) -> None:
    print(f"\n{title:28} {'tail':>7} {'reference':>10} {'bits a round':>13} {'bits to 10^-2.8':>16}")
    for name, curve in found.items():
        level, bits = reference[name]["tail_log10"], curve.bits_to(LEVEL)
        print(f"{name:28} {curve.tail:7.2f} {level:10.2f} {curve.bits_per_round:13.0f} {bits:16.2e}")


def failing(problem: LeastSquares, rounds: int, seeds: int) -> dict[str, bool]:
    """Run what must fail beside what it is compared with."""
    print(f"\n{'what must fail':28} {'tail':>7} {'right':>7}")
    held = {}
    for name, (method, wrong, right) in FAILING.items():
        ways = (replace(METHODS[method], **changes) for changes in (wrong, right))
        with np.errstate(all="ignore"):  # some leave float64
            tails = [Lab(problem, way, seeds).run(rounds, 0.5 / problem.smoothness).tail for way in ways]
        print(f"{name:28} {tails[0]:7.2f} {tails[1]:7.2f}", flush=True)
        held[name] = not tails[0] < tails[1] + 0.15
    return held


def steps(rounds: int) -> dict[str, bool]:
    """Run the noiseless problem at γL = 1, 1/4, 1/16."""
    problem, found = logistic(), {}
    print(f"\n{'logistic, γL':12} " + " ".join(f"{name:>8}" for name in METHODS))
    for inverse in (1, 4, 16):
        with np.errstate(all="ignore"):
            tails = {
                name: Lab(problem, method, seeds=2).run(rounds, 1 / (inverse * SMOOTHNESS), decreasing=False).tail
                for name, method in METHODS.items()
            }
        print(f"1/{inverse:<10} " + " ".join(f"{tail:8.2f}" for tail in tails.values()), flush=True)
        found[inverse] = tails
    largest = found[1]
    stalls = largest["diana"] < -20 and not largest["mcm"] < -0.5 and -5 < largest["rmcm"] < -0.5
    return {
        "logistic, γL = 1: diana converges, rmcm stalls, mcm does not": stalls,
        "logistic, γL = 1/16: all converge": max(found[16].values()) < -12,
    }


def plot(found: Mapping[str, Curve], reference: Mapping[str, Any], over: str, path: Path) -> None:
    """Write one plot, over ``"iterations"`` or over ``"bits"``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for name, curve in found.items():
        k = np.unique(np.geomspace(1, curve.excess.shape[1], 300).astype(int))
        x = k if over == "iterations" else k * curve.bits_per_round
        smooth = [curve.log10[max(0, i - i // 20 - 1) : i].mean() for i in k]
        colour, line, marker = STYLES[name]
        axis.plot(x, smooth, color=colour, linestyle=line, label=name, linewidth=1.6)
        theirs = reference[name]
        x, y = theirs["k" if over == "iterations" else "bits"], theirs["log10_excess"]
        axis.plot(x, y, color=colour, linestyle="none", marker=marker, markersize=3.5)
    axis.set(xscale="log", xlabel=over, ylabel="log10(F(w) - F*)")
    axis.grid(alpha=0.3)
    axis.legend(title="ours: lines; reference: marks", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
    print(f"wrote {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("reports/mcm"))
    options = parser.parse_args()
    reference = json.loads(REFERENCE.read_text())["curves"]
    problem = least_squares()
    print(f"L {problem.smoothness:.12f}, F* {problem.least:.12f}, {options.rounds} rounds, {options.seeds} seeds")
    decreasing = curves(problem, options.rounds, options.seeds, decreasing=True)
    show("step 1/(L sqrt k)", decreasing, reference["lsr_decreasing"])
    constant = curves(problem, options.rounds, options.seeds, decreasing=False)
    show("step 0.05/L", constant, reference["lsr_constant"])
    held = bounds(decreasing)
    held[f"bits to 10^-2.8: diana / mcm = {saving(decreasing):.1f} >= 4"] = saving(decreasing) >= 4
    held |= failing(problem, options.rounds // 4, options.seeds)
    held |= steps(rounds=1500)
    print()
    for over in ("iterations", "bits"):
        plot(decreasing, reference["lsr_decreasing"], over, options.output / f"{over}.png")
    for name, holds in held.items():
        print(f"{'holds' if holds else 'FAILS':6} {name}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
