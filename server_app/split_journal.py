"""The journal of a round's split steps, in the file format of ``server_app.journal``.

A record SPLIT_BATCH for each batch of a step, its frame (``fedge.split.exchange``) as it came, then SPLIT_STEP: msgpack
{"sent": names, "devices": how many were at work}. Batches without a step that names them were never taken.

What steps that are taken again do not tell is in a record SPLIT_TOLD before those of every step, and in a last one when
the aggregator ends in order. Little-endian, since the round began: batches that came again u64 | bytes of codebooks and
index models down u64 | bytes of greetings down u64.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Generator, Sequence
from pathlib import Path

import msgpack

from fedge.protocol.split_counts import Counts
from fedge.split.exchange import Batch, read_exchange
from server_app.errors import JournalError
from server_app.journal import Journal, Kind, Record, read_records

log = logging.getLogger(__name__)

TOLD = struct.Struct("<QQQ")
Step = tuple[list[tuple[str, Batch]], int]
"""The batches that a step is taken with, by device, and how many devices were at work."""


def records_of(sent: Sequence[tuple[str, Batch]], at_work: int, counts: Counts) -> list[Record]:
    """Return a step as it is written down."""
    head = {"sent": [name for name, _ in sent], "devices": at_work}
    batches = [Record(Kind.SPLIT_BATCH, name, batch.to_bytes()) for name, batch in sent]
    return [_told(counts), *batches, Record(Kind.SPLIT_STEP, "", bytes(msgpack.packb(head)))]


def open_journal(path: Path, counts: Counts) -> Journal:
    """Open the journal, and have ``counts`` go on from what it was told last. Waits for the disk."""

    def take(record: Record) -> None:
        if record.kind is Kind.SPLIT_TOLD:
            counts.repeats, counts.shared, counts.greetings = TOLD.unpack(record.body)

    return Journal.open(path, take)


def suspend(journal: Journal, counts: Counts) -> None:
    """Tell the journal the last of ``counts``, and close it. Waits for the disk."""
    try:
        journal.append([_told(counts)])
    except (OSError, JournalError) as error:
        log.warning("split counts not written down", extra={"journal": str(journal.path), "why": str(error)})
    journal.close()


def _told(counts: Counts) -> Record:
    return Record(Kind.SPLIT_TOLD, "", TOLD.pack(counts.repeats, counts.shared, counts.greetings))


def steps_in(path: Path) -> Generator[Step, None, None]:
    """Yield the steps in a journal, in order. Waits for the disk."""
    pending: dict[str, Batch] = {}
    with path.open("rb") as file:
        for record, _ in read_records(file):
            if record.kind is Kind.SPLIT_BATCH:
                frame = read_exchange(record.body)
                if isinstance(frame, Batch):
                    pending[record.device] = frame
            elif record.kind is Kind.SPLIT_STEP:
                head = msgpack.unpackb(record.body)
                yield [(name, pending.pop(name)) for name in head["sent"]], int(head["devices"])
