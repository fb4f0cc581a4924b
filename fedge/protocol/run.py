"""The life of a run: rounds one after the other until the plan is fulfilled.

              Opened                       RoundClosed (the last one), then Evaluated
    QUEUED ──────────> RUNNING ──────────────────────────────────────────────────> FINISHED
       │                │  ^  │
       │                └──┘  └──── RoundAbandoned, ``abandon_after`` in a row; Broken ────> FAILED
       │      RoundClosed, RoundAbandoned
       └────────────────┴───── Stopped ───────────────────────────────────────────────────> STOPPED

Only closed rounds count towards the plan. An abandoned one has a number too, since devices know it by that number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedge.errors import ProtocolError
from schemas.status import RunPhase

QUEUED, RUNNING, FINISHED, STOPPED, FAILED = RunPhase


@dataclass(frozen=True, slots=True)
class Run:
    """``round`` is the number of the round under way, 0 before the first. ``abandoned_in_row`` ends at a closed one."""

    rounds_planned: int
    abandon_after: int
    phase: RunPhase = QUEUED
    round: int = 0
    rounds_closed: int = 0
    rounds_abandoned: int = 0
    abandoned_in_row: int = 0
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.phase in (FINISHED, STOPPED, FAILED)

    @property
    def has_all_rounds(self) -> bool:
        """Whether the plan's rounds are closed; the run then waits for its last test only."""
        return self.rounds_closed >= self.rounds_planned


@dataclass(frozen=True, slots=True)
class Opened:
    """The run's turn has come and its first model is durable."""


@dataclass(frozen=True, slots=True)
class RoundClosed:
    """The round under way has made a model."""


@dataclass(frozen=True, slots=True)
class RoundAbandoned:
    """The round under way came to nothing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The last model has been evaluated, or cannot be."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """A person stopped the run."""

    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The run cannot go on."""

    reason: str


Event = Opened | RoundClosed | RoundAbandoned | Evaluated | Stopped | Broken


@dataclass(frozen=True, slots=True)
class OpenRound:
    """Choose a cohort for round ``number`` as soon as enough devices are there."""

    number: int


@dataclass(frozen=True, slots=True)
class EvaluateModel:
    """Evaluate the final model, then report ``Evaluated``."""


@dataclass(frozen=True, slots=True)
class EndRun:
    """Wake whoever waits for this run, and let the next one begin."""


Action = OpenRound | EvaluateModel | EndRun

TRANSITIONS: Mapping[RunPhase, frozenset[type[Event]]] = {
    QUEUED: frozenset({Opened, Stopped, Broken}),
    RUNNING: frozenset({RoundClosed, RoundAbandoned, Evaluated, Stopped, Broken}),
    FINISHED: frozenset({Stopped, Evaluated}),
    STOPPED: frozenset({Stopped, RoundAbandoned, RoundClosed, Evaluated, Broken}),
    FAILED: frozenset({Stopped, Evaluated, RoundAbandoned}),
}


def step(run: Run, event: Event) -> tuple[Run, list[Action]]:
    """Return the run after ``event`` and what the shell owes for it.

    Raises:
        ProtocolError: ``TRANSITIONS`` does not allow ``event`` in this phase.
    """
    if type(event) not in TRANSITIONS[run.phase]:
        raise ProtocolError(f"a run that is {run.phase} does not take {type(event).__name__}")
    if run.is_over:
        return run, []
    match event:
        case Opened():
            return _next_round(replace(run, phase=RUNNING))
        case RoundClosed():
            return _next_round(replace(run, rounds_closed=run.rounds_closed + 1, abandoned_in_row=0))
        case RoundAbandoned(reason):
            return _abandoned(run, reason)
        case Evaluated():
            return (replace(run, phase=FINISHED), [EndRun()]) if run.has_all_rounds else (run, [])
        case Stopped(reason):
            return replace(run, phase=STOPPED, reason=reason), [EndRun()]
        case Broken(reason):
            return replace(run, phase=FAILED, reason=reason), [EndRun()]


def resume(run: Run) -> list[Action]:
    """Return what a run read back from disk still owes, its round under way apart."""
    if run.phase is not RUNNING:
        return []
    return [EvaluateModel()] if run.has_all_rounds else [OpenRound(run.round)]


def _next_round(run: Run) -> tuple[Run, list[Action]]:
    if run.has_all_rounds:
        return run, [EvaluateModel()]
    return replace(run, round=run.round + 1), [OpenRound(run.round + 1)]


def _abandoned(run: Run, reason: str) -> tuple[Run, list[Action]]:
    in_row = run.abandoned_in_row + 1
    run = replace(run, rounds_abandoned=run.rounds_abandoned + 1, abandoned_in_row=in_row)
    if in_row < run.abandon_after:
        return _next_round(run)
    why = f"{in_row} rounds in a row were abandoned, the last because of {reason}"
    return replace(run, phase=FAILED, reason=why), [EndRun()]
