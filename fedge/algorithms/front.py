"""A device's part of a split round: the local run of a front half, whose gradients come from elsewhere.

    step t    forward    a batch → the message of its activations, its labels
              backward   the answer → ∂/∂w_c → a step of w_c, with what the algorithm adds

It is ``local.train`` for half a model: the same batches in the same order, the same pull, clipping and decay, a step of
SGD for each batch. Only w_c is here: its params, its dual, its delta are those of the layout's front half.

In a U-shaped split the device has the *head* as well, the last layers, and keeps its labels. A step is two then, of
numbers 2t and 2t + 1:

              forward    a batch → the message of its activations               backward   the outputs of the back half
              forward    the message of the gradient of the loss by these       backward   the answer → a step of w_c

A run can be taken up again after any step from ``params`` and the number of that step: batches, dropout and quantizer
draw from seeds of their step alone, so that the batch whose answer got lost is sent again byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedge import seeds
from fedge.algorithms.base import LocalTerms
from fedge.algorithms.local import FlatModel, LocalSpec, Step, batches, tensors_of
from fedge.algorithms.split import FrontHalf, Loss, between, drawing, read_between
from fedge.errors import AlgorithmError, CodecError, TaskError
from fedge.layout import Kind, Vector
from fedge.split import Options, Shared, write_labels
from fedge.tasks.base import Dataset
from fedge.tasks.split_model import Halved, Halves, activation_shape
from fedge.tasks.torch_model import read_tensors, write_tensors


@dataclass(frozen=True, slots=True)
class Batch:
    """What travels up in a step: the message of activations (``fedge.split.message``), and of labels."""

    activations: bytes
    labels: bytes


class FrontRun:
    """Steps of one front half from ``anchor``, float32 ``[d]`` of the front layout.

    ``steps`` bounds how many there are; 0: ``spec.epochs`` passes over ``data``. ``keeps_tape``: see ``FrontHalf``.
    ``loss`` is needed where the model has a head.
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
        loss: Loss | None = None,
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
        names = [tensor.name for tensor in self.layout.tensors if tensor.kind is not Kind.BUFFER]
        own = {id(parameter) for parameter in model.parts.front.parameters()}
        self._half.trained = [self.tensors[name] for name in names if id(self.tensors[name]) in own]
        self._head = None if model.parts.head is None else _Head(model.parts, loss, options)
        self._names = names, [name for name in names if id(self.tensors[name]) in own]
        model.parts.front.train()
        inputs, self._targets = tensors_of(data)
        self._inputs = inputs.to(flat.params.device)
        self.num_examples = len(data)
        self.label_bits = _label_bits(data) if self._head is None else 0
        self.smallest_batch = 1 if options is None else max(1, options.least_members)
        self.per_epoch = len(self._rows(0))
        if not self.per_epoch:
            got = f"{len(data)} examples in batches of {spec.batch_size}"
            raise TaskError(
                f"split: expected batches of {self.smallest_batch} examples or more (least_members), got {got}"
            )
        self.steps = self._turns * (steps or spec.epochs * self.per_epoch)
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
        self.next = step - step % self._turns

    def forward(self, shared: Shared | None = None) -> Batch:
        """Return the message of step ``next``; asked again, the same one.

        Raises:
            CodecError: activations that cannot be quantized.
        """
        if self._head is not None and self.next % 2:
            return Batch(self._head.message(), b"")
        step = self.next // self._turns
        rows = self._batch(step)
        own = seeds.derive(self.seed, "step", step)
        data = self._half.forward(self._inputs[rows], step, own, shared)
        return Batch(data, b"" if self._head else write_labels(self._targets[rows].numpy(), self.label_bits))

    def backward(self, answer: bytes, loss: float) -> None:
        """Take step ``next`` by the server's answer to its message.

        Raises:
            CodecError: it is no answer to that; nothing is changed.
            TaskError: no message waits for one.
        """
        if self._head is not None and self.next % 2 == 0:
            step = self.next // 2
            self._head.turn(answer, self._targets[self._batch(step)], seeds.derive(self.seed, "head", step))
            self.next += 1
            return
        grads = torch.from_numpy(self._half.backward(answer))
        self._step.flat.grads.copy_(grads if self._head is None else self._joined(grads, self._head))
        self._step.descend()
        self._losses.append(loss if self._head is None else self._head.loss_value)
        self.done += 1
        self.next += 1

    def skip(self, step: int) -> None:
        """Go on with ``step`` where the steps before it were taken by the server and cannot be taken here."""
        self.next = step + step % self._turns

    @property
    def _turns(self) -> int:
        """How many exchanges make a step."""
        return 1 if self._head is None else 2

    def _joined(self, grads: torch.Tensor, head: _Head) -> torch.Tensor:
        """Return the gradients of front half and head in the layout's order."""
        everything, front = self._names
        parts = dict(zip(front, torch.split(grads, [self.tensors[name].numel() for name in front]), strict=True))
        own = {id(parameter): grad for parameter, grad in zip(head.trained, head.grads, strict=True)}
        return torch.cat([parts[n] if n in parts else own[id(self.tensors[n])].reshape(-1) for n in everything])

    def _batch(self, step: int) -> torch.Tensor:
        epoch = step // self.per_epoch
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._rows(epoch))
        return self._epoch[1][step % self.per_epoch]

    def _rows(self, epoch: int) -> list[torch.Tensor]:
        """Return the rows of each batch of an epoch; one that ``least_members`` forbids is left out."""
        size, own = self.spec.batch_size, seeds.derive(self.seed, epoch)
        return [rows for rows in batches(self.num_examples, size, own) if len(rows) >= self.smallest_batch]


