"""WISDM v1.1: what a person does, from the phone in the trouser pocket. 36 people, one device each.

An example is ten seconds of a 20 Hz accelerometer as 43 published numbers (histograms, means, deviations, time
between peaks); its target one of six activities. Every fifth example of each person and activity is for testing.

    43 features → linear 192 → ReLU → linear 96 → ReLU → linear 6 activities        27,558 parameters

A device sees its own examples only, so missing values and scales are constants of the task, computed once from all
training examples (``STATISTICS``; a test recomputes them): a missing value becomes the median, then
x ← (x - mean) / std.

Data: J. R. Kwapisz, G. M. Weiss, S. A. Moore, Activity Recognition using Cell Phone Accelerometers, SensorKDD 2010.
``data/wisdm-v1.1/readme.txt`` has the terms, and travels with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedge.errors import TaskError
from fedge.tasks.base import Dataset

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedge.tasks.split_model import Halves

USERS = range(1, 37)
CLASSES = ("Walking", "Jogging", "Upstairs", "Downstairs", "Sitting", "Standing")
FEATURES = 43
HIDDEN = (192, 96)

DATA = files("fedge.tasks") / "data" / "wisdm-v1.1" / "wisdm_v1.1.npz"
STATISTICS = files("fedge.tasks") / "data" / "wisdm-v1.1" / "train_statistics.csv"


@dataclass(frozen=True, slots=True)
class Wisdm:
    """Activity recognition; ``train_data`` takes ``{"user": 1..36}``."""

    name: str = "wisdm"

    def model(self, seed: int) -> nn.Module:
        """Return a perceptron with two hidden layers."""
        from torch import nn

        from fedge.tasks.torch_model import initialise

        layers: list[nn.Module] = []
        for inputs, outputs in zip((FEATURES, *HIDDEN), HIDDEN, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return initialise(nn.Sequential(*layers, nn.Linear(HIDDEN[-1], len(CLASSES))), seed)

    def split(self, model: nn.Module) -> Halves:
        """Return the first layer, whose 192 numbers an example travel, and the others."""
        import torch

        from fedge.tasks.split_model import cut

        return cut(model, "2", example=torch.zeros(1, FEATURES))

    def train_data(self, options: Mapping[str, object]) -> Dataset:
        """Return the training examples of one person, ``inputs`` float32 ``[n, 43]``, ``targets`` int64 ``[n]``."""
        unknown = ", ".join(sorted(set(options) - {"user"}))
        user = options.get("user")
        if isinstance(user, str) and user.isdecimal():
            user = int(user)
        if unknown or isinstance(user, bool) or user not in USERS:
            wrong = f"unknown option {unknown}; " if unknown else ""
            expected = f"expected the option user, {USERS[0]}..{USERS[-1]}"
            raise TaskError(f"task 'wisdm': {wrong}{expected}, got {dict(options)}")
        archive = _archive()
        return _dataset(archive, (archive["user"] == user) & ~archive["is_test"])

    def sites(self) -> dict[str, dict[str, object]]:
        """Return one device for each person: ``user-01`` .. ``user-36``."""
        return {f"user-{user:02d}": {"user": user} for user in USERS}

    def test_data(self) -> Dataset:
        """Return the test examples of all people."""
        archive = _archive()
        return _dataset(archive, archive["is_test"])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        from torch.nn import functional

        return functional.cross_entropy(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the accuracy."""
        return {"accuracy": float((outputs.argmax(1) == targets).float().mean())}


task = Wisdm()


def standardise(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return published ``features`` ``[n, 43]`` without gaps and of zero mean and unit deviation."""
    with STATISTICS.open(encoding="utf-8") as file:
        median, mean, std = np.loadtxt(file, delimiter=",", skiprows=1, usecols=(1, 2, 3), unpack=True)
    filled = np.where(np.isnan(features), median, features)
    return np.asarray((filled - mean) / std, np.float32)


def _archive() -> dict[str, npt.NDArray[Any]]:
    with DATA.open("rb") as file, np.load(file) as archive:
        return dict(archive)


def _dataset(archive: dict[str, npt.NDArray[Any]], rows: npt.NDArray[np.bool_]) -> Dataset:
    return Dataset(standardise(archive["X"][rows]), archive["y"][rows].astype(np.int64))
