"""The aggregator's end of the downlink: what a device that asks for the model is sent, and what is kept for it.

    GET download ── the device's turn ── read its ledger ── answer ── write its ledger ── send

Written before it is sent: a crash anywhere leaves a message that nobody got, or one that the device can name. What is
sent comes from a file, or is the same for all: a cohort on slow links takes disk and not memory. ``ENCODERS`` at a time
work, off the event loop, in about ten vectors of memory each.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from fedge.downlink import Mode
from fedge.downlink.common import Common, catch_up, refresh
from fedge.downlink.ledger import Asked, answer
from fedge.downlink.mcm import channel_of, expected_perturbation
from fedge.downlink.message import Floats, Kind, StateId, origin, read_message
from fedge.downlink.snapshot import downlink, encode_snapshot, expected_loss
from fedge.layout import Layout
from schemas.ids import DeviceId
from schemas.messages import Assignment
from schemas.status import DownloadStates
from server_app.download_states import StateFiles
from server_app.intake import round_over

ENCODERS = 2
CHUNK_BYTES = 1 << 16
IN_MEMORY_BYTES = 1 << 18
EVERYONE = DeviceId("")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a device says of its state: the name, and the checksum of the numbers where it is time for that."""

    state: StateId
    numbers: StateId | None = None


@dataclass(frozen=True, slots=True)
class Download:
    """``size`` bytes to send, from ``file`` or ``parts``. ``perturbation`` is E‖ŵ - w‖² of what comes of them."""

    size: int
    perturbation: float
    parts: Sequence[bytes] = ()
    file: IO[bytes] | None = None

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        """Yield the bytes in pieces."""
        for part in self.parts:
            for start in range(0, len(part), CHUNK_BYTES):
                yield memoryview(part)[start : start + CHUNK_BYTES]
        left = self.size if self.file is not None else 0
        while left > 0 and self.file is not None:
            chunk = await asyncio.to_thread(self.file.read, min(left, CHUNK_BYTES))
            if not chunk:
                raise ConnectionError(f"expected {left} more bytes of a download on the disk, got none")
            left -= len(chunk)
            yield chunk


