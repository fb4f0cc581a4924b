"""Uploads that repeat, break off, and come from many devices at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from fedge.frames import read_frame
from fedge.layout import Kind, Layout, TensorSpec
from schemas.messages import Outcome, Refusal, UpdateHeader
from schemas.specs import Limits, LinkLimit
from server_app.book import Book
from tests.support.http import (
    LAYOUT,
    Device,
    ReadyWorker,
    Serving,
    body_of,
    cohort,
    invited,
    serving,
    take_part,
    until,
    update_path,
)
from tests.support.proxy import proxying
from tests.support.watchdog import watching


def book_of(server: Serving) -> Book:
    """Return the open round."""
    driver = server.service.context.federation.driver
    assert driver is not None and driver.book is not None
    return driver.book


def segments_of(frames: list[bytes]) -> tuple[int, ...]:
    """Return the segments of ``frames``, ascending."""
    return tuple(sorted(read_frame(data).segment for data in frames))


async def test_an_update_sent_twice_is_acknowledged_twice_and_counted_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as (a, b):
        await server.start()
        asked, _ = await invited([a, b])
        first = await a.upload(asked)
        book = book_of(server)
        total, journal = book.sums.total.copy(), book.frame_bytes.up
        again = await a.upload(asked)
        twice = await a.upload(asked, a.frames(asked) * 2)
        assert first == again == twice
        assert first.is_complete
        np.testing.assert_array_equal(book.sums.total, total)
        assert book.frame_bytes.up == journal == sum(map(len, a.frames(asked)))
        assert list(book.sums.count) == [1] * len(LAYOUT.segments)


async def test_two_uploads_of_one_device_at_once_count_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as (a, b):
        await server.start()
        asked, _ = await invited([a, b])
        twin = Device(a.url, a.name, None, id=a.id)
        await asyncio.gather(a.upload(asked), twin.upload(asked))
        assert (await a.update_status(asked)).is_complete or (await a.upload(asked)).is_complete
        assert list(book_of(server).sums.count) == [1] * len(LAYOUT.segments)
        await twin.close()


@pytest.mark.parametrize("share", [0.1, 0.45, 0.9])
async def test_a_connection_that_dies_has_delivered_every_whole_frame(tmp_path: Path, share: float) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as (a, b), proxying(server.service.port) as proxy:
        await server.start()
        asked, _ = await invited([a, b])
        frames = a.frames(asked)
        body = body_of(a.header(frames), frames)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        head = f"PUT {update_path(asked)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {a.credential}\r\n"
        head += f"Content-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n\r\n"
        proxy.cut_after_up = len(head) + int(share * len(body))
        writer.write(head.encode() + body)
        assert await reader.read() == b""
        whole, left = [], int(share * len(body)) - len(body_of(a.header(frames), []))
        for data in frames:
            left -= len(data)
            whole += [data] if left >= 0 else []
        while (status := await a.update_status(asked)).segments != segments_of(whole):
            assert set(status.segments) < set(segments_of(whole))
        writer.close()
        missing = [data for data in frames if data not in whole]
        assert (await a.upload(asked, missing)).is_complete


async def test_a_new_connection_takes_over_from_one_that_hangs(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as (a, b):
        await server.start()
        asked, _ = await invited([a, b])
        frames = a.frames(asked)
        body = body_of(a.header(frames), frames)
        _, writer = await asyncio.open_connection("127.0.0.1", server.service.port)
        head = f"PUT {update_path(asked)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {a.credential}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])
        await writer.drain()
        while not (await a.update_status(asked)).segments:
            pass
        async with asyncio.timeout(5):
            assert (await a.upload(asked)).is_complete
        writer.close()


async def test_what_a_straggler_delivered_before_the_round_closed_is_applied(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b", "c") as devices:
        run = await server.start(rounds=1, cohort=cohort(3, least=2))
        a, b, c = devices
        asked = await invited(devices)
        part = c.frames(asked[2])[:3]
        await c.upload(asked[2], part)
        await a.upload(asked[0])
        await b.upload(asked[1])
        await server.until_over(run)
        receipt = await c.receipt(asked[2])
        _, shown = await server.ask("GET", f"/v1/runs/{run}/rounds/1")
        assert (receipt.outcome, receipt.applied) == (Outcome.PARTIAL, segments_of(part))
        assert (sorted(shown["updates"]), shown["partial"]) == (["a", "b"], ["c"])


async def test_a_device_with_part_of_its_update_missing_is_asked_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as (a, b):
        await server.start()
        asked, _ = await invited([a, b])
        await a.upload(asked, a.frames(asked)[:2])
        work = await a.work(pending=asked)
        assert work.assignment is not None and work.receipt is None
        assert work.assignment.model_copy(update={"seconds_left": asked.seconds_left}) == asked
        await a.upload(asked)
        assert (await a.send("GET", f"/v1/work?wait=0&run={asked.run}&round={asked.round}")) == b""


async def test_a_download_repeated_is_the_same_and_another_device_gets_another(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as (a, b):
        await server.start()
        asked, other = await invited([a, b])
        path = f"/v1/runs/{asked.run}/download?round=1"
        first, again, others = await a.send("GET", path), await a.send("GET", path), await b.send("GET", path)
        assert first == again != others
        anchor = await a.download(asked)
        assert np.abs(anchor - await b.download(other)).max() < 0.2


async def test_a_lost_dual_starts_a_new_epoch_with_h_at_zero(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b", "c") as devices:
        run = await server.start(rounds=3, cohort=cohort(3, least=2), algorithm={"name": "feddyn", "alpha": 0.1})
        asked = await invited(devices)
        await devices[0].upload(asked[0])
        await devices[1].upload(asked[1])
        asked = await invited(devices, [*asked[:2], None])
        assert [one.last_applied for one in asked] == [1, 1, 0]
        refusal = UpdateHeader(update="00" * 16, num_examples=1, refusal=Refusal.STATE_LOST, reason="new disk")
        await devices[2].upload(asked[2], [], refusal)
        driver = server.service.context.federation.driver
        assert driver is not None and driver.state is not None and driver.state.h is not None
        assert np.abs(driver.state.h).max() > 0
        await devices[0].upload(asked[0])
        await devices[1].upload(asked[1])
        third = await asyncio.gather(devices[0].assignment(asked[0]), devices[1].assignment(asked[1]))
        assert [(one.round, one.dual_epoch, one.last_applied) for one in third] == [(3, 1, 0)] * 2
        assert driver.state.h is not None and np.abs(driver.state.h).max() == 0
        _, shown = await server.ask("GET", f"/v1/runs/{run}/rounds/2")
        assert shown["gone"] == ["c"]


async def test_a_round_that_all_refuse_for_lost_duals_starts_a_new_epoch_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        await server.start(rounds=2, algorithm={"name": "feddyn", "alpha": 0.1})
        asked = await invited(devices, await take_part(devices, 1))
        refusal = UpdateHeader(update="00" * 16, num_examples=1, refusal=Refusal.STATE_LOST)
        for device, one in zip(devices, asked, strict=True):
            await device.upload(one, [], refusal)
        again = await invited(devices)
        driver = server.service.context.federation.driver
        assert driver is not None and driver.state is not None and driver.state.h is not None
        assert [(one.round, one.dual_epoch, one.last_applied) for one in again] == [(3, 1, 0)] * 2
        assert np.abs(driver.state.h).max() == 0
        assert np.abs(driver.state.params - driver.state.published).max() > 0  # the model itself is as it was


async def test_a_round_with_too_few_updates_is_abandoned_and_changes_no_model(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as (a, b):
        run = await server.start(abandon_after=1)
        asked = await invited([a, b])
        await a.upload(asked[0])
        refusal = UpdateHeader(update="00" * 16, num_examples=1, refusal=Refusal.TRAINING_FAILED, reason="no memory")
        await b.upload(asked[1], [], refusal)
        status = await server.until_over(run)
        assert (status.phase, status.rounds_abandoned) == ("failed", 1)
        assert "1 complete updates of 2 invited, 2 needed" in status.reason
        assert (await a.receipt(asked[0])).outcome is Outcome.ABANDONED


async def test_a_stopped_run_gives_receipts_and_lets_the_next_one_begin(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as (a, b):
        first, second = await server.start(), await server.start(rounds=1)
        asked = await invited([a, b])
        assert (await server.run(second)).phase == "queued"
        await a.upload(asked[0])
        assert (await server.ask("POST", f"/v1/runs/{first}/stop"))[0] == 202
        status = await server.until_over(first)
        assert (status.phase, (await a.receipt(asked[0])).outcome) == ("stopped", Outcome.ABANDONED)
        await take_part([a, b], 1, asked)
        assert (await server.until_over(second)).phase == "finished"
        _, listed = await server.ask("GET", "/v1/runs")
        assert [r["run"] for r in listed["runs"]] == [second, first]


async def test_a_device_whose_socket_closes_is_offline_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a") as (a,):
        await server.start()
        context = server.service.context
        federation, devices = context.federation, context.house.devices
        poll = asyncio.create_task(a.work())
        await until(lambda: devices.is_available(devices.by_id["a"]))
        await until(lambda: federation.driver is not None and federation.driver.waiting_for == "1 of 2 devices online")
        poll.cancel()
        await until(lambda: not devices.is_online(devices.by_id["a"]))
        assert not devices.is_available(devices.by_id["a"])


async def test_a_devices_budget_lowers_its_bits_and_frames_above_them_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a") as (a,):
        thrifty = server.device("b", limits=Limits(uplink=LinkLimit(bits=0.5)))
        await thrifty.enroll()
        await server.start(uplink={"codec": "eden", "bits": 3.0})
        asked, less = await invited([a, thrifty])
        assert (asked.uplink.bits, less.uplink.bits) == (3.0, 0.5)
        assert (await thrifty.upload(less)).is_complete
        await thrifty.close()


async def test_enrolling_again_keeps_the_id_and_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("pi") as (pi,):
        assert await pi.enroll() == "pi"
        pi.token = None
        assert await pi.enroll() == "pi"
        other = server.device("other")
        other.name = "pi"
        assert await other.enroll() == "pi-2"
        assert await other.enroll() == "pi-2"
        await other.close()


async def test_the_event_loop_stays_free_while_eight_devices_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.of([TensorSpec("w", (1024, 768), Kind.WEIGHT), TensorSpec("b", (768,), Kind.RAW)])
    names = [f"d{index}" for index in range(8)]
    async with (
        serving(tmp_path, ReadyWorker(layout).running) as server,
        server.devices(*names, layout=layout) as devices,
    ):
        run = await server.start(rounds=1, cohort=cohort(8, least=8), uplink={"codec": "eden", "bits": 4.0})
        asked = await invited(devices)
        frames = [await asyncio.to_thread(d.frames, one) for d, one in zip(devices, asked, strict=True)]
        bodies = [body_of(d.header(f), f) for d, f in zip(devices, frames, strict=True)]
        with watching(monkeypatch, max_cpu_seconds=0.1) as held_up:
            await asyncio.gather(*(d.put(one, body) for d, one, body in zip(devices, asked, bodies, strict=True)))
            await server.until_over(run)
        assert held_up == []
