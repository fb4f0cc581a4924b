"""A device that lies, sends garbage or fails at a bad moment hurts nobody but itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.frames import Frame, read_frame
from fedge.protocol.offer import MAX_RELATIVE_SIZE
from fedge.update import LARGEST_MAGNITUDE
from schemas.messages import Outcome, Refusal, UpdateHeader
from schemas.specs import Limits, LinkLimit
from tests.support.http import Refused, cohort, invited, serving, take_part

FEDDYN = {"name": "feddyn", "alpha": 0.1}


def with_values(frames: list[bytes], value: float) -> bytes:
    """Return a float32 frame of ``frames`` that holds ``value`` everywhere."""
    raw = next(frame for frame in map(read_frame, frames) if frame.codec == 0)
    payload = np.full(raw.count, value, np.float32).tobytes()
    return Frame(raw.codec, raw.segment, raw.count, raw.bits, payload).to_bytes()


def with_scale(frames: list[bytes], scale: float) -> bytes:
    """Return an entropy-coded frame of ``frames``, not grouped, whose largest scale is ``scale``."""
    frame = next(frame for frame in map(read_frame, frames) if frame.codec == 1)
    assert frame.payload[0] in (2, 6) and not frame.payload[1] & 4
    payload = frame.payload[:4] + np.float32(scale).tobytes() + frame.payload[8:]
    return Frame(frame.codec, frame.segment, frame.count, frame.bits, payload).to_bytes()


@pytest.mark.parametrize("make", [with_values, with_scale])
async def test_values_that_no_training_makes_are_refused_and_the_run_goes_on(tmp_path: Path, make: Any) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b", "liar") as devices:
        run = await server.start(rounds=1, cohort=cohort(3, least=2), algorithm=FEDDYN)
        asked = await invited(devices)
        frames = devices[2].frames(asked[2])
        for value in (3e38, 2 * LARGEST_MAGNITUDE * (1e6 if make is with_scale else 1)):
            with pytest.raises(Refused) as caught:
                await devices[2].upload(asked[2], [make(frames, value)])
            assert (caught.value.problem.status, caught.value.problem.reason) == (422, "magnitude")
        await devices[0].upload(asked[0])
        await devices[1].upload(asked[1])
        assert (await server.until_over(run)).phase == "finished"


async def test_a_weight_comes_from_what_was_enrolled_and_not_from_the_update(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        await server.start(rounds=1)
        asked = await invited(devices)
        frames = devices[0].frames(asked[0])
        await devices[0].upload(asked[0], frames, devices[0].header(frames, num_examples=2**53))
        driver = server.service.context.federation.driver
        assert driver is not None and driver.book is not None
        assert set(driver.book.sums.weight) == {10.0}


@pytest.mark.parametrize("claim", [10**6, 2**53])
async def test_a_device_that_claims_the_worlds_data_does_not_move_the_others_weights(
    tmp_path: Path, claim: int
) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as honest:
        liar = server.device("liar", num_examples=claim)
        await liar.enroll()
        run = await server.start(rounds=1, cohort=cohort(3, least=3), algorithm=FEDDYN)
        asked = await invited([*honest, liar])
        assert all(one.relative_size > 0.1 for one in asked[:2])
        assert asked[2].relative_size <= MAX_RELATIVE_SIZE
        for device, one in zip([*honest, liar], asked, strict=True):
            await device.upload(one)
        assert (await server.until_over(run)).phase == "finished"
        await liar.close()


async def test_a_limit_beyond_all_numbers_is_no_limit(tmp_path: Path) -> None:
    endless = Limits(uplink=LinkLimit(bytes_per_second=1e200, deadline_seconds=1e200))
    async with serving(tmp_path) as server, server.devices("a", "b", limits=endless) as devices:
        run = await server.start(rounds=1)
        await take_part(devices, 1)
        assert (await server.until_over(run)).phase == "finished"


async def test_losses_beyond_all_sums_are_left_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=1)
        for device, one in zip(devices, await invited(devices), strict=True):
            frames = device.frames(one)
            await device.upload(one, frames, device.header(frames, loss=1.7e308))
        assert (await server.until_over(run)).phase == "finished"
        status, rounds = await server.ask("GET", f"/v1/runs/{run}/rounds/1")
        assert status == 200
        assert rounds["loss"] is None or rounds["loss"] < 1.8e308


async def test_an_update_that_came_as_the_round_closed_is_none_of_the_next_round(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b", "c") as devices:
        run = await server.start(rounds=2, cohort=cohort(3, least=2, most=2))
        asked = await invited(devices)
        frames = [device.frames(one) for device, one in zip(devices, asked, strict=True)]
        held = [data[-1:] for data in frames]
        for device, one, data in zip(devices, asked, frames, strict=True):
            header = device.header(data)
            await device.upload(one, data[:-1], header)
        book = server.service.context.federation.driver.book  # type: ignore[union-attr]
        assert book is not None and book.commit is not None
        await asyncio.gather(
            *(d.upload(one, last, d.header(f)) for d, one, last, f in zip(devices, asked, held, frames, strict=True)),
            return_exceptions=True,
        )
        second = await invited(devices, asked)
        assert [one.round for one in second] == [2, 2, 2]
        driver = server.service.context.federation.driver
        assert driver is not None and driver.book is not None
        assert driver.book.round.number == 2
        assert dict(driver.book.round.updates) == {}
        await devices[0].upload(second[0])
        await devices[0].update_status(second[0])
        assert driver.book is not None and driver.book.round.number == 2
        await devices[1].upload(second[1])
        assert (await server.until_over(run)).rounds_closed == 2


@pytest.mark.parametrize("algorithm", [{"name": "fedavg"}, FEDDYN])
async def test_a_lost_state_in_an_abandoned_round_leaves_a_run_that_can_be_resumed(
    tmp_path: Path, algorithm: dict[str, Any]
) -> None:
    refusal = UpdateHeader(update="00" * 16, num_examples=1, refusal=Refusal.STATE_LOST)
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        run = await server.start(algorithm=algorithm)
        for device, one in zip(devices, await invited(devices), strict=True):
            await device.upload(one, [], refusal)
        assert [one.round for one in await invited(devices)] == [2, 2]
        headers = {"Authorization": f"Bearer {next(iter(server.tokens.values()))}"}
        async with server.session.get(f"{server.url}/v1/runs/{run}/model", headers=headers) as answer:
            assert answer.status == 200
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        await take_part(devices, 2)
        assert (await server.until_over(run)).phase == "finished"


async def test_a_device_in_conflict_with_itself_is_not_waited_for_nor_asked_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b", "c") as devices:
        run = await server.start(rounds=1, cohort=cohort(3, least=2))
        asked = await invited(devices)
        confused, frames = devices[2], devices[2].frames(asked[2])
        await confused.upload(asked[2], frames[:2])
        with pytest.raises(Refused) as caught:
            await confused.upload(asked[2], frames, confused.header(frames, update="ab" * 16))
        assert caught.value.problem.status == 409
        assert await confused.send("GET", "/v1/work?wait=0") == b""
        await devices[0].upload(asked[0])
        await devices[1].upload(asked[1])
        await server.until_over(run)
        assert (await confused.receipt(asked[2])).outcome is Outcome.PARTIAL
        _, shown = await server.ask("GET", f"/v1/runs/{run}/rounds/1")
        assert shown["gone"] == ["c"]
