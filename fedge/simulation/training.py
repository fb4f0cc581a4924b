"""Training and testing in this process, by torch, for the devices of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from fedge.algorithms.base import LocalTerms
from fedge.algorithms.local import evaluate, train
from fedge.layout import Layout, Vector
from fedge.simulation.halves import Halves
from fedge.simulation.steps import as_steps
from fedge.simulation.world import SplitTrained, Trained
from fedge.tasks.base import Dataset, Task
from fedge.tasks.split_model import halved
from fedge.tasks.torch_model import get_params, layout_of
from schemas.specs import LocalSpec, SplitSpec
from schemas.status import SplitStatus


class TaskTrainer:
    """A ``Trainer`` for the devices of ``sites``: device name -> the options its data is named by.

    ``split``: the model is laid out as cut in two, and front halves can be trained.
    """

    def __init__(self, task: Task, sites: Mapping[str, Mapping[str, object]], split: bool = False) -> None:
        torch.set_num_threads(1)
        self.task = task
        self._data: dict[str, Dataset] = {name: task.train_data(options) for name, options in sites.items()}
        self._test = task.test_data()
        self._model = task.model(0)
        self._layout = halved(task, self._model).layout if split else layout_of(self._model)
        self._halves: Halves | None = None

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

    def open_halves(
        self, params: Vector, terms: LocalTerms, local: LocalSpec, spec: SplitSpec, devices: int, seed: int
    ) -> None:
        """Open a round of split training."""
        self._halves = Halves.open(self.task, self._data, params, terms, local, spec, devices, seed)

    def begin_front(
        self, device: str, anchor: Vector, terms: LocalTerms, local: LocalSpec, steps: int, seed: int
    ) -> Callable[[], SplitTrained]:
        """Begin the steps of ``device``; whoever waits for the first of a cohort has all of it trained."""
        assert self._halves is not None  # opened with the round
        return self._halves.begin(device, anchor, terms, local, steps, seed)

    def close_halves(self) -> tuple[Vector | None, SplitStatus]:
        """Return what the back half learnt in the round, and what there is to show."""
        assert self._halves is not None
        found = self._halves
        return found.back.delta if found.done else None, found.status()

    def evaluate(self, params: Vector) -> dict[str, float]:
        """Return the task's metrics on its test data."""
        if self._test is None:
            return {}
        return evaluate(self.task, self._model, params, self._layout, self._test)
