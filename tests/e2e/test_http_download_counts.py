"""What devices have downloaded is counted on when the aggregator ends in mid-round, by a signal or by a crash."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from fedge.layout import Kind, Layout, TensorSpec
from schemas.base import parse
from schemas.config import ServerConfig
from schemas.messages import Assignment
from schemas.status import Role, RoundList, RoundStatus
from server_app import service
from server_app.service import init_state
from tests.support.aggregator_process import process
from tests.support.http import LAYOUT, TASK, Device, ReadyWorker, Serving, invited, plan, serving

RUN = "tiny-task-1"
LARGE = Layout.of([TensorSpec("w", (2048, 2048), Kind.WEIGHT)])


class Aggregator:
    """One in a process of its own, to be ended and started again, and two devices."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir, self.port = state_dir, 0
        self.devices: list[Device] = []

    async def begin(self, **changes: object) -> None:
        """Enrol the devices, and start a run."""
        self.devices = [Device(self.url, name, self.tokens[Role.ENROLL]) for name in "ab"]
        for device in self.devices:
            await device.enroll()
        await self.ask("POST", "/v1/runs", json=plan(**changes))

    @asynccontextmanager
    async def running(self, how: signal.Signals) -> AsyncIterator[None]:
        """Run it; it ends by ``how``, and its devices hang up."""
        self.tokens = await init_state(ServerConfig(state_dir=str(self.state_dir), tasks=(TASK,)))
        async with process(self.state_dir, self.port) as (child, self.port):
            self.url = f"http://127.0.0.1:{self.port}"
            yield
            child.send_signal(how)
            await child.wait()
        for device in self.devices:
            await device.close()
            device.__post_init__()

    async def ask(self, method: str, path: str, **how: object) -> object:
        """Ask as an operator."""
        headers = {"Authorization": f"Bearer {self.tokens[Role.OPERATOR]}"}
        async with aiohttp.request(method, self.url + path, headers=headers, **how) as answer:  # type: ignore[arg-type]
            assert answer.status < 300
            return await answer.json()

    async def round(self) -> RoundStatus:
        """Return the last round of the run."""
        found = await self.ask("GET", f"/v1/runs/{RUN}/rounds")
        return parse(RoundList, found, "rounds").rounds[-1]


def counted(status: RoundStatus) -> tuple[object, ...]:
    """Return all that a round says of downloads."""
    return status.bytes_down, status.frame_bytes.down, status.float32_bytes.down, status.perturbation


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("mode", ["rand-mcm", "snapshot"])
async def test_what_devices_have_downloaded_is_counted_whatever_ends_the_aggregator(
    tmp_path: Path, mode: str, how: signal.Signals
) -> None:
    aggregator, received = Aggregator(tmp_path), {"a": 0, "b": 0}

    async def download(times: int, *devices: Device) -> None:
        for device in devices * times:
            received[device.name] += len(await device.send("GET", f"/v1/runs/{RUN}/download?round=1"))

    async with aggregator.running(how):
        await aggregator.begin(downlink={"mode": mode})
        asked = await invited(aggregator.devices)
        await download(1, *aggregator.devices)
        await download(2, aggregator.devices[0])
        before = await aggregator.round()
    async with aggregator.running(how):
        after = await aggregator.round()
        assert counted(after) == counted(before)
        assert after.bytes_down == received and after.frame_bytes.down == sum(received.values())
        assert after.float32_bytes.down == 4 * 4 * LAYOUT.size
        assert after.traffic.down >= after.frame_bytes.down
        await download(1, *aggregator.devices)
        assert (await aggregator.round()).bytes_down == received
        for device, one in zip(aggregator.devices, asked, strict=True):
            await device.upload(one)
        await invited(aggregator.devices, asked)  # the round is over
        closed = parse(RoundList, await aggregator.ask("GET", f"/v1/runs/{RUN}/rounds"), "rounds").rounds[0]
        assert (closed.round, closed.bytes_down) == (1, received)
        assert closed.float32_bytes.down == 6 * 4 * LAYOUT.size


async def begun(server: Serving, device: Device, asked: Assignment) -> asyncio.StreamWriter:
    """Ask for a download over a connection that holds little of it, and read its first bytes."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", server.service.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 16)
    path = f"/v1/runs/{asked.run}/download?round={asked.round}"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {device.credential}\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await reader.readexactly(1 << 16)
    return writer


async def test_of_a_download_that_the_end_cuts_off_what_left_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SHUTDOWN_SECONDS", 0.1)
    worker = ReadyWorker(LARGE).running
    async with serving(tmp_path, worker) as server, server.devices("a", "b", layout=LARGE) as devices:
        run = await server.start(downlink={"mode": "none"})
        asked = await invited(devices)
        whole = len(await devices[1].send("GET", f"/v1/runs/{run}/download?round=1"))
        sockets, before = server.service.context.house.traffic, server.service.context.house.traffic.total.down
        writer = await begun(server, devices[0], asked[0])
    on_the_wire = sockets.total.down - before
    writer.close()
    async with serving(tmp_path, worker) as server:
        status = (await server.run(run)).round
    assert status is not None
    assert on_the_wire < status.bytes_down["a"] < on_the_wire + (1 << 18) < whole  # beyond that, what lay in buffers
    assert status.bytes_down["b"] == whole
    assert status.float32_bytes.down == 4 * LARGE.size
