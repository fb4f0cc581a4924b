"""What a journal promises: what was appended is there, in order, whatever happened to the end of the file."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from server_app.errors import JournalError
from server_app.journal import MAGIC, Entry, GroupCommit, Journal, Kind, Record

RECORDS = [
    Record(Kind.HEADER, "pi", b"header of pi"),
    Record(Kind.FRAME, "pi", bytes(range(40))),
    Record(Kind.HEADER, "a-longer-name", b""),
    Record(Kind.REFUSAL, "third", b"why"),
    Record(Kind.FRAME, "a-longer-name", b"\0" * 30),
]
ENDS = [len(MAGIC)]
for _record in RECORDS:
    ENDS.append(ENDS[-1] + len(_record.to_bytes()))


def reread(path: Path) -> list[Record]:
    """Open the journal as after a crash; returns what it holds."""
    found: list[Record] = []
    Journal.open(path, found.append).close()
    return found


def written(path: Path) -> bytes:
    """Write ``RECORDS``; returns the file."""
    journal = Journal.open(path, lambda record: None)
    journal.append(RECORDS[:2])
    journal.append(RECORDS[2:])
    journal.close()
    return path.read_bytes()


def test_what_was_appended_is_read_back_in_order(tmp_path: Path) -> None:
    written(tmp_path / "j")
    assert reread(tmp_path / "j") == RECORDS


@pytest.mark.parametrize("length", range(ENDS[-1]))
def test_a_tail_torn_anywhere_leaves_the_whole_records_before_it(tmp_path: Path, length: int) -> None:
    path = tmp_path / "j"
    path.write_bytes(written(path)[:length])
    whole = sum(1 for end in ENDS[1:] if end <= length)
    assert reread(path) == RECORDS[:whole]
    journal = Journal.open(path, lambda record: None)
    journal.append([RECORDS[0]])
    journal.close()
    assert reread(path) == [*RECORDS[:whole], RECORDS[0]]


@pytest.mark.parametrize("offset", range(ENDS[-1]))
def test_a_corrupt_byte_ends_the_journal_before_its_record(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "j"
    data = bytearray(written(path))
    data[offset] ^= 0x40
    path.write_bytes(data)
    good = 0 if offset < ENDS[0] else sum(1 for end in ENDS[1:] if end <= offset)
    assert reread(path) == RECORDS[:good]
    assert path.stat().st_size == ENDS[good]


def test_a_failed_write_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.open(tmp_path / "j", lambda record: None)
    journal.append(RECORDS[:1])
    real = os.fdatasync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="No space"):
        journal.append(RECORDS[1:2])
    monkeypatch.setattr(os, "fdatasync", real)
    journal.append(RECORDS[2:])
    journal.close()
    assert reread(tmp_path / "j") == [RECORDS[0], *RECORDS[2:]]
    with pytest.raises(JournalError, match="closed"):
        journal.append(RECORDS)


class Disk:
    """Holds every sync until the test lets it go, and notes what happened in which order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.syncs = 0
        real = os.fdatasync

        def sync(descriptor: int) -> None:
            real(descriptor)
            self.syncs += 1
            self.events.append("sync")

        monkeypatch.setattr(os, "fdatasync", sync)

    def entry(self, name: str) -> Entry:
        """Return an entry that notes when it is folded and taken."""
        record = Record(Kind.FRAME, name, name.encode())
        return Entry(record, lambda: self.events.append(f"fold {name}"), lambda: self.events.append(f"take {name}"))


async def test_nothing_is_acknowledged_before_it_is_durable_and_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, disk = GroupCommit(Journal.open(tmp_path / "j", lambda record: None)), Disk(monkeypatch)
    running = asyncio.create_task(commit.run())
    assert await commit.append([disk.entry("a"), disk.entry("b")])
    disk.events.append("acknowledged")
    assert disk.events == ["sync", "fold a", "fold b", "take a", "take b", "acknowledged"]
    commit.seal()
    await running


async def test_all_that_waits_shares_one_sync_and_keeps_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, disk = GroupCommit(Journal.open(tmp_path / "j", lambda record: None)), Disk(monkeypatch)
    names = [f"d{index}" for index in range(20)]
    appends = [asyncio.create_task(commit.append([disk.entry(name)])) for name in names]
    await asyncio.sleep(0)
    running = asyncio.create_task(commit.run())
    assert all(await asyncio.gather(*appends))
    commit.seal()
    await running
    assert disk.syncs == 1
    assert [record.device for record in reread(tmp_path / "j")] == names
    assert [event for event in disk.events if event.startswith("fold")] == [f"fold {name}" for name in names]


async def test_a_sealed_journal_finishes_what_waits_and_takes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, disk = GroupCommit(Journal.open(tmp_path / "j", lambda record: None)), Disk(monkeypatch)
    waiting = asyncio.create_task(commit.append([disk.entry("before")]))
    await asyncio.sleep(0)
    commit.seal()
    assert not await commit.append([disk.entry("after")])
    await commit.run()
    assert await waiting
    assert [record.device for record in reread(tmp_path / "j")] == ["before"]


async def test_a_full_disk_is_an_error_for_those_who_wait_and_for_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, disk = GroupCommit(Journal.open(tmp_path / "j", lambda record: None)), Disk(monkeypatch)
    running = asyncio.create_task(commit.run())
    await commit.append([disk.entry("good")])
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *arguments: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            await commit.append([disk.entry("lost")])
    await commit.append([disk.entry("later")])
    commit.seal()
    await running
    assert [record.device for record in reread(tmp_path / "j")] == ["good", "later"]
    assert "fold lost" not in disk.events and "take lost" not in disk.events


def test_closing_waits_for_a_write_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.open(tmp_path / "j", lambda record: None)
    closing = threading.Thread(target=journal.close)
    real = os.fdatasync

    def sync(descriptor: int) -> None:
        closing.start()
        closing.join(0.05)
        real(descriptor)  # fails where the descriptor is closed, or worse, another file's

    monkeypatch.setattr(os, "fdatasync", sync)
    journal.append(RECORDS)
    closing.join()
    monkeypatch.undo()
    assert reread(tmp_path / "j") == RECORDS
    with pytest.raises(JournalError):
        journal.append(RECORDS)
