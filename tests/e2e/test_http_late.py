"""Updates that come after their round is over, over real sockets, from devices that are slower than their rounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from fedge.aggregation import SegmentSums
from fedge.algorithms import ServerState, build
from fedge.frames import read_frame
from fedge.layout import Vector
from fedge.update import decode_delta, uplink
from schemas.messages import Assignment, Outcome, Refusal, UpdateHeader
from schemas.status import RoundStatus
from server_app.blobs import load_state
from server_app.rows import RunRow
from server_app.store import Store
from tests.support.http import LAYOUT, Device, Refused, Serving, body_of, cohort, initial_params, invited, serving

FEDDYN = build("feddyn", alpha=0.1)


def late(rounds: int = 4, max_staleness: int = 2, devices: int = 3, most: int = 2, **changes: object) -> dict:
    """Return a plan whose rounds close at ``most`` updates: who is slower than that is late."""
    return {
        "rounds": rounds,
        "cohort": cohort(devices, least=2, most=most),
        "algorithm": {"name": "feddyn", "alpha": 0.1},
        "aggregation": {"max_staleness": max_staleness},
    } | changes


async def close(devices: Sequence[Device], pending: Sequence[Assignment | None] = ()) -> list[Assignment]:
    """Let ``devices`` take part in a round and deliver; returns what they were asked."""
    asked = await invited(devices, pending)
    for device, one in zip(devices, asked, strict=True):
        assert (await device.upload(one)).is_complete
    return asked


async def status_of(server: Serving, run: str, number: int) -> RoundStatus:
    """Wait until a round is over; returns it."""
    changes = server.service.context.house.changes
    while True:
        changed = changes.next()
        found = await server.service.context.house.store.round(run, number)
        if found is not None and found.closed_at is not None:
            return found
        await changed.wait()


def added(sums: SegmentSums, device: Device, asked: Assignment, step: float = 1.0) -> None:
    """Add what the aggregator should have added of one update."""
    stream = uplink(asked.seed, asked.round, device.id)
    for data in device.frames(asked):
        frame = read_frame(data)
        sums.add(frame.segment, decode_delta(frame, stream, FEDDYN.trust), 1.0, step=step)


def duals(devices_and_rounds: Sequence[tuple[Device, Assignment]]) -> Vector:
    """Return the sum of the devices' duals after these updates."""
    total = SegmentSums(LAYOUT)
    for device, asked in devices_and_rounds:
        added(total, device, asked)
    return np.where(total.trained(), total.total, 0.0)


def close_to_h(server: Serving, devices_and_rounds: Sequence[tuple[Device, Assignment]]) -> bool:
    """Whether the server's h is the sum of these devices' duals."""
    driver = server.service.context.federation.driver
    assert driver is not None and driver.state is not None and driver.state.h is not None
    return bool(np.abs(driver.state.h - duals(devices_and_rounds)).max() <= 1e-12)


@pytest_asyncio.fixture
async def three(tmp_path: Path) -> AsyncIterator[tuple[Serving, list[Device]]]:
    """An aggregator and three devices."""
    async with serving(tmp_path) as server, server.devices("a", "b", "slow") as devices:
        yield server, devices


@asynccontextmanager
async def one_late(server: Serving, devices: Sequence[Device], **plan: object) -> AsyncIterator[list[Assignment]]:
    """Start a run whose first round closes without the last device; yields what was asked in it."""
    await server.start(**late(**plan))  # type: ignore[arg-type]
    asked = await invited(devices)
    await devices[-1].download(asked[-1])
    for device, one in zip(devices[:-1], asked[:-1], strict=True):
        await device.upload(one)
    await status_of(server, asked[0].run, 1)
    yield asked


