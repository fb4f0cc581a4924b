"""Who a device is, and what it tells the aggregator that it can train.

The trainer says what each configured task is here: the layout of its model, and how many examples lie on this device.
A task that cannot be loaded is left out, with the reason in the log; a device with none at all is of no use.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fedge
from device_app.errors import TrainerError
from device_app.trainer import Description, Trainer
from schemas.config import DeviceConfig
from schemas.messages import Enroll, TaskOffer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this device is to the aggregator, and what it has told it that it can train."""

    device: str
    tasks: Mapping[str, Description]


async def describe_tasks(trainer: Trainer, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Description]:
    """Return what the tasks are that can be trained here.

    Raises:
        TrainerError: there is none; says why of each.
    """
    described, reasons = {}, []
    for task, data in options.items():
        try:
            described[task] = await trainer.describe(task, data)
        except TrainerError as error:
            log.error("task cannot be trained", extra={"task": task, "reason": str(error)})
            reasons.append(f"{task}: {error}")
    if not described:
        raise TrainerError("; ".join(reasons))
    return described


def introduction(
    config: DeviceConfig, credential: str, tasks: Mapping[str, Description], token: str | None = None
) -> Enroll:
    """Return what this device says of itself; ``token`` is needed the first time only."""
    trains = {task.task: task.trains for task in config.tasks}
    return Enroll(
        credential=credential,
        name=config.name,
        token=token,
        tasks={
            path: TaskOffer(
                num_examples=known.num_examples,
                layout=known.layout.digest,
                split_layout=None if known.split_layout is None else known.split_layout.digest,
                trains=trains[path],
            )
            for path, known in tasks.items()
        },
        limits=config.limits,
        version=fedge.__version__,
        platform=f"{platform.system()} {platform.machine()} Python {platform.python_version()}",
    )
