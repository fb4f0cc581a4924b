"""The server's part of a split round: the back half, which takes a step with whatever devices have sent together.

    step    z~_k, y_k of K devices → for each an answer, and   w_s ← w_s - η·( (1/n)·Σ_k g_k + pull·(w_s - θ_s + u_s) )

n is how many devices are at work in the round and not how many came together. So it hardly matters how they come: all
at once they take one whole step, one after the other n parts of one, and who never comes is missing and no more. The
algorithm's part, which is for one whole step, is taken K/n times too. Each g_k is cut to ``clip_norm``: whoever sends
activations that are of no model moves w_s by η·clip_norm/n and not further.

To the algorithm the back half is a device of its own, with the examples of all whose front halves it serves: its delta
enters the mean of the back segments beside those of devices that train the whole model, and under FedDyn it has a dual.

A batch that is no batch by the plan, or that leads to numbers that are not finite, is refused by itself: the others of
the same step are not touched. The same calls in the same order give the same bits: that is how a round is taken up
again after a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedge import seeds
from fedge.algorithms.base import LocalTerms
from fedge.algorithms.local import FlatModel, LocalSpec
from fedge.algorithms.split import BackHalf, Backward, Loss, Seen
from fedge.errors import FedgeError, TaskError
from fedge.layout import Kind, Layout, Vector
from fedge.split import Coding, Memory, Options, Shared, Start, read_labels
from fedge.split.message import state_named
from fedge.tasks.split_model import Halved
from fedge.tasks.torch_model import read_tensors, write_tensors

STATES_KEPT = 32
"""So many shared states may be made by others' steps while a device computes with its own."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a device sent in its step ``step``: the messages of activations and labels."""

    device: str
    step: int
    activations: bytes
    labels: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one device's batch: the answer, its loss and its size, or why it was refused."""

    answer: bytes = b""
    loss: float = 0.0
    examples: int = 0
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
        self.anchor = anchor[self.start :].copy()
        centre = anchor if terms.dual is None else anchor - terms.dual
        centre = self._layout.trained(centre[self.start :]).astype(np.float32)
        self._centre = torch.from_numpy(np.ascontiguousarray(centre)).to(self.flat.params.device)
        self._half = BackHalf(model.parts.back, loss, model.shape, options, most_values)
        model.parts.back.train()
        needs = options is not None and (options.start is not Start.FRESH or options.coding is Coding.SHARED)
        values = int(np.prod(model.shape))
        self._memory = Memory(options.shape(1, values)) if needs and options is not None else None
        self.shared: Shared | None = None
        """What devices are given for their next step."""
        self._known: dict[str, Shared] = {}
        self._age = 0
        self._buffers = [tensor.name for tensor in self._layout.tensors if tensor.kind is Kind.BUFFER]
        self._half.trained = [self.tensors[t.name] for t in self._layout.tensors if t.kind is not Kind.BUFFER]

    def step(self, sent: Sequence[Sent], devices: int) -> list[Outcome]:
        """Take a step with what came together, of ``devices`` that are at work; return the outcome of each."""
        sums, outcomes, seen = torch.zeros_like(self.flat.grads), [], []
        for one in sent:
            before = {name: self.tensors[name].clone() for name in self._buffers}
            try:
                found, known = self._backward(one)
            except (FedgeError, IndexError, RuntimeError, ValueError) as error:
                # Whatever a stranger's numbers make of other people's code is the stranger's fault.
                for name, tensor in before.items():
                    self.tensors[name].copy_(tensor)
                outcomes.append(Outcome(refusal=f"{type(error).__name__}: {error}"[:300]))
                continue
            sums.add_(self._clipped(found.grads), alpha=1 / devices)
            outcomes.append(Outcome(found.answer, found.loss, found.examples))
            seen += [known] if known is not None else []
        taken = sum(not outcome.refusal for outcome in outcomes)
        if taken:
            self._descend(sums, min(1.0, taken / devices))
            self._learn(seen)
        return outcomes

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

    def _backward(self, one: Sent) -> tuple[Backward, Seen | None]:
        # Others' steps may have made newer states since this device was given its own.
        named = state_named(one.activations) if self.options is not None else None
        shared = self.shared if named is None else self._known.get(named)
        restored, known = self._half.receive(one.activations, shared)
        targets = torch.from_numpy(read_labels(one.labels, len(restored)))
        return self._half.backward(restored, targets, seeds.derive(self.seed, one.device, one.step)), known

    def _clipped(self, grads: Sequence[Tensor]) -> Tensor:
        flat, most = torch.cat([grad.reshape(-1) for grad in grads]), self.spec.clip_norm
        if most is not None:
            flat.mul_(torch.clamp(most / (torch.linalg.vector_norm(flat) + 1e-6), max=1.0))
        return flat

    def _descend(self, sums: Tensor, share: float) -> None:
        params, pull = self.flat.params, self.terms.pull
        rate = min(self.spec.learning_rate, 1 / pull) if pull else self.spec.learning_rate
        if pull:
            sums.add_(params - self._centre, alpha=pull * share)
        if self.spec.weight_decay:
            sums.add_(params, alpha=self.spec.weight_decay * share)
        params.add_(sums, alpha=-rate)

    def _learn(self, seen: Sequence[Seen]) -> None:
        if self._memory is None or self.options is None or not seen:
            return
        self._memory = self._memory.after(seen)
        options, self._age = self.options, self._age + 1
        if self.shared is not None and self._age < options.refresh_steps:
            return  # a little older it serves as well, and every device has to be given a new one
        self._age = 0
        self.shared = self._memory.publish(options.start is not Start.FRESH, options.coding is Coding.SHARED)
        self._known[self.shared.id] = self.shared
        if len(self._known) > STATES_KEPT:
            self._known.pop(next(iter(self._known)))


def _alone(layout: Layout) -> Layout:
    """Return the layout of the back half by itself: its tensors, from 0 on."""
    return Layout(layout.tensors[layout.num_front :])
