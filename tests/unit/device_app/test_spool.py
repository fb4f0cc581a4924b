"""Durable files, and the spool made of them."""

import os
from dataclasses import replace

import numpy as np
import pytest

from device_app.durable import Disk
from device_app.errors import SpoolError, StateLost
from device_app.spool import SplitStep, Spool, StoredUpdate, update_id
from fedge.algorithms import FedAvg, FedDyn
from fedge.layout import Kind, Layout, TensorSpec
from fedge.protocol.participant import Participant, Pending, Phase
from fedge.update import encode_update, uplink
from schemas.messages import Assignment, Outcome, Receipt, UpdateHeader
from schemas.specs import DownlinkSpec, LocalSpec, M22Spec, UplinkSpec
from schemas.specs import FedDyn as FedDynSpec

LAYOUT = Layout.of([TensorSpec("w", (80, 64), Kind.WEIGHT), TensorSpec("b", (64,), Kind.RAW)])
DELTA = np.sin(np.arange(LAYOUT.size, dtype=np.float32))
ASSIGNMENT = Assignment(
    run="run-1",
    round=3,
    task="tasks.here:task",
    layout=LAYOUT.digest,
    seed=5,
    algorithm=FedDynSpec(name="feddyn"),
    relative_size=1.0,
    local=LocalSpec(),
    uplink=UplinkSpec(),
    downlink=DownlinkSpec(),
    seconds_left=10.0,
    dual_epoch=2,
    last_applied=0,
)
STREAM = uplink(5, 3, "pi-1")
FRAMES = tuple(encode_update(LAYOUT, DELTA, STREAM, "none", 32.0))
PENDING = Pending(assignment=ASSIGNMENT, update=update_id(FRAMES))
STORED = StoredUpdate(UpdateHeader(update=PENDING.update, num_examples=4, loss=0.5), FRAMES)
STATE = Participant(phase=Phase.SETTLING, pending=PENDING, run="run-1", dual_epoch=2)


def receipt(*applied):
    return Receipt(run="run-1", round=3, update=PENDING.update, outcome=Outcome.PARTIAL, applied=applied)


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    spool.open()
    return spool


def settle(spool, state, *applied, algorithm=FedDyn()):  # noqa: B008
    spool.settle(state, PENDING, receipt(*applied), algorithm, LAYOUT, STREAM)


def test_a_state_comes_back_as_it_was_written(spool):
    spool.write_state(STATE)
    assert spool.open() == STATE


def test_an_empty_spool_is_a_new_device(spool):
    assert spool.open() == Participant()


@pytest.mark.parametrize("position", [0, 5, 12, 20, -1])
def test_a_state_with_one_bit_turned_is_noticed(spool, position):
    spool.write_state(STATE)
    path = spool.folder / "state"
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    with pytest.raises(StateLost):
        spool.state()


def test_a_state_that_is_cut_off_is_noticed_and_replaced_by_a_new_device(spool):
    spool.write_state(STATE)
    path = spool.folder / "state"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateLost, match="checked bytes"):
        spool.state()
    assert spool.open() == Participant()


def test_an_update_comes_back_frame_by_frame(spool):
    spool.write_update(ASSIGNMENT, STORED)
    assert spool.read_update(PENDING) == STORED


def test_an_update_of_another_id_is_not_taken_for_the_pending_one(spool):
    spool.write_update(ASSIGNMENT, replace(STORED, header=STORED.header.model_copy(update={"update": "0" * 16})))
    with pytest.raises(StateLost, match=PENDING.update):
        spool.read_update(PENDING)


def test_ids_tell_apart_updates_that_differ_in_one_byte_or_in_where_a_frame_ends():
    changed = (FRAMES[0][:-1] + bytes([FRAMES[0][-1] ^ 1]), *FRAMES[1:])
    shifted = (FRAMES[0] + FRAMES[1][:1], FRAMES[1][1:], *FRAMES[2:])
    assert len({update_id(FRAMES), update_id(changed), update_id(shifted)}) == 3


