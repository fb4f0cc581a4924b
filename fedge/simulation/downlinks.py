"""The aggregator's end of the downlink in a simulation: dictionaries for disks."""

from __future__ import annotations

import numpy as np

from fedge.downlink import Mode
from fedge.downlink.common import Common, catch_up, refresh
from fedge.downlink.ledger import Asked, Ledger, answer
from fedge.downlink.mcm import Channel, channel_of, expected_perturbation
from fedge.downlink.message import Floats, StateId, read_message
from fedge.downlink.snapshot import downlink, encode_snapshot, expected_loss
from fedge.layout import Layout
from fedge.protocol.offer import part_of
from schemas.messages import Assignment


class Downlinks:
    """What the aggregator has of the devices' states. ``sent`` are the bytes of the round's downloads, by device."""

    def __init__(self, layout: Layout, seed: int) -> None:
        self.layout, self.seed = layout, seed
        self.ledgers: dict[str, Ledger] = {}
        self.common: Common | None = None
        self.sent: dict[str, int] = {}
        self._losses: list[float] = []

    def begin_round(self) -> None:
        """Count from zero."""
        self.sent, self._losses = {}, []

    @property
    def perturbation(self) -> float | None:
        """E‖ŵ - w‖², the mean over the round's downloads."""
        return sum(self._losses) / len(self._losses) if self._losses else None

    def answer(
        self, asked: Assignment, device: str, params: Floats, said: StateId, numbers: StateId | None = None
    ) -> bytes:
        """Return what ``device``, which has the state ``said``, makes its params of."""
        spec, mode, layout = asked.downlink, Mode(asked.downlink.mode), part_of(self.layout, asked)
        params = params[: layout.size]
        channel = channel_of(layout, self.seed, device, mode, spec.codec_name)
        if mode is Mode.RAND_MCM:
            question = Asked(said, params, asked.round, spec.bits, spec.step, spec.full_bits)
            ledger, data = answer(channel, self.ledgers.get(device, Ledger()), question, numbers)
            self.ledgers[device] = ledger
            lost = expected_perturbation(channel, ledger.state, read_message(data), params)
        elif mode is Mode.MCM:
            data, lost = self._messages(channel, asked, params, said, numbers)
        else:
            stream = downlink(self.seed, asked.round, device)
            vector = np.ascontiguousarray(params, np.float32)
            frames = encode_snapshot(layout, vector, stream, spec.codec_name, spec.bits)
            data, lost = b"".join(frames), expected_loss(layout, vector, frames)[0]
        self.sent[device] = self.sent.get(device, 0) + len(data)
        self._losses.append(lost)
        return data

    def _messages(
        self, channel: Channel, asked: Assignment, params: Floats, said: StateId, numbers: StateId | None
    ) -> tuple[bytes, float]:
        spec = asked.downlink
        self.common = refresh(channel, self.common, params, asked.round, spec.bits, spec.full_bits, spec.step)
        last, before = self.common.last, self.common.previous
        lost = 0.0 if last is None else expected_perturbation(channel, before, last, params)
        return b"".join(catch_up(channel, self.common, said, numbers)), lost
