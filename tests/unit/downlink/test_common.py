import numpy as np
import pytest

from fedge.downlink.common import Common, advance_common, catch_up, receive_all
from fedge.downlink.mcm import EVERYONE, Channel, StaleMessage, apply_message
from fedge.downlink.message import Kind, State, StateId, checksum, origin, read_message
from fedge.errors import FrameError
from fedge.layout import Kind as TensorKind
from fedge.layout import Layout, TensorSpec

LAYOUT = Layout.of([TensorSpec("w", (3000,), TensorKind.WEIGHT), TensorSpec("b", (3,), TensorKind.RAW)])
BASE = origin(LAYOUT)
CHANNEL = Channel(LAYOUT, 3, EVERYONE)
each_alpha = pytest.mark.parametrize("alpha", [None, 0.75])


def params(number):
    return np.random.default_rng(number).normal(size=LAYOUT.size).astype(np.float32)


def after(rounds, alpha=None, common=None, first=1):
    common = common or Common.of(BASE)
    for number in range(first, rounds + 1):
        common = advance_common(CHANNEL, common, params(number), number, 2.0, alpha)
    return common


def anchor_of(common):
    """Return ŵ_k from the memory before it and the last message."""
    return apply_message(CHANNEL, common.previous, common.last).anchor


def download(common, own):
    return receive_all(CHANNEL, own, b"".join(catch_up(CHANNEL, common, own.id)))


@each_alpha
@pytest.mark.parametrize("missed", [1, 3, 12, 30])
def test_a_device_that_missed_rounds_comes_to_what_all_have(alpha, missed):
    common = after(2, alpha)
    device = download(common, BASE).state
    common = after(2 + missed, alpha, common, 3)
    delivered = download(common, device)
    assert delivered.state.id == common.state.id
    assert delivered.state.vector.tobytes() == common.state.vector.tobytes()
    assert delivered.anchor.tobytes() == anchor_of(common).tobytes()


@each_alpha
def test_catching_up_costs_the_missed_messages_and_never_much_more_than_float32(alpha):
    common = after(40, alpha)
    sizes = [len(b"".join(catch_up(CHANNEL, common, read_message(data).said))) for data in common.log]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) > 10
    assert sizes[-1] == len(common.log[-1]) and sizes[0] < 4 * LAYOUT.size + 150
    assert len(b"".join(catch_up(CHANNEL, common, BASE.id))) < 4 * LAYOUT.size + 150 + len(common.log[-1])
    assert {read_message(data).kind for data in common.log} == {Kind.DELTA}


def test_who_has_it_all_gets_nothing_with_alpha_1():
    common = after(3)
    delivered = download(common, common.state)
    assert catch_up(CHANNEL, common, common.state.id) == [] and delivered.anchor is common.state.vector


def test_a_device_that_has_the_memory_but_lost_its_anchor_gets_it_again():
    common = after(3, 0.75)
    delivered = download(common, common.state)
    assert delivered.anchor.tobytes() == anchor_of(common).tobytes()


@each_alpha
@pytest.mark.parametrize("missed", [0, 1])
def test_a_device_whose_numbers_are_others_gets_a_copy(alpha, missed):
    common = after(3, alpha)
    drifted = State(common.state.id, common.state.vector + np.float32(1))
    common = after(3 + missed, alpha, common, 4)
    assert catch_up(CHANNEL, common, drifted.id, checksum(after(3, alpha).state.vector)) == catch_up(
        CHANNEL, common, drifted.id
    )
    sent = catch_up(CHANNEL, common, drifted.id, checksum(drifted.vector))
    assert read_message(sent[0]).kind is Kind.COPY
    delivered = receive_all(CHANNEL, drifted, b"".join(sent))
    assert delivered.state.id == common.state.id
    assert delivered.state.vector.tobytes() == common.state.vector.tobytes()
    assert delivered.anchor.tobytes() == anchor_of(common).tobytes()


def test_before_the_first_round_there_is_the_base():
    common = Common.of(BASE)
    assert catch_up(CHANNEL, common, BASE.id) == []
    (copy,) = catch_up(CHANNEL, common, StateId("ee" * 8))
    assert read_message(copy).kind is Kind.COPY


def test_a_round_repeated_changes_nothing():
    common = after(3)
    assert advance_common(CHANNEL, common, params(3), 3, 2.0) is common


def test_a_download_for_another_state_or_cut_short_is_refused():
    common = after(3)
    data = b"".join(catch_up(CHANNEL, common, BASE.id))
    with pytest.raises(StaleMessage):
        receive_all(CHANNEL, common.state, data)
    for length in (5, len(data) // 2, len(data) - 1):
        with pytest.raises(FrameError):
            receive_all(CHANNEL, BASE, data[:length])


@each_alpha
def test_devices_that_come_and_go_have_the_memory_whenever_they_have_its_name(alpha):
    rng, common = np.random.default_rng(4), Common.of(BASE)
    known, devices = {BASE.id: BASE.vector}, [BASE] * 6
    for number in range(1, 80):
        common = advance_common(CHANNEL, common, params(number), number, 2.0, alpha)
        known[common.state.id] = common.state.vector
        for k in np.flatnonzero(rng.random(6) < 0.3):
            if rng.random() < 0.8:  # else the download is lost
                delivered = download(common, devices[k])
                assert delivered.anchor.tobytes() == anchor_of(common).tobytes()
                devices[k] = delivered.state if rng.random() < 0.9 else devices[k]  # else it crashed
            assert devices[k].vector.tobytes() == known[devices[k].id].tobytes()
