"""Several devices in one process: each with its home and its connection, all sharing one trainer process.

One device that has to end, for example because the aggregator does not know it, does not stop the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from device_app.agent import plain, run_device
from device_app.errors import DeviceError
from device_app.home import Home
from device_app.trainer import Trainer
from device_app.transport import Link

log = logging.getLogger(__name__)


async def serve(homes: Sequence[Home], wrap: Callable[[Link], Link] = plain) -> None:
    """Run the devices of ``homes`` until cancelled, or until every one of them has ended.

    Raises:
        DeviceError: the first error a device ended with, once all have ended.
    """
    threads = max(home.config().threads for home in homes)
    errors: list[DeviceError] = []
    async with Trainer(threads) as trainer, asyncio.TaskGroup() as tasks:
        for home in homes:
            tasks.create_task(_run(home, trainer, wrap, errors))
    raise errors[0]


async def _run(home: Home, trainer: Trainer, wrap: Callable[[Link], Link], errors: list[DeviceError]) -> None:
    try:
        await run_device(home, trainer, wrap)
    except DeviceError as error:
        log.error("device ended", extra={"home": str(home.root), "reason": str(error)})
        errors.append(error)
