"""The aggregator's side of its worker process: initial models and evaluations, one at a time.

The process is started when it is first needed, started again if it died, and killed when the aggregator ends; it ends
by itself when its stdin does, so a killed aggregator leaves none behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from fedge.errors import LayoutError
from fedge.layout import Layout, Vector
from schemas.errors import PackingError
from schemas.pipe import header_length, pack_parcel, unpack_header
from server_app.errors import WorkerDied, WorkerError

log = logging.getLogger(__name__)


class Evaluator(Protocol):
    """Makes initial models and tests published ones."""

    async def initial(self, task: str, seed: int, split: bool = False) -> tuple[Layout, Vector]:
        """Return the layout of the task's model and its initial params, float32 ``[d]``; with ``split`` cut in two."""
        ...

    async def evaluate(self, task: str, params: Vector, split: bool = False) -> dict[str, float]:
        """Return the task's metrics of ``params``; empty where it has no test data."""
        ...


class Worker:
    """Asks the worker process."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls) -> AsyncIterator[Self]:
        """Yield a worker; its process is killed at the end."""
        worker = cls()
        try:
            yield worker
        finally:
            await worker._kill()

    async def initial(self, task: str, seed: int, split: bool = False) -> tuple[Layout, Vector]:
        """Return the layout of the task's model and its initial params, float32 ``[d]``; with ``split`` cut in two.

        Raises:
            WorkerError: the task cannot be loaded, its model cannot be built or not be cut; says why.
        """
        head, parts = await self.ask({"ask": "init", "task": task, "seed": seed, "split": split})
        params = np.frombuffer(parts[0], np.float32).copy()
        try:
            layout = Layout.from_json(head["layout"])
            layout.check(params)
        except LayoutError as error:
            raise WorkerError(f"task {task!r}: {error}") from error
        if not np.isfinite(params).all():
            raise WorkerError(f"task {task!r}: expected finite initial params")
        return layout, params

    async def evaluate(self, task: str, params: Vector, split: bool = False) -> dict[str, float]:
        """Return the task's metrics of ``params`` on the server's test data; empty where it has none.

        Raises:
            WorkerError: the evaluation failed; says why.
        """
        part = np.ascontiguousarray(params).data.cast("B")
        head, _ = await self.ask({"ask": "evaluate", "task": task, "split": split}, [part])
        metrics = head["metrics"]
        return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}

    async def ask(
        self, request: Mapping[str, Any], parts: Sequence[bytes | memoryview] = ()
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Return the answer of the process to ``request``.

        Raises:
            WorkerDied: it ended meanwhile.
            WorkerError: it could not do it; says why.
        """
        async with self._turn:
            try:
                process = await self._alive()
                head, found = await _exchange(process, request, parts)
            except BaseException as error:
                # Half an exchange leaves the pipe at no known place: this process is of no use any more.
                await self._kill()
                if isinstance(error, OSError | EOFError | PackingError):
                    raise WorkerDied(f"the worker process died: {error or type(error).__name__}") from error
                raise
        if "error" in head:
            raise WorkerError(str(head["error"]))
        return head, found

    async def _alive(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            pipe = asyncio.subprocess.PIPE
            command = (sys.executable, "-m", "server_app.worker_process")
            # Tasks are imported from where the aggregator itself imports.
            found = {**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, env=found, start_new_session=True
            )
            log.info("worker started", extra={"pid": self._process.pid})
        return self._process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def _exchange(
    process: asyncio.subprocess.Process, request: Mapping[str, Any], parts: Sequence[bytes | memoryview]
) -> tuple[dict[str, Any], list[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise WorkerError("expected a worker process with pipes")
    for piece in pack_parcel(request, parts):
        process.stdin.write(piece)
    await process.stdin.drain()
    read = process.stdout.readexactly
    head = unpack_header(await read(header_length(await read(4))))
    count = int.from_bytes(await read(4), "little")
    return head, [await read(int.from_bytes(await read(8), "little")) for _ in range(count)]
