"""The error of a split step's answer, at so many bits, on the gradients of a network that learns.

    python -m benchmarks.split_gradients --data DIR [--seed 0] [--at 3 20 60 200]

The FEMNIST-shaped network on MNIST (28 x 28, all of it handwritten): conv 3x3, 32, ReLU, conv 3x3, 64, ReLU, pool 2 →
9,216 activations; then dropout 0.25, linear 128, ReLU, dropout 0.5, linear 10. 100 devices, Dirichlet(0.3); a step is
5 of them, 20 examples each, learning rate 0.1, nothing compressed. In the steps named, the gradient by the activations
of each device goes through the bytes of its message: A = |G^ - G|²/|G|², the mean over devices and draws.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.feddyn_mnist import deal
from fedge.codecs.product import Floats
from fedge.split import GradientCoding, GradientMessage
from fedge.tasks.base import Dataset
from fedge.tasks.split_model import Halves, cut
from fedge.tasks.torch_model import initialise

VALUES, SUBVECTORS, CUT = 9216, 1152, "5"
DEVICES, TOGETHER, BATCH, RATE = 100, 5, 20, 0.1
TRAIN, TEST = 20_000, 2_000
RATES = [(4.0, GradientCoding.UNIFORM), (2.0, GradientCoding.UNIFORM)]
RATES += [(bits, GradientCoding.EDEN) for bits in (4.0, 2.0, 1.0, 0.5, 0.25)]
DRAWS = 3


def network(seed: int) -> nn.Sequential:
    """Return the model; it is cut at layer ``CUT``."""
    convolved = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Dropout(0.25), nn.Flatten(), nn.Linear(VALUES, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
    whole = nn.Sequential(*convolved, *dense)
    initialise(whole, seed)
    return whole


def read(folder: Path, part: str) -> Dataset:
    """Read ``part``, "train" or "t10k", standardised, float32 ``[n, 1, 28, 28]``."""
    files = (f"{part}-images-idx3-ubyte.gz", 16), (f"{part}-labels-idx1-ubyte.gz", 8)
    images, labels = (np.frombuffer(gzip.decompress((folder / f).read_bytes()), np.uint8, -1, h) for f, h in files)
    scaled = (images.reshape(-1, 1, 28, 28).astype(np.float32) / 255 - 0.1307) / 0.3081
    return Dataset(scaled, labels.astype(np.int64))


def dealt(folder: Path, seed: int) -> tuple[list[Dataset], Dataset]:
    """Return the devices' examples, ``TRAIN`` of them in all, and those to test with."""
    rng = np.random.default_rng(seed)
    train, test = (
        Dataset(data.inputs[rows], data.targets[rows])
        for data, count in ((read(folder, "train"), TRAIN), (read(folder, "t10k"), TEST))
        for rows in [rng.permutation(len(data))[:count]]
    )
    return deal(train, seed), test


def draw(device: Dataset, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return a batch."""
    rows = rng.choice(len(device), BATCH, replace=False)
    return torch.from_numpy(device.inputs[rows]), torch.from_numpy(device.targets[rows])


def gradients(parts: Halves, batches: list[tuple[Tensor, Tensor]], rate: float) -> Iterator[Floats]:
    """Take a step of plain split training; yield the gradient by the activations of each batch."""
    trained = [*parts.front.parameters(), *parts.back.parameters()]
    sums = [torch.zeros_like(parameter) for parameter in trained]
    for inputs, targets in batches:
        z = parts.front(inputs)
        loss = nn.functional.cross_entropy(parts.back(z), targets)
        by_z, *grads = torch.autograd.grad(loss, [z, *trained])
        for total, grad in zip(sums, grads, strict=True):
            total.add_(grad, alpha=1 / len(batches))
        yield by_z.flatten(1).numpy()
    with torch.no_grad():
        for parameter, total in zip(trained, sums, strict=True):
            parameter.add_(total, alpha=-rate)


def error(gradient: Floats, bits: float, coding: GradientCoding) -> tuple[float, float]:
    """Return A and the bytes of the message."""
    made = [GradientMessage.of(gradient, bits, seed, coding) for seed in range(DRAWS)]
    exact = gradient.astype(np.float64)
    off = [np.square(message.gradient - exact).sum() for message in made]
    return float(np.mean(off) / np.square(exact).sum()), float(np.mean([len(message.data) for message in made]))


def main() -> int:
    """Print a column for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", type=int, nargs="+", default=[3, 20, 60, 200])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    devices, test = dealt(arguments.data, arguments.seed)
    model, rng = network(arguments.seed), np.random.default_rng(arguments.seed)
    parts, found = cut(model, CUT), dict[int, list[tuple[float, float]]]()
    for step in range(1, max(arguments.at) + 1):
        batches = [draw(devices[k], rng) for k in rng.choice(DEVICES, TOGETHER, replace=False)]
        told = list(gradients(parts, batches, RATE))
        if step in arguments.at:
            errors = np.array([[error(gradient, *rate) for gradient in told] for rate in RATES]).mean(1)
            found[step] = [(float(a), float(size)) for a, size in errors]
            model.eval()
            with torch.no_grad():
                right = model(torch.from_numpy(test.inputs)).argmax(1) == torch.from_numpy(test.targets)
            model.train()
            print(f"step {step}: accuracy {float(right.float().mean()):.3f}", flush=True)
    print(f"{'bits':>5} {'coding':8} {'bytes':>7}" + "".join(f" {'A, step ' + str(step):>14}" for step in found))
    for k, (bits, coding) in enumerate(RATES):
        size = np.mean([rows[k][1] for rows in found.values()])
        print(f"{bits:5g} {coding:8} {size:7.0f}" + "".join(f" {rows[k][0]:14.5f}" for rows in found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