async def test_an_update_that_comes_a_round_late_counts_with_half_a_step_to_the_bit(three) -> None:
    server, (a, b, slow) = three
    async with one_late(server, (a, b, slow)) as (first_a, first_b, owed):
        second = await invited([a, b], [first_a, first_b])
        watched = await slow.update_status(owed)
        assert watched.is_open and watched.segments == () and watched.round == 1
        status = await slow.upload(owed)
        assert (status.round, status.is_complete) == (1, True)
        await a.upload(second[0])
        await b.upload(second[1])
        receipt = await slow.receipt(owed)
        closed = await status_of(server, owed.run, 2)

        states = server.service.context.federation.driver.files
        before, after = load_state(states.state(1)), load_state(states.state(2))
    sums = SegmentSums(LAYOUT)
    added(sums, slow, owed, step=0.5)
    for device, one in zip((a, b), second, strict=True):
        added(sums, device, one)
    expected = FEDDYN.server_step(before, sums, 3)
    np.testing.assert_array_equal(after.params, expected.params)
    np.testing.assert_array_equal(after.published, expected.published)
    np.testing.assert_array_equal(after.h, expected.h)
    assert (receipt.round, receipt.outcome) == (1, Outcome.APPLIED)
    assert receipt.applied == tuple(range(len(LAYOUT.segments)))
    assert closed.late == {"slow": 1}
    assert set(closed.updates) == set(closed.cohort) == {"a", "b"}
    assert not np.array_equal(initial_params(5), after.published)


async def test_the_dual_of_a_late_update_is_named_by_its_own_round_and_the_device_is_free_again(three) -> None:
    server, (a, b, slow) = three
    async with one_late(server, (a, b, slow)) as (first_a, first_b, owed):
        second = await invited([a, b], [first_a, first_b])
        await slow.upload(owed)
        await a.upload(second[0])
        await b.upload(second[1])
        third = await invited([a, b, slow], [*second, owed])
        assert [one.last_applied for one in third] == [2, 2, 1]
        assert close_to_h(server, [(a, first_a), (b, first_b), (slow, owed), (a, second[0]), (b, second[1])])


async def test_two_rounds_late_is_a_third_of_a_step_and_three_are_too_many(three) -> None:
    server, (a, b, slow) = three
    async with one_late(server, (a, b, slow), max_staleness=2) as (*first, owed):
        second = await close([a, b], first)
        third = await invited([a, b], second)
        await slow.upload(owed)
        await asyncio.gather(a.upload(third[0]), b.upload(third[1]))
        assert (await slow.receipt(owed)).outcome is Outcome.APPLIED
        assert (await status_of(server, owed.run, 3)).late == {"slow": 2}
    book = SegmentSums(LAYOUT)
    added(book, slow, owed, step=1 / 3)
    assert book.moved is not None and np.allclose(3 * book.moved, book.total)


async def test_when_its_window_ends_an_update_is_late_and_the_device_may_stop(three) -> None:
    server, (a, b, slow) = three
    async with one_late(server, (a, b, slow), max_staleness=1) as (*first, owed):
        second = await invited([a, b], first)
        assert (await slow.update_status(owed)).is_open
        await asyncio.gather(a.upload(second[0]), b.upload(second[1]))
        await status_of(server, owed.run, 2)
        assert not (await slow.update_status(owed)).is_open
        with pytest.raises(Refused) as refused:
            await slow.upload(owed)
        assert refused.value.problem.reason == "round_over"
        receipt = await slow.receipt(owed)
        assert (receipt.outcome, receipt.applied) == (Outcome.LATE, ())


async def test_without_staleness_it_is_late_at_once(three) -> None:
    server, (a, b, slow) = three
    async with one_late(server, (a, b, slow), max_staleness=0) as (*_, owed):
        assert not (await slow.update_status(owed)).is_open
        assert (await slow.receipt(owed)).outcome is Outcome.LATE


