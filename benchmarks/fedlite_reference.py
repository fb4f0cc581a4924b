"""FedLite on MNIST, label-skewed: what is lost at which ratio, and what each switch gives.

    python -m benchmarks.fedlite_reference --data DIR [--seeds 0 1 2] [--steps 1000] [--settings NAME ..] [--output DIR]

The 10,000 test images of MNIST as in ``feddyn_mnist``, 8,000 to train and 2,000 to test, pooled to 14 x 14. Front:
conv 5x5, 16, pool 2, conv 5x5, 32 → 1,568 activations (13,248 parameters); back: linear 128, linear 10. 100 devices of
80 examples, priors Dirichlet(0.3); a step is 5 of them, 20 examples each, learning rate 0.1. q = 196, R = 1. Everything
goes through the bytes of its messages. Accuracy is that of the unquantized model, the mean of the last 5 of 30
evaluations; bytes are per device and step: activations with their header, gradients with theirs. Labels (16 bytes), the
front half itself (52,992 bytes each way in float32) and what is shared (its column) come on top.

"L8" and "L2" are FedLite as published, λ 1e-3. "own" is what we would run: adaptive coding, 8-bit codebooks, shared and
fitted again every ten steps, answers of one bit, and the gradient of a batch cut to norm 4 in either half, as "plain
clip 4", which it is compared with, has it too.

Exits with 1 unless, in the mean over the seeds, both L = 8 are within 1 point of plain at 72x on activations and both
L = 2 within 2 at 226x, by the paper's own count as published, and by whole messages "own"; and the coded settings have
half the bytes of those as published again, whole messages, at equal accuracy (within 1 point). Runs are kept in
DIR/runs.json and not repeated. ``--settings all`` adds every switch alone; a name of the table, that one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.feddyn_mnist import deal, read
from fedge.algorithms.split import split_step
from fedge.split import Coding, Memory, Options, Start
from fedge.tasks.base import Dataset
from fedge.tasks.split_model import cut
from fedge.tasks.torch_model import initialise

DEVICES, TOGETHER, BATCH, RATE, EVALUATIONS, LAST = 100, 5, 20, 0.1, 30, 5
VALUES, SUBVECTORS = 1568, 196
PLAIN_BYTES = 4 * BATCH * VALUES

_PAPER = {f"L{L}": Options.paper(SUBVECTORS, centroids=L) for L in (2, 8)}


@dataclass(frozen=True)
class Setting:
    """How activations are quantized, None: not at all, and the norm to which the gradient of a batch is cut."""

    options: Options | None
    clip_norm: float | None = None


def settings() -> dict[str, Setting]:
    """Return the table of settings; "L2" and "L8" are the paper's."""
    found = {"plain": Setting(None), "plain clip 4": Setting(None, 4.0)}
    for name, paper in _PAPER.items():
        coded = replace(paper, coding=Coding.ADAPTIVE, codebook_bits=8)
        own = replace(coded, start=Start.SHARED, gradient_bits=1)
        options = {
            name: paper,
            f"{name} no correction": replace(paper, correction=0.0),
            f"{name} coded": coded,
            f"{name} warm": replace(paper, start=Start.WARM),
            f"{name} warm coded": replace(coded, start=Start.WARM),
            f"{name} warm coded shared": replace(coded, start=Start.WARM, coding=Coding.SHARED),
            f"{name} shared coded": replace(coded, start=Start.SHARED),
            f"{name} 8-bit codebook": replace(paper, codebook_bits=8),
            f"{name} gradient 8": replace(paper, gradient_bits=8),
            f"{name} gradient 4": replace(paper, gradient_bits=4),
            f"{name} gradient 1": replace(paper, gradient_bits=1),
            f"{name} members 5": replace(paper, least_members=5),
            f"{name} ramp": replace(paper, ramp_steps=100),
            f"{name} cap": replace(paper, cap=0.5),
            f"{name} relative 0.01": replace(paper, correction=0.01, relative=True),
            f"{name} relative 0.03": replace(paper, correction=0.03, relative=True),
            f"{name} relative 0.1": replace(paper, correction=0.1, relative=True),
            f"{name} 1e-2": replace(paper, correction=1e-2),
            f"{name} 1e-2 cap": replace(paper, correction=1e-2, cap=0.5),
            f"{name} own no clip": own,
        }
        found |= {name: Setting(chosen) for name, chosen in options.items()}
        found |= {f"{name} clip {norm}": Setting(paper, float(norm)) for norm in (2, 4, 10)}
        found |= {f"{name} own": Setting(own, 4.0), f"{name} own warm": Setting(replace(own, start=Start.WARM), 4.0)}
    return found


