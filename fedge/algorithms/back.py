"""The server's part of a split round: the back half, which takes a step with whatever devices have sent together.

    step    z~_k, y_k of K devices → for each an answer, and   w_s ← w_s - η·( (1/n)·Σ_k g_k + pull·(w_s - θ_s + u_s) )

n is how many devices are at work in the round and not how many came together. So it hardly matters how they come: all
at once they take one whole step, one after the other n parts of one, and who never comes is missing and no more. The
algorithm's part, which is for one whole step, is taken K/n times too. Each g_k is cut to ``clip_norm``: whoever sends
activations that are of no model moves w_s by η·clip_norm/n and not further. Running statistics, and the codebook that
all share, move by the median over the latest batches of some devices: among three or more, one that lies has no say.

To the algorithm the back half is a device of its own, with the examples of all whose front halves it serves: its delta
enters the mean of the back segments beside those of devices that train the whole model, and under FedDyn it has a dual.

In a U-shaped split the device has the last layers, too, and its labels to itself. Then a step has two exchanges: z~ up
and the outputs of the back half down, the gradient by these up and that by z~ down. The second moves w_s, with the
forward pass taken again by what w_s is then.

A batch that is no batch by the plan, or that leads to numbers that are not finite, is refused by itself: the others of
the same step are not touched. The same calls in the same order give the same bits: that is how a round is taken up
again after a crash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fedge import seeds
from fedge.algorithms.base import LocalTerms
from fedge.algorithms.local import FlatModel, LocalSpec, clip
from fedge.algorithms.split import BackHalf, Loss, Seen
from fedge.codecs.product import Floats
from fedge.errors import FedgeError, TaskError
from fedge.layout import Kind, Layout, Vector
from fedge.split import Coding, Memory, Options, Shared, Start, read_labels
from fedge.split.message import state_named
from fedge.tasks.split_model import Halved, activation_shape
from fedge.tasks.torch_model import read_tensors, write_tensors

DEVICES_KEPT = 16
"""Of so many devices the latest codebook, and the latest change of buffers, are kept: their median is what counts."""
STATES_KEPT, STATE_BYTES_KEPT = 32, 1 << 25
"""So many shared states, or more that take no more room, may be made while a batch is on its way."""

Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class Sent:
    """What a device sent in its step ``step``: the messages of activations and labels."""

    device: str
    step: int
    activations: bytes
    labels: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one device's batch: the answer and its loss, or why it was refused.

    ``loss`` is NaN where only the device knows it. ``values_up`` and ``values_down`` are how many numbers the message
    and its answer stand for.
    """

    answer: bytes = b""
    loss: float = 0.0
    values_up: int = 0
    values_down: int = 0
    refusal: str = ""


