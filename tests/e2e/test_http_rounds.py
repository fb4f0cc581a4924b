"""A federation over real sockets, as its devices and its people see it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from fedge.aggregation import SegmentSums
from fedge.frames import read_frame
from fedge.update import decode_frame, uplink
from schemas.messages import Outcome
from schemas.status import RunPhase
from tests.support.http import LAYOUT, initial_params, invited, serving, take_part


async def test_a_run_ends_with_the_model_that_its_updates_make(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=1)
        asked = await invited(devices)
        for device, one in zip(devices, asked, strict=True):
            await device.upload(one)
        status = await server.until_over(run)
        headers = {"Authorization": f"Bearer {next(iter(server.tokens.values()))}"}
        async with server.session.get(f"{server.url}/v1/runs/{run}/model", headers=headers) as answer:
            tensors = load(await answer.read())

    sums = SegmentSums(LAYOUT)
    for device, one in zip(devices, asked, strict=True):
        for data in device.frames(one):
            frame = read_frame(data)
            sums.add(frame.segment, decode_frame(frame, uplink(one.seed, one.round, device.id)), 10.0)
    expected = LAYOUT.unpack((initial_params(5) + sums.mean()).astype(np.float32))
    assert status.phase is RunPhase.FINISHED
    assert status.metrics.keys() == {"mean"}
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array)


async def test_every_device_gets_a_receipt_and_with_it_the_next_assignment(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as (a, b):
        run = await server.start(rounds=2)
        first, last = await invited([a, b])
        await a.upload(first)
        waiting = asyncio.create_task(a.work(pending=first))
        await b.upload(last)
        work = await waiting
        assert work.receipt is not None and work.receipt.outcome is Outcome.APPLIED
        assert work.receipt.applied == tuple(range(len(LAYOUT.segments)))
        again = work.assignment or await a.assignment(first)
        assert (again.round, again.last_applied) == (2, 0)  # fedavg keeps no dual
        await a.upload(again)
        await b.upload(await b.assignment(last))
        await server.until_over(run)
        assert [r.round for r in await a.receipts(run)] == [1, 2]


async def test_two_rounds_of_two_devices_close_and_are_shown(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=2, algorithm={"name": "feddyn", "alpha": 0.1})
        await take_part(devices, 2)
        status = await server.until_over(run)
        _, rounds = await server.ask("GET", f"/v1/runs/{run}/rounds")
        _, shown = await server.ask("GET", f"/v1/runs/{run}")
    assert status.rounds_closed == 2
    assert [r["phase"] for r in rounds["rounds"]] == ["closed", "closed"]
    assert sorted(rounds["rounds"][0]["updates"]) == ["a", "b"]
    assert rounds["rounds"][0]["loss"] == 0.5
    assert shown["float32_bytes"] == {"up": 4 * LAYOUT.size * 4, "down": 4 * LAYOUT.size * 4}
    assert shown["traffic"]["up"] > shown["frame_bytes"]["up"] > 0
