"""What was downloaded in a round is the same after the journal was read again, and costs it a record for a download."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from schemas.ids import DeviceId
from server_app.journal import GroupCommit, Journal, Record
from server_app.round_downloads import RoundDownloads
from server_app.traffic import Account

A, B = DeviceId("a"), DeviceId("b")


def read(path: Path) -> tuple[RoundDownloads, list[Record]]:
    """Return what the journal at ``path`` says, and its records."""
    found, records = RoundDownloads(Account(), Account()), []

    def take(record: Record) -> None:
        found.replay(record)
        records.append(record)

    Journal.open(path, take).close()
    return found, records


@asynccontextmanager
async def writing(path: Path) -> AsyncIterator[RoundDownloads]:
    """Yield downloads with a journal, which takes what is left in the end, as when a round closes."""
    commit = GroupCommit(Journal.open(path, lambda record: None))
    running = asyncio.create_task(commit.run())
    downloads = RoundDownloads(Account(), Account(), commit)
    yield downloads
    downloads.put_all(commit)
    commit.seal()
    await running


def facts(downloads: RoundDownloads) -> tuple[int, int, dict[DeviceId, int], dict[DeviceId, float]]:
    """Return all that is counted."""
    by_device = dict(+downloads.by_device)
    return downloads.frames.down, downloads.bare.down, by_device, downloads.perturbations


async def test_a_download_of_many_pieces_is_one_record_that_is_durable_before_its_last_piece_leaves(
    tmp_path: Path,
) -> None:
    async with writing(tmp_path / "j") as downloads:
        sending = downloads.begin(A, 300, 4000, 0.5)
        for _ in range(2):
            await downloads.leave(sending, 100)
        assert facts(downloads) == (300, 4000, {A: 300}, {A: 0.5})
        assert read(tmp_path / "j")[1] == []
        await downloads.leave(sending, 100)
        found, records = read(tmp_path / "j")
        assert facts(found) == facts(downloads) and len(records) == 1
        await downloads.end(sending)
    assert len(read(tmp_path / "j")[1]) == 1


async def test_of_a_download_that_breaks_off_what_left_counts(tmp_path: Path) -> None:
    async with writing(tmp_path / "j") as downloads:
        for pieces in (2, 0, 3):
            sending = downloads.begin(A, 300, 4000, 0.5)
            for _ in range(pieces):
                await downloads.leave(sending, 100)
            await downloads.end(sending)
        expected = (500, 4000, {A: 500}, {A: 0.5})
        assert facts(downloads) == facts(read(tmp_path / "j")[0]) == expected


async def test_in_the_end_what_has_left_of_downloads_under_way_is_written_down(tmp_path: Path) -> None:
    async with writing(tmp_path / "j") as downloads:
        whole, half = downloads.begin(A, 300, 4000, 0.5), downloads.begin(B, 300, 4000, 0.25)
        await downloads.leave(whole, 300)
        await downloads.leave(half, 100)
    assert facts(read(tmp_path / "j")[0]) == (400, 4000, {A: 300, B: 100}, {A: 0.5, B: 0.25})


async def test_a_full_disk_ends_no_download_and_its_count_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with writing(tmp_path / "j") as downloads:
        sending = downloads.begin(A, 300, 4000, 0.5)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", full)
            await downloads.leave(sending, 300)
            await downloads.end(sending)
        assert read(tmp_path / "j")[1] == []
    assert facts(read(tmp_path / "j")[0]) == (300, 4000, {A: 300}, {A: 0.5})
