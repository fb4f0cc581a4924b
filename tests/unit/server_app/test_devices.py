"""Who is there, by a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from schemas.ids import DeviceId
from schemas.messages import Enroll, Outcome, TaskOffer
from server_app.devices import Devices, from_row, to_row
from tests.support.http import LAYOUT, TASK


@dataclass
class Clock:
    """A clock that stands until it is moved."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def profile(name: str = "pi", credential: str = "c" * 43) -> Enroll:
    """Return an introduction."""
    tasks = {TASK: TaskOffer(num_examples=10, layout=LAYOUT.digest)}
    return Enroll(credential=credential, name=DeviceId(name), tasks=tasks)


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.fixture
def devices(clock: Clock) -> Devices:
    """Nobody yet."""
    return Devices(30.0, clock, clock)


async def test_a_device_is_available_while_it_polls_and_a_while_after(devices: Devices, clock: Clock) -> None:
    pi = devices.enroll(profile(), "hash")
    assert not devices.is_available(pi)
    with devices.parked(pi):
        clock.now += 1000
        assert devices.is_available(pi)
    clock.now += 29
    assert devices.is_available(pi)
    clock.now += 2
    assert not devices.is_available(pi)


async def test_a_device_at_work_is_online_but_not_available_until_it_polls_again(
    devices: Devices, clock: Clock
) -> None:
    pi = devices.enroll(profile(), "hash")
    with devices.parked(pi):
        pi.busy_until = clock.now + 2000
    clock.now += 1000
    assert (devices.is_online(pi), devices.is_available(pi)) == (True, False)
    with devices.parked(pi):
        assert devices.is_available(pi)


async def test_a_device_that_died_at_work_is_online_no_longer_than_its_round(devices: Devices, clock: Clock) -> None:
    stopped, overdue = (devices.enroll(profile(name), name) for name in ("a", "b"))
    stopped.busy_until = overdue.busy_until = clock.now + 1000
    clock.now += 999
    assert devices.is_online(stopped)
    stopped.end_round(Outcome.LATE)
    assert (devices.is_online(stopped), devices.is_online(overdue)) == (False, True)
    clock.now += 1
    assert not devices.is_online(overdue)


async def test_a_device_whose_poll_broke_off_is_gone_at_once_unless_it_polls_elsewhere(devices: Devices) -> None:
    pi = devices.enroll(profile(), "hash")
    with devices.parked(pi):
        with devices.parked(pi):
            pass
        devices.lose(pi)
        assert devices.is_online(pi)
    devices.lose(pi)
    assert (devices.is_online(pi), devices.is_available(pi)) == (False, False)


def test_a_taken_name_gets_the_next_free_number_within_its_length(devices: Devices) -> None:
    names = [devices.enroll(profile("x" * 63), f"hash {index}").id for index in range(3)]
    assert names == ["x" * 63, "x" * 61 + "-2", "x" * 61 + "-3"]


def test_a_device_comes_back_from_its_row_without_its_secrets(devices: Devices) -> None:
    pi = devices.enroll(profile(credential="s" * 43), "hash")
    pi.account.up, pi.updates_applied = 12, 3
    row = to_row(pi)
    assert "s" * 43 not in repr(row)
    again = from_row(row)
    assert (again.id, again.credential, again.account.up, again.updates_applied) == ("pi", "hash", 12, 3)
    assert again.profile.tasks == pi.profile.tasks
