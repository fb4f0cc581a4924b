"""Agents and the real aggregator, over real HTTP, with real training."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from device_app.agent import run_device
from device_app.durable import Disk
from device_app.enrolment import enroll_device
from device_app.errors import Unauthorised
from device_app.faults import CutLink
from device_app.home import Home
from device_app.spool import Spool
from device_app.trainer import Trainer
from schemas.config import DeviceConfig, ServerConfig, TaskConfig
from schemas.plan import plan_from_toml
from schemas.status import Role, RunPhase
from server_app.blobs import RunFiles, load_state
from server_app.service import Service, init_state
from tests.support.device import TASK, agent_process, children_of, dual_of, wisdm_layout
from tests.support.http import ReadyWorker

pytestmark = pytest.mark.asyncio(loop_scope="module")

LAYOUT = wisdm_layout()
PLAN = f"""
task = "{TASK}"
rounds = 4
seed = 3
[cohort]
devices = 3
updates = {{min = 3, max = 3}}
seconds = {{min = 0, max = 60}}
[local]
epochs = 1
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trainer():
    async with Trainer() as trainer:
        yield trainer


@asynccontextmanager
async def aggregator(state_dir):
    """Run an aggregator that needs no torch; yields it and an enrolment token."""
    config = ServerConfig(port=0, state_dir=str(state_dir), tasks=(TASK,))
    tokens = await init_state(config)
    async with Service(config, ReadyWorker(LAYOUT).running) as service:
        yield service, tokens[Role.ENROLL]


async def enrolled(root, service, token, trainer, *users):
    """Return the homes of enrolled devices, one for each of ``users``."""
    homes = [Home(root / f"pi-{user}") for user in users]
    for user, home in zip(users, homes, strict=True):
        tasks = (TaskConfig(task=TASK, data={"user": user}),)
        config = DeviceConfig(server=service.url, name=f"pi-{user}", tasks=tasks, wait_seconds=20.0)
        assert await enroll_device(home, config, token, trainer) == f"pi-{user}"
    return homes


async def until_over(service, run):
    """Wait until ``run`` has ended."""
    federation, changes = service.context.federation, service.context.house.changes
    while True:
        changed = changes.next()
        status = await federation.status(run)
        if status.ended_at is not None:
            return status
        await changed.wait()


class Stir:
    """Tells a test that something was written to one of its spools."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.written = asyncio.Event()

    def __call__(self, name):
        self.loop.call_soon_threadsafe(self.written.set)

    async def until_settled(self, homes):
        """Wait until no device holds an update."""
        while True:
            self.written.clear()
            if not any(Spool(home.spool_path).state().pending for home in homes):
                return
            await self.written.wait()


def sum_of_duals(homes):
    """Return the sum over devices of their duals, float64 [d]."""
    return np.sum([dual_of(home, LAYOUT) for home in homes], axis=0)


async def test_h_is_the_sum_of_the_duals_after_cut_uploads_and_killed_agents(tmp_path, trainer):
    async with aggregator(tmp_path / "server") as (service, token):
        stir = Stir()
        homes = await enrolled(tmp_path, service, token, trainer, 3, 7, 20)
        steady, cut, killed = (replace(home, disk=Disk(stir)) for home in homes)
        async with asyncio.TaskGroup() as agents:
            run = (await service.context.federation.start(plan_from_toml(PLAN))).run
            tasks = [agents.create_task(run_device(steady, trainer))]
            tasks += [agents.create_task(run_device(cut, trainer, partial(CutLink, fraction=0.5)))]
            async with agent_process(killed) as agent:
                await agent.until_logged("training -> sending")
            tasks += [agents.create_task(run_device(killed, trainer))]
            status = await until_over(service, run)
            await stir.until_settled(homes)
            for task in tasks:
                task.cancel()
        h = load_state(RunFiles(tmp_path / "server", run).state(4)).h
    assert (status.phase, status.rounds_closed) == (RunPhase.FINISHED, 4)
    assert np.abs(h).max() > 0
    np.testing.assert_allclose(sum_of_duals(homes), h, rtol=0, atol=1e-12)


async def test_one_process_hosts_several_devices_with_one_trainer(tmp_path, trainer):
    async with aggregator(tmp_path / "server") as (service, token):
        homes = await enrolled(tmp_path, service, token, trainer, 1, 2, 3)
        run = (await service.context.federation.start(plan_from_toml(PLAN))).run
        async with agent_process(*homes) as agent:
            status = await until_over(service, run)
            assert len(children_of(agent.pid)) == 1
        assert (status.phase, status.rounds_closed) == (RunPhase.FINISHED, 4)


async def test_repeating_an_enrolment_introduces_the_same_device(tmp_path, trainer):
    async with aggregator(tmp_path / "server") as (service, token):
        (home,) = await enrolled(tmp_path, service, token, trainer, 5)
        assert await enroll_device(home, home.config(), token, trainer) == "pi-5"
        assert list(service.context.house.devices.by_id) == ["pi-5"]


async def test_a_wrong_token_is_refused_and_leaves_a_home_that_can_be_enrolled(tmp_path, trainer):
    async with aggregator(tmp_path / "server") as (service, token):
        with pytest.raises(Unauthorised):
            await enrolled(tmp_path, service, "x" * 43, trainer, 5)
        assert await enrolled(tmp_path, service, token, trainer, 5)


def seen_from_outside(process_id):
    """Return the names of the files a process has mapped, and its resident bytes."""
    mapped = Path(f"/proc/{process_id}/maps").read_text()
    status = Path(f"/proc/{process_id}/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return mapped, int(kilobytes) << 10


async def test_a_waiting_agent_is_small(tmp_path, trainer):
    async with aggregator(tmp_path / "server") as (service, token):
        homes = await enrolled(tmp_path, service, token, trainer, 5)
        async with agent_process(*homes) as agent:
            await agent.until_logged("introduced")
            libraries, resident = seen_from_outside(agent.pid)
    assert "libtorch" not in libraries
    assert resident < 80 << 20
