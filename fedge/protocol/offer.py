"""What the aggregator offers a device at the start of a round, and what it certifies at the end.

Both are pure functions of the plan and of what was accepted, so the service and the simulation say the same thing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, median_low

from fedge.budget import full_rate, rate
from fedge.layout import Layout
from fedge.protocol.coordinator import Quota, Round
from fedge.protocol.ledger import Ledger
from fedge.seeds import derive
from schemas.ids import RunId
from schemas.messages import Assignment, Outcome, Receipt
from schemas.plan import Plan
from schemas.specs import Half, Limits, SplitSpec, Trains
from schemas.status import RoundPhase

MAX_STEPS = 1_000_000
MAX_RELATIVE_SIZE = 10.0
"""No device counts for more than this many mean devices, whatever it says it has."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the aggregator remembers of a device in a run.

    ``relative_size`` is w_k = n_k / mean(n) (``counted_size``, ``mean_size``), fixed when the device first takes part;
    ``last_applied`` the last round of the present dual epoch in which any segment of it was applied, 0 if none;
    ``num_examples`` what counts of its examples.
    """

    relative_size: float
    last_applied: int
    limits: Limits
    num_examples: int = 0


def mean_size(sizes: Iterable[int]) -> float:
    """Return the mean number of examples, each size counted as at most ``MAX_RELATIVE_SIZE`` times their lower median.

    Devices say themselves how much they have. A plain mean would let one that claims 2^53 examples shrink every other
    device's w_k to nothing; the median does not move as long as more than half tell the truth.
    """
    sizes = list(sizes)
    most = MAX_RELATIVE_SIZE * median_low(sizes)
    return fmean(min(size, most) for size in sizes)


def counted_size(size: int, mean: float) -> int:
    """Return how many of a device's ``size`` examples count where the mean device has ``mean``: at least 1."""
    return min(size, max(1, int(MAX_RELATIVE_SIZE * mean)))


def quota_of(plan: Plan) -> Quota:
    """Return the plan's policy for closing a round."""
    cohort = plan.cohort
    return Quota(cohort.updates.min, cohort.updates.max, cohort.seconds.min, cohort.seconds.max)


def half_of(plan: Plan, trains: Trains, can_split: bool = True) -> Half | None:
    """Return what a device that can train ``trains`` of a model trains in ``plan``; None where that is nothing.

    ``can_split``: whether it knows where the model is cut.
    """
    if plan.split is None:
        return None if trains == "front" else "whole"
    if not can_split:
        return None
    if trains == "either":
        return "front" if plan.split.devices == "all" else "whole"
    return trains


def part_of(layout: Layout, asked: Assignment) -> Layout:
    """Return the layout of what a device was asked to train: all of ``layout``, or its front half."""
    return layout if asked.split is None else layout.front


def assign(
    plan: Plan,
    run: str,
    round: Round,
    device: str,
    layout: Layout,
    standing: Standing,
    dual_epoch: int,
    now: float,
    half: Half = "whole",
) -> Assignment:
    """Return ``device``'s part in ``round``. The learning rate is the round's, already decayed: lr · decay^(round - 1).

    Raises:
        BudgetError: the device's limits leave no room for any rate.
    """
    part = layout if half == "whole" else layout.front
    uplink_bits = rate(part, plan.uplink, standing.limits.uplink)
    downlink_bits = rate(part, plan.downlink, standing.limits.downlink)
    full_bits = full_rate(part, plan.downlink, standing.limits.downlink)
    decay = plan.local.learning_rate_decay ** (round.number - 1)
    learning_rate = max(plan.local.learning_rate * decay, sys.float_info.min)  # an assignment's is above 0
    return Assignment(
        run=RunId(run),
        round=round.number,
        task=plan.task,
        layout=layout.digest,
        seed=plan.seed,
        algorithm=plan.algorithm,
        relative_size=standing.relative_size,
        local=plan.local.model_copy(update={"learning_rate": learning_rate, "learning_rate_decay": 1.0}),
        uplink=plan.uplink.in_round(round.number, uplink_bits, plan.algorithm),
        downlink=plan.downlink.model_copy(update={"bits": downlink_bits, "full_bits": full_bits}),
        seconds_left=max(0.0, round.opened_at + round.quota.max_seconds - now),
        dual_epoch=dual_epoch,
        last_applied=standing.last_applied,
        split=_steps_settled(plan, standing.num_examples) if half == "front" else None,
    )


def _steps_settled(plan: Plan, num_examples: int) -> SplitSpec | None:
    """Return the plan's split with the number of steps settled, which both ends then hold to."""
    if plan.split is None or plan.split.steps:
        return plan.split
    steps = plan.local.epochs * max(1, -(-num_examples // plan.local.batch_size))
    return plan.split.model_copy(update={"steps": min(steps, MAX_STEPS)})


def certify(run: str, round: Round, ledger: Ledger, device: str, asked_in: int | None = None) -> Receipt:
    """Return the receipt of ``device`` for a round that is over, or for round ``asked_in`` before it.

    In a closed round every segment that arrived before it closed was applied; in an abandoned one none was.
    """
    number = round.number if asked_in is None else asked_in
    delivery = ledger.deliveries.get(device)
    applied = ledger.segments(device) if round.phase is RoundPhase.CLOSED else ()
    if round.phase is RoundPhase.ABANDONED and number == round.number:
        outcome = Outcome.ABANDONED
    elif not applied:
        outcome = Outcome.LATE
    else:
        outcome = Outcome.APPLIED if ledger.is_complete(device) else Outcome.PARTIAL
    update = delivery.header.update if delivery else None
    return Receipt(run=RunId(run), round=number, update=update, outcome=outcome, applied=applied)


def train_seed(seed: int, round_number: int, device: str) -> int:
    """Return the seed of one device's local training: order of examples, dropout."""
    return derive(seed, "train", round_number, device)
