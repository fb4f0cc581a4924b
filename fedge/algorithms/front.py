"""A device's part of a split round: the local run of a front half, whose gradients come from elsewhere.

    step t    forward    a batch → the message of its activations, its labels
              backward   the answer → ∂/∂w_c → a step of w_c, with what the algorithm adds

It is ``local.train`` for half a model: the same batches in the same order, the same pull, clipping and decay, a step of
SGD for each batch. Only w_c is here: its params, its dual, its delta are those of the layout's front half.

A run can be taken up again after any step from ``params`` and the number of that step: batches, dropout and quantizer
draw from seeds of their step alone, so that the batch whose answer got lost is sent again byte for byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fedge import seeds
from fedge.algorithms.base import LocalTerms
from fedge.algorithms.local import FlatModel, LocalSpec, Step, batches, tensors_of
from fedge.algorithms.split import FrontHalf
from fedge.errors import AlgorithmError, TaskError
from fedge.layout import Kind, Vector
from fedge.split import Options, Shared, write_labels
from fedge.tasks.base import Dataset
from fedge.tasks.split_model import Halved
from fedge.tasks.torch_model import read_tensors, write_tensors


@dataclass(frozen=True, slots=True)
class Batch:
    """What travels up in a step: the message of activations (``fedge.split.message``), and of labels."""

    activations: bytes
    labels: bytes


class FrontRun:
    """Steps of one front half from ``anchor``, float32 ``[d]`` of the front layout.

    ``steps`` bounds how many there are; 0: ``spec.epochs`` passes over ``data``. ``keeps_tape``: see ``FrontHalf``.
    """

    def __init__(
        self,
        model: Halved,
        data: Dataset,
        anchor: Vector,
        terms: LocalTerms,
        spec: LocalSpec,
        options: Options | None,
        seed: int,
        steps: int = 0,
        keeps_tape: bool = True,
    ) -> None:
        if len(data) == 0:
            raise TaskError("split: expected at least 1 training example, got none")
        if spec.optimizer != "sgd":
            raise AlgorithmError(f"split: expected optimizer sgd, got {spec.optimizer}")
        self.layout, self.anchor, self.seed, self.spec = model.layout.front, anchor, seed, spec
        self.tensors = model.front
        write_tensors(self.tensors, self.layout, anchor)
        flat = FlatModel(self.tensors, self.layout)
        self._step = Step(flat, anchor, terms, spec)
        self._half = FrontHalf(model.parts.front, options, keeps_tape)
        self._half.trained = [self.tensors[t.name] for t in self.layout.tensors if t.kind is not Kind.BUFFER]
        model.parts.front.train()
        inputs, self._targets = tensors_of(data)
        self._inputs = inputs.to(flat.params.device)
        self.num_examples = len(data)
        self.label_bits = _label_bits(data)
        self.smallest_batch = 1 if options is None else max(1, options.least_members)
        self.per_epoch = len(self._rows(0))
        if not self.per_epoch:
            raise TaskError(f"split: expected {self.smallest_batch} training examples or more, got {len(data)}")
        self.steps = steps or spec.epochs * self.per_epoch
        self.next = 0
        """The step that comes next."""
        self.done = 0
        """How many steps were taken."""
        self._epoch: tuple[int, list[torch.Tensor]] = (0, self._rows(0))
        self._losses: list[float] = []

    @property
    def loss(self) -> float:
        """The mean loss over about the last epoch; NaN where no step was made."""
        last = self._losses[-self.per_epoch :]
        return sum(last) / len(last) if last else math.nan

    @property
    def params(self) -> Vector:
        """What w_c is now, float32 ``[d]``: with ``next``, all there is to take the run up again."""
        return read_tensors(self.tensors, self.layout)

    @property
    def delta(self) -> Vector:
        """What training changed, float32 ``[d]``.

        Raises:
            TaskError: it is not finite.
        """
        delta = self.params - self.anchor
        if not np.isfinite(delta).all():
            raise TaskError("split: training diverged, the delta is not finite")
        return delta

    def resume(self, step: int, params: Vector) -> None:
        """Go on with ``step`` from ``params``."""
        write_tensors(self.tensors, self.layout, params)
        self.next = step

    def forward(self, shared: Shared | None = None) -> Batch:
        """Return the message of step ``next``; asked again, the same one.

        Raises:
            CodecError: activations that cannot be quantized.
        """
        rows = self._batch(self.next)
        own = seeds.derive(self.seed, "step", self.next)
        data = self._half.forward(self._inputs[rows], self.next, own, shared)
        return Batch(data, write_labels(self._targets[rows].numpy(), self.label_bits))

    def backward(self, answer: bytes, loss: float) -> None:
        """Take step ``next`` by the server's answer to its message.

        Raises:
            CodecError: it is no answer to that; nothing is changed.
            TaskError: no message waits for one.
        """
        self._step.flat.grads.copy_(torch.from_numpy(self._half.backward(answer)))
        self._step.descend()
        self._losses.append(loss)
        self.done += 1
        self.next += 1

    def skip(self, step: int) -> None:
        """Go on with ``step`` where the steps before it were taken by the server and cannot be taken here."""
        self.next = step

    def _batch(self, step: int) -> torch.Tensor:
        epoch = step // self.per_epoch
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._rows(epoch))
        return self._epoch[1][step % self.per_epoch]

    def _rows(self, epoch: int) -> list[torch.Tensor]:
        """Return the rows of each batch of an epoch; one that ``least_members`` forbids is left out."""
        size, own = self.spec.batch_size, seeds.derive(self.seed, epoch)
        return [rows for rows in batches(self.num_examples, size, own) if len(rows) >= self.smallest_batch]


def _label_bits(data: Dataset) -> int:
    targets = data.targets
    if targets.ndim != 1 or targets.dtype.kind not in "iu" or targets.min() < 0 or targets.max() > 255:
        got = f"{targets.dtype} {list(targets.shape)}"
        raise TaskError(f"split: expected targets of one class 0..255 for each example, got {got}")
    return max(1, int(targets.max()).bit_length())