class BackRun:
    """Steps of the back half of ``model`` from ``anchor``, float32 ``[d]`` of the whole layout.

    ``most_values`` bounds the activations of a batch. It is trained where its tensors are.
    """

    def __init__(
        self,
        model: Halved,
        loss: Loss,
        anchor: Vector,
        terms: LocalTerms,
        spec: LocalSpec,
        options: Options | None,
        seed: int,
        most_values: int,
    ) -> None:
        self.layout, self.tensors, self.seed, self.spec = model.layout, model.back, seed, spec
        self.terms, self.options = terms, options
        self.start = model.layout.front.size
        self._layout = _alone(model.layout)
        write_tensors(self.tensors, self._layout, anchor[self.start :])
        self.flat = FlatModel(self.tensors, self._layout)
        self._device = self.flat.params.device
        self.anchor = anchor[self.start :].copy()
        centre = anchor if terms.dual is None else anchor - terms.dual
        centre = self._layout.trained(centre[self.start :]).astype(np.float32)
        self._centre = torch.from_numpy(np.ascontiguousarray(centre)).to(self._device)
        self._half = BackHalf(model.parts.back, loss, model.shape, options, most_values)
        model.parts.back.train()
        needs = options is not None and (options.start is not Start.FRESH or options.coding is Coding.SHARED)
        values = int(np.prod(model.shape))
        self._memory = Memory(options.shape(1, values)) if needs and options is not None else None
        self.shared: Shared | None = None
        """What devices are given for their next step."""
        self._known: dict[str, Shared] = {}
        self._books: dict[str, Floats] = {}
        self._changes: dict[str, dict[str, Tensor]] = {}
        self._is_u_shaped = model.parts.head is not None
        self._turning: dict[str, tuple[int, Floats]] = {}
        """U-shaped: step and z~ of those who have the outputs and owe the gradient by them."""
        self.width = int(np.prod(activation_shape(model.parts.back, torch.zeros(1, *model.shape).to(self._device))))
        self._age = 0
        self._buffers = [tensor.name for tensor in self._layout.tensors if tensor.kind is Kind.BUFFER]
        self._half.trained = [self.tensors[t.name] for t in self._layout.tensors if t.kind is not Kind.BUFFER]

    def step(self, sent: Sequence[Sent], devices: int) -> list[Outcome]:
        """Take a step with what came together, of ``devices`` that are at work; return the outcome of each."""
        sums, outcomes, seen, taken = torch.zeros_like(self.flat.grads), [], [], 0
        for one in sent:
            before = {name: self.tensors[name].clone() for name in self._buffers}
            try:
                outcome, grads, known = self._work(one)
            except (FedgeError, IndexError, RuntimeError, ValueError) as error:
                # Whatever a stranger's numbers make of other people's code is the stranger's fault.
                self._put_back(before)
                outcomes.append(Outcome(refusal=f"{type(error).__name__}: {error}"[:300]))
                continue
            outcomes.append(outcome)
            self._note_changes(one.device, before)
            if grads is not None:
                sums.add_(self._clipped(grads), alpha=1 / devices)
                taken += 1
            if known is not None:
                seen.append(known)
                self._note_codebook(one.device, known[0])
        worked = sum(not outcome.refusal for outcome in outcomes)
        if worked:
            self._move_buffers(min(1.0, worked / devices))
        if taken:
            self._descend(sums, min(1.0, taken / devices))
        self._learn(seen)
        return outcomes

    @property
    def turns(self) -> int:
        """How many exchanges a step has: two where the device has the head."""
        return 2 if self._is_u_shaped else 1

    @property
    def delta(self) -> Vector:
        """What training changed, float32 ``[d]`` of the whole layout, zeros in the front half.

        Raises:
            TaskError: it is not finite.
        """
        delta = np.zeros(self.layout.size, np.float32)
        delta[self.start :] = read_tensors(self.tensors, self._layout) - self.anchor
        if not np.isfinite(delta).all():
            raise TaskError("split: training diverged, the back half is not finite")
        return delta

    def _work(self, one: Sent) -> tuple[Outcome, Sequence[Tensor] | None, Seen | None]:
        """Return what comes of one batch: the gradients it asks for, if any, and what the memory wants to know."""
        if not self._is_u_shaped:
            restored, known = self._receive(one)
            targets = torch.from_numpy(read_labels(one.labels, len(restored)))
            found = self._half.backward(restored, targets, seeds.derive(self.seed, one.device, one.step))
            return Outcome(found.answer, found.loss, restored.size, restored.size), found.grads, known
        own = seeds.derive(self.seed, one.device, one.step // 2)
        if one.step % 2 == 0:
            restored, known = self._receive(one)
            data = self._half.outputs(restored, own)
            self._turning[one.device] = (one.step, restored)
            return Outcome(data, math.nan, restored.size, self._outputs(restored)), None, known
        before = self._turning.pop(one.device, None)
        if before is None or before[0] != one.step - 1:
            raise TaskError(f"split: expected activations in step {one.step - 1} before their gradient, got none")
        restored = before[1]
        found = self._half.backward_from(restored, one.activations, own)
        return Outcome(found.answer, math.nan, self._outputs(restored), restored.size), found.grads, None

    def _receive(self, one: Sent) -> tuple[Floats, Seen | None]:
        # Others' steps may have made newer states since this device was given its own.
        named = state_named(one.activations) if self.options is not None else None
        shared = self.shared if named is None else self._known.get(named)
        return self._half.receive(one.activations, shared)

    def _outputs(self, restored: Floats) -> int:
        """Return how many numbers come out of the back half for z~ ``[B, d]``."""
        return len(restored) * self.width

    def _clipped(self, grads: Sequence[Tensor]) -> Tensor:
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        clip(flat, self.spec.clip_norm)
        return flat

    def _descend(self, sums: Tensor, share: float) -> None:
        params, pull = self.flat.params, self.terms.pull
        rate = min(self.spec.learning_rate, 1 / pull) if pull else self.spec.learning_rate
        if pull:
            sums.add_(params - self._centre, alpha=pull * share)
        if self.spec.weight_decay:
            sums.add_(params, alpha=self.spec.weight_decay * share)
        params.add_(sums, alpha=-rate)

    def _put_back(self, buffers: Mapping[str, Tensor]) -> None:
        for name, tensor in buffers.items():
            self.tensors[name].copy_(tensor)

    def _note_changes(self, device: str, before: Mapping[str, Tensor]) -> None:
        """Keep by how much a batch moved the buffers, running statistics and the like, and put them back."""
        if before:
            _keep(self._changes, device, {name: self.tensors[name] - tensor for name, tensor in before.items()})
            self._put_back(before)

    def _move_buffers(self, share: float) -> None:
        """Move the buffers by the median of what the latest batch of each of some devices did."""
        for name in self._buffers if self._changes else ():
            changes, tensor = torch.stack([change[name] for change in self._changes.values()]), self.tensors[name]
            usual = changes.float().quantile(0.5, 0)
            tensor.add_(usual * share if tensor.is_floating_point() else usual.round().to(tensor.dtype))

    def _note_codebook(self, device: str, book: Floats | None) -> None:
        """Keep the latest codebook of each of some devices: what all share is their median, which no one moves far."""
        if book is not None:
            _keep(self._books, device, book)

    def _learn(self, seen: Sequence[Seen]) -> None:
        if self._memory is None or self.options is None or not seen:
            return
        if self._books:
            usual = np.median(np.stack(list(self._books.values())), axis=0).astype(np.float32)
            seen = [(None if book is None else usual, index) for book, index in seen]
        self._memory = self._memory.after(seen)
        options, self._age = self.options, self._age + 1
        if self.shared is not None and self._age < options.refresh_steps:
            return  # a little older it serves as well, and every device has to be given a new one
        self._age = 0
        self.shared = self._memory.publish(options.start is not Start.FRESH, options.coding is Coding.SHARED)
        size = len(self.shared.to_bytes())
        _keep(self._known, self.shared.id, self.shared, max(STATES_KEPT, STATE_BYTES_KEPT // size))


def _keep(kept: dict[str, Kept], name: str, value: Kept, most: int = DEVICES_KEPT) -> None:
    """Keep ``value`` as the youngest of at most so many."""
    kept.pop(name, None)
    kept[name] = value
    if len(kept) > most:
        kept.pop(next(iter(kept)))


def _alone(layout: Layout) -> Layout:
    """Return the layout of the back half by itself: its tensors, from 0 on."""
    return Layout(layout.tensors[layout.num_front :])