async def test_what_came_late_into_an_abandoned_round_is_asked_for_again(three) -> None:
    server, (a, b, slow) = three
    async with one_late(server, (a, b, slow), max_staleness=5) as (*first, owed):
        second = await invited([a, b], first)
        await slow.upload(owed)
        waiting = asyncio.create_task(slow.assignment(owed))
        for device, one in zip((a, b), second, strict=True):
            header = UpdateHeader(update="0" * 16, num_examples=1, refusal=Refusal.TRAINING_FAILED)
            await device.put(one, body_of(header, []))
        abandoned = await status_of(server, owed.run, 2)
        assert (str(abandoned.phase), abandoned.late) == ("abandoned", {})
        third = await invited([a, b], second)
        again = await waiting
        assert (again.round, again.last_applied) == (1, 0)
        assert (await slow.update_status(owed)).segments == ()
        await slow.upload(owed)
        await asyncio.gather(a.upload(third[0]), b.upload(third[1]))
        assert (await slow.receipt(owed)).outcome is Outcome.APPLIED
        assert (await status_of(server, owed.run, 3)).late == {"slow": 2}
        assert close_to_h(server, [(a, first[0]), (b, first[1]), (slow, owed), (a, third[0]), (b, third[1])])


async def test_status_and_counters_say_how_many_late_updates_counted(three) -> None:
    server, (a, b, slow) = three

    async def told() -> tuple[int, bool]:
        _, body = await server.ask("GET", "/v1/runs")
        (run,) = body["runs"]
        assert (await server.run(run["run"])).late_updates == run["late_updates"]
        line = f'fedge_late_updates{{run="{run["run"]}"}} {float(run["late_updates"])}'
        return run["late_updates"], line in await server.metrics()

    async with one_late(server, (a, b, slow)) as (*first, owed):
        second = await invited([a, b], first)
        assert await told() == (0, False)
        await slow.upload(owed)
        assert await told() == (1, True)
        await asyncio.gather(a.upload(second[0]), b.upload(second[1]))
        assert (await status_of(server, owed.run, 2)).late == {"slow": 1}
        assert await told() == (1, True)


async def test_half_of_a_late_update_counts_for_what_arrived(three) -> None:
    server, (a, b, slow) = three
    async with one_late(server, (a, b, slow)) as (*first, owed):
        second = await invited([a, b], first)
        await slow.upload(owed, slow.frames(owed)[:2])
        await asyncio.gather(a.upload(second[0]), b.upload(second[1]))
        receipt = await slow.receipt(owed)
        assert receipt.outcome is Outcome.PARTIAL and len(receipt.applied) == 2
        assert (await status_of(server, owed.run, 2)).late == {"slow": 1}


async def test_a_device_that_asks_for_other_work_owes_nothing_and_is_invited_again(three) -> None:
    server, (a, b, slow) = three
    async with one_late(server, (a, b, slow), max_staleness=9) as (*first, owed):
        second = await invited([a, b], first)
        with pytest.raises(Refused) as gone:
            await slow.download(owed)
        assert gone.value.problem.status == 410
        again = asyncio.create_task(slow.assignment())
        await asyncio.sleep(0)
        await asyncio.gather(a.upload(second[0]), b.upload(second[1]))
        third = await invited([a, b], second)
        asked = await again
        assert (asked.round, third[0].round) == (3, 3)
        assert [(r.round, r.outcome) for r in await slow.receipts(owed.run)] == [(1, Outcome.LATE)]


async def test_a_device_that_lost_its_dual_ends_the_epoch_and_what_is_outstanding(three) -> None:
    server, (a, b, slow) = three
    async with one_late(server, (a, b, slow), max_staleness=9) as (*first, owed):
        second = await invited([a, b], first)
        header = UpdateHeader(update="0" * 16, num_examples=1, refusal=Refusal.STATE_LOST)
        await a.put(second[0], body_of(header, []))
        await b.upload(second[1])
        await status_of(server, owed.run, 2)
        assert not (await slow.update_status(owed)).is_open
        assert (await slow.receipt(owed)).outcome is Outcome.LATE