def test_settling_moves_the_dual_by_the_decoded_values_of_the_applied_segments_only(spool):
    spool.write_update(ASSIGNMENT, STORED)
    settle(spool, STATE, 1)
    dual = spool.dual("run-1", 2, 3, LAYOUT.size)
    segment = LAYOUT.segments[1]
    expected = np.zeros(LAYOUT.size)
    expected[segment.slice] = DELTA[segment.slice]
    assert dual.dtype == np.float64
    assert np.array_equal(dual, expected)


def test_settling_twice_moves_the_dual_once(spool):
    spool.write_update(ASSIGNMENT, STORED)
    settle(spool, STATE, 0, 1)
    once = spool.dual("run-1", 2, 3, LAYOUT.size)
    settle(spool, STATE, 0, 1)
    assert np.array_equal(spool.dual("run-1", 2, 3, LAYOUT.size), once)


def test_settling_starts_from_the_dual_the_state_names(spool):
    spool.write_update(ASSIGNMENT, STORED)
    settle(spool, STATE, 0)
    settled = STATE.model_copy(update={"last_applied": 3})
    later = receipt(0).model_copy(update={"round": 4})
    spool.settle(settled, PENDING, later, FedDyn(), LAYOUT, STREAM)
    segment = LAYOUT.segments[0]
    assert np.array_equal(spool.dual("run-1", 2, 4, LAYOUT.size)[segment.slice], 2.0 * DELTA[segment.slice])


@pytest.mark.parametrize(("applied", "algorithm"), [((), FedDyn()), ((0, 1), FedAvg())])
def test_settling_writes_nothing_where_nothing_moves(spool, applied, algorithm):
    settle(spool, STATE, *applied, algorithm=algorithm)
    assert list(spool.folder.iterdir()) == []


def test_settling_without_the_update_or_the_dual_says_that_they_are_lost(spool):
    with pytest.raises(StateLost):
        settle(spool, STATE, 0)
    spool.write_update(ASSIGNMENT, STORED)
    with pytest.raises(StateLost):
        settle(spool, STATE.model_copy(update={"last_applied": 2}), 0)


def test_a_receipt_of_a_segment_the_model_does_not_have_is_no_crash(spool):
    spool.write_update(ASSIGNMENT, STORED)
    with pytest.raises(StateLost, match="does not fit"):
        settle(spool, STATE, 99)


def test_a_dual_of_another_size_is_not_taken(spool):
    spool.write_update(ASSIGNMENT, STORED)
    settle(spool, STATE, 0)
    with pytest.raises(StateLost, match="float64"):
        spool.dual("run-1", 2, 3, LAYOUT.size + 1)


def test_forgetting_leaves_what_the_state_names(spool):
    spool.write_state(STATE)
    spool.write_update(ASSIGNMENT, STORED)
    spool.write_update(ASSIGNMENT.model_copy(update={"round": 2}), STORED)
    spool.write_download(ASSIGNMENT, FRAMES)
    settle(spool, STATE, 0)
    spool.forget(STATE)
    assert sorted(path.name for path in spool.folder.iterdir()) == ["state", "update-run-1-3"]
    training = Participant(phase=Phase.TRAINING, assignment=ASSIGNMENT, run="run-1", dual_epoch=2, last_applied=3)
    spool.write_download(ASSIGNMENT, FRAMES)
    settle(spool, STATE, 0)
    spool.forget(training)
    assert sorted(path.name for path in spool.folder.iterdir()) == ["download-run-1-3", "dual-run-1-2-3.f64", "state"]


M22 = ASSIGNMENT.model_copy(update={"uplink": UplinkSpec(codec="m22", m22=M22Spec(error_feedback=True))})
OWED = PENDING.model_copy(update={"assignment": M22})
LOSS = np.cos(np.arange(LAYOUT.size, dtype=np.float32))


def settle_m22(spool, state, number, *applied, algorithm=FedAvg()):  # noqa: B008
    later = receipt(*applied).model_copy(update={"round": number})
    spool.settle(state, OWED, later, algorithm, LAYOUT, STREAM)


