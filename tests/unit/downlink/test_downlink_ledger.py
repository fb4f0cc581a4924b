from dataclasses import replace

import numpy as np
import pytest

from fedge.downlink.ledger import (
    MAX_PENDING,
    TRANSITIONS,
    Asked,
    Drifted,
    Event,
    Heard,
    Ledger,
    Phase,
    is_drifted,
    receive,
    step,
)
from fedge.downlink.mcm import Channel, StaleMessage
from fedge.downlink.message import Kind, State, StateId, checksum, next_of, origin, public_base, read_message
from fedge.errors import FrameError
from fedge.layout import Kind as TensorKind
from fedge.layout import Layout, TensorSpec

LAYOUT = Layout.of([TensorSpec("w", (64,), TensorKind.WEIGHT), TensorSpec("b", (3,), TensorKind.RAW)])
BASE = origin(LAYOUT)
CHANNEL = Channel(LAYOUT, 3, "a")


def params(number):
    return np.random.default_rng(number).normal(size=LAYOUT.size).astype(np.float32)


def ask(ledger, said, number=1):
    after, (send,) = step(CHANNEL, ledger, Asked(said, params(number), number, 2.0))
    return after, send.message


def settled():
    """Return a ledger and the device's state after the device has said what it has."""
    ledger, message = ask(Ledger(), BASE.id)
    state = receive(CHANNEL, BASE, message).state
    return step(CHANNEL, ledger, Heard(state.id))[0], state


def test_the_first_download_is_a_full_from_the_base_the_device_names():
    base = public_base(LAYOUT, params(0))
    channel = replace(CHANNEL, bases=(base,))
    ledger, (send,) = step(channel, Ledger(), Asked(base.id, params(1), 1, 2.0))
    message = read_message(send.message)
    assert (message.kind, message.base, message.alpha) == (Kind.FULL, base.id, 1.0)
    state = receive(channel, base, send.message).state
    assert ledger.phase is Phase.OFFERED and ledger.resyncs == 0
    assert np.abs(state.vector - params(1)).max() < 0.05


def test_a_device_that_says_what_was_pending_is_believed():
    ledger, state = settled()
    assert ledger.phase is Phase.SETTLED
    assert ledger.state.id == state.id
    assert ledger.state.vector.tobytes() == state.vector.tobytes()


def test_what_follows_is_a_delta_from_what_the_device_has():
    ledger, state = settled()
    ledger, data = ask(ledger, state.id, 2)
    assert read_message(data).kind is Kind.DELTA
    assert len(data) < len(ask(Ledger(), BASE.id)[1])
    after = receive(CHANNEL, state, data).state
    ledger, _ = step(CHANNEL, ledger, Heard(after.id))
    assert ledger.state.vector.tobytes() == after.vector.tobytes()


def test_a_lost_download_is_forgotten():
    ledger, state = settled()
    ledger, lost = ask(ledger, state.id, 2)
    ledger, data = ask(ledger, state.id, 3)
    after = receive(CHANNEL, state, data).state
    ledger, _ = step(CHANNEL, ledger, Heard(after.id))
    assert ledger.state.id == after.id and ledger.phase is Phase.SETTLED
    with pytest.raises(StaleMessage):
        receive(CHANNEL, after, lost)


def test_a_download_that_arrives_after_the_next_was_made_counts():
    ledger, state = settled()
    ledger, late = ask(ledger, state.id, 2)
    ledger, newer = ask(ledger, state.id, 3)
    after = receive(CHANNEL, state, late).state
    with pytest.raises(StaleMessage):
        receive(CHANNEL, after, newer)
    ledger, data = ask(ledger, after.id, 4)
    assert read_message(data).kind is Kind.DELTA
    assert ledger.state.vector.tobytes() == after.vector.tobytes()


def test_no_more_than_two_messages_are_pending():
    ledger, state = settled()
    sent = []
    for number in range(2, 6):
        ledger, data = ask(ledger, state.id, number)
        sent.append(data)
    assert list(ledger.pending) == sent[-MAX_PENDING:]


def test_the_same_question_has_the_same_answer_and_takes_no_second_place():
    ledger, state = settled()
    once, data = ask(ledger, state.id, 2)
    twice, again = ask(once, state.id, 2)
    assert data == again and twice.pending == once.pending


