import pytest

from fedge.protocol.participant import (
    FETCHING,
    IDLE,
    LOST,
    REFUSING,
    SENDING,
    SETTLING,
    TRAINING,
    AnchorLost,
    CancelTraining,
    Download,
    Downloaded,
    Failed,
    Forget,
    Held,
    Participant,
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
    backoff_seconds,
    resume,
    step,
)
from schemas.messages import Assignment, Outcome, Receipt, Refusal, UpdateStatus
from schemas.packing import pack, unpack
from schemas.specs import DownlinkSpec, FedAvg, FedDyn, LocalSpec, UplinkSpec

UPDATE = "ab" * 8


def assignment(round=1, **changes) -> Assignment:
    fields = {
        "run": "r",
        "round": round,
        "task": "a:b",
        "layout": "cd" * 8,
        "seed": 7,
        "algorithm": FedDyn(name="feddyn"),
        "relative_size": 1.0,
        "local": LocalSpec(),
        "uplink": UplinkSpec(),
        "downlink": DownlinkSpec(),
        "seconds_left": 60.0,
        "dual_epoch": 0,
        "last_applied": 0,
    }
    return Assignment(**{**fields, **changes})


def receipt(round=1, applied=(0, 1), update=UPDATE) -> Receipt:
    return Receipt(run="r", round=round, update=update, outcome=Outcome.APPLIED, applied=applied)


def status(is_complete=True, is_open=True) -> UpdateStatus:
    return UpdateStatus(run="r", round=1, update=UPDATE, segments=(), is_complete=is_complete, is_open=is_open)


def after(*events, state=None, now=0.0):
    state, actions = state or Participant(), []
    for event in events:
        state, actions = step(state, event, now)
    return state, actions


def invited(**changes):
    return WorkArrived(assignment(**changes), None)


def waiting() -> Participant:
    """A device whose update is sent and whose receipt has not come."""
    return after(invited(), Downloaded(), UpdateReady(UPDATE), Sent(status()))[0]


def test_one_round_goes_from_the_invitation_to_the_receipt():
    state, actions = after(invited())
    assert (state.phase, actions) == (FETCHING, [Download(assignment())])
    state, actions = step(state, Downloaded(), 0.0)
    assert (state.phase, actions) == (TRAINING, [Train(assignment())])
    state, actions = step(state, UpdateReady(UPDATE), 0.0)
    assert (state.phase, actions) == (SENDING, [Send(state.pending)])
    state, actions = step(state, Sent(status()), 0.0)
    assert (state.phase, actions) == (IDLE, [Poll(state.pending)])
    pending = state.pending
    state, actions = step(state, WorkArrived(None, receipt()), 0.0)
    assert (state.phase, actions) == (SETTLING, [Settle(pending, receipt())])
    state, actions = step(state, Settled(), 0.0)
    assert (state.phase, state.pending, state.last_applied) == (IDLE, None, 1)
    assert actions == [Forget(), Poll(None)]


def test_an_assignment_that_comes_with_a_receipt_is_taken_after_it():
    state, actions = after(WorkArrived(assignment(2, last_applied=1), receipt()), state=waiting())
    assert state.phase is SETTLING
    state, actions = step(state, Settled(), 0.0)
    assert (state.phase, actions) == (FETCHING, [Forget(), Download(assignment(2, last_applied=1))])


def test_a_receipt_that_applied_nothing_leaves_the_dual_where_it_was():
    state, _ = after(WorkArrived(None, receipt(applied=())), Settled(), state=waiting())
    assert (state.pending, state.last_applied) == (None, 0)


def test_an_invitation_to_the_very_round_whose_update_is_pending_sends_it_again():
    state, actions = after(invited(), state=waiting())
    assert (state.phase, actions) == (SENDING, [Send(state.pending)])


def test_an_invitation_elsewhere_without_a_receipt_means_the_update_was_never_applied():
    state, _ = after(invited(round=2), state=waiting())
    assert (state.phase, state.pending, state.last_applied) == (FETCHING, None, 0)


def test_a_receipt_for_another_update_than_the_spooled_one_is_a_lost_dual():
    state, _ = after(WorkArrived(None, receipt(update="ff" * 8)), state=waiting())
    assert (state.pending, state.last_applied) == (None, LOST)
    state, actions = after(invited(round=2, last_applied=1), state=state)
    assert state.phase is REFUSING
    assert actions[0].refusal is Refusal.STATE_LOST


def test_a_spool_that_cannot_settle_is_a_lost_dual():
    state, _ = after(WorkArrived(None, receipt()), StateLost(), state=waiting())
    assert (state.phase, state.pending, state.last_applied) == (IDLE, None, LOST)


def test_a_dual_behind_the_aggregators_record_is_refused_until_its_epoch_ends():
    state, actions = after(invited(round=5, last_applied=3))
    assert (state.phase, state.refusal) == (REFUSING, Refusal.STATE_LOST)
    assert isinstance(actions[0], Refuse)
    state, actions = step(state, RoundOver(), 0.0)
    assert (state.phase, actions) == (IDLE, [Forget(), Poll(None)])
    state, _ = after(invited(round=6, dual_epoch=1), state=state)
    assert (state.phase, state.dual_epoch, state.last_applied) == (FETCHING, 1, 0)


