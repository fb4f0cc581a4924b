"""A split federation over real HTTP on this machine: a real aggregator, real agents, one trainer for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device_app.agent import Watch, plain, run_device
from device_app.enrolment import enroll_device
from device_app.home import Home
from device_app.trainer import Trainer
from device_app.transport import Link
from schemas.config import DeviceConfig, ServerConfig, TaskConfig
from schemas.ids import DeviceId
from schemas.plan import Plan
from schemas.status import Role, RoundStatus, RunStatus
from server_app.service import Service, init_state
from tests.support.split_task import TASK, U_TASK

WATCH = Watch(after_seconds=0.5, every_seconds=0.5)


def plan(devices: int, **changes: Any) -> Plan:
    """Return a plan that closes a round as soon as all were heard."""
    cohort = {"devices": devices, "updates": {"min": devices, "max": devices}, "seconds": {"min": 0.0, "max": 60.0}}
    document: dict[str, Any] = {
        "task": TASK,
        "rounds": 3,
        "seed": 5,
        "cohort": cohort,
        "algorithm": {"name": "feddyn", "alpha": 0.1},
        "local": {"epochs": 1, "batch_size": 20, "learning_rate": 0.1},
        "uplink": {"bits": 4.0},
        "split": {"gather_seconds": 0.2, "gradient_bits": 4.0},
    }
    return Plan.model_validate(document | changes)


@dataclass
class Federation:
    """A running aggregator and its agents. ``url`` is what agents are told; a test may put a proxy there."""

    service: Service
    folder: Path
    tokens: dict[Role, str]
    trainer: Trainer
    url: str
    agents: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def add(
        self,
        name: str,
        number: int,
        trains: str = "either",
        url: str = "",
        wrap: Callable[[Link], Link] = plain,
        path: str = TASK,
        **changes: Any,
    ) -> None:
        """Enrol a device, unless it is known, and start its agent."""
        home = Home(self.folder / name)
        task = TaskConfig.model_validate({"task": path, "data": {"device": number}, "trains": trains})
        config = DeviceConfig(server=url or self.url, name=DeviceId(name), tasks=(task,), wait_seconds=5.0, **changes)
        if home.device is None:
            await enroll_device(home, config, self.tokens[Role.ENROLL], self.trainer)
        self.agents[name] = asyncio.create_task(run_device(home, self.trainer, wrap, WATCH))

    async def kill(self, name: str) -> None:
        """End an agent where it is."""
        agent = self.agents.pop(name)
        agent.cancel()
        await asyncio.wait([agent])

    async def run(self, plan: Plan) -> RunStatus:
        """Start a run and wait for its end."""
        return await self.until_over(await self.start(plan))

    async def start(self, plan: Plan) -> str:
        """Start a run."""
        return (await self.service.context.federation.start(plan)).run

    async def until_over(self, run: str) -> RunStatus:
        """Wait until a run has ended."""
        while True:
            changed = self.service.context.house.changes.next()
            status = await self.service.context.federation.status(run)
            if status.ended_at is not None:
                return status
            await self._changed(changed)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until ``is_so``, looked at often."""
        while not is_so():
            self._raise_failures()
            await asyncio.sleep(0.01)

    async def rounds(self, run: str) -> list[RoundStatus]:
        """Return what the rounds of a run did."""
        return await self.service.context.federation.rounds(run)

    async def _changed(self, changed: asyncio.Event) -> None:
        waiting = asyncio.create_task(changed.wait())
        await asyncio.wait([waiting, *self.agents.values()], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        self._raise_failures()

    def _raise_failures(self) -> None:
        for agent in self.agents.values():
            if agent.done():
                agent.result()


@asynccontextmanager
async def federating(folder: Path, trainer: Trainer, port: int = 0, **changes: Any) -> AsyncIterator[Federation]:
    """Run an aggregator in ``folder``; agents that are still there in the end are ended."""
    config = ServerConfig(port=port, state_dir=str(folder / "server"), tasks=(TASK, U_TASK), **changes)
    tokens = await init_state(config)
    async with Service(config) as service:
        found = Federation(service, folder, tokens, trainer, service.url)
        try:
            yield found
        finally:
            for name in list(found.agents):
                await found.kill(name)