def test_an_unknown_name_gets_a_full_and_costs_the_server_nothing_it_knows():
    ledger, state = settled()
    ledger, data = ask(ledger, StateId("ee" * 8), 2)
    message = read_message(data)
    assert (message.kind, message.base, message.said) == (Kind.FULL, BASE.id, "ee" * 8)
    assert ledger.resyncs == 1 and ledger.state.id == state.id
    ledger, data = ask(ledger, state.id, 3)  # the word was a late one
    assert read_message(data).kind is Kind.DELTA


def test_a_full_that_comes_late_changes_nothing():
    ledger, first = ask(Ledger(), BASE.id, 1)
    state = receive(CHANNEL, BASE, first).state
    ledger, second = ask(ledger, BASE.id, 2)
    with pytest.raises(StaleMessage):
        receive(CHANNEL, state, second)


def test_a_device_that_lost_its_disk_begins_again():
    ledger, _ = settled()
    ledger, data = ask(ledger, BASE.id, 2)
    state = receive(CHANNEL, BASE, data).state
    ledger, _ = step(CHANNEL, ledger, Heard(state.id))
    assert ledger.state.vector.tobytes() == state.vector.tobytes() and ledger.resyncs == 1


def test_an_evicted_row_gets_a_full_from_zeros():
    _, state = settled()
    ledger, data = ask(Ledger(), state.id, 2)
    assert read_message(data).kind is Kind.FULL
    after = receive(CHANNEL, state, data).state
    assert step(CHANNEL, ledger, Heard(after.id))[0].state.vector.tobytes() == after.vector.tobytes()


def test_a_full_for_a_thin_link_is_made_good_by_deltas():
    rounds, ledger, state = range(1, 12), Ledger(), BASE
    for number in rounds:
        ledger, (send,) = step(CHANNEL, ledger, Asked(state.id, params(0), number, 2.0, full_bits=1.0))
        state = receive(CHANNEL, state, send.message).state
        assert len(send.message) < 0.6 * len(ask(Ledger(), BASE.id)[1]) + 60
    assert np.abs(state.vector - params(0)).max() < 1e-3


def test_numbers_that_drifted_apart_are_found_and_made_good():
    ledger, state = settled()
    assert not is_drifted(ledger, state.id, checksum(state.vector))
    wrong = State(state.id, np.nextafter(state.vector, np.float32(9)))
    assert is_drifted(ledger, wrong.id, checksum(wrong.vector))
    assert not is_drifted(ledger, StateId("ee" * 8), checksum(wrong.vector))
    ledger, _ = step(CHANNEL, ledger, Drifted())
    ledger, data = ask(ledger, wrong.id, 2)
    after = receive(CHANNEL, wrong, data).state
    ledger, _ = step(CHANNEL, ledger, Heard(after.id))
    assert ledger.state.vector.tobytes() == after.vector.tobytes()


def test_a_corrupted_download_changes_nothing():
    _, data = ask(Ledger(), BASE.id)
    for position in range(0, len(data), 7):
        spoiled = data[:position] + bytes([data[position] ^ 0x40]) + data[position + 1 :]
        with pytest.raises((FrameError, StaleMessage)):
            receive(CHANNEL, BASE, spoiled)


def test_a_word_of_nothing_new_changes_nothing():
    ledger, state = settled()
    for event in (Heard(state.id), Heard(StateId("ee" * 8))):
        assert step(CHANNEL, ledger, event) == (ledger, [])


def test_every_event_has_its_phases():
    assert TRANSITIONS.keys() == set(Phase)
    assert all(moves.keys() == set(Event.__args__) for moves in TRANSITIONS.values())


def test_alpha_and_bits_may_change_between_messages():
    ledger, state = settled()
    for number, (bits, alpha) in enumerate([(1.0, 0.5), (4.0, 1.0), (0.5, None)], 2):
        ledger, (send,) = step(CHANNEL, ledger, Asked(state.id, params(number), number, bits, alpha))
        state = receive(CHANNEL, state, send.message).state
        assert state.id == next_of(send.message)
    ledger, _ = step(CHANNEL, ledger, Heard(state.id))
    assert ledger.state.vector.tobytes() == state.vector.tobytes()
