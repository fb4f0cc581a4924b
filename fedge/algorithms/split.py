"""A step of split training in torch: what ``fedge/split/fedlite.py`` says, with a network at either end.

    device   FrontHalf.forward    inputs → the message of z~
    server   BackHalf.step        messages and targets of K devices → a step of w_s, an answer for each
    device   FrontHalf.backward   answer → ∂/∂w_c, float32
    server   descend              a step of w_c by their mean

``split_step`` does all of it in one process: the reference of what must happen between machines. Each device's loss is
the mean of its batch, and gradients of devices are averaged unweighted; batches of equal size make that mini-batch SGD
on the union. Without options nothing is compressed: plain split training, to compare with.

A device keeps activations and tape until the answer comes, or (``keeps_tape=False``) inputs alone, and computes them
again then: half the speed for about a tenth of the memory. A front half with running statistics has to keep the tape.

How a round trains with it, over many steps and beside what an algorithm adds: ``front.py`` and ``back.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedge import seeds
from fedge.algorithms.local import clip
from fedge.codecs.product import Floats, Indices
from fedge.errors import CodecError, TaskError
from fedge.split import GradientMessage, Memory, Options, Shared, answer, correct, quantize, receive
from fedge.split.gradient import GradientCoding
from fedge.split.message import MOST_VALUES, CodebookKind
from fedge.split.quantizer import LARGEST_MAGNITUDE
from fedge.tasks.split_model import Halves, activation_shape

BETWEEN_BITS = 8
Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets to the mean over a batch: ``Task.loss``."""
Batch = tuple[Tensor, Tensor]
"""Inputs and targets."""
Seen = tuple[Floats | None, Indices]
"""The codebook of a message, None if it was the shared one, and its indices: what ``Memory.after`` takes."""


@dataclass(slots=True, eq=False)
class _Pending:
    """A batch whose answer is outstanding; ``outputs`` has the tape, if that is kept."""

    inputs: Tensor
    outputs: Tensor | None
    restored: Floats | None
    step: int
    seed: int


class FrontHalf:
    """A device's half. One batch at a time: ``forward``, then ``backward`` or another ``forward``."""

    def __init__(self, front: nn.Module, options: Options | None, keeps_tape: bool = True) -> None:
        self.front, self.options, self.keeps_tape = front, options, keeps_tape
        self.trained: list[Tensor] = [parameter for parameter in front.parameters() if parameter.requires_grad]
        """In which order their gradients are given."""
        self._pending: _Pending | None = None

    def forward(self, inputs: Tensor, step: int, seed: int, shared: Shared | None = None) -> bytes:
        """Return the message of a batch's activations.

        Raises:
            CodecError: as ``fedlite.quantize``.
        """
        with torch.set_grad_enabled(self.keeps_tape):
            outputs = self._run(inputs, seed)
        z, restored = _rows(outputs), None
        if self.options is None:
            data = z.tobytes()
        else:
            made = quantize(z, self.options, step, seeds.derive(seed, "quantizer"), shared)
            data, restored = made.data, made.restored
        self._pending = _Pending(inputs, outputs if self.keeps_tape else None, restored, step, seed)
        return data

    def backward(self, data: bytes) -> Floats:
        """Return the gradient of the trained parameters, end to end, float32, from the server's answer.

        Raises:
            TaskError: no batch is waiting for one.
            CodecError: it is no answer for this batch; the batch waits on.
        """
        if self._pending is None:
            raise TaskError("split: expected a batch that waits for its gradient, got none")
        batch = self._pending
        outputs = self._run(batch.inputs, batch.seed) if batch.outputs is None else batch.outputs
        z = _rows(outputs)
        if self.options is None or batch.restored is None:
            dz = _as_floats(data, z.shape[1])
            if dz.shape != z.shape:
                raise CodecError(f"expected gradients of shape {z.shape}, got {dz.shape}")
        else:
            dz = correct(data, z, batch.restored, self.options, batch.step)
        weights = torch.from_numpy(dz).to(outputs.device, outputs.dtype).view_as(outputs)
        end: Tensor = _End.apply(outputs, weights)  # type: ignore[no-untyped-call]
        # Nothing is refused from here on, and neither z nor z~ has to be there beside what autograd makes.
        self._pending = None
        del batch, outputs, z, dz, weights
        grads = torch.autograd.grad(end, self.trained, materialize_grads=True)
        return torch.cat([grad.reshape(-1) for grad in grads]).cpu().float().numpy()

    def _run(self, inputs: Tensor, seed: int) -> Tensor:
        with drawing(seeds.derive(seed, "torch")):  # the same if it runs again
            outputs: Tensor = self.front(inputs)
        return outputs


