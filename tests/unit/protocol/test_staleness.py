"""Which updates are outstanding after a round, who gets a seat, and what a receipt says of what came late."""

import pytest

from fedge.protocol.coordinator import Quota, Round
from fedge.protocol.ledger import Ledger
from fedge.protocol.staleness import end, late_receipts, may_come, seat, step_of
from schemas.messages import Assignment, Outcome, UpdateHeader
from schemas.plan import Cohort, Updates
from schemas.specs import DownlinkSpec, FedDyn, LocalSpec, UplinkSpec
from schemas.status import RoundPhase

QUOTA = Quota(1, 4, 0.0, 10.0)
CLOSED = Round(5, QUOTA, RoundPhase.CLOSED, 0.0, ("a", "b"))
ABANDONED = Round(5, QUOTA, RoundPhase.ABANDONED, 0.0, ("a", "b"))


def asked(number: int, dual_epoch: int = 0) -> Assignment:
    return Assignment(
        run="r",
        round=number,
        task="a:b",
        layout="ab" * 8,
        seed=1,
        algorithm=FedDyn(name="feddyn"),
        relative_size=1.0,
        local=LocalSpec(),
        uplink=UplinkSpec(),
        downlink=DownlinkSpec(),
        seconds_left=0.0,
        dual_epoch=dual_epoch,
        last_applied=0,
    )


def ledger(**segments: int) -> Ledger:
    """Return the ledger of a round of two segments in which devices delivered the first so many."""
    found = Ledger(2)
    for device, count in segments.items():
        found.take_header(device, UpdateHeader(update="cd" * 8, num_examples=1))
        for index in range(count):
            found.take_frame(device, index, 7)
    return found


def test_a_step_is_whole_in_its_own_round_and_shrinks_from_there():
    assert [step_of(rounds) for rounds in range(4)] == [1.0, 1 / 2, 1 / 3, 1 / 4]


@pytest.mark.parametrize(("number", "epoch", "may"), [(3, 0, True), (5, 0, True), (6, 0, False), (4, 1, False)])
def test_an_update_may_come_within_its_window_and_epoch(number, epoch, may):
    assert may_come(asked(3), number, epoch, 2) is may


def test_who_was_not_heard_in_its_round_stays_outstanding_and_who_was_has_its_receipt():
    ending = end(CLOSED, ledger(a=2, b=1), {name: asked(5) for name in "abcd"}, {"d"}, 0, 1)
    assert ending.outstanding.keys() == {"c"}
    outcomes = {name: (one.round, one.outcome, one.applied) for name, one in ending.receipts.items()}
    assert outcomes == {
        "a": (5, Outcome.APPLIED, (0, 1)),
        "b": (5, Outcome.PARTIAL, (0,)),
        "d": (5, Outcome.LATE, ()),
    }


def test_what_came_late_has_the_receipt_of_its_own_round():
    owing = {"a": asked(4), "b": asked(3), "c": asked(3)}
    ending = end(CLOSED, ledger(a=2, b=1), owing, (), 0, 2)
    assert not ending.outstanding
    assert {name: (one.round, one.outcome) for name, one in ending.receipts.items()} == {
        "a": (4, Outcome.APPLIED),
        "b": (3, Outcome.PARTIAL),
        "c": (3, Outcome.LATE),
    }


def test_of_an_abandoned_round_what_came_late_is_still_owed_and_its_own_is_not():
    owing = {"own": asked(5), "late": asked(4), "too late": asked(2), "silent": asked(5)}
    ending = end(ABANDONED, ledger(own=2, late=2), owing, (), 0, 3)
    assert ending.outstanding.keys() == {"late", "silent"}
    assert {name: one.outcome for name, one in ending.receipts.items()} == {
        "own": Outcome.ABANDONED,
        "too late": Outcome.LATE,
    }
    assert not any(one.applied for one in ending.receipts.values())


@pytest.mark.parametrize("epoch", [1, None])
def test_nothing_is_outstanding_in_another_epoch_or_after_the_last_round(epoch):
    ending = end(CLOSED, ledger(), {"a": asked(5), "b": asked(4)}, (), epoch, 9)
    assert not ending.outstanding
    assert {one.outcome for one in ending.receipts.values()} == {Outcome.LATE}


def test_without_staleness_a_round_settles_everybody():
    ending = end(CLOSED, ledger(a=2), {"a": asked(5), "b": asked(5)}, (), 0, 0)
    assert (ending.outstanding, {name: one.outcome for name, one in ending.receipts.items()}) == (
        {},
        {"a": Outcome.APPLIED, "b": Outcome.LATE},
    )


def test_an_update_that_is_given_up_is_late():
    assert {name: (one.round, one.outcome) for name, one in late_receipts({"a": asked(3)}).items()} == {
        "a": (3, Outcome.LATE)
    }


def test_those_at_the_door_sit_in_a_cohort_only_where_it_is_too_small_without_them():
    cohort = Cohort(devices=3, updates=Updates(min=2, max=3))
    invited, seated = seat(1, 2, {"a", "b", "c", "d"}, {"x", "y"}, cohort)
    assert (len(invited), seated) == (3, ())
    assert seat(1, 2, {"a", "b"}, {"x"}, cohort)[1] == ()
    invited, seated = seat(1, 2, {"a"}, {"x", "y", "z"}, cohort)
    assert (invited, len(seated)) == (("a",), 2)
    assert seat(1, 2, set(), {"x", "y"}, cohort)[0] == ()
    assert seat(1, 2, {"a"}, set(), cohort) is None
