"""A task that is cut in two: four rings around centres in 16 dimensions, for devices ``{"device": k}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedge.tasks.base import Dataset
from fedge.tasks.split_model import Halves, cut
from fedge.tasks.torch_model import initialise

TASK = "tests.support.split_task:task"
U_TASK = "tests.support.split_task:u_shaped"
CLASSES, INPUTS, ACTIVATIONS = 4, 16, 64


def examples(seed: int, count: int) -> Dataset:
    """Return examples, classes of uneven share."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(CLASSES, 2.0))
    targets = rng.choice(CLASSES, count, p=shares)
    centres = np.random.default_rng(99).normal(size=(CLASSES, INPUTS))
    angles = rng.uniform(0, 2 * np.pi, count)
    inputs = centres[targets] * 1.2 + rng.normal(size=(count, INPUTS)) * 0.8
    inputs[:, :2] += 1.5 * np.stack([np.cos(angles), np.sin(angles)], 1)
    return Dataset(inputs.astype(np.float32), targets)


@dataclass(frozen=True)
class Rings:
    """The task."""

    name: str = "rings"

    def model(self, seed: int) -> nn.Module:
        """Return a perceptron."""
        front = [nn.Linear(INPUTS, ACTIVATIONS), nn.ReLU()]
        back = [nn.Linear(ACTIVATIONS, 64), nn.ReLU(), nn.Linear(64, CLASSES)]
        return initialise(nn.Sequential(*front, *back), seed)

    def split(self, model: nn.Module) -> Halves:
        """Return the first layer, and the others."""
        return cut(model, "2", example=torch.zeros(1, INPUTS))

    def train_data(self, options: Mapping[str, object]) -> Dataset:
        """Return a device's examples."""
        return examples(int(str(options["device"])), 160)

    def test_data(self) -> Dataset:
        """Return the server's examples."""
        return examples(1000, 600)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy."""
        return nn.functional.cross_entropy(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the accuracy."""
        return {"accuracy": float((outputs.argmax(1) == targets).float().mean())}


@dataclass(frozen=True)
class UShapedRings(Rings):
    """The same, whose last layer stays on the device, and the labels with it."""

    name: str = "u_shaped_rings"

    def split(self, model: nn.Module) -> Halves:
        """Return the first layer, the second, and the last."""
        return cut(model, "2", example=torch.zeros(1, INPUTS), until="4")


task = Rings()
u_shaped = UShapedRings()
