"""What ``fedge-device status`` shows: read from the home folder, whether or not an agent runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from device_app.errors import StateLost
from device_app.home import REMEDY, Home
from device_app.spool import Spool
from fedge.protocol.participant import Participant


def describe(home: Home) -> dict[str, Any]:
    """Return the facts by name, in the order to show them; all are JSON values.

    Raises:
        HomeError: the home folder is not enrolled or not valid.
    """
    config, spool = home.config(), Spool(home.spool_path)
    facts: dict[str, Any] = {
        "device": home.device or str(config.name),
        "enrolment": _enrolment(home.device),
        "server": config.server,
        "home": str(home.root),
        "tasks": ", ".join(task.task for task in config.tasks),
        "is_running": home.is_running,
    }
    try:
        facts |= _of_state(spool.state())
    except StateLost as error:
        facts["phase"] = f"lost: {error}"
    facts["spool_bytes"] = sum(path.stat().st_size for path in home.spool_path.glob("*"))
    return facts


def _enrolment(device: str | None) -> str:
    if device is None:
        return "unknown: the aggregator tells when the agent runs"
    return f"enrolled as {device}" if device else f"not enrolled: {REMEDY}"


def _of_state(state: Participant) -> dict[str, Any]:
    pending = state.pending.assignment if state.pending else None
    retry = None if state.retry_at is None else datetime.fromtimestamp(state.retry_at, UTC).isoformat("T", "seconds")
    return {
        "phase": str(state.phase),
        "run": state.assignment.run if state.assignment else state.run,
        "round": state.assignment.round if state.assignment else None,
        "update_awaiting_receipt": f"{pending.run} round {pending.round}" if pending else None,
        "last_round_settled": state.last_applied or None,
        "failures_in_a_row": state.failures,
        "retry_at": retry,
        "refusal": f"{state.refusal}: {state.reason}" if state.refusal else None,
    }