class Downlinks:
    """The downlink of one run, whose states lie in ``folder``."""

    def __init__(self, mode: str, folder: Path, max_bytes: int) -> None:
        self.mode = Mode(mode)
        self.files = StateFiles(folder, max_bytes)
        self.resyncs = 0
        self._opened = self._closed = False
        self._origins: dict[str, StateId] = {}
        self._common: Common | None = None
        self._shared: dict[int, tuple[int, list[bytes]]] = {}
        self._opening = asyncio.Lock()
        self._turns: defaultdict[DeviceId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._encoders = asyncio.Semaphore(ENCODERS)

    def status(self) -> DownloadStates:
        """Return what is kept."""
        files = self.files
        return DownloadStates(
            count=files.count,
            bytes=files.num_bytes,
            max_bytes=files.max_bytes,
            evicted=files.evicted,
            resyncs=self.resyncs,
        )

    async def close(self) -> None:
        """Delete all of it: the run is over."""
        self._closed = True
        for _ in range(ENCODERS):  # whoever writes there ends first
            await self._encoders.acquire()
        for _ in range(ENCODERS):
            self._encoders.release()
        await asyncio.to_thread(shutil.rmtree, self.files.folder, ignore_errors=True)

    async def answer(
        self, layout: Layout, asked: Assignment, device: DeviceId, params: Floats, claim: Claim | None
    ) -> Download:
        """Return what ``device`` is sent for ``params`` float32 ``[d]``; what it may name later is durable.

        ``claim`` is None where the device does not say what it has: then it is taken to have nothing.

        Raises:
            CodecError: params that float32 does not hold.
        """
        async with self._opening:
            if not self._opened:
                await asyncio.to_thread(self._open, layout)
                self._opened = True
        work, turn = self._way(device)
        async with turn, self._encoders:
            if self._closed:
                raise round_over(asked.run, asked.round)
            thread = asyncio.create_task(asyncio.to_thread(work, layout, asked, device, params, claim))
            try:
                return await asyncio.shield(thread)
            except asyncio.CancelledError:
                # The device's turn lasts as long as its files are written, whoever still waits for them.
                await asyncio.wait([thread])
                thread.result().close()
                raise

    def _open(self, layout: Layout) -> None:
        self.files.open()
        if self.mode is Mode.MCM:
            self._common = self.files.common(layout.size)

    def _way(self, device: DeviceId) -> tuple[Callable[..., Download], asyncio.Lock]:
        """Return what answers, and whom it must not answer at the same time."""
        match self.mode:
            case Mode.RAND_MCM:
                return self._own, self._turns[device]
            case Mode.MCM:
                return self._missed, self._turns[EVERYONE]
            case Mode.SNAPSHOT:
                return self._snapshot, self._turns[device]
            case Mode.NONE:
                return self._bare, self._turns[EVERYONE]

    def _said(self, layout: Layout, claim: Claim | None) -> tuple[Claim, bool]:
        """Return what the device says that it has, and whether that is anything."""
        nothing = self._origins.get(layout.digest) or origin(layout).id
        self._origins[layout.digest] = nothing
        claim = claim or Claim(nothing)
        return claim, claim.state != nothing

    def _own(self, layout: Layout, asked: Assignment, device: DeviceId, params: Floats, said: Claim | None) -> Download:
        spec, (claim, has_one) = asked.downlink, self._said(layout, said)
        channel = channel_of(layout, asked.seed, device, self.mode, spec.codec_name)
        before = self.files.ledger(device, layout.size)
        question = Asked(claim.state, params, asked.round, spec.bits, spec.step, spec.full_bits)
        ledger, data = answer(channel, before, question, claim.numbers)
        if (ledger.state, ledger.pending) != (before.state, before.pending):
            self.files.write_ledger(device, ledger)
        message = read_message(data)
        has_one = has_one or before.state is not None
        self.resyncs += message.kind is Kind.FULL and has_one and data not in before.pending
        lost = expected_perturbation(channel, ledger.state, message, params)
        try:
            return Download(len(data), lost, file=self.files.newest_message(device, len(data)))
        except FileNotFoundError:  # evicted already: the device gets it, and all of the model the next time
            return Download(len(data), lost, [data])

    def _missed(
        self, layout: Layout, asked: Assignment, device: DeviceId, params: Floats, said: Claim | None
    ) -> Download:
        spec, (claim, has_one) = asked.downlink, self._said(layout, said)
        channel = channel_of(layout, asked.seed, device, self.mode, spec.codec_name)
        common = refresh(channel, self._common, params, asked.round, spec.bits, spec.full_bits, spec.step)
        if common is not self._common:
            self.files.write_common(common)
            self._common = common
        last = common.last
        lost = 0.0 if last is None else expected_perturbation(channel, common.previous, last, params)
        messages = catch_up(channel, common, claim.state, claim.numbers)
        if all(any(message is logged for logged in common.log) for message in messages):
            return Download(sum(map(len, messages)), lost, messages)
        self.resyncs += has_one
        return Download(sum(map(len, messages)), lost, file=self._spooled(messages))

    def _snapshot(
        self, layout: Layout, asked: Assignment, device: DeviceId, params: Floats, said: Claim | None
    ) -> Download:
        spec, vector = asked.downlink, np.ascontiguousarray(params, np.float32)
        stream = downlink(asked.seed, asked.round, device)
        frames = encode_snapshot(layout, vector, stream, spec.codec_name, spec.bits)
        lost = expected_loss(layout, vector, frames)[0]
        return Download(sum(map(len, frames)), lost, file=self._spooled(frames))

    def _spooled(self, parts: Sequence[bytes]) -> IO[bytes]:
        """Return a file of ``parts`` that is gone when it is closed; a short one stays in memory."""
        file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES, dir=str(self.files.folder))  # noqa: SIM115 - the sender closes
        file.writelines(parts)
        file.seek(0)
        return file

    def _bare(
        self, layout: Layout, asked: Assignment, device: DeviceId, params: Floats, said: Claim | None
    ) -> Download:
        number, frames = self._shared.get(layout.size, (0, []))
        if number != asked.round:
            vector = np.ascontiguousarray(params, np.float32)
            stream = downlink(asked.seed, asked.round, device)
            frames = encode_snapshot(layout, vector, stream, "none", asked.downlink.bits)
            self._shared[layout.size] = asked.round, frames
        return Download(sum(map(len, frames)), 0.0, frames)
