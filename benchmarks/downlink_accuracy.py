"""Bytes in both directions to an accuracy: the modes of the downlink, on Fashion-MNIST's network with 20 devices.

    python -m benchmarks.downlink_accuracy --data DIR --out DIR [--seeds 3] [--rounds 30] [--methods ..] [--tables]

Twenty devices have about 1,000 pictures each, class priors from Dirichlet(0.5); ten of them, drawn anew, take part in a
round: one epoch in batches of 20, learning rate 0.05 · 0.99^t, FedDyn. Accuracy is the published model's on all 10,000
test pictures. Everything is fedge as it runs in the field, by ``fedge.simulation``; bytes are those of frames and of
messages, with all their headers, without HTTP. The first downloads, of the whole model, count as all others do.

Runs are lines of ``OUT/runs.jsonl``, written as they finish; a run that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from fedge.simulation import Simulation, World
from fedge.simulation.training import TaskTrainer
from fedge.tasks.fashion_mnist import task
from fedge.tasks.sources import FASHION_MNIST, VARIABLE, folder_of
from schemas.base import parse
from schemas.plan import Plan
from schemas.status import RoundStatus

DEVICES, COHORT, PARTS = 20, 10, 60
TARGET = 0.85
FLOAT32: Mapping[str, Any] = {"codec": "none"}
METHODS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "float32": (FLOAT32, FLOAT32),
    "uplink-only": ({"bits": 1.0}, FLOAT32),
    "rand-mcm-2": ({"bits": 1.0}, {"mode": "rand-mcm", "bits": 2.0}),
    "rand-mcm-1": ({"bits": 1.0}, {"mode": "rand-mcm", "bits": 1.0}),
    "mcm-2": ({"bits": 1.0}, {"mode": "mcm", "bits": 2.0}),
    "snapshot-4": ({"bits": 1.0}, {"mode": "snapshot", "bits": 4.0}),
    "snapshot-2": ({"bits": 1.0}, {"mode": "snapshot", "bits": 2.0}),
    "half": ({"bits": 0.5}, {"mode": "rand-mcm", "bits": 1.0}),
}
MAIN = ("float32", "uplink-only", "rand-mcm-2")


def plan(method: str, rounds: int, seed: int) -> Plan:
    """Return the plan of one run."""
    up, down = METHODS[method]
    document = {
        "task": "fedge.tasks.fashion_mnist:task",
        "rounds": rounds,
        "seed": seed,
        "cohort": {"devices": COHORT, "updates": {"min": COHORT, "max": COHORT}, "seconds": {"min": 0, "max": 1e6}},
        "algorithm": {"name": "feddyn", "alpha": 0.1},
        "local": {"epochs": 1, "batch_size": 20, "learning_rate": 0.05, "learning_rate_decay": 0.99},
        "uplink": dict(up),
        "downlink": dict(down),
    }
    return parse(Plan, document, "plan")


def trainer(seed: int) -> TaskTrainer:
    """Return the twenty devices with their pictures."""
    folder = str(folder_of(FASHION_MNIST, {}).absolute())
    deal = {"folder": folder, "partition": "dirichlet", "beta": 0.5, "devices": PARTS, "seed": seed}
    return TaskTrainer(task, {f"d{k:02d}": {**deal, "device": k} for k in range(DEVICES)})


def run(method: str, rounds: int, seed: int) -> dict[str, Any]:
    """Run once; return the line of the file."""
    begin, devices = time.process_time(), trainer(seed)

    def tell(status: RoundStatus) -> None:
        print(f"\r{method} seed {seed} round {status.round}: {status.metrics.get('accuracy', 0):.4f}", end="")
        sys.stdout.flush()

    world = World(tuple(f"d{k:02d}" for k in range(DEVICES)))
    simulation = Simulation(plan(method, rounds, seed), devices, world, tell)
    simulation.run()
    print()
    told = simulation.rounds
    return {
        "method": method,
        "seed": seed,
        "rounds": rounds,
        "accuracy": [round(status.metrics["accuracy"], 4) for status in told],
        "up": np.cumsum([status.frame_bytes.up for status in told]).tolist(),
        "down": np.cumsum([status.frame_bytes.down for status in told]).tolist(),
        "perturbation": [status.perturbation for status in told],
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


def bytes_to(line: Mapping[str, Any], target: float) -> int | None:
    """Return the bytes of both directions until the accuracy was first ``target``."""
    for up, down, accuracy in zip(line["up"], line["down"], line["accuracy"], strict=True):
        if accuracy >= target:
            return int(up + down)
    return None


def table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table, Markdown: ratios are means over seeds of float32's figure over the method's, seed by seed."""
    by_key = {(line["method"], line["seed"]): line for line in lines}
    out = [
        f"| method | seeds | rounds to {TARGET:.0%} | bytes to it, float32 over this | uplink-only over this "
        "| final accuracy | less float32, points | down over up |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method in METHODS:
        found = [line for line in lines if line["method"] == method]
        if not found:
            continue
        reached = [next((n for n, a in enumerate(line["accuracy"], 1) if a >= TARGET), None) for line in found]
        ratios = {name: _ratio(found, by_key, name) for name in ("float32", "uplink-only")}
        final = [fmean(line["accuracy"][-3:]) for line in found]
        less = [
            100 * (mine - fmean(by_key["float32", line["seed"]]["accuracy"][-3:]))
            for mine, line in zip(final, found, strict=True)
            if ("float32", line["seed"]) in by_key
        ]
        cells = [
            method,
            str(len(found)),
            ", ".join("never" if n is None else str(n) for n in reached),
            ratios["float32"],
            ratios["uplink-only"],
            f"{fmean(final):.4f}",
            f"{fmean(less):+.2f}" if less else "",
            f"{fmean(line['down'][-1] / line['up'][-1] for line in found):.2f}",
        ]
        out.append("| " + " | ".join(cells) + " |")
    return out


def _ratio(found: Sequence[Mapping[str, Any]], by_key: Mapping[Any, Mapping[str, Any]], name: str) -> str:
    ratios = []
    for line in found:
        other = by_key.get((name, line["seed"]))
        spent, theirs = bytes_to(line, TARGET), None if other is None else bytes_to(other, TARGET)
        if spent is not None and theirs is not None:
            ratios.append(theirs / spent)
    return f"{fmean(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})" if ratios else ""


def plot(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw accuracy over the bytes of both directions, the mean over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axis = figure.subplots()
    for method, style in zip(METHODS, ("k-", "C0--", "C1-", "C3:", "C2-.", "C4-", "C5:", "C6--"), strict=True):
        found = [line for line in lines if line["method"] == method]
        if found:
            spent = np.mean([np.add(line["up"], line["down"]) for line in found], axis=0) / 1e6
            axis.plot(spent, np.mean([line["accuracy"] for line in found], axis=0), style, label=method)
    axis.axhline(TARGET, color="0.7", linewidth=0.8)
    axis.set(
        xscale="log", xlabel="MB, both directions, all devices", ylabel="accuracy on the test data", ylim=(0.5, 0.92)
    )
    axis.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))


def main() -> None:
    """Parse the command line, run what is not there yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"the data sets; otherwise {VARIABLE}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=MAIN, metavar="METHOD")
    parser.add_argument("--tables", action="store_true", help="of the runs that are there; run nothing")
    options = parser.parse_args()
    if options.data is not None:
        os.environ[VARIABLE] = str(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "runs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(line["method"], line["seed"], line["rounds"]) for line in lines}
    for seed in range(0 if options.tables else options.seeds):
        for method in options.methods:
            if (method, seed, options.rounds) not in done:
                lines.append(run(method, options.rounds, seed))
                with path.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    if lines:
        print("\n".join(table(lines)))
        plot(lines, options.out / "downlink_accuracy.png")


if __name__ == "__main__":
    main()
