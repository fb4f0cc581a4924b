"""All bytes of split training, both ways, and the accuracy they buy: FEMNIST's network cut at 9,216 activations.

    python -m benchmarks.split_end_to_end --data DIR [--seeds 0 1 2] [--steps 360] [--arms NAME ..] [--output DIR]

MNIST (``DIR/train-images-idx3-ubyte.gz`` and the other three files), 28 x 28: 20,000 pictures on 100 devices, class
priors Dirichlet(0.3), 2,000 to test. The network is that of ``split_gradients``: 18,816 parameters in front of the cut,
1.18 million behind it. A step is 5 devices with 20 examples each, learning rate 0.1; the arms are those of
``split_arms``:

    split        everything in float32, w_c down and its gradient up in every step
    FedLite L2   as published: q = 1152, R = 1, activations quantized; gradients and w_c in float32
    FedLite L8   the same with eight centroids
    ours         rounds of 3 steps; L = 8, warm codebooks, coded indices; gradients by EDEN at half a bit; w_c down by
                 rand-mcm at 2 bits (8 for a device's first), its delta up by EDEN at 1, FedDyn
    whole        FedDyn + EDEN (1 bit up) + rand-mcm (2 bits down) on devices that hold the whole model

All of an arm's bytes are counted for every device that takes part: activations, labels, gradients, what is shared, the
front half up and down, with the headers of messages and frames (not HTTP's). What is uncompressed has none. A device's
step is one batch on one device; arms are compared after as many of them. Accuracy is that of the unquantized whole
model, the mean of the last 5 of 20 evaluations (of the last quarter of the rounds in ``whole``).

Exits with 1 unless, over the seeds, ours has at least 60 times fewer bytes than split and is within 1 point of it. Runs
are kept in DIR/runs.json and not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from benchmarks.split_arms import Ours, Run, rounds_arm, split_arm, whole_arm
from benchmarks.split_gradients import SUBVECTORS, dealt
from fedge.algorithms import FedDyn
from fedge.split import Options, Start
from fedge.tasks.base import Dataset

EVALUATIONS, LAST = 20, 0.25
TIMES, POINTS = 60, 0.01
TARGETS = (0.90, 0.95)
STYLES = {"split": "k-", "FedLite L2": "C1--", "FedLite L8": "C0--", "ours": "C2-", "whole": "C3-"}

OURS = Ours(Options(SUBVECTORS, centroids=8, start=Start.WARM, gradient_bits=0.5), FedDyn(1.0), local_steps=3)
Arm = Callable[[Sequence[Dataset], Dataset, int, int], Run]


def _split(options: Options | None) -> Arm:
    return lambda devices, test, steps, seed: split_arm(devices, test, options, steps, steps // EVALUATIONS, seed)


ARMS: Mapping[str, tuple[str, Arm]] = {
    "split": ("float32", _split(None)),
    "FedLite L2": ("published", _split(Options.paper(SUBVECTORS, centroids=2))),
    "FedLite L8": ("published", _split(Options.paper(SUBVECTORS, centroids=8))),
    "ours": (
        repr(OURS),
        lambda devices, test, steps, seed: rounds_arm(devices, test, OURS, steps, steps // EVALUATIONS, seed),
    ),
    "whole": ("feddyn", whole_arm),
}


def kept(name: str, folder: Path, steps: int, seed: int, output: Path) -> Run:
    """Return a run, from ``output`` if it was done before."""
    settings, arm = ARMS[name]
    path, key = output / "runs.json", f"{name}, {settings}, {steps} steps, seed {seed}"
    runs = json.loads(path.read_text()) if path.exists() else {}
    if key not in runs:
        began = time.process_time()
        runs[key] = asdict(arm(*dealt(folder, seed), steps, seed))
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(runs))
        print(f"  {name}, seed {seed}: {time.process_time() - began:.0f} s of processor time", flush=True)
    return Run(**runs[key])


def final(run: Run) -> float:
    """Return the mean of the last evaluations."""
    return fmean(run.accuracies[-max(round(LAST * len(run.accuracies)), 1) :])


def bytes_to(run: Run, target: float) -> float | None:
    """Return all bytes until the accuracy was first ``target``."""
    return next((spent for spent, a in zip(run.spent, run.accuracies, strict=True) if a >= target), None)


def table(found: Mapping[str, list[Run]]) -> list[str]:
    """Return the tables, Markdown."""
    full = fmean(run.bytes_of_a_step for run in found["split"]) if "split" in found else float("nan")
    reach = " | ".join(f"MB to {target:.0%}" for target in TARGETS)
    out = [
        f"| arm | accuracy | each seed | bytes of a device's step | float32 over this | float16 over this | {reach} |",
        "| --- | ---: | --- | ---: | ---: | ---: |" + " ---: |" * len(TARGETS),
    ]
    for name, runs in found.items():
        size = fmean(run.bytes_of_a_step for run in runs)
        each = ", ".join(f"{final(run):.3f}" for run in runs)
        reached = [[bytes_to(run, target) for run in runs] for target in TARGETS]
        told = ["never" if None in row else _megabytes(fmean(filter(None, row))) for row in reached]
        cells = [name, f"{fmean(map(final, runs)):.4f}", each, f"{size:,.0f}", f"{full / size:.1f}"]
        out.append("| " + " | ".join([*cells, f"{full / 2 / size:.1f}", *told]) + " |")
    kinds = list(dict.fromkeys(kind for runs in found.values() for kind in runs[0].kinds))
    out += ["", "| bytes of a device's step | " + " | ".join(found) + " |", "| --- |" + " ---: |" * len(found)]
    for kind in kinds:
        means = [fmean(run.kinds.get(kind, 0.0) for run in runs) for runs in found.values()]
        out.append(f"| {kind} | " + " | ".join(f"{mean:,.0f}" if mean else "" for mean in means) + " |")
    return out


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f}" if size > 1e8 else f"{size / 1e6:.3g}"


def bounds(found: Mapping[str, list[Run]]) -> dict[str, bool]:
    """Return what was promised, and whether it holds."""
    if not {"split", "ours"} <= found.keys():
        return {}
    split, ours = found["split"], found["ours"]
    times = fmean(run.bytes_of_a_step for run in split) / fmean(run.bytes_of_a_step for run in ours)
    lost = fmean(map(final, split)) - fmean(map(final, ours))
    return {
        f"ours: {times:.1f} times fewer bytes than split, at least {TIMES}": times >= TIMES,
        f"ours: {100 * lost:+.2f} points below split, at most {100 * POINTS:g}": lost <= POINTS,
    }


def plot(found: Mapping[str, list[Run]], path: Path) -> None:
    """Draw accuracy over all bytes, the mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axis = figure.subplots()
    for name, runs in found.items():
        spent = np.mean([run.spent for run in runs], axis=0) / 1e6
        axis.plot(spent, np.mean([run.accuracies for run in runs], axis=0), STYLES[name], label=name, linewidth=1.5)
    axis.set(xscale="log", xlabel="MB, both ways, all devices", ylabel="accuracy on the test data", ylim=(0.4, 1.0))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    print(f"wrote {path}")


def main() -> int:
    """Run what is not there yet; print the tables and whether what was promised holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("reports/split"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps, output = arguments.steps, arguments.output
    found = {
        name: [kept(name, arguments.data, steps, seed, output) for seed in arguments.seeds] for name in arguments.arms
    }
    print("\n".join([f"{steps} steps of 5 devices, seeds {arguments.seeds}", "", *table(found)]))
    plot(found, output / "split_bytes.png")
    held = bounds(found)
    for name, holds in held.items():
        print(f"{'holds' if holds else 'FAILS':6} {name}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