class _End(torch.autograd.Function):
    """A scalar whose gradient by ``outputs`` is given. Neither of the two is kept while autograd does the rest."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, gradient: Tensor) -> Tensor:
        """Return a zero."""
        ctx.gradient = gradient
        return outputs.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        """Return the gradient, and forget it."""
        gradient, ctx.gradient = ctx.gradient, None
        return gradient, None


@dataclass(frozen=True, slots=True, eq=False)
class Backward:
    """What one batch asks for: the answer to its device, its mean loss, and the gradients of the trained parameters.

    The loss is NaN where only the device knows it.
    """

    answer: bytes
    loss: float
    grads: Sequence[Tensor]


class BackHalf:
    """The server's half. ``shape``: of one example's activations, as the back half takes them."""

    def __init__(
        self,
        back: nn.Module,
        loss: Loss,
        shape: tuple[int, ...],
        options: Options | None,
        most_values: int = MOST_VALUES,
    ) -> None:
        self.back, self.loss, self.shape, self.options = back, loss, shape, options
        self.most_values = most_values
        self.trained: list[Tensor] = [parameter for parameter in back.parameters() if parameter.requires_grad]

    def receive(self, data: bytes, shared: Shared | None = None) -> tuple[Floats, Seen | None]:
        """Return z~, float32 ``[B, d]``, and what the memory of the run wants to know of the message.

        Raises:
            CodecError: as ``fedlite.receive``, or activations of another model.
        """
        size = int(np.prod(self.shape))
        if self.options is None:
            return _as_floats(data, size), None
        received = receive(data, self.options, shared, self.most_values)
        if received.restored.shape[1] != size:
            raise CodecError(f"expected {size} activations an example, got {received.restored.shape[1]}")
        book = received.message.codebook
        known = None if book.kind is CodebookKind.SHARED else book.centroids
        return received.restored, (known, received.message.index)

    def step(
        self, batches: Sequence[tuple[Floats, Tensor]], rate: float, seed: int, clip_norm: float | None = None
    ) -> tuple[list[bytes], list[float]]:
        """Take a step of SGD on z~ and targets of some devices; return an answer and a loss for each.

        The gradient that a batch gives is cut to ``clip_norm``.

        Raises:
            TaskError: a loss that is not finite, before anything was changed.
        """
        sums = [torch.zeros_like(parameter) for parameter in self.trained]
        answers, losses = [], []
        for k, (restored, targets) in enumerate(batches):
            found = self.backward(restored, targets, seeds.derive(seed, k))
            for total, grad in zip(sums, _clipped(found.grads, clip_norm), strict=True):
                total.add_(grad, alpha=1 / len(batches))
            answers.append(found.answer)
            losses.append(found.loss)
        descend(self.trained, sums, rate)
        return answers, losses

    def backward(self, restored: Floats, targets: Tensor, seed: int) -> Backward:
        """Return what one device's batch, z~ float32 ``[B, d]`` and targets, asks for. Nothing is changed.

        Raises:
            TaskError: a loss or a gradient that is not finite.
            CodecError: a gradient by z~ that is too large to be answered.
        """
        z = self._inputs(restored).requires_grad_()
        with drawing(seeds.derive(seed, "torch")):
            # Where the targets are, which is the CPU: a label that is no class would end an accelerator's context.
            loss = self.loss(self.back(z).to(targets.device), targets)
        if not torch.isfinite(loss):
            raise TaskError(f"split: training diverged, a batch has loss {loss.item()}")
        return self._backward(loss, None, z, loss.item(), seed)

    def outputs(self, restored: Floats, seed: int) -> bytes:
        """U-shaped: return the message of what comes out, for the heads of z~ float32 ``[B, d]``."""
        with torch.no_grad(), drawing(seeds.derive(seed, "torch")):
            found = self.back(self._inputs(restored))
        return between(_rows(found), self.options, seeds.derive(seed, "outputs"))

    def backward_from(self, restored: Floats, data: bytes, seed: int) -> Backward:
        """U-shaped: return what a batch asks for whose device says the gradient of its loss by ``outputs``.

        Raises:
            TaskError: a gradient that is not finite.
            CodecError: ``data`` is no gradient by these outputs, or the one by z~ is too large to be answered.
        """
        z = self._inputs(restored).requires_grad_()
        with drawing(seeds.derive(seed, "torch")):
            found: Tensor = self.back(z)
        expected = _rows(found).shape
        gradient = read_between(data, self.options, expected[1])
        if gradient.shape != expected:
            raise CodecError(f"expected gradients of shape {expected}, got {gradient.shape}")
        weights = torch.from_numpy(gradient).to(found.device, found.dtype).view_as(found)
        return self._backward(found, weights, z, math.nan, seed)

    def _backward(self, of: Tensor, weights: Tensor | None, z: Tensor, loss: float, seed: int) -> Backward:
        gradient, *grads = torch.autograd.grad(of, [z, *self.trained], weights, materialize_grads=True)
        rows, own = _rows(gradient), seeds.derive(seed, "gradient")
        data = rows.tobytes() if self.options is None else answer(rows, self.options, own)
        if not all(bool(torch.isfinite(grad).all()) for grad in grads):
            raise TaskError("split: training diverged, a batch has a gradient that is not finite")
        return Backward(data, loss, grads)

    def _inputs(self, restored: Floats) -> Tensor:
        where = self.trained[0].device if self.trained else torch.device("cpu")
        return torch.from_numpy(restored).to(where).view(len(restored), *self.shape)


def between(rows: Floats, options: Options | None, seed: int) -> bytes:
    """U-shaped: return ``rows`` float32 ``[B, m]``, outputs of the back half or gradients by them, as bytes.

    Eight bits with a scale for each row: they are few beside activations. Without options float32.

    Raises:
        CodecError: numbers that are not finite.
    """
    if options is None:
        return rows.tobytes()
    return GradientMessage.of(rows, BETWEEN_BITS, seed, GradientCoding.UNIFORM).data


def read_between(data: bytes, options: Options | None, size: int) -> Floats:
    """U-shaped: return what ``between`` wrote, float32 ``[B, size]``.

    Raises:
        CodecError: it is none.
    """
    if options is None:
        return _as_floats(data, size)
    return GradientMessage.from_bytes(data, MOST_VALUES).gradient


def descend(parameters: Sequence[Tensor], grads: Sequence[Tensor], rate: float) -> None:
    """Take a step of SGD in place."""
    with torch.no_grad():
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.add_(grad.to(parameter.device).view_as(parameter), alpha=-rate)


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """What a step did: losses and bytes of each device, labels and w_c not counted, and the memory after it."""

    losses: list[float]
    bytes_up: list[int]
    bytes_down: list[int]
    memory: Memory | None


def split_step(
    parts: Halves,
    loss: Loss,
    batches: Sequence[Batch],
    options: Options | None,
    rate: float,
    step: int,
    seed: int,
    shared: Shared | None = None,
    memory: Memory | None = None,
    clip_norm: float | None = None,
) -> Stepped:
    """Train one step on a batch of each of some devices, all in this process.

    ``shared`` is what devices have been given; ``memory``, if there is one, learns from the step. ``clip_norm`` bounds
    the gradient of a batch, in either half.

    Raises:
        CodecError: activations that cannot be quantized.
        TaskError: a loss that is not finite.
    """
    fronts = [FrontHalf(parts.front, options) for _ in batches]
    back = BackHalf(parts.back, loss, activation_shape(parts.front, batches[0][0]), options)
    sent = [
        front.forward(inputs, step, seeds.derive(seed, step, k), shared)
        for k, (front, (inputs, _)) in enumerate(zip(fronts, batches, strict=True))
    ]
    received = [back.receive(data, shared) for data in sent]
    pairs = [(z, targets) for (z, _), (_, targets) in zip(received, batches, strict=True)]
    answers, losses = back.step(pairs, rate, seeds.derive(seed, step, "back"), clip_norm)
    grads = [front.backward(data) for front, data in zip(fronts, answers, strict=True)]
    for grad in grads:
        clip(torch.from_numpy(grad), clip_norm)
    mean, trained = np.mean(grads, 0, dtype=np.float64).astype(np.float32), fronts[0].trained
    stops = np.cumsum([parameter.numel() for parameter in trained])[:-1]
    descend(trained, [torch.from_numpy(part) for part in np.split(mean, stops)], rate)
    if memory is not None:
        memory = memory.after([known for _, known in received if known is not None])
    return Stepped(losses, [len(data) for data in sent], [len(data) for data in answers], memory)


def _clipped(grads: Sequence[Tensor], norm: float | None) -> Sequence[Tensor]:
    """Return gradients that are cut to ``norm`` as one vector."""
    if norm is None or not grads:
        return grads
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    clip(flat, norm)
    return [part.view_as(grad) for part, grad in zip(torch.split(flat, [g.numel() for g in grads]), grads, strict=True)]


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Let dropout and the like draw from ``seed``, and torch's generator go on as if they had not."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: without a GPU that puts a traceback by for one, and takes a millisecond, every time.
        torch.default_generator.manual_seed(seed)
        yield


def _rows(tensor: Tensor) -> Floats:
    """Return activations or their gradient as float32 ``[B, d]``."""
    rows: Floats = tensor.detach().cpu().float().reshape(len(tensor), -1).contiguous().numpy()
    return rows


def _as_floats(data: bytes, size: int) -> Floats:
    """Read what travels uncompressed, float32 ``[B, size]``."""
    if not data or len(data) % (4 * size):
        raise CodecError(f"expected whole examples of {size} float32, got {len(data)} bytes")
    found = np.frombuffer(data, "<f4").astype(np.float32).reshape(-1, size)
    if not np.abs(found).max() <= LARGEST_MAGNITUDE:
        raise CodecError(f"expected numbers of magnitude {LARGEST_MAGNITUDE:g} or less, got others")
    return found
