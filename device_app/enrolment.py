"""Make a device known to an aggregator, so that repeating it at any point introduces the same device."""

from __future__ import annotations

from device_app.client import Client
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
    credential = home.make_credential()
    with home.locked():
        home.write_config(config)
        tasks = await describe_tasks(trainer, {task.task: task.data for task in config.tasks})
        async with connect(config, credential) as link:
            enrolled = await Client(link).introduce(introduction(config, credential, tasks, token))
    return enrolled.device
