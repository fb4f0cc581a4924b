"""``simulate``: a whole federation in one process, on a virtual clock and without a network.

Both machines, the codec, the budgets and the arithmetic are the ones of the service; only sockets, disks and waiting
are left out. With the plan and the seed of a real run the cohorts, the rotations and the order of examples are the
same, so the learning curve is the same up to the order in which updates arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedge.algorithms import build
from fedge.errors import SimulationError
from fedge.layout import Layout, Vector
from fedge.protocol.offer import half_of, part_of
from fedge.simulation.aggregator import Aggregator
from fedge.simulation.clock import Clock
from fedge.simulation.device import Device
from fedge.simulation.world import SplitTrainer, Trainer, World
from fedge.update import float32_bytes
from schemas.ids import DeviceId
from schemas.plan import Plan
from schemas.status import RoundStatus, RunPhase, Traffic

OnRound = Callable[[RoundStatus], None]


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """``published`` float32 ``[d]``; ``seconds`` are the virtual clock's; ``initial_metrics`` the initial model's."""

    phase: RunPhase
    reason: str
    initial_metrics: dict[str, float]
    rounds: tuple[RoundStatus, ...]
    layout: Layout
    published: Vector
    seconds: float


def simulate(plan: Plan, trainer: Trainer, world: World, on_round: OnRound | None = None) -> SimulationResult:
    """Run ``plan`` over the devices of ``world``; ``on_round`` is called as each round ends.

    Raises:
        SimulationError: the plan wants more devices than the world has, or what they or the trainer cannot do.
    """
    simulation = Simulation(plan, trainer, world, on_round)
    simulation.run()
    return simulation.result()


class Simulation:
    """The pieces of one simulated run, for whoever wants to look into them (tests do)."""

    def __init__(self, plan: Plan, trainer: Trainer, world: World, on_round: OnRound | None = None) -> None:
        if plan.cohort.devices > len(world.devices):
            raise SimulationError(
                f"cohort.devices: expected at most {len(world.devices)}, all there are, got {plan.cohort.devices}"
            )
        if plan.is_split and not (isinstance(trainer, SplitTrainer) and trainer.layout.num_front):
            raise SimulationError("split: expected a trainer of models that are cut in two, got one of whole models")
        unable = [name for name in world.devices if half_of(plan, world.trains_of(name)) is None]
        if unable:
            raise SimulationError(
                f"expected devices that train whole models, got {', '.join(unable)}: front halves only"
            )
        self.plan, self.trainer, self.clock = plan, trainer, Clock()
        self.rounds: list[RoundStatus] = []
        self.initial_metrics: dict[str, float] = {}
        self._on_round = on_round
        self._seen = Traffic()
        settings = plan.algorithm.model_dump(exclude={"name"})
        algorithm = build(plan.algorithm.name, **settings)
        state = algorithm.initial(trainer.initial(plan.seed))
        sizes = {name: trainer.num_examples(name) for name in world.devices}
        halves = trainer if plan.is_split and isinstance(trainer, SplitTrainer) else None
        self.aggregator = Aggregator(
            plan, world, trainer.layout, sizes, algorithm, state, self.clock, self._round_ended, halves
        )
        self.devices = {
            name: Device(name, self.aggregator, trainer, algorithm, world.link_of(name), self.clock)
            for name in world.devices
        }

    def run(self) -> None:
        """Let time pass until the run is over."""
        self.initial_metrics = self._evaluate()
        for device in self.devices.values():
            device.start()
        self.aggregator.start()
        if not self.clock.run(lambda: self.aggregator.run.is_over):
            raise SimulationError(f"nothing more can happen in round {self.aggregator.round.number}")

    def result(self) -> SimulationResult:
        """Return what came of the run."""
        run = self.aggregator.run
        return SimulationResult(
            phase=run.phase,
            reason=run.reason,
            initial_metrics=self.initial_metrics,
            rounds=tuple(self.rounds),
            layout=self.trainer.layout,
            published=self._published(),
            seconds=self.clock.now,
        )

    def _published(self) -> Vector:
        return np.ascontiguousarray(self.aggregator.state.published, np.float32)

    def _evaluate(self) -> dict[str, float]:
        return self.trainer.evaluate(self._published())

    def _round_ended(self, aggregator: Aggregator) -> None:
        status = self._status(aggregator)
        self.rounds.append(status)
        if self._on_round is not None:
            self._on_round(status)

    def _status(self, aggregator: Aggregator) -> RoundStatus:
        round, ledger = aggregator.round, aggregator.ledger
        rounds_late, invited = aggregator.rounds_late, aggregator.invited
        complete = tuple(DeviceId(name) for name in round.updates if name in invited)
        losses = [ledger.deliveries[name].header.loss for name in complete]
        known = [loss for loss in losses if loss is not None]
        frames = aggregator.frame_traffic
        spent = Traffic(up=frames.up - self._seen.up, down=frames.down - self._seen.down)
        self._seen = Traffic(up=frames.up, down=frames.down)
        split, layout = aggregator.split, aggregator.layout
        sent = [float32_bytes(part_of(layout, invited[name])) for name in complete if name in invited]
        late = [float32_bytes(self.devices[name].layout) for name in rounds_late]
        given = [float32_bytes(self.devices[name].layout) for name in round.cohort]
        bare = Traffic(up=sum(sent) + sum(late), down=sum(given))
        due = round.number % self.plan.evaluate_every == 0 or round.number == self.plan.rounds
        return RoundStatus(
            round=round.number,
            phase=round.phase,
            cohort=tuple(DeviceId(name) for name in round.cohort),
            updates=complete,
            partial=tuple(DeviceId(name) for name in ledger.deliveries if name in invited and name not in complete),
            late={DeviceId(name): rounds for name, rounds in rounds_late.items()},
            gone=tuple(DeviceId(name) for name in round.gone),
            reason=round.reason,
            opened_at=round.opened_at,
            closed_at=self.clock.now,
            loss=sum(known) / len(known) if known else None,
            shrunk_by=aggregator.sums.shrunk_by,
            metrics=self._evaluate() if due else {},
            bytes_down={DeviceId(name): size for name, size in aggregator.downlinks.sent.items()},
            perturbation=aggregator.downlinks.perturbation,
            traffic=spent,
            split=split,
            frame_bytes=_plus(spent, None if split is None else split.bytes),
            float32_bytes=_plus(bare, None if split is None else split.float32_bytes),
        )


def _plus(one: Traffic, more: Traffic | None) -> Traffic:
    return one if more is None else Traffic(up=one.up + more.up, down=one.down + more.down)
