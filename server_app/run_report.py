"""The report of a run that an aggregator has: what it says over REST, as a ``server_app.report.Result``.

Two answers make it, and a run may move between them: the ``RunStatus`` is what counts, and the rounds, asked for
afterwards, are cut to what was so then. The sums over them are those of the status, to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schemas.status import RoundStatus, RunPhase, RunStatus
from server_app.client import Client, NotFound
from server_app.report import Result


async def ask(client: Client, run: str, clock: Callable[[], float]) -> tuple[Result, bytes | None]:
    """Return what there is to report of ``run``, and its published model as safetensors; None before it has begun.

    The model is asked for last: of a run that goes on it may be a round newer than the rest.
    """
    status = await client.run(run)
    asked_at = clock()
    rounds = (await client.rounds(run)).rounds
    return result_of(status, rounds, asked_at), await _model(client, run)


def result_of(status: RunStatus, rounds: Sequence[RoundStatus], asked_at: float) -> Result:
    """Return what ``status`` says as a result; ``rounds`` are all of the run, asked for later than ``asked_at``."""
    then = tuple(_as_of(status, rounds))
    return Result(
        plan=status.plan,
        run=status,
        rounds=then,
        devices=status.devices,
        traffic=status.traffic,
        frame_bytes=status.frame_bytes,
        float32_bytes=status.float32_bytes,
        seconds=_seconds(then, asked_at if status.ended_at is None else status.ended_at),
        notes=None,
        status=status,
        as_of=asked_at if status.ended_at is None else None,
    )


def _as_of(status: RunStatus, rounds: Sequence[RoundStatus]) -> list[RoundStatus]:
    """Return the rounds as they were when ``status`` was told, the one under way included."""
    if status.ended_at is not None:
        return list(rounds)
    if status.phase is RunPhase.QUEUED:
        return []
    now = status.round
    if now is not None:
        rounds = [*(r for r in rounds if r.round < now.round), now]
    tested = [index for index, r in enumerate(rounds) if r.metrics and r.metrics == status.metrics]
    known = tested[-1] + 1 if tested else 0
    return [*rounds[:known], *(r.model_copy(update={"metrics": {}}) for r in rounds[known:])]


def _seconds(rounds: Sequence[RoundStatus], until: float) -> float | None:
    """Return the time since the first round opened: before, a run waits for its turn and for devices."""
    opened = [r.opened_at for r in rounds if r.opened_at is not None]
    return max(0.0, until - opened[0]) if opened else None  # two machines' clocks may differ


async def _model(client: Client, run: str) -> bytes | None:
    try:
        return await client.model(run)
    except NotFound as error:
        if error.problem is not None and error.problem.reason == "no_model":
            return None
        raise
