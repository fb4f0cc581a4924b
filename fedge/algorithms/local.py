"""The local run: SGD or Adam in torch, with what the algorithm adds to the gradient.

    for each epoch, each batch of the epoch's order:
        g ← ∇L(x) + pull · (x - anchor + dual)         the algorithm's terms, before clipping
        g ← g · min(1, clip_norm / ‖g‖)
        g ← g + weight_decay · x
        sgd     x ← x - η · g                          η = min(learning_rate, 1/pull)
        adam    m ← β₁ m + (1 - β₁) g,   v ← β₂ v + (1 - β₂) g²
                x ← x - learning_rate · m/(1 - β₁ᵗ) / (√(v/(1 - β₂ᵗ)) + ε)      t = 1, 2, .. over all epochs
    delta = x - anchor

The terms are added as a whole before the clip: at a device's optimum ∇L + pull·(x - anchor + dual) is 0, so clipping
does not move it. (Clipping ∇L + pull·(dual - anchor) and adding pull·x later, as one may also read the method, clips a
vector that stays at pull·‖anchor‖.) The order of examples in epoch e comes from ``derive(seed, e)``: the same
everywhere. Tensors that are not trained (BatchNorm statistics) report what they changed by.

A device with very few examples has a strong pull under FedDyn; a step of SGD longer than 1/pull would leap over the
point it is pulled to, and from 2/pull on it would run away. A step of Adam is about ``learning_rate`` long in every
coordinate, however strong the pull, so there is nothing to bound.

Adam is Algorithm 1 of D. P. Kingma and J. Ba, ICLR 2015 (https://arxiv.org/abs/1412.6980), β₁ = 0.9, β₂ = 0.999,
ε = 1e-8. Its moments start from zero in every round: a device keeps nothing of a local run between rounds, and moments
gathered around the params of an earlier round, perhaps many rounds ago, would be those of another gradient.

One thread gives one result: call ``torch.set_num_threads(1)`` in the process that trains.

This module, ``split.py``, ``front.py`` and ``back.py`` are those of ``fedge.algorithms`` that need torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fedge import seeds
from fedge.algorithms.base import LocalTerms
from fedge.errors import AlgorithmError, TaskError
from fedge.layout import Kind, Layout, Vector
from fedge.tasks.torch_model import get_params, set_params, state_of

if TYPE_CHECKING:
    from fedge.tasks.base import Dataset, Task

EVALUATION_BATCH = 1024

Optimizer = Literal["sgd", "adam"]
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

OnProgress = Callable[[int, float], None]
"""Called after every epoch with the epoch, from 0, and its mean loss."""


@dataclass(frozen=True, slots=True)
class LocalSpec:
    """Settings of a local run. ``learning_rate`` is the round's: already decayed."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    clip_norm: float | None = None
    optimizer: Optimizer = "sgd"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            got = f"{self.epochs} epochs, batch_size {self.batch_size}"
            raise AlgorithmError(f"local: expected at least 1 epoch and a batch_size of at least 1, got {got}")
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf):
            got = f"{self.learning_rate} and {self.weight_decay}"
            raise AlgorithmError(f"local: expected learning_rate > 0 and weight_decay >= 0, got {got}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise AlgorithmError(f"local: expected clip_norm above 0 or none, got {self.clip_norm}")
        if self.optimizer not in get_args(Optimizer):
            known = " or ".join(get_args(Optimizer))
            raise AlgorithmError(f"local: expected an optimizer, {known}, got {self.optimizer!r}")


@dataclass(frozen=True, slots=True, eq=False)
class TrainResult:
    """What a local run gave: ``delta``, float32 ``[d]``.

    ``loss`` is the mean over the last whole epoch, NaN before the first; ``completed`` is False if it was stopped.
    """

    delta: Vector
    loss: float
    num_examples: int
    steps: int
    completed: bool = True


def train(
    task: Task,
    model: nn.Module,
    data: Dataset,
    anchor: Vector,
    layout: Layout,
    terms: LocalTerms,
    spec: LocalSpec,
    seed: int,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train ``model`` from ``anchor`` ``[d]`` on ``data``, where the model is (CPU or accelerator).

    ``should_stop`` is asked before every step. ``model`` is left with the trained parameters.

    Raises:
        TaskError: if ``data`` is empty, a trained parameter is not float32, or the loss or the delta becomes NaN or
            infinite.
    """
    if len(data) == 0:
        raise TaskError(f"task {task.name!r}: expected at least 1 training example, got none")
    set_params(model, layout, anchor)
    flat = FlatModel(state_of(model), layout)
    step = Step(flat, anchor, terms, spec)
    inputs, targets = (tensor.to(flat.params.device) for tensor in tensors_of(data))
    model.train()
    steps, loss = 0, math.nan
    with torch.random.fork_rng(devices=[]):  # dropout and the like
        torch.manual_seed(seeds.derive(seed, "torch"))
        for epoch in range(spec.epochs):
            losses = []
            for rows in batches(len(data), spec.batch_size, seeds.derive(seed, epoch)):
                if should_stop is not None and should_stop():
                    return TrainResult(_delta(task, model, layout, anchor), loss, len(data), steps, completed=False)
                rows = rows.to(flat.params.device)
                batch_loss = task.loss(model(inputs[rows]), targets[rows])
                step(batch_loss)
                losses.append(batch_loss.detach() * len(rows))
                steps += 1
            loss = float(torch.stack(losses).sum()) / len(data)
            if not math.isfinite(loss):
                raise TaskError(f"task {task.name!r}: training diverged, epoch {epoch} has loss {loss}")
            if on_progress is not None:
                on_progress(epoch, loss)
    return TrainResult(_delta(task, model, layout, anchor), loss, len(data), steps)


def _delta(task: Task, model: nn.Module, layout: Layout, anchor: Vector) -> Vector:
    """Return what training changed, float32 ``[d]``."""
    delta = get_params(model, layout) - anchor
    if not np.isfinite(delta).all():
        raise TaskError(f"task {task.name!r}: training diverged, the delta is not finite")
    return delta


def evaluate(task: Task, model: nn.Module, params: Vector, layout: Layout, data: Dataset) -> dict[str, float]:
    """Return the task's metrics and "loss" of ``params`` ``[d]`` on ``data``: means over its examples.

    Raises:
        TaskError: if ``data`` is empty.
    """
    if len(data) == 0:
        raise TaskError(f"task {task.name!r}: expected at least 1 test example, got none")
    set_params(model, layout, params)
    device = next(model.parameters()).device
    inputs, targets = tensors_of(data)
    model.eval()
    sums: dict[str, float] = {}
    with torch.no_grad():
        for start in range(0, len(data), EVALUATION_BATCH):
            outputs = model(inputs[start : start + EVALUATION_BATCH].to(device))
            expected = targets[start : start + EVALUATION_BATCH].to(device)
            figures = {**task.metrics(outputs, expected), "loss": float(task.loss(outputs, expected))}
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value * len(expected)
    return {name: value / len(data) for name, value in sums.items()}


class FlatModel:
    """A model's trained parameters and their gradients as two flat tensors, in the order of the layout."""

    def __init__(self, named: Mapping[str, Tensor], layout: Layout) -> None:
        self.layout = layout
        trained = [named[tensor.name] for tensor in layout.tensors if tensor.kind is not Kind.BUFFER]
        if any(parameter.dtype != torch.float32 for parameter in trained):
            raise TaskError(f"expected parameters of float32, got {sorted({str(p.dtype) for p in trained})}")
        self.params = torch.cat([parameter.detach().reshape(-1).float() for parameter in trained])
        self.grads = torch.zeros_like(self.params)
        start = 0
        for parameter in trained:
            stop = start + parameter.numel()
            parameter.data = self.params[start:stop].view_as(parameter)
            parameter.grad = self.grads[start:stop].view_as(parameter)
            start = stop


class Step:
    """One step of SGD or Adam on a flat model."""

    def __init__(self, flat: FlatModel, anchor: Vector, terms: LocalTerms, spec: LocalSpec) -> None:
        self.flat, self.terms, self.spec = flat, terms, spec
        device = flat.params.device
        centre = flat.layout.trained(anchor).astype(np.float32)
        if terms.dual is not None:
            centre = centre - flat.layout.trained(terms.dual).astype(np.float32)
        self.centre = torch.from_numpy(centre).to(device)
        self.adam = _Adam(flat.params, spec.learning_rate) if spec.optimizer == "adam" else None
        self.rate = min(spec.learning_rate, 1 / terms.pull) if terms.pull else spec.learning_rate

    def __call__(self, loss: Tensor) -> None:
        self.flat.grads.zero_()
        torch.autograd.backward(loss)
        self.descend()

    def descend(self) -> None:
        """Take the step that the gradients in ``flat.grads`` ask for."""
        params, grads, spec = self.flat.params, self.flat.grads, self.spec
        if self.terms.pull:
            grads.add_(params - self.centre, alpha=self.terms.pull)
        clip(grads, spec.clip_norm)
        if spec.weight_decay:
            grads.add_(params, alpha=spec.weight_decay)
        if self.adam is None:
            params.add_(grads, alpha=-self.rate)
        else:
            self.adam(grads)


def clip(grads: Tensor, norm: float | None) -> None:
    """Scale ``grads``, flat, in place to ``norm`` where theirs is larger; None: never."""
    if norm is not None:
        grads.mul_(torch.clamp(norm / (torch.linalg.vector_norm(grads) + 1e-6), max=1.0))


class _Adam:
    """Adam's moments, zeros at first, and its step."""

    def __init__(self, params: Tensor, rate: float) -> None:
        self.params, self.rate, self.steps = params, rate, 0
        self.mean, self.square = torch.zeros_like(params), torch.zeros_like(params)

    def __call__(self, grads: Tensor) -> None:
        self.steps += 1
        self.mean.lerp_(grads, 1 - BETA1)
        self.square.mul_(BETA2).addcmul_(grads, grads, value=1 - BETA2)
        scale = (self.square / (1 - BETA2**self.steps)).sqrt_().add_(EPSILON)
        self.params.addcdiv_(self.mean, scale, value=-self.rate / (1 - BETA1**self.steps))


def batches(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield the rows of each batch of an epoch, int64; the last batch may be smaller."""
    order = torch.from_numpy(seeds.permutation(seed, count))
    for start in range(0, count, batch_size):
        yield order[start : start + batch_size]


def tensors_of(data: Dataset) -> tuple[Tensor, Tensor]:
    """Return inputs and targets as float32 or int64 tensors."""
    inputs, targets = (
        torch.from_numpy(np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else np.int64))
        for array in (data.inputs, data.targets)
    )
    return inputs, targets
