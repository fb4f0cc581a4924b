"""Bytes are counted at the socket: what the aggregator shows is what a counting proxy saw."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError

from fedge.layout import Kind as TensorKind
from fedge.layout import Layout, TensorSpec
from schemas.base import parse
from schemas.status import RoundList, RoundStatus
from server_app import service
from server_app.book import TRAFFIC
from server_app.journal import Kind, Record, read_records
from server_app.rows import RunRow
from tests.support.http import ReadyWorker, invited, serving, take_part, until
from tests.support.proxy import proxying


async def test_traffic_equals_what_a_counting_proxy_saw_to_the_byte(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, proxying(server.service.port) as proxy:
        async with server.devices("a", "b", url=proxy.url) as devices:
            run = await server.start(rounds=3)
            await take_part(devices, 3)
            await server.until_over(run)
            await devices[0].send("GET", f"/v1/receipts?run={run}")
        traffic = server.service.context.house.traffic
        await until(lambda: traffic.live_connections <= 1)  # the operator's
        _, status = await server.ask("GET", "/v1/status")
        _, listed = await server.ask("GET", "/v1/devices")
        _, rounds = await server.ask("GET", f"/v1/runs/{run}/rounds")
        _, shown = await server.ask("GET", f"/v1/runs/{run}")
    seen = {"up": proxy.up, "down": proxy.down}
    assert status["traffic"] == seen
    for way in ("up", "down"):
        assert sum(device["traffic"][way] for device in listed["devices"]) == seen[way]
        in_rounds = sum(r["traffic"][way] for r in rounds["rounds"])
        assert 0 < in_rounds <= shown["traffic"][way] <= seen[way]


async def test_no_byte_of_a_run_is_missing_while_a_round_is_written_down(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        store, told = server.service.context.house.store, []
        end_round = store.end_round

        async def watched(run: RunRow, status: RoundStatus, *rest: Any) -> None:
            shown = await server.run(run.run)
            told.append((shown.traffic.up, shown.traffic.down))
            await end_round(run, status, *rest)
            totals = run.totals.traffic
            assert totals.up <= told[-1][0] and totals.down <= told[-1][1]

        store.end_round = watched  # type: ignore[method-assign]
        run = await server.start(rounds=3)
        await take_part(devices, 3)
        ended = await server.until_over(run)
        for device in devices:
            await device.work(wait=0.0)
        after = await server.run(run)
    assert told == sorted(told) and len(told) == 3
    assert after.traffic == ended.traffic


async def test_a_large_download_is_counted_to_the_byte_too(tmp_path: Path) -> None:
    layout = Layout.of([TensorSpec("w", (1024, 2048), TensorKind.WEIGHT)])
    async with (
        serving(tmp_path, ReadyWorker(layout).running) as server,
        proxying(server.service.port) as proxy,
        server.devices("a", "b", url=proxy.url, layout=layout) as devices,
    ):
        await server.start(downlink={"codec": "none"})
        asked = await invited(devices)
        assert (await devices[0].download(asked[0])).shape == (layout.size,)
        total = server.service.context.house.traffic.total
        assert total.down == proxy.down > 4 * layout.size
        assert total.up == proxy.up


async def test_a_cut_upload_is_counted_to_the_byte_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, proxying(server.service.port) as proxy:
        async with server.devices("a", "b", url=proxy.url) as devices:
            await server.start()
            asked = await invited(devices)
            await devices[1].upload(asked[1])
            await devices[0].close()
            devices[0].__post_init__()
            proxy.cut_after_up = 700
            result = await asyncio.gather(devices[0].upload(asked[0]), return_exceptions=True)
            assert isinstance(result[0], ClientError)
        traffic = server.service.context.house.traffic
        await until(lambda: traffic.live_connections <= 1)
        assert (traffic.total.up, traffic.total.down) == (proxy.up, proxy.down)


async def test_http_costs_a_round_less_than_a_kilobyte_each_way(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=4)
        await take_part(devices, 4)
        await server.until_over(run)
        _, body = await server.ask("GET", f"/v1/runs/{run}/rounds")
    for shown in body["rounds"][1:]:
        for way, limit in (("up", 2048), ("down", 1024)):
            assert (shown["traffic"][way] - shown["frame_bytes"][way]) / 2 < limit


async def test_what_a_round_has_carried_is_counted_on_when_the_aggregator_comes_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=1)
        asked = await invited(devices)
        await devices[0].download(asked[0])
        await devices[0].upload(asked[0])
        driver = server.service.context.federation.driver
        assert driver is not None
    before = driver.traffic()
    async with serving(tmp_path) as server:
        again = (await server.run(run)).round
        assert again is not None and again.traffic == before
        assert before.up > again.frame_bytes.up > 0 < again.frame_bytes.down < before.down
        async with server.devices("b") as devices:
            await devices[0].upload(asked[1])
            over = await server.until_over(run)
        _, body = await server.ask("GET", f"/v1/runs/{run}/rounds")
    assert before.up < parse(RoundList, body, "rounds").rounds[0].traffic.up <= over.traffic.up


async def test_what_a_round_has_carried_is_written_down_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SAVE_SECONDS", 0.02)
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        run = await server.start()
        await invited(devices)
        driver = server.service.context.federation.driver
        assert driver is not None
        journal, carried = driver.files.journal(1), driver.traffic()
        expected = Record(Kind.TRAFFIC, "", TRAFFIC.pack(carried.up, carried.down))
        while expected not in records(journal):  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)
        killed = tmp_path / "killed"
        await asyncio.to_thread(shutil.copytree, tmp_path, killed, ignore=shutil.ignore_patterns("killed"))
    async with serving(killed) as server:
        status = (await server.run(run)).round
    assert status is not None and status.traffic == carried


def records(journal: Path) -> list[Record]:
    """Return what a journal holds."""
    with journal.open("rb") as file:
        return [record for record, _ in read_records(file)]


async def test_people_are_not_counted(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for _ in range(3):
            _, status = await server.ask("GET", "/v1/status")
        assert status["traffic"] == {"up": 0, "down": 0}
