"""``fedge simulate``: a plan on virtual devices (``fedge.simulation``), with the result a report is made of."""

from __future__ import annotations

import re
from collections.abc import Callable

from safetensors.numpy import save

from fedge.simulation import World, simulate
from fedge.tasks.base import load
from schemas.ids import RunId
from schemas.plan import Plan
from schemas.status import RoundPhase, RoundStatus, RunSummary, Traffic
from server_app.report import Result
from server_app.sites import sites_of

MOST_OF_A_NAME = 50


def rehearse(
    plan: Plan, name: str, on_round: Callable[[RoundStatus], None], clock: Callable[[], float]
) -> tuple[Result, bytes]:
    """Run ``plan`` on all devices its task comes with; returns the result and the model as safetensors.

    Raises:
        FedgeError: the task cannot be used, or the plan wants more devices than there are.
    """
    from server_app.training_pool import PooledTrainer

    began = clock()
    sites = sites_of(plan.task, load(plan.task))
    with PooledTrainer(plan.task, sites, split=plan.is_split) as trainer:
        done = simulate(plan, trainer, World(tuple(sites)), lambda status: on_round(_frames_only(status)))
    rounds = tuple(_frames_only(status) for status in done.rounds)
    tested = [status.metrics for status in rounds if status.metrics]
    run = RunSummary(
        run=_run_id(name),
        task=plan.task,
        phase=done.phase,
        reason=done.reason,
        rounds_closed=sum(status.phase is RoundPhase.CLOSED for status in rounds),
        rounds_planned=plan.rounds,
        rounds_abandoned=sum(status.phase is RoundPhase.ABANDONED for status in rounds),
        created_at=0.0,
        metrics=tested[-1] if tested else {},
        initial_metrics=done.initial_metrics,
    )
    result = Result(
        plan=plan,
        run=run,
        rounds=rounds,
        devices=len(sites),
        traffic=Traffic(),
        frame_bytes=_total([status.frame_bytes for status in rounds]),
        float32_bytes=_total([status.float32_bytes for status in rounds]),
        seconds=clock() - began,
    )
    return result, bytes(save(done.layout.unpack(done.published)))


def _frames_only(status: RoundStatus) -> RoundStatus:
    """Return ``status`` without traffic: there were no sockets."""
    return status.model_copy(update={"traffic": Traffic()})


def _total(parts: list[Traffic]) -> Traffic:
    return Traffic(up=sum(part.up for part in parts), down=sum(part.down for part in parts))


def _run_id(name: str) -> RunId:
    """Return the id of the run of a plan called ``name``: what an id cannot hold becomes a dash."""
    plain = re.sub("[^a-z0-9._-]+", "-", name.lower()).strip("._-")
    return RunId(f"{plain[:MOST_OF_A_NAME] or 'plan'}-simulated")
