"""The demo's child processes: started with a log each, watched, and ended by their own handle whatever happens.

Children get a session of their own, so that Ctrl-C in the terminal reaches the demo alone, which then ends them in
order. One that ends by itself ends the demo, with the tail of its log.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from server_app.errors import ServerError

PATIENCE_SECONDS = 10.0
TAIL_LINES = 15


class ChildDied(ServerError):
    """A child process ended by itself."""


@dataclass(slots=True)
class Child:
    """One child process: ``python -m ARGUMENTS``. ``is_expected_dead`` once it was killed on purpose."""

    name: str
    arguments: tuple[str, ...]
    log: Path
    process: Process
    is_expected_dead: bool = False

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.returncode is None

    def check(self) -> None:
        """Raise ``ChildDied`` if it ended by itself."""
        if not self.is_running and not self.is_expected_dead:
            raise ChildDied(f"{self.name} ended with {self.process.returncode}. {self.tail()}")

    def tail(self) -> str:
        """Return the end of its log, for a message."""
        lines = self.log.read_text("utf-8", "replace").splitlines()[-TAIL_LINES:]
        return "Its log ends with:\n" + "\n".join(f"  {line}" for line in lines) if lines else "Its log is empty."

    async def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        self.is_expected_dead = True
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        """Ask it to end, and kill it if it does not in ``PATIENCE_SECONDS``."""
        self.is_expected_dead = True
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self.process.wait()
        except TimeoutError:
            await self.kill()


class Children:
    """All child processes of one demo; leaving the block ends every one, the youngest first."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.all: list[Child] = []

    async def __aenter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop(self.all)
        finally:  # a second Ctrl-C ends the waiting, never leaves a process behind
            for child in self.all:
                if child.is_running:
                    child.process.kill()

    async def start(self, name: str, arguments: Sequence[str]) -> Child:
        """Start ``python -m ARGUMENTS``; what it prints is appended to ``logs/NAME.log``.

        Nothing is imported from the current folder, which may hold one called ``fedge``.
        """
        log = self.logs / f"{name}.log"
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *arguments,
                stdin=DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        child = Child(name, tuple(arguments), log, process)
        self.all.append(child)
        return child

    async def stop(self, children: Sequence[Child]) -> None:
        """Ask ``children`` to end, all at once, and wait until they are gone."""
        await asyncio.gather(*(child.stop() for child in reversed(children)))

    def check(self) -> None:
        """Raise ``ChildDied`` if one of them ended by itself."""
        for child in self.all:
            child.check()
