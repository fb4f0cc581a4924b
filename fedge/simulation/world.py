"""What a simulation is made of besides the two machines: training, links, and the weather on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fedge.algorithms.base import LocalTerms
from fedge.layout import Layout, Vector
from fedge.seeds import derive, uniform
from schemas.specs import Limits, LocalSpec, SplitSpec, Trains
from schemas.status import SplitStatus


@dataclass(frozen=True, slots=True)
class Trained:
    """What a local run gives: ``delta`` float32 ``[d]`` and the last mean loss."""

    delta: Vector
    loss: float


@dataclass(frozen=True, slots=True)
class SplitTrained:
    """What the steps of a front half give: its ``delta`` float32 ``[d]``, the mean loss, and the bytes they took."""

    delta: Vector
    loss: float
    bytes_up: int
    bytes_down: int
    steps: int


class Trainer(Protocol):
    """Who trains and tests. The torch one is ``fedge.simulation.training``; tests bring their own."""

    @property
    def layout(self) -> Layout:
        """The model's layout."""
        ...

    def initial(self, seed: int) -> Vector:
        """Return the first params, float32 ``[d]``."""
        ...

    def num_examples(self, device: str) -> int:
        """Return how many examples ``device`` has."""
        ...

    def begin(
        self, device: str, anchor: Vector, terms: LocalTerms, local: LocalSpec, seed: int
    ) -> Callable[[], Trained]:
        """Begin to train on ``device``'s data from ``anchor``; what is returned waits for the result.

        On the virtual clock a cohort trains at the same time, so all of it has begun before the first is waited for.
        """
        ...

    def evaluate(self, params: Vector) -> dict[str, float]:
        """Return the metrics of ``params`` on the test data; empty where there is none."""
        ...


@runtime_checkable
class SplitTrainer(Protocol):
    """A ``Trainer`` that can train split, too: one round at a time."""

    def open_halves(
        self, params: Vector, terms: LocalTerms, local: LocalSpec, spec: SplitSpec, devices: int, seed: int
    ) -> None:
        """Open a round in which ``devices`` train the front half of ``params`` float32 ``[d]``, the aggregator the
        rest, with ``terms`` and ``seed``."""
        ...

    def begin_front(
        self, device: str, anchor: Vector, terms: LocalTerms, local: LocalSpec, steps: int, seed: int
    ) -> Callable[[], SplitTrained]:
        """Begin ``device``'s steps from its front half ``anchor``; what is returned waits for what comes of them."""
        ...

    def close_halves(self) -> tuple[Vector | None, SplitStatus]:
        """Return what the back half learnt, float32 ``[d]``, None for nothing, and what there is to show."""
        ...


@dataclass(frozen=True, slots=True)
class Link:
    """One device's link and speed. Chances are for each request."""

    up_bytes_per_second: float = 250_000.0
    down_bytes_per_second: float = 1_000_000.0
    latency_seconds: float = 0.05
    seconds_per_example: float = 0.001
    request_lost: float = 0.0
    answer_lost: float = 0.0
    upload_cut: float = 0.0
    crash: float = 0.0


@dataclass(frozen=True, slots=True)
class World:
    """The devices of a simulation; a device not named in ``links``, ``limits`` or ``trains`` has the default."""

    devices: tuple[str, ...]
    link: Link = Link()
    links: Mapping[str, Link] | None = None
    limits: Mapping[str, Limits] | None = None
    trains: Mapping[str, Trains] | None = None

    def link_of(self, device: str) -> Link:
        """Return the link of ``device``."""
        return (self.links or {}).get(device, self.link)

    def limits_of(self, device: str) -> Limits:
        """Return the limits of ``device``."""
        return (self.limits or {}).get(device, Limits())

    def trains_of(self, device: str) -> Trains:
        """Return what ``device`` can train of a model."""
        return (self.trains or {}).get(device, "either")


class Chance:
    """A stream of uniform numbers named by its seed, drawn one at a time."""

    def __init__(self, *parts: int | str) -> None:
        self._seed, self._count = derive(*parts), 0

    def draw(self) -> float:
        """Return the next number in [0, 1)."""
        self._count += 1
        return float(uniform(derive(self._seed, self._count), 1)[0])

    def happens(self, probability: float) -> bool:
        """Say whether something of this probability happens now."""
        return probability > 0.0 and self.draw() < probability