class _Head:
    """The last layers, where the device keeps them: outputs of the back half to the gradient of the loss by these."""

    def __init__(self, parts: Halves, loss: Loss | None, options: Options | None) -> None:
        if loss is None or parts.shape is None:
            raise TaskError("split: expected the task's loss and the shape of activations for a model with a head")
        self.head, self.loss, self.options = parts.tail, loss, options
        self.shape = activation_shape(parts.back, torch.zeros(1, *parts.shape))
        self.trained: list[torch.Tensor] = [one for one in self.head.parameters() if one.requires_grad]
        self.grads: Sequence[torch.Tensor] = ()
        self.loss_value = math.nan
        self._message = b""
        self.head.train()

    def turn(self, data: bytes, targets: torch.Tensor, seed: int) -> None:
        """Take the outputs of the back half for the batch of these ``targets``.

        Raises:
            CodecError: they are none.
            TaskError: a loss that is not finite.
        """
        rows, expected = read_between(data, self.options, math.prod(self.shape)), (len(targets), math.prod(self.shape))
        if rows.shape != expected:
            raise CodecError(f"expected outputs of shape {expected}, got {rows.shape}")
        outputs = torch.from_numpy(rows).view(len(rows), *self.shape).requires_grad_()
        with drawing(seed):
            found = self.loss(self.head(outputs), targets)
        if not torch.isfinite(found):
            raise TaskError(f"split: training diverged, a batch has loss {found.item()}")
        gradient, *self.grads = torch.autograd.grad(found, [outputs, *self.trained], materialize_grads=True)
        self.loss_value = found.item()
        self._message = between(gradient.reshape(len(rows), -1).numpy(), self.options, seeds.derive(seed, "between"))

    def message(self) -> bytes:
        """Return the gradient of the loss by the outputs."""
        return self._message


def _label_bits(data: Dataset) -> int:
    targets = data.targets
    if targets.ndim != 1 or targets.dtype.kind not in "iu" or targets.min() < 0 or targets.max() > 255:
        got = f"{targets.dtype} {list(targets.shape)}, {targets.min()} to {targets.max()}"
        raise TaskError(f"split: expected targets of one class 0..255 for each example, got {got}")
    return max(1, int(targets.max()).bit_length())
