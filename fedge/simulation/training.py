"""Training and testing in this process, by torch, for the devices of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from fedge.algorithms.base import LocalTerms
from fedge.algorithms.local import LocalSpec as Steps
from fedge.algorithms.local import evaluate, train
from fedge.layout import Layout, Vector
from fedge.simulation.world import Trained
from fedge.tasks.base import Dataset, Task
from fedge.tasks.torch_model import get_params, layout_of
from schemas.specs import LocalSpec


class TaskTrainer:
    """A ``Trainer`` for the devices of ``sites``: device name -> the options its data is named by."""

    def __init__(self, task: Task, sites: Mapping[str, Mapping[str, object]]) -> None:
        torch.set_num_threads(1)
        self.task = task
        self._data: dict[str, Dataset] = {name: task.train_data(options) for name, options in sites.items()}
        self._test = task.test_data()
        self._model = task.model(0)
        self._layout = layout_of(self._model)

    @property
    def layout(self) -> Layout:
        """The layout of the task's model."""
        return self._layout

    def initial(self, seed: int) -> Vector:
        """Return the params of a new model, float32 ``[d]``."""
        return get_params(self.task.model(seed), self._layout)

    def num_examples(self, device: str) -> int:
        """Return how many examples ``device`` has."""
        return len(self._data[device])

    def train(self, device: str, anchor: Vector, terms: LocalTerms, local: LocalSpec, seed: int) -> Trained:
        """Train from ``anchor`` on ``device``'s data."""
        result = train(self.task, self._model, self._data[device], anchor, self._layout, terms, as_steps(local), seed)
        return Trained(result.delta, result.loss)

    def begin(
        self, device: str, anchor: Vector, terms: LocalTerms, local: LocalSpec, seed: int
    ) -> Callable[[], Trained]:
        """Return what trains when it is called: this process has one thread for it anyway."""
        return partial(self.train, device, anchor, terms, local, seed)

    def evaluate(self, params: Vector) -> dict[str, float]:
        """Return the task's metrics on its test data."""
        if self._test is None:
            return {}
        return evaluate(self.task, self._model, params, self._layout, self._test)


def as_steps(local: LocalSpec) -> Steps:
    """Return a plan's local settings as the torch loop takes them: no clipping is None there and 0 in a plan."""
    return Steps(
        epochs=local.epochs,
        batch_size=local.batch_size,
        learning_rate=local.learning_rate,
        weight_decay=local.weight_decay,
        clip_norm=local.clip_norm or None,
        optimizer=local.optimizer,
    )
