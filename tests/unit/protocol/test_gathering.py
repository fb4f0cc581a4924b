"""When the back half takes a step, and with whom."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.protocol.gathering import (
    Arrived,
    Came,
    Dropped,
    Gathering,
    Last,
    Left,
    Stepped,
    Take,
    Tick,
    WakeAt,
    is_repeat,
    step,
)
from fedge.protocol.ledger import Conflict


def batch(number=0, digest=b"d"):
    return Last(number, digest)


def after(*events, state=None, now=0.0):
    """Return the state after ``events`` and what the last asked for."""
    state, actions = state or Gathering(1.0), []
    for event in events:
        state, actions = step(state, event, now)
    return state, actions


def test_a_device_that_is_alone_does_not_wait():
    state, actions = after(Came("a"), Arrived("a", batch()))
    assert actions == [Take(("a",))] and state.under_way == {"a"}


def test_those_at_work_are_waited_for_and_taken_together():
    state, actions = after(Came("a"), Came("b"), Arrived("a", batch()))
    assert actions == [WakeAt(1.0)]
    assert after(Arrived("b", batch()), state=state, now=0.5)[1] == [Take(("a", "b"))]


def test_who_does_not_come_is_waited_for_once():
    state, _ = after(Came("a"), Came("dead"), Arrived("a", batch()))
    state, actions = after(Tick(), state=state, now=1.0)
    assert actions == [Take(("a",))]
    state, actions = after(Stepped({"a": batch()}), Arrived("a", batch(1)), state=state, now=2.0)
    assert actions == [Take(("a",))]
    state, _ = after(Stepped({"a": batch(1)}), Arrived("dead", batch()), state=state, now=3.0)
    state, actions = after(Arrived("a", batch(2)), state=state, now=3.1)
    assert actions == [Take(("dead", "a"))]


def test_who_missed_a_step_and_is_there_again_is_not_waited_for_before_it_sends():
    state, _ = after(Came("a"), Came("b"), Arrived("a", batch()))
    state, _ = after(Tick(), Stepped({"a": batch()}), Came("b"), state=state, now=1.0)
    assert after(Arrived("a", batch(1)), state=state, now=1.1)[1] == [Take(("a",))]


def test_who_has_left_is_not_waited_for():
    state, _ = after(Came("a"), Came("b"), Arrived("a", batch()))
    assert after(Left("b"), state=state)[1] == [Take(("a",))]


def test_one_step_at_a_time_and_what_came_meanwhile_is_next():
    state, _ = after(Arrived("a", batch()))
    state, actions = after(Arrived("b", batch()), state=state, now=0.1)
    assert actions == []
    state, actions = after(Stepped({"a": batch()}), state=state, now=0.2)
    assert actions == [WakeAt(1.2)] and list(state.waiting) == ["b"]
    assert after(Arrived("a", batch(1)), state=state, now=0.3)[1] == [Take(("b", "a"))]


def test_enough_are_not_kept_waiting():
    state = Gathering(1.0, most=3)
    state, _ = after(*(Came(name) for name in "abcde"), state=state)
    state, actions = after(*(Arrived(name, batch()) for name in "abcd"[:3]), state=state)
    assert actions == [Take(("a", "b", "c"))]


def test_a_batch_that_comes_again_is_a_repeat_while_it_waits_and_after_it_was_taken():
    state, _ = after(Came("b"), Arrived("a", batch()))
    assert is_repeat(state, "a", batch()) and step(state, Arrived("a", batch()), 0.1) == (state, [])
    state, _ = after(Stepped({"a": batch()}), state=state)
    assert is_repeat(state, "a", batch()) and not is_repeat(state, "a", batch(1))


@pytest.mark.parametrize("other", [batch(3, b"other"), batch(2)], ids=["another of the step", "a step that is past"])
def test_a_batch_that_contradicts_what_was_taken_is_a_conflict(other):
    state, _ = after(Arrived("a", batch(3)), Stepped({"a": batch(3)}))
    with pytest.raises(Conflict, match="expected step 3 of a as it was"):
        step(state, Arrived("a", other), 0.0)


def test_a_second_batch_before_the_first_is_answered_is_a_conflict():
    state, _ = after(Arrived("a", batch()))
    with pytest.raises(Conflict, match="before step 0 is answered"):
        step(state, Arrived("a", batch(1)), 0.0)


def test_what_could_not_be_taken_may_come_again():
    state, _ = after(Came("b"), Arrived("a", batch()), Tick(), now=1.0)
    state, _ = after(Dropped(("a",)), state=state)
    assert not state.waiting and not state.under_way
    assert after(Arrived("a", batch()), state=state)[0].waiting == {"a": batch()}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.sampled_from(["come", "take", "tick", "drop"])))
)
def test_whatever_happens_steps_ascend_and_none_is_taken_twice(script):
    state, taken, now = Gathering(0.5), [], 0.0
    for device, number, what in script:
        now += 0.3
        try:
            if what == "come":
                state, _ = step(state, Arrived(device, batch(number, bytes([number]))), now)
            elif what == "tick":
                state, _ = step(state, Tick(), now)
            elif what == "drop":
                state, _ = step(state, Dropped(tuple(state.under_way)), now)
            elif state.under_way:
                done = {name: state.waiting[name] for name in state.under_way}
                taken += [(name, one.step) for name, one in done.items()]
                state, _ = step(state, Stepped(done), now)
        except Conflict:
            continue
        assert state.under_way <= state.waiting.keys()
        assert not state.waiting or state.under_way or state.first_at is not None
    assert len(set(taken)) == len(taken)
    for name in "abc":
        mine = [number for device, number in taken if device == name]
        assert mine == sorted(mine)
