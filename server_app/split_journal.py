"""The journal of a round's split steps, in the file format of ``server_app.journal``.

A record SPLIT_BATCH for each batch of a step, its frame (``fedge.split.exchange``) as it came, then SPLIT_STEP: msgpack
{"sent": names, "devices": how many were at work}. Batches without a step that names them were never taken.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import msgpack

from fedge.split.exchange import Batch, read_exchange
from server_app.journal import Kind, Record, read_records

Step = tuple[list[tuple[str, Batch]], int]
"""The batches that a step is taken with, by device, and how many devices were at work."""


def records_of(sent: Sequence[tuple[str, Batch]], at_work: int) -> list[Record]:
    """Return a step as it is written down."""
    head = {"sent": [name for name, _ in sent], "devices": at_work}
    batches = [Record(Kind.SPLIT_BATCH, name, batch.to_bytes()) for name, batch in sent]
    return [*batches, Record(Kind.SPLIT_STEP, "", bytes(msgpack.packb(head)))]


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
