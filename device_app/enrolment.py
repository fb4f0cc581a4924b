"""Make a device known to an aggregator, so that repeating it at any point introduces the same device."""

from __future__ import annotations

from device_app.client import Client
from device_app.errors import HomeError
from device_app.home import Home
from device_app.profile import describe_tasks, introduction
from device_app.trainer import Trainer
from device_app.transport import connect
from schemas.config import DeviceConfig


async def enroll_device(home: Home, config: DeviceConfig, token: str, trainer: Trainer) -> str:
    """Write ``config`` into ``home`` and introduce the device; return the id the aggregator gave it.

    The credential is drawn here and durable before the aggregator hears of it.

    Raises:
        HomeError: the home cannot be written, or an agent is using it.
        TrainerError: none of the tasks can be trained.
        AggregatorError: it cannot be reached, or refuses ``token``.
    """
    credential, before = home.make_credential(), previous(home)
    with home.locked():
        if before is None or before.server != config.server:
            home.write_device("")
        home.write_config(config)
        tasks = await describe_tasks(trainer, {task.task: task.data for task in config.tasks})
        async with connect(config, credential) as link:
            enrolled = await Client(link).introduce(introduction(config, credential, tasks, token))
        home.write_device(enrolled.device)
    return enrolled.device


def previous(home: Home) -> DeviceConfig | None:
    """Return the configuration that is in ``home``; None where there is none that can be read."""
    try:
        return home.config()
    except HomeError:
        return None


def changes(before: DeviceConfig | None, after: DeviceConfig) -> list[str]:
    """Say what of ``before`` is not the same in ``after``, a line each."""
    if before is None:
        return []
    old, new = _facts(before), _facts(after)
    return [f"{key} of this home changed from {old[key]} to {new[key]}" for key in new if old[key] != new[key]]


def _facts(config: DeviceConfig) -> dict[str, str]:
    data = (", ".join(f"{key}={value}" for key, value in task.data.items()) or "none" for task in config.tasks)
    tasks = ", ".join(task.task for task in config.tasks)
    return {"server": config.server, "name": str(config.name), "task": tasks, "data": "; ".join(data)}
