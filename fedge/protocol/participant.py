"""The device's side of a round.

                    assignment            Downloaded           UpdateReady
         ┌─> IDLE ─────────────> FETCHING <─────────> TRAINING ───────────> SENDING ─┐
         │    │  ^                  │      AnchorLost    │                     │     │ Sent, RoundOver
         │    │  │                  └──── RoundOver ─────┴──> IDLE (no update) │     v
         │    │  └───────────────────────────────────────────────────────────────── IDLE (update pending)
         │    │ receipt for the pending update
         │    v
         └─ SETTLING   the spool moves the dual by the segments the receipt names, then forgets the update

    Failed, in any phase: stay, wait (exponential backoff with full jitter), do the phase's work again

A device keeps its encoded update until it holds a receipt, and only then moves its FedDyn dual, by the decoded values
of the segments that were applied: both ends commit only what both know. An assignment that comes while an update is
pending is taken after its receipt is settled. Waiting and trying again is decided here and nowhere else.

A download may move a state of which device and aggregator have a copy each (``fedge.downlink.ledger``). The device's
moves with ``Downloaded``: it is the one that ``held`` names, whatever else lies in the spool.

The state is a message (``schemas.packing``), so the spool can write it down as it is. ``step`` is pure; every action is
safe to perform twice, and ``resume`` says what a state read back from disk still owes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from fedge.errors import ProtocolError
from fedge.protocol.participant_words import (
    Action,
    AnchorLost,
    CancelTraining,
    Download,
    Downloaded,
    Event,
    Failed,
    Forget,
    Held,
    Pending,
    Poll,
    Refuse,
    Refused,
    RoundOver,
    Send,
    Sent,
    Settle,
    Settled,
    StateLost,
    Tick,
    Train,
    UpdateReady,
    WakeAt,
    WorkArrived,
)
from fedge.seeds import derive, uniform
from schemas.base import Model
from schemas.ids import RunName
from schemas.messages import Assignment, Receipt, Refusal, Text
from schemas.specs import FedDyn

__all__ = [
    "FIRST_BACKOFF_SECONDS",
    "LOST",
    "MAX_BACKOFF_SECONDS",
    "TRANSITIONS",
    "Action",
    "AnchorLost",
    "CancelTraining",
    "Download",
    "Downloaded",
    "Event",
    "Failed",
    "Forget",
    "Held",
    "Participant",
    "Pending",
    "Phase",
    "Poll",
    "Refuse",
    "Refused",
    "RoundOver",
    "Send",
    "Sent",
    "Settle",
    "Settled",
    "StateLost",
    "Tick",
    "Train",
    "UpdateReady",
    "WakeAt",
    "WorkArrived",
    "backoff_seconds",
    "resume",
    "step",
]

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 60.0
LOST = -1


class Phase(StrEnum):
    """Where a device is."""

    IDLE = "idle"
    FETCHING = "fetching"
    TRAINING = "training"
    SENDING = "sending"
    SETTLING = "settling"
    REFUSING = "refusing"


IDLE, FETCHING, TRAINING, SENDING, SETTLING, REFUSING = Phase


class Participant(Model):
    """Everything the device must remember.

    ``run``, ``dual_epoch`` and ``last_applied`` name the dual on disk: the one after the update of that round was
    settled, in that epoch of that run; 0 is a dual of zeros, ``LOST`` one that can no longer be made.
    """

    phase: Annotated[Phase, Field(strict=False)] = Phase.IDLE
    assignment: Assignment | None = None
    pending: Pending | None = None
    receipt: Receipt | None = None
    refusal: Annotated[Refusal, Field(strict=False)] | None = None
    reason: Text = ""
    run: RunName | None = None
    dual_epoch: int = 0
    last_applied: int = 0
    held: Held | None = None
    failures: int = 0
    retry_at: float | None = None


# A phase in which an event is not listed ignores it: answers may come twice, late, or after a restart.
TRANSITIONS: Mapping[Phase, Mapping[type[Event], frozenset[Phase]]] = {
    IDLE: {WorkArrived: frozenset({IDLE, FETCHING, SENDING, SETTLING, REFUSING})},
    FETCHING: {
        Downloaded: frozenset({TRAINING}),
        Refused: frozenset({REFUSING}),
        RoundOver: frozenset({IDLE}),
    },
    TRAINING: {
        UpdateReady: frozenset({SENDING}),
        AnchorLost: frozenset({FETCHING}),
        Refused: frozenset({REFUSING}),
        RoundOver: frozenset({IDLE}),
    },
    SENDING: {Sent: frozenset({IDLE}), RoundOver: frozenset({IDLE}), StateLost: frozenset({IDLE})},
    SETTLING: {
        Settled: frozenset({IDLE, FETCHING, REFUSING}),
        StateLost: frozenset({IDLE, FETCHING, REFUSING}),
    },
    REFUSING: {RoundOver: frozenset({IDLE})},
}


def step(state: Participant, event: Event, now: float, seed: int = 0) -> tuple[Participant, list[Action]]:
    """Return the state after ``event`` and what the shell owes for it. ``seed`` draws the jitter of backoff.

    An event that the present phase has no use for changes nothing and asks for nothing.
    """
    match event:
        case Failed():
            return _back_off(state, event, now, seed)
        case Sent(status) if state.phase is SENDING and status.is_open and not status.is_complete:
            return _back_off(state, Failed("the aggregator took part of the update only"), now, seed)
        case AnchorLost() if state.phase is TRAINING:
            # Not at once: a disk that loses everything must not have the model sent without end.
            return _back_off(_change(state, phase=FETCHING), Failed("the anchor is gone"), now, seed)
        case Tick():
            return _tick(state, now)
    allowed = TRANSITIONS[state.phase].get(type(event))
    if allowed is None:
        return state, []
    after, extra = _apply(state, event)
    if after.phase not in allowed:
        raise ProtocolError(f"{type(event).__name__} moved {state.phase} to {after.phase}")
    return after, [*extra, *_work(after)]


def resume(state: Participant, now: float) -> list[Action]:
    """Return what a state read back from disk still owes."""
    if state.retry_at is not None and state.retry_at > now:
        # A clock that was set back must not park the device for longer than backoff ever would.
        return [WakeAt(min(state.retry_at, now + MAX_BACKOFF_SECONDS))]
    return [Forget(), *_work(state)]


def backoff_seconds(failures: int, seed: int) -> float:
    """Return how long to wait after ``failures`` in a row: uniform up to 0.5·2^(failures-1), at most 60 s.

    Full jitter: after an outage a fleet comes back spread over the whole interval, not all at once.
    """
    ceiling = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 20))
    return ceiling * (0.1 + 0.9 * float(uniform(derive(seed, "backoff", failures), 1)[0]))


def _change(state: Participant, **changes: Any) -> Participant:
    return state.model_copy(update=changes)


def _apply(state: Participant, event: Event) -> tuple[Participant, list[Action]]:
    calm = _change(state, failures=0, retry_at=None)
    match event:
        case WorkArrived():
            return _take_work(calm, event), []
        case Downloaded(held):
            # Failures are counted on until it was trained from: reading it back may fail. The old state is of no use.
            after = _change(state, phase=TRAINING, retry_at=None, held=held or state.held)
            return after, [] if held is None else [Forget()]
        case UpdateReady(update):
            pending = Pending(assignment=_assigned(calm), update=update)
            return _change(calm, phase=SENDING, pending=pending, assignment=None), []
        case Sent():
            return _change(calm, phase=IDLE), []
        case Refused(refusal, reason):
            return _change(calm, phase=REFUSING, refusal=refusal, reason=reason[:500]), []
        case Settled():
            return _settled(calm)
        case StateLost():
            return _take_assignment(_drop_pending(calm, last_applied=LOST), calm.assignment), [Forget()]
        case RoundOver():
            stop: list[Action] = [CancelTraining()] if state.phase is TRAINING else []
            return _change(calm, phase=IDLE, assignment=None, refusal=None, reason=""), [*stop, Forget()]
        case _:
            raise ProtocolError(f"{type(event).__name__} is not allowed while {state.phase}")


def _take_work(state: Participant, work: WorkArrived) -> Participant:
    pending, receipt, assignment = state.pending, work.receipt, work.assignment
    if pending is None:
        return _take_assignment(state, assignment)
    mine = (pending.assignment.run, pending.assignment.round)
    if receipt is not None and (receipt.run, receipt.round) == mine:
        if receipt.applied and receipt.update != pending.update:
            # What was applied is an update this spool no longer has, so the dual cannot follow it.
            return _take_assignment(_drop_pending(state, last_applied=LOST), assignment)
        return _change(state, phase=SETTLING, receipt=receipt, assignment=assignment)
    if assignment is None:
        return state
    if (assignment.run, assignment.round) == mine:
        # The aggregator lacks part of what we hold for this very round: send it again.
        return _change(state, phase=SENDING)
    # No receipt, but work elsewhere: the aggregator never applied it, and says so by ``last_applied``.
    return _take_assignment(_drop_pending(state, last_applied=state.last_applied), assignment)


def _drop_pending(state: Participant, last_applied: int) -> Participant:
    return _change(state, pending=None, receipt=None, last_applied=last_applied)


def _take_assignment(state: Participant, assignment: Assignment | None) -> Participant:
    if assignment is None:
        return _change(state, phase=IDLE, assignment=None)
    is_other = (assignment.run, assignment.dual_epoch) != (state.run, state.dual_epoch)
    if is_other:
        state = _change(state, run=assignment.run, dual_epoch=assignment.dual_epoch, last_applied=0)
    if state.held is not None and state.held.run != assignment.run:
        state = _change(state, held=None)
    state = _change(state, phase=FETCHING, assignment=assignment)
    if state.last_applied == assignment.last_applied or not isinstance(assignment.algorithm, FedDyn):
        return state
    reason = f"expected a dual after round {assignment.last_applied}, the one here is after {state.last_applied}"
    return _change(state, phase=REFUSING, refusal=Refusal.STATE_LOST, reason=reason)


def _settled(state: Participant) -> tuple[Participant, list[Action]]:
    if state.receipt is None:
        raise ProtocolError("expected a receipt while settling, got none")
    last_applied = state.receipt.round if state.receipt.applied else state.last_applied
    return _take_assignment(_drop_pending(state, last_applied), state.assignment), [Forget()]


def _assigned(state: Participant) -> Assignment:
    if state.assignment is None:
        raise ProtocolError(f"expected an assignment while {state.phase}, got none")
    return state.assignment


def _work(state: Participant) -> list[Action]:
    """Return the work of the present phase; doing it again is safe."""
    match state.phase:
        case Phase.FETCHING:
            return [Download(_assigned(state))]
        case Phase.TRAINING:
            return [Train(_assigned(state))]
        case Phase.SENDING if state.pending is not None:
            return [Send(state.pending)]
        case Phase.SETTLING if state.pending is not None and state.receipt is not None:
            return [Settle(state.pending, state.receipt)]
        case Phase.REFUSING if state.refusal is not None:
            return [Refuse(_assigned(state), state.refusal, state.reason)]
        case Phase.IDLE:
            return [Poll(state.pending)]
        case _:
            raise ProtocolError(f"a state that is {state.phase} lacks what that phase works on")


def _back_off(state: Participant, event: Failed, now: float, seed: int) -> tuple[Participant, list[Action]]:
    failures = 1 if event.has_progress else state.failures + 1
    wait = max(backoff_seconds(failures, seed), min(event.retry_after or 0.0, MAX_BACKOFF_SECONDS * 10))
    at = now + wait
    return _change(state, failures=failures, retry_at=at), [WakeAt(at)]


def _tick(state: Participant, now: float) -> tuple[Participant, list[Action]]:
    if state.retry_at is None:
        return state, []
    if now < state.retry_at:
        return state, [WakeAt(state.retry_at)]
    return _change(state, retry_at=None), _work(state)
