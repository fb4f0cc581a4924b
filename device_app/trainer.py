"""The agent's side of the trainer process: one for all its devices, started when first needed, kept warm.

    describe, train ──> first come, first served ──> device_app.trainer_process ──> answer

A caller that is cancelled while it waits leaves the queue. One that is cancelled in mid-training asks the process to
stop before its next step, which keeps it warm; a process that does not within ``grace_seconds`` is killed, and the
next request starts another. This module does not import torch: an agent that waits for work stays small.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from device_app.errors import TrainerDied, TrainerError
from fedge.algorithms.base import LocalTerms
from fedge.layout import Layout, Vector
from schemas.errors import PackingError
from schemas.pipe import header_length, pack_parcel, unpack_header

log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
Parcel = tuple[dict[str, Any], list[bytes]]
OnProgress = Callable[[int, float], None]
"""Called after every epoch with the epoch, from 0, and its mean loss."""

# A pipe whose other end is gone, or says what no trainer says.
_BROKEN = (asyncio.IncompleteReadError, ConnectionError, PackingError)


@dataclass(frozen=True, slots=True)
class Description:
    """A task as this device has it: the model it builds and how many examples it holds.

    ``split_layout`` is that of the model cut in two; None where the task does not cut it.
    """

    layout: Layout
    num_examples: int
    split_layout: Layout | None = None

    def of_run(self, digest: str) -> Layout | None:
        """Return the layout of this digest, whole or cut; None where this device builds no such model."""
        known = [self.layout] if self.split_layout is None else [self.layout, self.split_layout]
        return next((layout for layout in known if layout.digest == digest), None)


@dataclass(frozen=True, slots=True)
class LocalRun:
    """Settings of a local run, as ``fedge.algorithms.local.LocalSpec`` names them."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    clip_norm: float | None
    optimizer: str = "sgd"


@dataclass(frozen=True, slots=True)
class Trained:
    """``delta`` float32 ``[d]``; ``loss`` the last epoch's mean."""

    delta: Vector
    loss: float
    num_examples: int


class Trainer:
    """Describes and trains tasks in a process of its own."""

    def __init__(self, threads: int = 1, grace_seconds: float = GRACE_SECONDS) -> None:
        self.threads = threads
        self.grace_seconds = grace_seconds
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._last_id = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def process_id(self) -> int | None:
        """The process, where one is running."""
        return self._process.pid if self._process is not None else None

    async def describe(self, task: str, options: Mapping[str, Any]) -> Description:
        """Return the layout of ``task``'s model and the size of the data that ``options`` name.

        Raises:
            TrainerError: the task cannot be imported or has no such data.
        """
        answer, _ = await self.ask({"op": "describe", "task": task, "options": dict(options)}, [])
        cut = answer["split_layout"]
        layouts = Layout.from_json(answer["layout"]), None if cut is None else Layout.from_json(cut)
        return Description(layouts[0], answer["num_examples"], layouts[1])

    async def train(
        self,
        task: str,
        options: Mapping[str, Any],
        anchor: Vector,
        terms: LocalTerms,
        local: LocalRun,
        seed: int,
        on_progress: OnProgress | None = None,
        split: bool = False,
    ) -> Trained:
        """Train the whole model from ``anchor`` float32 ``[d]``, laid out as cut in two where ``split``.

        Raises:
            TrainerError: the task's code failed, or training diverged.
            TrainerDied: the process ended meanwhile, for example for want of memory.
        """
        request: dict[str, Any] = {"op": "train", "task": task, "options": dict(options), "local": asdict(local)}
        request |= {"pull": terms.pull, "seed": seed, "split": split}
        vectors = [anchor] if terms.dual is None else [anchor, terms.dual]
        parts = [np.ascontiguousarray(vector, np.float32).data.cast("B") for vector in vectors]
        answer, deltas = await self.ask(request, parts, on_progress)
        return Trained(np.frombuffer(deltas[0], np.float32), answer["loss"], answer["num_examples"])

    async def ask(
        self, request: dict[str, Any], parts: Sequence[bytes | memoryview], on_progress: OnProgress | None = None
    ) -> Parcel:
        """Return the process's answer to ``request``.

        Raises:
            TrainerError: it could not be done; says why.
            TrainerDied: the process ended meanwhile.
        """
        async with self._turn:
            process = await self._running()
            self._last_id += 1
            request = {"id": self._last_id, **request}
            exchange = asyncio.create_task(_exchange(process, request, parts, on_progress))
            try:
                answer, vectors = await asyncio.shield(exchange)
            except asyncio.CancelledError:
                await asyncio.shield(self._interrupt(process, request["id"], exchange))
                raise
            except _BROKEN as error:
                await self._stop()
                raise TrainerDied(f"the trainer process ended while asked to {request['op']}") from error
        if answer["event"] == "failed":
            raise TrainerError(answer["reason"])
        return answer, vectors

    async def _interrupt(self, process: Process, request: int, exchange: asyncio.Task[Parcel]) -> None:
        """Have ``request`` stopped before its next step, or else the process with it."""
        try:
            async with asyncio.timeout(self.grace_seconds):
                await _write(process, {"op": "cancel", "id": request}, [])
                await exchange
        except (TimeoutError, *_BROKEN):
            log.warning("trainer killed", extra={"pid": process.pid})
            await self._stop()

    async def _running(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            command = ["-m", "device_app.trainer_process", "--threads", str(self.threads)]
            self._process = await asyncio.create_subprocess_exec(sys.executable, *command, stdin=PIPE, stdout=PIPE)
            log.info("trainer started", extra={"pid": self._process.pid})
        return self._process

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _exchange(
    process: Process, request: Mapping[str, Any], parts: Sequence[bytes | memoryview], on_progress: OnProgress | None
) -> Parcel:
    """Send ``request`` and return its answer; never cancelled half-way, which would leave the pipes out of step."""
    await _write(process, request, parts)
    while True:
        answer, vectors = await _read(process)
        if answer["event"] != "progress":
            return answer, vectors
        if on_progress is not None:
            on_progress(answer["epoch"], answer["loss"])


async def _write(process: Process, header: Mapping[str, Any], parts: Sequence[bytes | memoryview]) -> None:
    assert process.stdin is not None
    for piece in pack_parcel(header, parts):
        process.stdin.write(piece)
    await process.stdin.drain()


async def _read(process: Process) -> Parcel:
    assert process.stdout is not None
    read = process.stdout.readexactly
    header = unpack_header(await read(header_length(await read(4))))
    count = int.from_bytes(await read(4), "little")
    return header, [await read(int.from_bytes(await read(8), "little")) for _ in range(count)]
