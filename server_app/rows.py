"""What the database holds, as values: one frozen dataclass for each kind of row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedge.layout import Layout
from fedge.protocol.run import Run
from schemas.base import Model
from schemas.ids import DeviceId, RunId
from schemas.messages import Assignment, Outcome, Receipt
from schemas.plan import Plan
from schemas.status import RoundStatus, RunPhase, SplitStatus, Traffic, total_split


class Totals(Model):
    """What a run did in all its rounds that are over."""

    traffic: Traffic = Traffic()
    frame_bytes: Traffic = Traffic()
    float32_bytes: Traffic = Traffic()
    split: SplitStatus | None = None
    late_updates: int = 0


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run. ``progress`` is its machine's state, ``state_round`` the round whose state file is in force.

    ``metrics`` are those of the round tested last, and ``tested_bytes_up`` what had travelled up as that round ended.
    ``initial_metrics`` are the initial model's: None until it is tested, empty where the task has no test data.
    """

    run: RunId
    plan: Plan
    created_at: float
    progress: Run
    ended_at: float | None = None
    layout: Layout | None = None
    state_round: int = 0
    dual_epoch: int = 0
    mean_examples: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    initial_metrics: Mapping[str, float] | None = None
    tested_bytes_up: int | None = None
    totals: Totals = field(default_factory=Totals)

    @property
    def phase(self) -> RunPhase:
        """Where the run is in its life."""
        return self.progress.phase


@dataclass(frozen=True, slots=True)
class Member:
    """A device in a run. ``last_applied`` is a round of ``dual_epoch``; 0: none."""

    device: DeviceId
    num_examples: int
    relative_size: float
    dual_epoch: int = 0
    last_applied: int = 0


@dataclass(frozen=True, slots=True)
class Participation:
    """A device in a round: what it was asked, and what became of it once that is known."""

    device: DeviceId
    assignment: Assignment
    receipt: Receipt | None = None


def receipt_of(row: Mapping[str, Any]) -> Receipt:
    """Return the receipt in a participation's row whose round is over."""
    return Receipt(
        run=row["run"],
        round=row["round"],
        update=row["update"],
        outcome=Outcome(row["outcome"]),
        applied=tuple(row["applied"]),
    )


def with_measured(run: RunRow, latest: RunRow) -> RunRow:
    """Return ``run`` with what the evaluations have measured, as it stands in ``latest``."""
    measured = ("metrics", "initial_metrics", "tested_bytes_up")
    return replace(run, **{name: getattr(latest, name) for name in measured})


def plus(a: Traffic, b: Traffic) -> Traffic:
    """Return the sum of two."""
    return Traffic(up=a.up + b.up, down=a.down + b.down)


def add_round(totals: Totals, status: RoundStatus) -> Totals:
    """Return ``totals`` with a round that is over."""
    return Totals(
        traffic=plus(totals.traffic, status.traffic),
        frame_bytes=plus(totals.frame_bytes, status.frame_bytes),
        float32_bytes=plus(totals.float32_bytes, status.float32_bytes),
        split=total_split([totals.split, status.split]),
        late_updates=totals.late_updates + len(status.late),
    )
