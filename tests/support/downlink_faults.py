"""Rand-MCM between a server and devices that crash, over a link that loses, delays, repeats, reorders and corrupts.

A step of the walk is one thing that happens: a device asks, something in the air arrives (in any order, or twice), or
the params move. Both ends keep two kinds of things, what is on disk and what is in memory, and a crash before or after
each durable write loses the second kind. Whenever both ends use one name for a state, the vectors must be equal in
every bit; that is asked at every word that arrives.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import numpy as np

from fedge.downlink.ledger import TRANSITIONS, Asked, Event, Heard, Ledger, Send, receive, step
from fedge.downlink.mcm import Channel, StaleMessage
from fedge.downlink.message import Floats, Kind, State, StateId, origin
from fedge.errors import CodecError, FrameError
from fedge.layout import Kind as TensorKind
from fedge.layout import Layout, TensorSpec

T = TypeVar("T")
WEIGHTS = TensorSpec("w", (40,), TensorKind.WEIGHT)
LAYOUT = Layout.of([WEIGHTS, TensorSpec("b", (3,), TensorKind.RAW)])
WEIGHTS_ONLY = Layout.of([WEIGHTS])
"""Half the frames, for the long walk."""


@dataclass(frozen=True)
class Weather:
    """Probabilities: of each thing sent, and of a crash at each of the four places around a durable write."""

    lost: float = 0.1
    delayed: float = 0.05
    repeated: float = 0.05
    corrupted: float = 0.02
    crash: float = 0.01
    wiped: float = 0.0
    """Of a device that lost its disk, a step."""
    restored: float = 0.0
    """Of a server that has a row of the past again, a step."""


@dataclass
class Device:
    """One device. ``disk`` and ``row`` are what its disk and the server's have."""

    channel: Channel
    disk: State
    row: Ledger = field(default_factory=Ledger)
    backup: Ledger = field(default_factory=Ledger)
    answers: list[bytes] = field(default_factory=list)
    words: list[tuple[StateId, bool]] = field(default_factory=list)
    """In the air: names said, and whether it was with a question."""


class Walk:
    """One run. ``counts`` says what happened."""

    def __init__(
        self, seed: int, weather: Weather, devices: int, codec: str, alpha: float | None, layout: Layout = LAYOUT
    ) -> None:
        self.random, self.weather, self.alpha = Random(seed), weather, alpha
        self.layout, base = layout, origin(layout)
        self.devices = [Device(Channel(layout, seed, f"d{i}", codec), base) for i in range(devices)]
        self.noise = np.random.default_rng(seed)
        self.params: Floats = self.noise.normal(size=self.layout.size).astype(np.float32)
        self.round, self.counts = 1, Counter[str]()

    def take(self, steps: int) -> Counter[str]:
        for _ in range(steps):
            device = self.random.choice(self.devices)
            if self.random.random() < 1 / 8:
                self.round += 1
                self.params = self.params + self.noise.normal(size=self.layout.size, scale=0.1).astype(np.float32)
            if self._chance(self.weather.wiped):
                device.disk = origin(self.layout)
                self.counts["wiped"] += 1
            if self._chance(self.weather.restored):
                device.row = device.backup
                self.counts["restored"] += 1
            elif self._chance(0.01):
                device.backup = device.row
            # Most of the time a device waits for what is in the air; when it asks again all of that comes too late.
            if device.answers and self._chance(0.95):
                self._take_answer(device, self._arriving(device.answers))
            elif device.words and self._chance(0.95):
                self._take_word(device, *self._arriving(device.words))
            else:
                self._say(device, is_question=True)
        return self.counts

    def _chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def _arriving(self, air: list[T]) -> T:
        """Return what arrives now: as a rule the oldest, sometimes another, and sometimes it will come again."""
        place = self.random.randrange(len(air)) if self._chance(self.weather.delayed) else 0
        return air[place] if self._chance(self.weather.repeated) else air.pop(place)

    def _send(self, air: list[T], thing: T) -> None:
        if self._chance(self.weather.lost):
            self.counts["lost"] += 1
        else:
            air.append(thing)
            del air[:-4]

    def _say(self, device: Device, is_question: bool) -> None:
        self._send(device.words, (device.disk.id, is_question))

    def _take_word(self, device: Device, said: StateId, is_question: bool) -> None:
        event: Event = Asked(said, self.params, self.round, 2.0, self.alpha) if is_question else Heard(said)
        ledger, actions = step(device.channel, device.row, event)
        assert ledger.phase in TRANSITIONS[device.row.phase][type(event)]
        assert len(ledger.pending) <= 2
        self.counts["full"] += ledger.resyncs - device.row.resyncs
        self.counts["first"] += device.row.state is None and ledger.state is not None
        if self._chance(self.weather.crash):
            self.counts["crash"] += 1
            return
        device.row = ledger
        self._compare(device)
        if self._chance(self.weather.crash):
            self.counts["crash"] += 1
            return
        for action in actions:
            assert isinstance(action, Send)
            self.counts["sent"] += 1
            self._send(device.answers, action.message)

    def _take_answer(self, device: Device, data: bytes) -> None:
        if self._chance(self.weather.corrupted):
            spoiled = bytearray(data)
            spoiled[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            data = bytes(spoiled)
            self.counts["corrupted"] += 1
        try:
            delivered = receive(device.channel, device.disk, data)
        except StaleMessage:
            self.counts["stale"] += 1
            return
        except (FrameError, CodecError):
            self.counts["refused"] += 1
            return
        if self._chance(self.weather.crash):
            self.counts["crash"] += 1
            return
        device.disk = delivered.state
        self.counts["applied"] += 1
        self.counts["taken full"] += data[1] == Kind.FULL
        if self._chance(self.weather.crash):
            self.counts["crash"] += 1
            return
        self._say(device, is_question=self._chance(0.5))

    def _compare(self, device: Device) -> None:
        """Count names that both ends use, and those among them for unlike vectors."""
        known = device.row.state
        if known is not None and known.id == device.disk.id:
            self.counts["checks"] += 1
            self.counts["mismatches"] += known.vector.tobytes() != device.disk.vector.tobytes()
