"""How far a run is, on standard error: a bar where that is a terminal, else a line for each round."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from schemas.status import RoundPhase, RoundStatus, Traffic
from server_app.cli.tables import round_words
from server_app.units import as_bytes, as_percent


class RunProgress:
    """Shows stages and rounds; use it as a context manager."""

    def __init__(self, rounds_planned: int) -> None:
        self._planned = rounds_planned
        self._closed = self._up = self._down = 0
        self._accuracy: float | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[facts]}"),
            )
            self._bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self._planned, facts="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def stage(self, text: str) -> None:
        """Say what begins."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        else:
            click.echo(text, err=True)

    def round(self, round: RoundStatus) -> None:
        """Show a round that is over."""
        self._closed += round.phase is RoundPhase.CLOSED
        self._accuracy = round.metrics.get("accuracy", self._accuracy)
        cost = _cost(round)
        self._up, self._down = self._up + cost.up, self._down + cost.down
        spent = f"{as_bytes(self._up)} up, {as_bytes(self._down)} down"
        if self._bar is not None:
            facts = f"accuracy {as_percent(self._accuracy)}, {len(round.updates)} updates, {spent}"
            self._bar.update(self._task, completed=self._closed, facts=facts)
        else:
            click.echo(f"{round_words(round)}; {self._closed} of {self._planned} rounds, {spent}", err=True)


def _cost(round: RoundStatus) -> Traffic:
    return round.traffic if round.traffic.up else round.frame_bytes
