"""An agent that dies anywhere goes on where it was, and nothing is lost or counted twice."""

import asyncio
import errno
import os
import re
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio

from device_app.durable import Disk
from device_app.spool import Spool
from device_app.trainer import Trainer
from fedge.downlink import Mode
from fedge.downlink.ledger import Heard, step
from fedge.downlink.mcm import channel_of
from fedge.protocol.participant import Phase
from schemas.specs import DownlinkSpec, LocalSpec, M22Spec, UplinkSpec
from tests.support.device import (
    DEVICE,
    Aggregator,
    agent_process,
    children_of,
    dual_of,
    make_home,
    running,
    wisdm_layout,
)

SECONDS_LONG = LocalSpec(epochs=300, batch_size=32, learning_rate=0.01)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trainer():
    async with Trainer() as trainer:
        yield trainer


class PowerCut(Exception):
    """The process ends here."""


class CutsOnce:
    """Cuts the power once at every kind of durable step, phase on disk, and dual: none yet, or one to move on from."""

    def __init__(self, spool):
        self.spool = spool
        self.seen = set()

    def __call__(self, name):
        state = self.spool.state()
        point = re.sub(r"-.*", "", name), state.phase, state.last_applied > 0
        if point not in self.seen:
            self.seen.add(point)
            raise PowerCut(name)


