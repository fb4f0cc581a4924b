"""Split training in a simulation: front halves and the back half in this process, through the bytes of their messages.

Devices of a cohort train side by side on the virtual clock. So whoever has begun by the time that the first of them is
waited for takes its steps together with the others; who begins later, by itself, as after a long download.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedge.algorithms.back import BackRun, Outcome, Sent
from fedge.algorithms.base import LocalTerms
from fedge.algorithms.front import FrontRun
from fedge.errors import FedgeError, TaskError
from fedge.layout import Vector
from fedge.protocol.split_counts import Counts
from fedge.simulation.steps import as_steps
from fedge.simulation.world import SplitTrained
from fedge.split import Options, Shared
from fedge.split.exchange import Answer, Batch
from fedge.tasks.base import Dataset, Task
from fedge.tasks.split_model import halved
from schemas.ids import DeviceId
from schemas.specs import LocalSpec, SplitSpec
from schemas.status import SplitStatus


@dataclass(slots=True)
class Halves:
    """The halves of one round; ``devices`` train its front halves."""

    task: Task
    data: Mapping[str, Dataset]
    back: BackRun
    options: Options | None
    devices: int
    values: int
    waiting: dict[str, FrontRun] = field(default_factory=dict)
    done: dict[str, SplitTrained] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)

    @classmethod
    def open(
        cls,
        task: Task,
        data: Mapping[str, Dataset],
        anchor: Vector,
        terms: LocalTerms,
        local: LocalSpec,
        spec: SplitSpec,
        devices: int,
        seed: int,
    ) -> Halves:
        """Open a round whose back half begins from ``anchor`` float32 ``[d]``."""
        model = halved(task, task.model(0))
        values, settings = int(np.prod(model.shape)), spec.quantizer
        options = None if settings is None else Options.of(values, settings)
        most = local.batch_size * values
        back = BackRun(model, task.loss, anchor, terms, as_steps(local), options, seed, most)
        return cls(task, data, back, options, devices, values)

    def begin(
        self, device: str, anchor: Vector, terms: LocalTerms, local: LocalSpec, steps: int, seed: int
    ) -> Callable[[], SplitTrained]:
        """Begin the front half of ``device`` from ``anchor``; what is returned waits for what comes of it.

        A device that begins again, after a crash, goes on where it was: what it had done is done.
        """
        if device not in {*self.done, *self.waiting, *self.failed}:
            model = halved(self.task, self.task.model(0))
            spec = as_steps(local)
            self.waiting[device] = FrontRun(
                model, self.data[device], anchor, terms, spec, self.options, seed, steps, loss=self.task.loss
            )
        return lambda: self._result(device)

    def status(self) -> SplitStatus:
        """Return what the round's split training did."""
        return self.counts.status(map(DeviceId, self.done))

    def _result(self, device: str) -> SplitTrained:
        self._train()
        if device in self.failed:
            raise TaskError(self.failed[device])
        return self.done[device]

    def _train(self) -> None:
        """Take all steps of those who wait."""
        given: dict[str, bytes] = {}
        up, down = dict.fromkeys(self.waiting, 0), dict.fromkeys(self.waiting, 0)
        while self.waiting:
            made = {name: batch for name in list(self.waiting) if (batch := self._forward(name, given)) is not None}
            sent = [Sent(name, one.step, one.activations, one.labels) for name, one in made.items()]
            outcomes = self.back.step(sent, max(self.devices, len(sent)))
            shared = b"" if self.back.shared is None else self.back.shared.to_bytes()
            for (name, batch), outcome in zip(made.items(), outcomes, strict=True):
                if outcome.refusal:
                    self.counts.refused += 1
                    self._fail(name, outcome.refusal)
                    continue
                news = b"" if given.get(name) == shared else shared
                given[name] = shared
                answer = Answer(batch.step, outcome.loss, outcome.answer, news)
                self.counts.note(batch, answer, outcome.values_up, outcome.values_down)
                self.counts.shared += len(news)
                up[name] += len(batch.to_bytes())
                down[name] += len(answer.to_bytes())
                self._backward(name, outcome, up[name], down[name])
            self.counts.note_step([outcome.loss for outcome in outcomes if not outcome.refusal])

    def _forward(self, name: str, given: Mapping[str, bytes]) -> Batch | None:
        """Return the next batch of a device; None where it has failed."""
        run = self.waiting[name]
        try:
            front = run.forward(Shared.from_bytes(given[name], self.values) if given.get(name) else None)
        except FedgeError as error:
            self._fail(name, str(error))
            return None
        return Batch(run.next, front.activations, front.labels)

    def _backward(self, name: str, outcome: Outcome, bytes_up: int, bytes_down: int) -> None:
        run = self.waiting[name]
        try:
            run.backward(outcome.answer, outcome.loss)
            if run.next >= run.steps:
                self.done[name] = SplitTrained(run.delta, run.loss, bytes_up, bytes_down, run.done)
                del self.waiting[name]
        except FedgeError as error:
            self._fail(name, str(error))

    def _fail(self, name: str, why: str) -> None:
        self.failed[name] = why
        del self.waiting[name]