CHECKED = ("plain", "plain clip 4", "L8", "L2", "L8 shared coded", "L2 coded", "L8 own", "L2 own", "L2 own no clip")


@dataclass(frozen=True)
class Run:
    """What one seed gave: accuracies of the evaluations, mean bytes of a device's step."""

    accuracies: list[float]
    bytes_up: float
    bytes_down: float
    bytes_shared: float

    @property
    def accuracy(self) -> float:
        """The mean of the last evaluations."""
        return float(np.mean(self.accuracies[-LAST:]))


def network(seed: int) -> nn.Sequential:
    """Return the model; it is cut at layer 6."""
    layers = [nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5, padding=2), nn.ReLU()]
    whole = nn.Sequential(*layers, nn.Flatten(), nn.Linear(VALUES, 128), nn.ReLU(), nn.Linear(128, 10))
    initialise(whole, seed)
    return whole


def examples(data: Dataset, rows: np.ndarray | slice) -> tuple[Tensor, Tensor]:
    """Return pictures float32 ``[n, 1, 14, 14]`` and labels."""
    return torch.from_numpy(data.inputs[rows].reshape(-1, 1, 14, 14)), torch.from_numpy(data.targets[rows])


_dealt: dict[int, tuple[list[Dataset], Dataset]] = {}


def dealt(data: Dataset, seed: int) -> tuple[list[Dataset], Dataset]:
    """Return the devices' examples and those to test with; dealt once, which takes seconds."""
    if seed not in _dealt:
        split = np.random.default_rng(seed).permutation(len(data))
        train, test = (Dataset(data.inputs[rows], data.targets[rows]) for rows in (split[:8000], split[8000:]))
        _dealt[seed] = deal(train, seed), test
    return _dealt[seed]


def federate(data: Dataset, setting: Setting, steps: int, seed: int) -> Run:
    """Train for so many steps."""
    options = setting.options
    devices, rest = dealt(data, seed)
    test, rng = examples(rest, slice(None)), np.random.default_rng(100 + seed)
    model = network(seed)
    parts, memory, shared = cut(model, "6"), None, None
    if options is not None and (options.start is not Start.FRESH or options.coding is Coding.SHARED):
        memory = Memory(options.shape(BATCH, VALUES))
    accuracies, up, down, state = [], [], [], []
    for step in range(steps):
        chosen = rng.choice(DEVICES, TOGETHER, replace=False)
        rows = [rng.choice(len(devices[k]), BATCH, replace=False) for k in chosen]
        batches = [examples(devices[k], own) for k, own in zip(chosen, rows, strict=True)]
        loss, clip_norm = nn.functional.cross_entropy, setting.clip_norm
        done = split_step(parts, loss, batches, options, RATE, step, seed, shared, memory, clip_norm)
        up += done.bytes_up
        down += done.bytes_down
        state.append(len(shared.to_bytes()) if shared is not None else 0)
        if done.memory is not None and options is not None:
            memory = done.memory
            shared = memory.publish(options.start is not Start.FRESH, options.coding is Coding.SHARED)
        if (step + 1) % max(steps // EVALUATIONS, 1) == 0:
            with torch.no_grad():
                accuracies.append(float((model(test[0]).argmax(1) == test[1]).float().mean()))
    return Run(accuracies, float(np.mean(up)), float(np.mean(down)), float(np.mean(state)))


def kept(data: Dataset, name: str, steps: int, seed: int, folder: Path) -> Run:
    """Return a run, from ``folder`` if it was done before."""
    path, key = folder / "runs.json", f"{name}, {steps} steps, seed {seed}"
    runs = json.loads(path.read_text()) if path.exists() else {}
    if key not in runs:
        runs[key] = asdict(federate(data, settings()[name], steps, seed))
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(runs))
    return Run(**runs[key])