KINDS = {"state", "update", "dual"}
# Feedback beside duals is no plan that a person may write; here it has both files settle together.
M22 = UplinkSpec(codec="m22", m22=M22Spec(error_feedback=True))
WAYS = {
    "eden": (UplinkSpec(), DownlinkSpec(), KINDS | {"down"}),
    "m22": (M22, DownlinkSpec(), KINDS | {"down", "loss", "memory"}),
    "snapshot": (UplinkSpec(), DownlinkSpec(mode="snapshot"), KINDS | {"download"}),
    "small steps": (UplinkSpec(), DownlinkSpec(alpha=0.5), KINDS | {"down", "anchor"}),
    "common": (UplinkSpec(), DownlinkSpec(mode="mcm", bits=2.0), KINDS | {"down"}),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_power_cut_at_any_durable_step_loses_nothing_and_counts_nothing_twice(tmp_path, trainer, way):
    layout = wisdm_layout()
    uplink, downlink, kinds = WAYS[way]
    async with Aggregator(layout, uplink=uplink, downlink=downlink).serving() as aggregator:
        home = make_home(tmp_path / "home", aggregator.url)
        cuts = CutsOnce(Spool(home.spool_path))
        failing = replace(home, disk=Disk(cuts))
        alive = False
        while not alive:
            aggregator.last_round = sys.maxsize
            try:
                async with running(failing, trainer):
                    await aggregator.until_round(aggregator.round + 3)
                    aggregator.last_round = aggregator.round
                    await aggregator.until_settled(aggregator.last_round)
                    alive = True
            except* PowerCut:
                pass
        steps = {step for step, _, has_dual in cuts.seen if has_dual}
        assert steps >= {f"{verb} {kind}" for verb in ("filled", "synced", "renamed", "wrote") for kind in kinds} | {
            f"deleted {kind}" for kind in kinds - {"state", "download"}
        }
        if downlink.has_memory:
            assert_same_download_state(aggregator, home)
        assert {phase for _, phase, _ in cuts.seen} >= set(Phase) - {Phase.REFUSING}
        assert not aggregator.refusals
        assert sorted(aggregator.receipts) == list(range(1, aggregator.last_round + 1))
        assert all(len(set(body)) == len(body) for body in aggregator.bodies)
        assert np.array_equal(dual_of(home, layout), aggregator.h)


def assert_same_download_state(aggregator, home):
    """What the device has of the model is to the bit what the aggregator has of it."""
    spool, downlinks, spec = Spool(home.spool_path), aggregator.downlinks, aggregator.downlink
    held = spool.state().held
    own = spool.download_state(held, aggregator.layout.size)
    if spec.mode == "mcm":
        servers = downlinks.common.state
    else:
        channel = channel_of(aggregator.layout, 11, DEVICE, Mode.RAND_MCM, spec.codec_name)
        servers = step(channel, downlinks.ledgers[DEVICE], Heard(own.id))[0].state
    assert servers.id == own.id
    assert np.array_equal(servers.vector, own.vector)


class FullOnce:
    """Is full at the first write of every kind of file."""

    def __init__(self):
        self.refused = []

    def __call__(self, name):
        kind = re.sub(r"-.*", "", name)
        if kind.startswith("filled") and kind not in self.refused:
            self.refused.append(kind)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_a_full_disk_holds_an_agent_up_and_does_not_end_it(tmp_path, trainer, caplog):
    layout = wisdm_layout()
    async with Aggregator(layout, last_round=2).serving() as aggregator:
        disk = FullOnce()
        home = replace(make_home(tmp_path / "home", aggregator.url), disk=Disk(disk))
        async with running(home, trainer):
            await aggregator.until_settled(2)
    assert sorted(disk.refused) == ["filled down", "filled dual", "filled state", "filled update"]
    assert "No space left on device" in str([vars(record) for record in caplog.records])
    assert not aggregator.refusals
    assert np.array_equal(dual_of(home, layout), aggregator.h)


async def until_gone(process_ids):
    """Wait until none of ``process_ids`` runs any more."""
    async with asyncio.timeout(10):
        for process_id in process_ids:
            try:
                handle = os.pidfd_open(process_id)
            except ProcessLookupError:
                continue
            gone = asyncio.Event()
            asyncio.get_running_loop().add_reader(handle, gone.set)
            await gone.wait()
            asyncio.get_running_loop().remove_reader(handle)
            os.close(handle)


async def test_an_agent_killed_in_mid_upload_sends_only_what_is_missing_after_its_restart(tmp_path, trainer):
    layout = wisdm_layout()
    async with Aggregator(layout, last_round=1).serving() as aggregator:
        home = make_home(tmp_path / "home", aggregator.url)

        def kill_after_three_frames(count):
            if count == 3 and len(aggregator.bodies) == 1:
                agent.process.kill()
                raise ConnectionResetError

        aggregator.on_frames = kill_after_three_frames
        async with agent_process(home) as agent:
            assert await agent.process.wait() == -signal.SIGKILL
        async with running(home, trainer):
            await aggregator.until_settled(1)
        first, rest = aggregator.bodies
        assert len(first) == 3
        assert sorted(first + rest) == list(range(len(layout.segments)))
        assert np.array_equal(dual_of(home, layout), aggregator.h)


async def test_an_agent_killed_in_mid_training_takes_its_trainer_along_and_trains_again(tmp_path, trainer):
    layout = wisdm_layout()
    async with Aggregator(layout, local=SECONDS_LONG, last_round=1).serving() as aggregator:
        home = make_home(tmp_path / "home", aggregator.url)
        async with agent_process(home) as agent:
            await agent.until_logged("epoch done")
            trainers = children_of(agent.pid)
            await agent.end(signal.SIGKILL)
        assert trainers and not aggregator.bodies
        await until_gone(trainers)
        async with running(home, trainer):
            await aggregator.until_settled(1)
        assert sum("download" in request for request in aggregator.requests) == 1
        assert np.array_equal(dual_of(home, layout), aggregator.h)


async def test_sigterm_ends_an_agent_with_code_0_and_its_next_run_goes_on(tmp_path, trainer):
    layout = wisdm_layout()
    async with Aggregator(layout, last_round=2).serving() as aggregator:
        home = make_home(tmp_path / "home", aggregator.url)
        async with agent_process(home) as agent:
            await aggregator.until_settled(2)
            assert await agent.end(signal.SIGTERM) == 0
        aggregator.last_round = 3
        async with running(home, trainer):
            await aggregator.until_settled(3)
        assert not aggregator.refusals
        assert np.array_equal(dual_of(home, layout), aggregator.h)
