"""The enrolled devices in memory: who they are, whether they are there, and what their sockets carried.

A device is *polling* while a long poll of it is parked. It is *available* for a round while polling, or for
``offline_seconds`` after its last poll ended with an answer; one whose poll broke off, or that took an assignment and
has not polled since, is not. It is *online* while polling, for ``offline_seconds`` after it was last heard of, and
while the round of the assignment it took is open; that mark ends with the round's time at the latest.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from schemas.base import parse
from schemas.ids import DeviceId
from schemas.messages import Enroll, Outcome
from schemas.status import DeviceStatus
from server_app.traffic import Account

MAX_NAME = 63


@dataclass(slots=True)
class Device:
    """One enrolled device. ``heard_at``, ``polled_at``, ``busy_until`` are instants of the event loop's clock."""

    id: DeviceId
    credential: str
    profile: Enroll
    enrolled_at: float
    last_seen_at: float | None = None
    account: Account = field(default_factory=Account)
    updates_applied: int = 0
    rejected: int = 0
    last_error: str = ""
    polls: int = 0
    heard_at: float | None = None
    polled_at: float | None = None
    busy_until: float | None = None
    """When the round it took an assignment of is over at the latest; None where it is at work on none."""

    def end_round(self, outcome: Outcome) -> None:
        """Note that a round it was invited to is over."""
        self.updates_applied += outcome in (Outcome.APPLIED, Outcome.PARTIAL)
        if self.busy_until is not None and outcome is not Outcome.APPLIED:
            self.polled_at = None  # whether it still trains or is gone for good, its next poll will tell
        self.busy_until = None

    def status(self, is_online: bool) -> DeviceStatus:
        """Return what people see."""
        return DeviceStatus(
            device=self.id,
            is_online=is_online,
            last_seen_at=self.last_seen_at,
            enrolled_at=self.enrolled_at,
            tasks={path: offer.num_examples for path, offer in self.profile.tasks.items()},
            trains={path: offer.trains for path, offer in self.profile.tasks.items()},
            limits=self.profile.limits,
            version=self.profile.version,
            platform=self.profile.platform,
            traffic=self.account.snapshot(),
            updates_applied=self.updates_applied,
            rejected=self.rejected,
            last_error=self.last_error,
        )


class Devices:
    """All devices, by id and by hash of their credential."""

    def __init__(self, offline_seconds: float, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self.by_id: dict[DeviceId, Device] = {}
        self.by_credential: dict[str, Device] = {}
        self.arrived = asyncio.Event()
        """Set whenever a device may have become available."""
        self._offline_seconds = offline_seconds
        self._clock = clock
        self._wall_clock = wall_clock
        self._changed: set[DeviceId] = set()
        self._waiters: dict[DeviceId, set[asyncio.Future[None]]] = {}

    def add(self, device: Device) -> None:
        """Know ``device`` from now on."""
        self.by_id[device.id] = device
        self.by_credential[device.credential] = device

    def enroll(self, profile: Enroll, credential: str) -> Device:
        """Return the device with this hashed ``credential``, new or with its profile refreshed."""
        known = self.by_credential.get(credential)
        if known is None:
            known = Device(self._free_name(profile.name), credential, profile, self._wall_clock())
            self.add(known)
        known.profile = profile
        self.hear(known)
        self.arrived.set()
        return known

    def hear(self, device: Device) -> None:
        """Note that ``device`` made a request."""
        device.heard_at = self._clock()
        device.last_seen_at = self._wall_clock()
        self._changed.add(device.id)

    def take_changed(self) -> list[dict[str, Any]]:
        """Return the rows of all devices heard since the last call."""
        changed, self._changed = self._changed, set()
        return [to_row(self.by_id[name]) for name in sorted(changed)]

    def is_available(self, device: Device) -> bool:
        """Whether ``device`` would take an assignment now."""
        return device.polls > 0 or (not self._is_busy(device) and self._is_recent(device.polled_at))

    def is_online(self, device: Device) -> bool:
        """Whether ``device`` is there: polling, heard of lately, or at work on an assignment."""
        return device.polls > 0 or self._is_recent(device.heard_at) or self._is_busy(device)

    def wake(self, device: DeviceId) -> None:
        """Let the parked polls of ``device`` look again."""
        for waiter in self._waiters.get(device, ()):
            if not waiter.done():
                waiter.set_result(None)

    @contextmanager
    def parked(self, device: Device) -> Iterator[asyncio.Future[None]]:
        """Count ``device`` as polling; the future is done when it is to look again, or its socket closed."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(device.id, set()).add(waiter)
        device.polls += 1
        self.arrived.set()
        try:
            yield waiter
        finally:
            device.polls -= 1
            device.polled_at = self._clock()
            self._waiters[device.id].discard(waiter)

    def lose(self, device: Device) -> None:
        """Note that the socket of a parked poll closed: the device is gone, unless it polls elsewhere."""
        device.polled_at = device.heard_at = None

    def _is_busy(self, device: Device) -> bool:
        return device.busy_until is not None and self._clock() < device.busy_until

    def _is_recent(self, at: float | None) -> bool:
        return at is not None and self._clock() - at < self._offline_seconds

    def _free_name(self, wanted: DeviceId) -> DeviceId:
        if wanted not in self.by_id:
            return wanted
        candidates = (f"{wanted[: MAX_NAME - 1 - len(str(n))]}-{n}" for n in itertools.count(2))
        return next(DeviceId(name) for name in candidates if name not in self.by_id)


def to_row(device: Device) -> dict[str, Any]:
    """Return ``device`` as the database holds it; its secrets are not in there."""
    profile = device.profile.model_dump(mode="json", exclude={"credential", "token"})
    return {
        "device": device.id,
        "credential": device.credential,
        "profile": profile,
        "enrolled_at": device.enrolled_at,
        "last_seen_at": device.last_seen_at,
        "traffic_up": device.account.up,
        "traffic_down": device.account.down,
        "updates_applied": device.updates_applied,
        "rejected": device.rejected,
        "last_error": device.last_error[:500],
    }


def from_row(row: Mapping[str, Any]) -> Device:
    """Return the device that ``to_row`` described."""
    profile = parse(Enroll, {**row["profile"], "credential": "-" * 43}, "device")
    return Device(
        DeviceId(row["device"]),
        row["credential"],
        profile,
        row["enrolled_at"],
        row["last_seen_at"],
        Account(row["traffic_up"], row["traffic_down"]),
        row["updates_applied"],
        row["rejected"],
        row["last_error"],
    )
