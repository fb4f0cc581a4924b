"""What each method of ``per_bit_accuracy`` loses of the same updates at the same bytes: ‖x̂ - x‖²/‖x‖² of the weights.

    python -m benchmarks.per_bit_distortion --data DIR [--seeds 1] [--rounds 1 5 10] [--bits 0.1 0.3 1 2]

The updates are those of the first two devices in the given rounds of an uncompressed run. Accuracy needs many seeds to
tell methods apart; this does not. M22's column is its error, the others are multiples of it, geometric means with the
least and the largest in brackets where they differ by more than 2 %.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.per_bit_runs import METHODS, ROUNDS, Case, federation_of, send
from benchmarks.sparse_baselines import baselines
from fedge.algorithms.local import Optimizer
from fedge.layout import Kind, Layout, Vector
from fedge.tasks.sources import VARIABLE
from fedge.update import FLOAT32_BITS, uplink

SHOWN = [name for name in METHODS if name not in ("none", "sketch", "m22-projection", "m22-M2-designed", "m22-M4to0")]


def updates(case: Case, rounds: list[int]) -> Iterator[tuple[int, int, Vector]]:
    """Yield round (from 1), device and delta ``[d]`` of the first two devices along an uncompressed run."""
    federation = federation_of(case)
    params = federation.initial
    for t in range(max(rounds)):
        deltas = federation.deltas(params, t)
        if t + 1 in rounds:
            yield from ((t + 1, k, deltas[k]) for k in sorted(deltas)[:2])
        params = params + np.mean(list(deltas.values()), axis=0, dtype=np.float32)


def error(layout: Layout, x: Vector, x_hat: Vector) -> float:
    """Return the relative squared error of the weights."""
    weights = slice(0, sum(segment.size for segment in layout.segments if segment.kind is Kind.WEIGHT))
    exact = x[weights].astype(np.float64)
    return float(np.square(x_hat[weights] - exact).sum() / np.square(exact).sum())


def main() -> None:
    """Parse the command line, measure, print a row for each kind of update and rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"the data sets; otherwise {VARIABLE}")
    parser.add_argument("--seeds", type=int, default=1, metavar="N")
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 5, ROUNDS])
    parser.add_argument("--bits", type=float, nargs="+", default=[0.1, 0.3, 1.0, 2.0])
    options = parser.parse_args()
    if options.data is not None:
        os.environ[VARIABLE] = str(options.data)
    torch.set_num_threads(1)
    others = [name for name in SHOWN if name != "m22"]
    print("| optimizer | devices | bits a weight | m22 | " + " | ".join(others) + " |")
    print("| --- | ---: | ---: | ---: |" + " ---: |" * len(others))
    for optimizer, n in product(get_args(Optimizer), (2, 10)):
        found: dict[tuple[float, str], list[float]] = defaultdict(list)
        for seed in range(options.seeds):
            place = Case(n, optimizer, "none", False, FLOAT32_BITS, seed)
            layout, coders = federation_of(place).layout, baselines(federation_of(place).cuts)
            for t, k, delta in updates(place, options.rounds):
                for bits, name in product(options.bits, SHOWN):
                    case = Case(n, place.optimizer, name, False, bits, seed)
                    x_hat, _ = send(case, layout, delta, uplink(seed, t, str(k)), t, coders.get(name))
                    found[bits, name].append(error(layout, delta, x_hat))
        for bits in options.bits:
            ours = found[bits, "m22"]
            cells = [_multiple(np.array(found[bits, name]) / ours) for name in others]
            print(f"| {optimizer} | {n} | {bits:g} | {np.mean(ours):.3f} | " + " | ".join(cells) + " |", flush=True)


def _multiple(ratios: npt.NDArray[np.float64]) -> str:
    spread = f" ({ratios.min():.2f}..{ratios.max():.2f})" if ratios.max() > 1.02 * ratios.min() else ""
    return f"{np.exp(np.log(ratios).mean()):.2f}{spread}"


if __name__ == "__main__":
    main()
