"""The agent's side of a front half in the trainer process (``device_app.front_process``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from device_app.errors import TrainerDied
from device_app.trainer import LocalRun, Trained, Trainer
from fedge.algorithms.base import LocalTerms
from fedge.layout import Vector
from fedge.split.exchange import Batch


@dataclass(frozen=True, slots=True)
class FrontSpec:
    """What a front half is trained with, beside what whole models are: see ``schemas.specs.SplitSpec``."""

    quantizer: Mapping[str, Any] | None
    steps: int
    keeps_tape: bool


@dataclass(slots=True)
class Front:
    """One device's front half in one round: ``next`` is the step that comes next, of ``steps``."""

    trainer: Trainer
    task: str
    options: Mapping[str, Any]
    key: str
    next: int = 0
    steps: int = 0
    num_examples: int = 0
    done: int = 0
    """How many steps were taken here, since it was opened."""
    batch: Batch | None = field(default=None)
    """The batch of step ``next``, where it was made."""

    async def open(
        self,
        anchor: Vector,
        terms: LocalTerms,
        local: LocalRun,
        seed: int,
        spec: FrontSpec,
        resume: tuple[int, bytes] | None,
    ) -> None:
        """Begin from ``anchor`` float32 ``[d]`` of the front half; or go on from the step and the params of ``resume``.

        Raises:
            TrainerError: the task cannot be cut, or its data not be used.
        """
        step, params = resume or (0, b"")
        request = {
            "local": asdict(local),
            "pull": terms.pull,
            "seed": seed,
            "quantizer": None if spec.quantizer is None else dict(spec.quantizer),
            "steps": spec.steps,
            "keeps_tape": spec.keeps_tape,
            "next": step,
        }
        dual = b"" if terms.dual is None else np.ascontiguousarray(terms.dual, np.float32).tobytes()
        answer, _ = await self._ask(
            "front_open", [np.ascontiguousarray(anchor, np.float32).tobytes(), dual, params], request
        )
        self.next, self.steps, self.num_examples = answer["next"], answer["steps"], answer["num_examples"]

    async def forward(self, shared: bytes) -> Batch:
        """Return the batch of step ``next``: the one that was made before, or a new one with the state ``shared``.

        Raises:
            TrainerError: activations that cannot be quantized.
        """
        if self.batch is None:
            _, (activations, labels) = await self._ask("front_forward", [shared])
            self.batch = Batch(self.next, activations, labels)
        return self.batch

    async def backward(self, gradient: bytes, loss: float) -> bytes:
        """Take step ``next``; return the params after it, float32.

        Raises:
            TrainerError: it is no gradient of the batch.
        """
        answer, (params,) = await self._ask("front_backward", [gradient], {"loss": loss})
        self.next, self.batch, self.done = answer["next"], None, self.done + 1
        return params

    async def skip(self, step: int) -> None:
        """Go on with ``step``."""
        answer, _ = await self._ask("front_skip", [], {"next": step})
        self.next, self.batch = answer["next"], None

    async def close(self) -> Trained:
        """End the local run and return what came of it.

        Raises:
            TrainerError: it diverged.
        """
        answer, (delta,) = await self._ask("front_close", [])
        return Trained(np.frombuffer(delta, np.float32), answer["loss"], self.num_examples)

    async def drop(self) -> None:
        """Forget the local run."""
        await self._ask("front_drop", [])

    async def _ask(
        self, op: str, parts: Sequence[bytes], more: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], list[bytes]]:
        request = {"op": op, "task": self.task, "options": dict(self.options), "key": self.key, **(more or {})}
        answer, vectors = await self.trainer.ask(request, parts)
        if answer["event"] == "unknown":
            raise TrainerDied("the trainer process that held the front half has ended")
        return answer, vectors
