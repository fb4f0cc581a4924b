"""The aggregator's journal and the device's spool count the same for the same coarse frames, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from device_app.spool import Spool, StoredUpdate, update_id
from fedge.aggregation import SegmentSums
from fedge.algorithms import build
from fedge.frames import read_frame
from fedge.layout import Kind, Layout, TensorSpec
from fedge.protocol.coordinator import Quota, Round
from fedge.protocol.ledger import Ledger
from fedge.protocol.participant import Participant, Pending, Phase
from fedge.update import decode_frame, encode_update, uplink
from schemas.ids import DeviceId, RunId
from schemas.messages import Assignment, Outcome, Receipt, UpdateHeader
from schemas.packing import pack
from schemas.specs import DownlinkSpec, FedDyn, LocalSpec, UplinkSpec
from server_app.book import Book
from server_app.journal import Kind as Entry
from server_app.journal import Record

LAYOUT = Layout.of([TensorSpec("w", (90, 100), Kind.WEIGHT), TensorSpec("b", (64,), Kind.RAW)])
DELTA = np.sin(np.arange(LAYOUT.size) ** 2 / 10).astype(np.float32)  # a chirp: no rows or columns alike, no low rank
DEVICE, RUN, STREAM = DeviceId("pi-1"), RunId("run-1"), uplink(5, 3, "pi-1")
ALGORITHM = build("feddyn")
ASSIGNMENT = Assignment(
    run=RUN,
    round=3,
    task="tasks.here:task",
    layout=LAYOUT.digest,
    seed=5,
    algorithm=FedDyn(name="feddyn"),
    relative_size=1.0,
    local=LocalSpec(),
    uplink=UplinkSpec(),
    downlink=DownlinkSpec(),
    seconds_left=10.0,
    dual_epoch=0,
    last_applied=0,
)


def replayed(header: UpdateHeader, frames: list[bytes]) -> SegmentSums:
    """Return the sums that an aggregator has after it read its journal again."""
    ledger, sums, trust = Ledger(len(LAYOUT.segments)), SegmentSums(LAYOUT), ALGORITHM.trust
    round = Round(3, Quota(1, 1, 0.0, 60.0))
    book = Book(RUN, round, 0.0, LAYOUT, {DEVICE: ASSIGNMENT}, {DEVICE: 1.0}, trust, ledger, sums)
    book.replay(Record(Entry.HEADER, DEVICE, pack(header)))
    for data in frames:
        book.replay(Record(Entry.FRAME, DEVICE, data))
    return sums


def settled(folder: Path, header: UpdateHeader, frames: list[bytes]) -> np.ndarray:
    """Return the dual that a device has after the receipt of its first update."""
    spool = Spool(folder)
    spool.open()
    spool.write_update(ASSIGNMENT, StoredUpdate(header, tuple(frames)))
    pending = Pending(assignment=ASSIGNMENT, update=header.update)
    every = tuple(range(len(frames)))
    receipt = Receipt(run=RUN, round=3, update=header.update, outcome=Outcome.APPLIED, applied=every)
    state = Participant(phase=Phase.SETTLING, pending=pending, run=RUN)
    spool.settle(state, pending, receipt, ALGORITHM, LAYOUT, STREAM)
    dual = spool.dual(RUN, 0, 3, LAYOUT.size)
    assert dual is not None
    return dual


@pytest.mark.parametrize("codec", ["eden", "eden-entropy"])
@pytest.mark.parametrize("bits", [0.1, 0.5, 1.0, 2.0])
def test_the_dual_moves_by_what_the_replayed_journal_adds(tmp_path: Path, codec: str, bits: float) -> None:
    frames = encode_update(LAYOUT, DELTA, STREAM, codec, bits)
    header = UpdateHeader(update=update_id(frames), num_examples=4, loss=0.5)
    added = replayed(header, frames).total
    assert np.array_equal(settled(tmp_path / "spool", header, frames), added)
    in_full = np.concatenate([decode_frame(read_frame(data), STREAM) for data in frames])
    assert np.array_equal(added, in_full) == (bits == 2.0)