def test_settling_takes_what_was_lost_of_the_applied_segments_into_memory(spool):
    spool.write_loss(M22, PENDING.update, LOSS)
    settle_m22(spool, STATE, 3, 1)
    settle_m22(spool, STATE, 3, 1)
    segment, expected = LAYOUT.segments[1], np.zeros(LAYOUT.size, np.float32)
    expected[segment.slice] = LOSS[segment.slice]
    assert np.array_equal(spool.memory("run-1", 2, 3, LAYOUT.size), expected)
    assert spool.memory("run-1", 2, 0, LAYOUT.size) is None


def test_memory_goes_on_from_the_one_that_the_state_names(spool):
    spool.write_loss(M22, PENDING.update, LOSS)
    settle_m22(spool, STATE, 3, 0)
    settle_m22(spool, STATE.model_copy(update={"last_applied": 3}), 4, 1)
    both = np.zeros(LAYOUT.size, np.float32)
    for index in (0, 1):
        both[LAYOUT.segments[index].slice] = LOSS[LAYOUT.segments[index].slice]
    assert np.array_equal(spool.memory("run-1", 2, 4, LAYOUT.size), both)


def test_a_loss_that_is_gone_damaged_or_of_another_update_leaves_no_memory_and_is_no_error(spool):
    for spoil in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])):
        spool.write_loss(M22, PENDING.update, LOSS)
        spoil(spool.folder / "loss-run-1-3.f32")
        settle_m22(spool, STATE, 3, 1)
        assert spool.memory("run-1", 2, 3, LAYOUT.size) is None
    spool.write_loss(M22, "0" * 32, LOSS)
    settle_m22(spool, STATE, 3, 1)
    assert spool.memory("run-1", 2, 3, LAYOUT.size) is None


def test_dual_and_memory_settle_together_and_are_forgotten_together(spool):
    spool.write_update(M22, STORED)
    spool.write_loss(M22, PENDING.update, LOSS)
    settle_m22(spool, STATE, 3, 0, algorithm=FedDyn())
    after = Participant(run="run-1", dual_epoch=2, last_applied=3)
    spool.forget(after)
    kept = ["dual-run-1-2-3.f64", "memory-run-1-2-3.f32"]
    assert sorted(path.name for path in spool.folder.iterdir()) == kept
    spool.forget(after.model_copy(update={"last_applied": 5}))
    assert list(spool.folder.iterdir()) == []


def test_a_full_disk_is_said_so_and_leaves_the_old_file(spool):
    def fill(name):
        if name.startswith("filled"):
            raise OSError(28, os.strerror(28))

    spool.write_state(STATE)
    full = replace(spool, disk=Disk(fill))
    with pytest.raises(SpoolError, match="No space left"):
        full.write_state(Participant())
    assert spool.state() == STATE
    assert [path.name for path in spool.folder.iterdir()] == ["state"]


def test_split_steps_come_back_until_they_are_forgotten(spool):
    params = np.arange(5, dtype=np.float32)
    assert spool.read_split(ASSIGNMENT, 5) is None
    kept = SplitStep(7, params.tobytes(), b"shared", 1.5e9)
    spool.write_split(ASSIGNMENT, kept)
    assert spool.read_split(ASSIGNMENT, 5) == kept
    assert spool.read_split(ASSIGNMENT, 6) is None  # of another model
    spool.forget(Participant(phase=Phase.TRAINING, assignment=ASSIGNMENT))
    assert spool.read_split(ASSIGNMENT, 5) is not None
    spool.forget(Participant())
    assert spool.read_split(ASSIGNMENT, 5) is None


def test_damaged_split_steps_begin_again(spool):
    spool.write_split(ASSIGNMENT, SplitStep(7, bytes(20), b"", 0.0))
    (path,) = spool.folder.glob("split-*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert spool.read_split(ASSIGNMENT, 5) is None