async def test_two_devices_that_need_each_other_meet_although_one_is_late(tmp_path: Path) -> None:
    """The round of two closes for want of time; the next needs both, and one still holds its update of the first."""
    async with serving(tmp_path) as server, server.devices("a", "slow") as (a, slow):
        short = cohort(2, least=2, seconds=(0.0, 2.0))
        run = await server.start(**late(rounds=1, cohort=short, abandon_after=9))
        first, owed = await invited([a, slow])
        await a.upload(first)
        assert str((await status_of(server, run, 1)).phase) == "abandoned"
        working = [asyncio.create_task(slow.assignment(owed)), asyncio.create_task(a.assignment(first))]
        again, fresh = await asyncio.gather(*working)
        assert again.round == 1 and fresh.round == 2
        await asyncio.gather(slow.upload(owed), a.upload(fresh))
        closed = await status_of(server, run, 2)
        assert (str(closed.phase), closed.late, set(closed.cohort)) == ("closed", {"slow": 1}, {"a", "slow"})
        assert closed.updates == ("a",)
        await server.until_over(run)


async def test_a_run_that_is_stopped_settles_what_is_outstanding(three) -> None:
    server, (a, b, slow) = three
    async with one_late(server, (a, b, slow)) as (*_, owed):
        waiting = asyncio.create_task(slow.receipt(owed))
        await server.ask("POST", f"/v1/runs/{owed.run}/stop")
        assert (await waiting).outcome is Outcome.LATE
        await server.until_over(owed.run)


async def half_way(server: Serving, devices: Sequence[Device]) -> tuple[list[Assignment], Assignment]:
    """Come to round 2 with half a late update and one of its own in the journal; returns what was asked."""
    a, b, slow = devices
    async with one_late(server, devices) as (*first, owed):
        second = await invited([a, b], first)
        await slow.upload(owed, slow.frames(owed)[:2])
        await a.upload(second[0])
        return second, owed


async def finish(devices: Sequence[Device], second: Sequence[Assignment], owed: Assignment) -> None:
    """Send what is missing in round 2, the late update first."""
    _, b, slow = devices
    assert (await slow.upload(owed, slow.frames(owed)[2:])).is_complete
    await b.upload(second[1])


async def state_after(server: Serving, slow: Device, owed: Assignment) -> ServerState:
    """Return the state after round 2, in which the late update counted."""
    assert (await slow.receipt(owed)).outcome is Outcome.APPLIED
    assert (await status_of(server, owed.run, 2)).late == {"slow": 1}
    driver = server.service.context.federation.driver
    assert driver is not None
    return load_state(driver.files.state(2))


NAMES = ("a", "b", "slow")


@pytest.mark.parametrize("how", ["ended half-way", "cut off as the round closes"])
async def test_an_aggregator_that_comes_back_finds_the_late_update_in_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with serving(tmp_path / "calm") as server, server.devices(*NAMES) as devices:
        second, owed = await half_way(server, devices)
        await finish(devices, second, owed)
        calm = await state_after(server, devices[2], owed)

    if how == "ended half-way":
        async with serving(tmp_path) as server, server.devices(*NAMES) as devices:
            second, owed = await half_way(server, devices)
    else:
        real = Store.end_round

        async def cut(store: Store, run: RunRow, status: RoundStatus, *more: Any) -> None:
            if status.round == 2:
                raise RuntimeError("power cut")
            await real(store, run, status, *more)

        monkeypatch.setattr(Store, "end_round", cut)
        with pytest.raises(BaseExceptionGroup):
            async with serving(tmp_path) as server, server.devices(*NAMES) as devices:
                second, owed = await half_way(server, devices)
                await finish(devices, second, owed)
                await asyncio.get_running_loop().create_future()
        monkeypatch.undo()

    async with serving(tmp_path) as server, server.devices(*NAMES) as devices:
        if how == "ended half-way":
            assert len((await devices[2].update_status(owed)).segments) == 2
            await finish(devices, second, owed)
        back = await state_after(server, devices[2], owed)
    for name in ("params", "published", "h"):
        np.testing.assert_array_equal(getattr(calm, name), getattr(back, name))