def test_an_algorithm_without_a_dual_does_not_ask_for_one():
    state, _ = after(invited(round=5, last_applied=3, algorithm=FedAvg(name="fedavg")))
    assert state.phase is FETCHING


def test_a_round_that_ends_meanwhile_stops_the_training():
    state, actions = after(invited(), Downloaded(), RoundOver())
    assert (state.phase, state.assignment) == (IDLE, None)
    assert actions == [CancelTraining(), Forget(), Poll(None)]


def test_an_update_sent_too_late_waits_for_its_receipt_all_the_same():
    state, actions = after(invited(), Downloaded(), UpdateReady(UPDATE), RoundOver())
    assert (state.phase, actions) == (IDLE, [Forget(), Poll(state.pending)])
    assert state.pending is not None


def test_a_device_that_cannot_train_says_so_and_asks_for_other_work():
    state, actions = after(invited(), Downloaded(), Refused(Refusal.TRAINING_FAILED, "no memory"))
    assert actions == [Refuse(assignment(), Refusal.TRAINING_FAILED, "no memory")]
    assert after(RoundOver(), state=state)[1] == [Forget(), Poll(None)]


def test_a_failure_waits_and_then_does_the_same_work_again():
    state, actions = after(invited(), Failed("refused"), now=10.0)
    [wake] = actions
    assert state.phase is FETCHING
    assert 10.0 < wake.at <= 10.5
    assert step(state, Tick(), wake.at - 0.01)[1] == [wake]
    assert step(state, Tick(), wake.at)[1] == [Download(assignment())]


def test_an_update_taken_only_in_part_is_sent_again_after_a_pause():
    state, actions = after(invited(), Downloaded(), UpdateReady(UPDATE), Sent(status(is_complete=False)))
    assert state.phase is SENDING
    assert isinstance(actions[0], WakeAt)


def test_a_success_forgets_the_failures_before_it():
    state, _ = after(invited(), Failed("x"), Failed("x"), Downloaded(), UpdateReady(UPDATE))
    assert (state.failures, state.retry_at) == (0, None)


def test_a_disk_that_loses_every_anchor_has_it_sent_less_and_less_often():
    state, waits = after(invited())[0], []
    for _ in range(8):
        state, _ = after(Downloaded(Held(run="r", state="ab" * 8)), state=state)
        state, (wake,) = after(AnchorLost(), state=state)
        assert state.phase is FETCHING
        waits.append(wake.at)
        state, actions = step(state, Tick(), wake.at)
        assert actions == [Download(assignment())]
    assert state.failures == 8
    assert waits[-1] > 10 * waits[0]


def test_a_download_state_is_named_until_another_run_begins():
    held = Held(run="r", state="ab" * 8)
    state, actions = after(invited(), Downloaded(held))
    assert state.held == held
    assert Forget() in actions
    state, _ = after(UpdateReady(UPDATE), Sent(status()), WorkArrived(None, receipt()), Settled(), state=state)
    assert state.held == held
    assert after(WorkArrived(assignment(2), None), state=state)[0].held == held
    assert after(WorkArrived(assignment(2, run="other"), None), state=state)[0].held is None


def test_backoff_grows_to_a_minute_and_spreads_a_fleet():
    waits = [backoff_seconds(30, seed) for seed in range(300)]
    assert max(waits) <= 60.0
    assert max(waits) - min(waits) > 40.0
    assert max(backoff_seconds(1, seed) for seed in range(100)) <= 0.5


def test_a_wait_the_aggregator_asks_for_is_kept():
    _, [wake] = after(invited(), Failed("busy", retry_after=90.0), now=0.0)
    assert wake.at == 90.0


@pytest.mark.parametrize("event", [Downloaded(), UpdateReady(UPDATE), Settled(), Sent(status()), StateLost(), Tick()])
def test_an_answer_nobody_waits_for_changes_nothing(event):
    assert after(event) == (Participant(), [])


@pytest.mark.parametrize(
    "events",
    [
        [],
        [invited()],
        [invited(), Downloaded()],
        [invited(), Downloaded(), UpdateReady(UPDATE)],
        [invited(), Downloaded(), UpdateReady(UPDATE), Sent(status()), WorkArrived(None, receipt())],
        [invited(round=3, last_applied=2)],
    ],
)
def test_a_state_read_back_from_disk_owes_the_same_work(events):
    state, actions = after(*events)
    read_back = unpack(Participant, pack(state))
    assert read_back == state
    assert resume(read_back, now=0.0) == [Forget(), *(actions or [Poll(None)])]


def test_a_clock_set_back_does_not_park_the_device():
    state, _ = after(invited(), Failed("x"), now=1e9)
    assert resume(state, now=0.0) == [WakeAt(60.0)]


def test_a_failure_after_some_progress_is_waited_out_like_the_first():
    state, _ = after(invited(), Downloaded(), *[Failed("cut")] * 9)
    assert state.failures == 9
    state, (wake,) = after(Failed("cut", has_progress=True), state=state, now=100.0)
    assert (state.failures, state.phase) == (1, TRAINING)
    assert wake.at <= 100.5
