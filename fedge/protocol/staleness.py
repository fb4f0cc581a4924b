"""Updates that come after their round is over: whose may still come, and how far they move the model.

    round r, asked and not heard ──> outstanding in r+1, r+2, .. r+max_staleness ──> late: nothing of it counts
                                         │ what comes in round n moves S in full, the params by a step of 1/(1 + n - r)
                                         v
                                     applied or partial, as any update of round n; its receipt is that of round r

While an update is outstanding its device is invited to no other round: the dual that it trains with stays the one that
the server knows. A device that asks for work and does not name that update has lost it, or never began. Where fewer
devices are free than a round needs, those that stand at the door with an outstanding update sit in its cohort.

A delta that was trained from older params points at where the model was, hence the shorter step. S takes all of it,
since the device's dual does. Xie, Koyejo and Gupta, Asynchronous Federated Optimization, 2019: their polynomial
s(τ) = (1 + τ)^-a, with a = 1 (https://arxiv.org/abs/1903.03934).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedge.protocol.coordinator import Round
from fedge.protocol.ledger import Ledger
from fedge.protocol.offer import certify
from fedge.selection import choose_cohort
from schemas.messages import Assignment, Outcome, Receipt
from schemas.plan import Cohort
from schemas.status import RoundPhase

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True, slots=True)
class Ending(Generic[Name]):
    """What a round that is over leaves: ``receipts`` by device, and what is ``outstanding``, by device."""

    receipts: Mapping[Name, Receipt]
    outstanding: Mapping[Name, Assignment]


def step_of(rounds_late: int) -> float:
    """Return η = 1/(1 + τ), by which an update that is τ rounds late moves the params."""
    return 1.0 / (1 + rounds_late)


def may_come(asked: Assignment, number: int, dual_epoch: int, max_staleness: int) -> bool:
    """Whether an update that answers ``asked`` would count in round ``number``, of this dual epoch."""
    return asked.dual_epoch == dual_epoch and number - asked.round <= max_staleness


def end(
    round: Round,
    ledger: Ledger,
    asked: Mapping[Name, Assignment],
    not_at_work: Collection[str],
    dual_epoch: int | None,
    max_staleness: int,
) -> Ending[Name]:
    """Return what ``round``, which is over, leaves of those ``asked`` in it or outstanding in it.

    ``not_at_work`` are devices that will not send what they owe, ``dual_epoch`` is that of the next round; None where
    there is no next round. Where a round was abandoned, what came late waits for the next: it is to be sent again.
    """
    receipts, outstanding = {}, {}
    for device, one in asked.items():
        is_heard = bool(ledger.segments(device)) and (one.round == round.number or round.phase is RoundPhase.CLOSED)
        is_done = is_heard or device in not_at_work or dual_epoch is None
        if not is_done and may_come(one, round.number + 1, dual_epoch or 0, max_staleness):
            outstanding[device] = one
        else:
            receipts[device] = certify(one.run, round, ledger, device, one.round)
    return Ending(receipts, outstanding)


def late_receipts(asked: Mapping[Name, Assignment]) -> dict[Name, Receipt]:
    """Return the receipts of devices of whom nothing came in time, nor will."""
    return {
        device: Receipt(run=one.run, round=one.round, update=None, outcome=Outcome.LATE, applied=())
        for device, one in asked.items()
    }


def seat(
    seed: int, number: int, free: Collection[str], ready: Iterable[str], cohort: Cohort
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return who of the ``free`` devices is invited to round ``number``, and who of the ``ready`` sits beside them.

    ``ready`` devices hold an outstanding update and wait to send it. They count towards the round's quota only where
    the free ones alone are too few: two devices that wait for each other would wait for ever. None: too few in all.
    """
    invited = choose_cohort(seed, number, free, cohort.devices)
    if len(invited) >= cohort.updates.min:
        return invited, ()
    seated = choose_cohort(seed, number, ready, cohort.devices - len(invited))
    return (invited, seated) if len(invited) + len(seated) >= cohort.updates.min else None
