"""What is shown of a round's split training: batches, and bytes by what they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedge.split.exchange import Answer, Batch
from schemas.ids import DeviceId
from schemas.status import SplitStatus, Traffic

BATCH_HEAD, ANSWER_HEAD = len(Batch(0, b"", b"").to_bytes()), len(Answer(0, 0.0, b"").to_bytes())


@dataclass(slots=True)
class Counts:
    """Running totals; ``float32_up`` is what activations alone are as bare float32, ``float32_down`` gradients."""

    steps: int = 0
    batches: int = 0
    repeats: int = 0
    refused: int = 0
    loss: float | None = None
    activations: int = 0
    labels: int = 0
    gradients: int = 0
    shared: int = 0
    overhead_up: int = 0
    overhead_down: int = 0
    greetings: int = 0
    float32_up: int = 0
    float32_down: int = 0

    def note_step(self, losses: Sequence[float]) -> None:
        """Count a step that was taken with batches of these mean losses, NaN where only their devices know."""
        known = [loss for loss in losses if math.isfinite(loss)]
        self.steps += 1
        self.loss = sum(known) / len(known) if known else self.loss

    def note(self, batch: Batch, answer: Answer, values_up: int, values_down: int) -> None:
        """Count a batch that was taken, and how many numbers it and its answer stand for."""
        self.batches += 1
        self.activations += len(batch.activations)
        self.labels += len(batch.labels)
        self.gradients += len(answer.gradient)
        self.overhead_up += BATCH_HEAD
        self.overhead_down += ANSWER_HEAD
        self.float32_up += 4 * values_up
        self.float32_down += 4 * values_down

    def status(self, served: Iterable[DeviceId]) -> SplitStatus:
        """Return what is shown; ``served`` are the devices whose batches these were."""
        return SplitStatus(
            devices=tuple(sorted(served)),
            steps=self.steps,
            batches=self.batches,
            repeats=self.repeats,
            refused=self.refused,
            loss=self.loss,
            activations=self.activations,
            labels=self.labels,
            gradients=self.gradients,
            shared=self.shared,
            overhead=Traffic(up=self.overhead_up, down=self.overhead_down + self.greetings),
            float32_bytes=Traffic(up=self.float32_up, down=self.float32_down),
        )
