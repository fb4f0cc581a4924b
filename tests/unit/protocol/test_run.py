import pytest

from fedge.errors import ProtocolError
from fedge.protocol.run import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    Broken,
    EndRun,
    Evaluated,
    EvaluateModel,
    Opened,
    OpenRound,
    RoundAbandoned,
    RoundClosed,
    Run,
    Stopped,
    resume,
    step,
)


def after(run, *events):
    for event in events:
        run, actions = step(run, event)
    return run, actions


def test_a_run_opens_round_after_round_and_ends_when_its_last_model_was_tested():
    run, actions = step(Run(2, 3), Opened())
    assert (run.phase, actions) == (RUNNING, [OpenRound(1)])
    run, actions = step(run, RoundClosed())
    assert actions == [OpenRound(2)]
    run, actions = step(run, RoundClosed())
    assert actions == [EvaluateModel()]
    run, actions = step(run, Evaluated())
    assert (run.phase, actions) == (FINISHED, [EndRun()])


def test_an_abandoned_round_has_a_number_but_does_not_count():
    run, actions = after(Run(1, 3), Opened(), RoundAbandoned("nobody"))
    assert actions == [OpenRound(2)]
    assert (run.rounds_closed, run.rounds_abandoned) == (0, 1)


def test_too_many_abandoned_in_a_row_fail_the_run_and_a_closed_one_starts_the_count_again():
    lost = RoundAbandoned("nobody")
    run, _ = after(Run(9, 2), Opened(), lost, RoundClosed(), lost)
    assert run.phase is RUNNING
    run, actions = step(run, lost)
    assert (run.phase, actions) == (FAILED, [EndRun()])
    assert "2 rounds in a row" in run.reason


def test_a_stop_is_final_and_may_be_repeated():
    run, actions = after(Run(9, 2), Opened(), Stopped("by hand"))
    assert (run.phase, actions) == (STOPPED, [EndRun()])
    assert step(run, Stopped("again")) == (run, [])
    assert step(run, RoundClosed()) == (run, [])


def test_a_test_that_comes_before_the_last_round_ends_nothing():
    run, _ = after(Run(2, 2), Opened(), RoundClosed())
    assert step(run, Evaluated()) == (run, [])


def test_a_queued_run_cannot_close_a_round():
    with pytest.raises(ProtocolError, match="queued"):
        step(Run(1, 1), RoundClosed())


def test_a_run_read_back_from_disk_says_what_it_owes():
    run, _ = after(Run(2, 2), Opened(), RoundClosed())
    assert resume(run) == [OpenRound(2)]
    run, _ = step(run, RoundClosed())
    assert resume(run) == [EvaluateModel()]
    assert resume(after(run, Broken("disk full"))[0]) == []
    assert resume(Run(1, 1)) == []
