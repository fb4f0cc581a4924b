"""What a round asks of whom: pure functions of the plan, the devices' profiles and what is on record.

    w_k = n_k / n̄      n̄: mean examples of the devices eligible when the run's first round opened, fixed from then on

Both are bounded against devices that overstate what they have (``fedge.protocol.offer.mean_size``, ``counted_size``).

A device's w_k is fixed when it joins, whatever its data does later: FedDyn's duals are in units of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fedge.budget import rate
from fedge.errors import BudgetError
from fedge.layout import Layout
from fedge.protocol import offer as offers
from fedge.protocol.offer import Standing, counted_size, mean_size
from schemas.ids import DeviceId
from schemas.messages import Enroll
from schemas.plan import Plan
from schemas.specs import Half
from server_app.devices import Device
from server_app.rows import Member, RunRow


def obstacle(plan: Plan, layout: Layout, device: Device) -> str | None:
    """Return what keeps ``device`` out of the run; None where nothing does."""
    offer = device.profile.tasks.get(plan.task)
    if offer is None:
        return f"does not train {plan.task}"
    half = half_of(plan, device)
    if half is None:
        if plan.split is None:
            return "trains front halves only, and the plan has no [split]"
        return f"does not know where the model of {plan.task} is cut: its fedge or its task is older"
    built = offer.layout if plan.split is None else offer.split_layout
    if built != layout.digest:
        return f"expected a model of layout {layout.digest}, this device builds {built}"
    part = layout if half == "whole" else layout.front
    try:
        rate(part, plan.uplink, device.profile.limits.uplink)
        rate(part, plan.downlink, device.profile.limits.downlink)
    except BudgetError as error:
        return str(error)
    return None


def half_of(plan: Plan, device: Device) -> Half | None:
    """Return what ``device``, which trains the plan's task, trains of its model; None where that is nothing."""
    offer = device.profile.tasks[plan.task]
    return offers.half_of(plan, offer.trains, offer.split_layout is not None)


class Eligibility:
    """What keeps devices out; worked out once for each profile, since whoever arrives makes us ask."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._known: dict[DeviceId, tuple[Enroll, str | None]] = {}

    def obstacle(self, layout: Layout, device: Device) -> str | None:
        """Return what keeps ``device`` out; None where nothing does. A refreshed profile is looked at again."""
        known = self._known.get(device.id)
        if known is None or known[0] is not device.profile:
            known = (device.profile, obstacle(self._plan, layout, device))
            self._known[device.id] = known
        return known[1]

    def excluded(self, layout: Layout, devices: Iterable[Device]) -> dict[DeviceId, str]:
        """Return which of ``devices`` train this task and yet cannot take part, and why."""
        able = (device for device in devices if self._plan.task in device.profile.tasks)
        found = ((device.id, self.obstacle(layout, device)) for device in able)
        return {name: why for name, why in found if why is not None}


def join(run: RunRow, eligible: Iterable[Device], known: Mapping[DeviceId, Member]) -> tuple[RunRow, list[Member]]:
    """Return the run with n̄ fixed, and the eligible devices that are new in it."""
    sizes = {device.id: device.profile.tasks[run.plan.task].num_examples for device in eligible}
    mean = run.mean_examples or (mean_size(sizes.values()) if sizes else 0.0)
    counted = {name: counted_size(size, mean) for name, size in sizes.items() if name not in known}
    fresh = [Member(name, size, size / mean) for name, size in counted.items()]
    return replace(run, mean_examples=mean), fresh


def standing(run: RunRow, member: Member, device: Device, is_stateful: bool) -> Standing:
    """Return what is on record of ``device``. Where the algorithm keeps no dual, no round needs to be remembered."""
    counts = is_stateful and member.dual_epoch == run.dual_epoch
    last_applied, limits = member.last_applied if counts else 0, device.profile.limits
    return Standing(member.relative_size, last_applied, limits, member.num_examples)
