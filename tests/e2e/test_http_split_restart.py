"""An aggregator that is killed, or ended, in the middle of split rounds makes the model it would have made."""

import asyncio
import signal
import socket
import sys
from contextlib import asynccontextmanager

import numpy as np
import pytest
from safetensors.numpy import load

from device_app.trainer import Trainer
from schemas.config import ServerConfig
from schemas.status import Role, RunPhase
from server_app.client import Client
from server_app.service import init_state
from tests.support.split_federation import Federation, plan
from tests.support.split_task import TASK

PLAN = plan(1, rounds=2, local={"epochs": 3, "batch_size": 20, "learning_rate": 0.05})


@asynccontextmanager
async def aggregator(config, end):
    """Run an aggregator in a process of its own, and send it the signal ``end`` in the end: whatever it is doing."""
    command = (sys.executable, "-m", "server_app", "serve", "--config", str(config))
    child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        yield child
    finally:
        if child.returncode is None:
            child.send_signal(end)
        await child.wait()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


async def until_up(client):
    while True:
        try:
            return await client.status()
        except OSError:
            await asyncio.sleep(0.05)
        except Exception as error:
            if "unreachable" not in type(error).__name__.lower():
                raise
            await asyncio.sleep(0.05)


async def federate(folder, kills):
    """Return the model of a run whose aggregator is ended, again and again, once its journal has grown so far."""
    port, config = free_port(), folder / "server.toml"
    folder.mkdir()
    state_dir = folder / "server"
    config.write_text(f'port = {port}\nstate_dir = "{state_dir}"\ntasks = ["{TASK}"]\n')
    tokens = await init_state(ServerConfig(port=port, state_dir=str(state_dir), tasks=(TASK,)))
    url, run = f"http://127.0.0.1:{port}", None
    async with Trainer() as trainer, Client(url, tokens[Role.OPERATOR]) as client:
        devices = Federation(None, folder, tokens, trainer, url)
        for kill in (*kills, None):
            async with aggregator(config, signal.SIGKILL if kill is None else kill[2]):
                await until_up(client)
                if run is None:
                    await devices.add("pi", 1)
                    run = (await client.start(PLAN)).run
                if kill is not None:
                    await until_grown(state_dir / "runs" / run, kill)
                    continue
                async for seen in client.watch(run):
                    status = seen
                await client.export(run, folder / "model")
        await devices.kill("pi")
    return status, load((folder / "model").read_bytes())


async def until_grown(folder, kill):
    """Wait until the journal of the split steps of round ``kill[0]`` has at least ``kill[1]`` bytes."""
    number, size, _ = kill
    path = folder / f"round-{number}.split"
    while not path.exists() or path.stat().st_size < size:  # noqa: ASYNC110 - a file of another process has no event
        await asyncio.sleep(0.002)


@pytest.mark.asyncio
async def test_a_killed_aggregator_makes_the_same_model_to_the_bit(tmp_path):
    calm, expected = await asyncio.wait_for(federate(tmp_path / "calm", ()), 120)
    kills = [(1, 1500, signal.SIGTERM), (2, 600, signal.SIGKILL)]
    status, model = await asyncio.wait_for(federate(tmp_path / "killed", kills), 120)
    assert calm.phase is status.phase is RunPhase.FINISHED
    assert status.metrics == calm.metrics and status.metrics["accuracy"] > 0.4
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensor, model[name])
