import pytest

from fedge.errors import ProtocolError
from fedge.protocol.coordinator import (
    ABANDONED,
    AGGREGATING,
    CLOSED,
    COLLECTING,
    SELECTING,
    TRANSITIONS,
    Abandon,
    Acknowledge,
    Aggregate,
    Aggregated,
    Cancelled,
    CohortChosen,
    DeviceGone,
    Invite,
    Quota,
    Reject,
    Round,
    Tick,
    UpdateReceived,
    WakeAt,
    resume,
    step,
)

QUOTA = Quota(min_updates=2, max_updates=3, min_seconds=20, max_seconds=60)


def collecting(*devices: str) -> Round:
    round, _ = step(Round(1, QUOTA), CohortChosen(devices or ("a", "b", "c", "d")), now=100.0)
    return round


def after(round: Round, *events, now=101.0) -> Round:
    for event in events:
        round, _ = step(round, event, now)
    return round


def test_the_chosen_are_invited_and_the_clock_is_set():
    round, actions = step(Round(1, QUOTA), CohortChosen(("a", "b")), now=100.0)
    assert round.phase is COLLECTING
    assert actions == [Invite(("a", "b")), WakeAt(160.0)]


def test_repeating_an_upload_is_acknowledged_and_counted_once():
    round, _ = step(collecting(), UpdateReceived("a", "d"), now=101.0)
    again, actions = step(round, UpdateReceived("a", "d"), now=102.0)
    assert (again, actions) == (round, [Acknowledge("a")])


def test_a_second_different_update_is_rejected():
    round = after(collecting(), UpdateReceived("a", "d"))
    again, actions = step(round, UpdateReceived("a", "e"), now=102.0)
    assert (again, actions) == (round, [Reject("a", "another update was taken already")])


def test_an_update_from_a_device_that_was_not_invited_is_rejected():
    round = collecting()
    assert step(round, UpdateReceived("z", "d"), now=101.0) == (round, [Reject("z", "not invited")])


def test_max_updates_close_the_round_at_once():
    round = after(collecting(), UpdateReceived("a", "1"), UpdateReceived("b", "2"))
    round, actions = step(round, UpdateReceived("c", "3"), now=101.0)
    assert round.phase is AGGREGATING
    assert actions == [Acknowledge("c"), Aggregate()]


def test_min_updates_close_the_round_only_after_min_seconds():
    round = after(collecting(), UpdateReceived("a", "1"), UpdateReceived("b", "2"))
    assert round.phase is COLLECTING
    assert after(round, Tick(), now=119.9).phase is COLLECTING
    assert after(round, Tick(), now=120.0).phase is AGGREGATING


def test_the_alarm_moves_to_min_seconds_once_there_are_min_updates():
    round = after(collecting(), UpdateReceived("a", "1"))
    _, actions = step(round, UpdateReceived("b", "2"), now=105.0)
    assert actions == [Acknowledge("b"), WakeAt(120.0)]


def test_a_round_in_which_all_were_heard_does_not_wait():
    round = after(collecting(), UpdateReceived("a", "1"), UpdateReceived("b", "2"), DeviceGone("c", "refused"))
    round, actions = step(round, DeviceGone("d", "lost"), now=101.0)
    assert round.phase is AGGREGATING
    assert actions == [Aggregate()]


def test_a_round_in_which_too_few_can_still_deliver_is_abandoned_when_all_were_heard():
    round = after(collecting("a", "b"), UpdateReceived("a", "1"))
    round, actions = step(round, DeviceGone("b", "refused"), now=101.0)
    assert round.phase is ABANDONED
    assert actions == [Abandon("1 complete updates of 2 invited, 2 needed")]


def test_max_seconds_without_min_updates_abandon_the_round():
    round, actions = step(after(collecting(), UpdateReceived("a", "1")), Tick(), now=160.0)
    assert round.phase is ABANDONED
    assert isinstance(actions[0], Abandon)


def test_a_device_given_up_may_still_deliver():
    round = after(collecting(), DeviceGone("a", "lost"), UpdateReceived("a", "1"))
    assert set(round.updates) == {"a"}
    assert not round.gone


def test_a_late_update_is_rejected_and_changes_nothing():
    round = after(collecting(), *(UpdateReceived(d, d) for d in "abc"))
    assert step(round, UpdateReceived("d", "4"), now=102.0) == (round, [Reject("d", "late")])
    closed = after(round, Aggregated())
    assert closed.phase is CLOSED
    assert step(closed, UpdateReceived("d", "4"), now=103.0) == (closed, [Reject("d", "late")])
    assert step(closed, UpdateReceived("a", "a"), now=103.0) == (closed, [Acknowledge("a")])


def test_a_cancelled_round_is_abandoned_but_one_being_aggregated_is_finished():
    assert step(collecting(), Cancelled("stopped"), now=101.0)[1] == [Abandon("stopped")]
    aggregating = after(collecting(), *(UpdateReceived(d, d) for d in "abc"))
    assert after(aggregating, Cancelled("stopped")).phase is AGGREGATING


def test_what_the_table_does_not_allow_is_an_error():
    with pytest.raises(ProtocolError, match="selecting: Aggregated is not allowed"):
        step(Round(1, QUOTA), Aggregated(), now=0.0)
    with pytest.raises(ProtocolError, match="collecting: CohortChosen"):
        step(collecting(), CohortChosen(("a",)), now=0.0)


def test_every_phase_has_a_row_in_the_table():
    assert set(TRANSITIONS) == {SELECTING, COLLECTING, AGGREGATING, CLOSED, ABANDONED}


def test_a_round_read_back_from_disk_says_what_it_owes():
    assert resume(Round(1, QUOTA)) == []
    assert resume(collecting("a", "b")) == [Invite(("a", "b")), WakeAt(160.0)]
    assert resume(after(collecting(), *(UpdateReceived(d, d) for d in "abc"))) == [Aggregate()]
    assert resume(after(collecting(), Cancelled("x"))) == [Abandon("x")]