def show(name: str, options: Options | None, runs: list[Run]) -> dict[str, float]:
    """Print a line of the table and return its means."""
    means = {
        "accuracy": float(np.mean([run.accuracy for run in runs])),
        "up": float(np.mean([run.bytes_up for run in runs])),
        "down": float(np.mean([run.bytes_down for run in runs])),
        "shared": float(np.mean([run.bytes_shared for run in runs])),
        "formula": 1.0 if options is None else options.shape(BATCH, VALUES).ratio(),
    }
    up, down = PLAIN_BYTES / means["up"], PLAIN_BYTES / means["down"]
    columns = f"{means['formula']:7.1f} {means['up']:9.1f} {up:7.1f} {up / 2:7.1f} {means['down']:9.1f} {down:6.1f}"
    each = " ".join(f"{run.accuracy:.3f}" for run in runs)
    print(f"{name:22} {means['accuracy']:7.4f}  {columns} {means['shared']:7.1f}   {each}", flush=True)
    return means


# What is promised: of which setting, against which, how much less accurate at most, and at which ratio at least.
_ACCURATE = (
    ("L8", "plain", 0.01, 72),
    ("L2", "plain", 0.02, 226),
    ("L8 own", "plain clip 4", 0.01, 72),
    ("L2 own", "plain clip 4", 0.02, 226),
)
_HALVED = (("L8 shared coded", "L8"), ("L2 coded", "L2"), ("L8 own", "L8"), ("L2 own", "L2"))


def bounds(found: Mapping[str, Mapping[str, float]]) -> dict[str, bool]:
    """Return what was promised, and whether it holds of what was run."""
    held = {}
    for name, plain, points, ratio in _ACCURATE:
        if plain in found and name in found:
            own, lost = found[name], found[plain]["accuracy"] - found[name]["accuracy"]
            # The paper counts no headers; whatever is ours has to reach its ratio with them.
            counted = own["formula"] if name in _PAPER else min(own["formula"], PLAIN_BYTES / own["up"])
            text = f"{name}: {100 * lost:.2f} points below {plain} at {counted:.1f}x"
            held[f"{text}, at most {100 * points:g} at {ratio}x"] = lost <= points and counted >= ratio
    for coded, name in _HALVED:
        if name in found and coded in found:
            saved, gain = found[name]["up"] / found[coded]["up"], found[coded]["accuracy"] - found[name]["accuracy"]
            text = f"{coded}: {saved:.2f} times fewer bytes than {name}, {100 * gain:+.2f} points"
            held[f"{text}; at least 2 times, -1"] = saved >= 2 and gain >= -0.01
    return held


def plot(found: Mapping[str, list[Run]], steps: int, path: Path) -> None:
    """Draw accuracy over steps, and over bytes up."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    over_steps, over_bytes = figure.subplots(1, 2)
    for name, runs in found.items():
        curve = np.mean([run.accuracies for run in runs], 0)
        x = np.linspace(steps / len(curve), steps, len(curve))
        line = over_steps.plot(x, curve, label=name, linewidth=1.4)[0]
        over_bytes.plot(x * runs[0].bytes_up, curve, label=name, linewidth=1.4, color=line.get_color())
    over_steps.set(xlabel="steps", ylabel="accuracy", ylim=(0.8, 0.99))
    over_bytes.set(xlabel="bytes of activations a device slot sent", xscale="log", ylim=(0.8, 0.99))
    over_steps.grid(alpha=0.3)
    over_bytes.grid(alpha=0.3)
    over_steps.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
    print(f"wrote {path}")


def main() -> int:
    table = settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--settings", nargs="+", default=list(CHECKED), choices=[*table, "all"], metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("reports/fedlite"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, found, means = read(arguments.data), {}, {}
    print(f"{arguments.steps} steps, seeds {arguments.seeds}; bytes are per device and step")
    columns = f"{'formula':>7} {'up B':>9} {'fp32':>7} {'fp16':>7} {'down B':>9} {'fp32':>6} {'shared':>7}"
    print(f"{'setting':22} {'acc':>7}  {columns}")
    began = time.perf_counter()
    for name in table if "all" in arguments.settings else arguments.settings:
        found[name] = [kept(data, name, arguments.steps, seed, arguments.output) for seed in arguments.seeds]
        means[name] = show(name, table[name].options, found[name])
    print(f"{time.perf_counter() - began:.0f} seconds")
    plot(found, arguments.steps, arguments.output / "accuracy.png")
    held = bounds(means)
    for name, holds in held.items():
        print(f"{'holds' if holds else 'FAILS':6} {name}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
