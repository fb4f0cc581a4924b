"""Downloads over HTTP in every mode: both ends keep the same state, whatever is lost on either of them."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from fedge.downlink import Mode
from fedge.downlink.ledger import Heard, step
from fedge.downlink.mcm import channel_of
from fedge.downlink.message import Kind, checksum, origin, read_message
from fedge.layout import Kind as TensorKind
from fedge.layout import Layout, TensorSpec
from schemas.base import parse
from schemas.config import ServerConfig
from schemas.ids import DeviceId
from schemas.messages import Assignment
from schemas.specs import Limits, LinkLimit
from schemas.status import Role, RoundList, RunPhase
from server_app.download_states import StateFiles
from server_app.service import init_state
from tests.support.aggregator_process import process
from tests.support.http import (
    LAYOUT,
    TASK,
    Device,
    ReadyWorker,
    Refused,
    Serving,
    cohort,
    initial_params,
    invited,
    plan,
    serving,
    take_part,
    until,
)

FULL_BYTES = 4 * LAYOUT.size


def path(asked: Assignment, device: Device, numbers: str = "") -> str:
    state = (device.held or origin(LAYOUT)).id
    return f"/v1/runs/{asked.run}/download?round={asked.round}&state={state}" + (numbers and f"&checksum={numbers}")


async def kind_of(device: Device, asked: Assignment, numbers: str = "") -> Kind:
    """Return what kind of message the device is offered; it does not take it."""
    return read_message(await device.send("GET", path(asked, device, numbers))).kind


def states(server: Serving) -> StateFiles:
    driver = server.service.context.federation.driver
    assert driver is not None
    return driver.downlinks.files


@pytest.mark.parametrize("mode", ["none", "snapshot", "mcm", "rand-mcm"])
async def test_every_mode_brings_a_run_to_its_end(tmp_path: Path, mode: str) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=4, downlink={"mode": mode})
        pending: list[Assignment] = []
        lost: list[list[float]] = []
        for _ in range(4):
            pending = await invited(devices, pending)
            driver = server.service.context.federation.driver
            assert driver is not None and driver.state is not None
            params = driver.state.params
            anchors = [await device.download(asked) for device, asked in zip(devices, pending, strict=True)]
            lost.append([float(np.square(anchor - params).sum()) for anchor in anchors])
            for device, asked in zip(devices, pending, strict=True):
                await device.upload(asked)
        assert (await server.until_over(run)).phase is RunPhase.FINISHED
        _, body = await server.ask("GET", f"/v1/runs/{run}/rounds")
    rounds = parse(RoundList, body, "rounds").rounds
    for status, measured in zip(rounds, lost, strict=True):
        assert sum(status.bytes_down.values()) == status.frame_bytes.down
        assert set(status.bytes_down) == {"a", "b"}
        assert status.perturbation is not None
        assert status.perturbation == pytest.approx(np.mean(measured), rel=0.5, abs=1e-12)
    if mode == "none":
        assert max(map(max, lost)) == 0.0
    if mode in ("mcm", "rand-mcm"):
        assert rounds[-1].frame_bytes.down < 0.2 * rounds[-1].float32_bytes.down
    assert not (tmp_path / "runs" / run / "down").exists()


async def test_a_device_gets_the_whole_model_once_and_then_changes(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        await server.start(rounds=5)
        asked = await invited(devices)
        assert await kind_of(devices[0], asked[0]) is Kind.FULL
        for _ in range(3):
            asked = await take_part(devices, 1, asked if devices[0].held else ())
        asked = await invited(devices, asked)
        for device, one in zip(devices, asked, strict=True):
            assert await kind_of(device, one) is Kind.DELTA
        status, seen = await server.ask("GET", "/v1/status")
        assert status == 200
        kept = seen["download_states"]
        assert kept["count"] == 2 and kept["bytes"] > 2 * FULL_BYTES and kept["max_bytes"] == 4 << 30
        assert (kept["evicted"], kept["resyncs"]) == (0, 0)


async def test_a_state_that_is_not_the_servers_gets_the_whole_model(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        await server.start(rounds=5)
        asked = await take_part(devices, 2)
        asked = await invited(devices, asked)
        a, b = devices
        assert a.held is not None and b.held is not None
        assert await kind_of(a, asked[0], checksum(a.held.vector)) is Kind.DELTA
        assert await kind_of(a, asked[0], "0" * 16) is Kind.FULL  # its numbers are others
        b.held = None  # its disk was wiped
        assert await kind_of(b, asked[1]) is Kind.FULL
        anchor = await b.download(asked[1])
        driver = server.service.context.federation.driver
        assert driver is not None and driver.state is not None
        assert np.abs(anchor - driver.state.params).max() < 0.01
        assert driver.downlinks.status().resyncs == 2


@pytest.mark.parametrize("damage", ["gone", "cut", "altered"])
async def test_a_state_that_the_servers_disk_lost_costs_one_whole_model(tmp_path: Path, damage: str) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=5)
        asked = await invited(devices, await take_part(devices, 2))
        file = tmp_path / "runs" / run / "down" / "a.state"
        data = file.read_bytes()
        if damage == "gone":
            file.unlink()
        elif damage == "cut":
            file.write_bytes(data[:-100])
        else:
            file.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
        assert await kind_of(devices[0], asked[0]) is Kind.FULL
        await devices[0].download(asked[0])
        assert await kind_of(devices[0], asked[0]) is Kind.DELTA
        assert await kind_of(devices[1], asked[1]) is Kind.DELTA


async def test_above_the_cap_the_device_heard_of_longest_ago_is_forgotten(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    cap = int(3.9 * FULL_BYTES)  # three states with their messages, not four
    async with (
        serving(tmp_path, max_download_state_bytes=cap) as server,
        server.devices(*names) as devices,
    ):
        await server.start(rounds=6, cohort=cohort(4, least=4))
        asked = await invited(devices, await take_part(devices, 3))
        files = states(server)
        kinds = {await kind_of(device, one) for device, one in zip(devices, asked, strict=True)}
        assert kinds == {Kind.FULL, Kind.DELTA}
        assert files.num_bytes <= cap
        assert files.num_bytes == sum(file.stat().st_size for file in files.folder.iterdir())
        text = await server.metrics()
        assert f"fedge_download_state_max_bytes {float(cap)}" in text
        assert f"fedge_download_states {float(files.count)}" in text
        evicted = next(line for line in text.splitlines() if line.startswith("fedge_download_states_evicted_total "))
        assert float(evicted.split()[1]) == files.evicted > 0
        await asyncio.gather(*(d.upload(one) for d, one in zip(devices, asked, strict=True)))
        await take_part(devices, 2, asked)


@pytest.mark.parametrize(("key", "value"), [("state", "xyz"), ("state", "A" * 16), ("checksum", "0" * 17)])
async def test_a_name_that_is_none_is_refused_by_name(tmp_path: Path, key: str, value: str) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        await server.start()
        asked = await invited(devices)
        with pytest.raises(Refused) as caught:
            await devices[0].send("GET", f"/v1/runs/{asked[0].run}/download?round=1&{key}={value}")
        assert caught.value.problem.status == 422
        assert value in str(caught.value.problem.faults)


async def test_a_download_keeps_to_the_bytes_that_a_device_allows(tmp_path: Path) -> None:
    budget = 3000
    limits = Limits(downlink=LinkLimit(bytes_per_round=budget))
    async with serving(tmp_path) as server, server.devices("a", "b", limits=limits) as devices:
        await server.start(rounds=4)
        asked: list[Assignment] = []
        for _ in range(4):
            asked = await invited(devices, asked)
            for device, one in zip(devices, asked, strict=True):
                assert 0.5 * budget < len(await device.send("GET", path(one, device))) <= budget
                await device.download(one)
                await device.upload(one)


@pytest.mark.parametrize("mode", ["mcm", "rand-mcm"])
async def test_a_device_that_a_budget_keeps_out_is_named_with_the_reason(tmp_path: Path, mode: str) -> None:
    small = Limits(downlink=LinkLimit(bytes_per_round=300))
    async with (
        serving(tmp_path) as server,
        server.devices("a") as (a,),
        server.devices("b", limits=small) as (b,),
    ):
        run = await server.start(downlink={"mode": mode})
        polls = [asyncio.create_task(device.work(20.0)) for device in (a, b)]
        federation = server.service.context.federation
        await until(lambda: federation.driver is not None and "cannot take part" in federation.driver.waiting_for)
        status = await server.run(run)
        assert status.waiting_for.startswith(
            "1 of 2 devices online; 1 more online cannot take part, b: expected a budget"
        )
        assert list(status.excluded) == ["b"]
        assert "got 300" in status.excluded[DeviceId("b")]
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)


@pytest.mark.parametrize("mode", ["mcm", "rand-mcm"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_an_aggregator_that_ends_knows_its_devices_states_when_it_comes_back(
    tmp_path: Path, mode: str, how: signal.Signals
) -> None:
    tokens = await init_state(ServerConfig(state_dir=str(tmp_path), tasks=(TASK,)))
    asked: list[Assignment] = []
    port = 0
    devices: list[Device] = []
    for _ in range(3):
        async with process(tmp_path, port) as (child, port):
            url = f"http://127.0.0.1:{port}"
            if not devices:
                devices = [Device(url, name, tokens[Role.ENROLL]) for name in "ab"]
                for device in devices:
                    await device.enroll()
                await _start(devices[0], url, tokens, mode)
            asked = await invited(devices, asked)
            first = [await device.send("GET", path(one, device)) for device, one in zip(devices, asked, strict=True)]
            if devices[0].held is not None:
                assert all(read_message(data).kind is Kind.DELTA for data in first)
            for device, one in zip(devices, asked, strict=True):
                await device.download(one)
            await asyncio.gather(*(d.upload(one) for d, one in zip(devices, asked, strict=True)))
            for device in devices:
                await device.close()
                device.__post_init__()
            child.send_signal(how)
            await child.wait()
    run, folder = asked[0].run, tmp_path / "runs" / asked[0].run / "down"
    files = StateFiles(folder, 1 << 30)
    for device in devices:
        await device.close()
        assert device.held is not None
        if mode == "mcm":
            common = files.common(LAYOUT.size)
            assert common is not None
            servers = common.state
        else:
            channel = channel_of(LAYOUT, asked[0].seed, device.id, Mode(mode), asked[0].downlink.codec_name)
            ledger = files.ledger(DeviceId(device.id), LAYOUT.size)
            found = step(channel, ledger, Heard(device.held.id))[0].state
            assert found is not None
            servers = found
        assert servers.id == device.held.id, run
        assert np.array_equal(servers.vector, device.held.vector)


async def _start(device: Device, url: str, tokens: dict[Role, str], mode: str) -> None:
    headers = {"Authorization": f"Bearer {tokens[Role.OPERATOR]}"}
    document = plan(rounds=5, downlink={"mode": mode})
    async with device.session.post(f"{url}/v1/runs", json=document, headers=headers) as answer:
        assert answer.status == 201, await answer.text()


async def test_what_is_published_is_the_model_that_no_download_touched(tmp_path: Path) -> None:
    """At 0.5 bits down: the state of the run before its first step is the initial model, to the bit."""
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        await server.start(rounds=2, downlink={"bits": 0.5, "full_bits": 0.5})
        asked = await invited(devices)
        anchors = [await device.download(one) for device, one in zip(devices, asked, strict=True)]
        driver = server.service.context.federation.driver
        assert driver is not None and driver.state is not None
        assert np.array_equal(driver.state.params, initial_params(5))
        assert all(np.abs(anchor - initial_params(5)).max() > 0.01 for anchor in anchors)


@pytest.mark.parametrize("mode", ["mcm", "rand-mcm", "snapshot"])
async def test_a_device_that_does_not_read_holds_one_download_open_and_not_more(tmp_path: Path, mode: str) -> None:
    layout = Layout.of([TensorSpec("w", (2048, 2048), TensorKind.WEIGHT)])  # more than sockets hold
    async with (
        serving(tmp_path, ReadyWorker(layout).running, max_download_state_bytes=1) as server,
        server.devices("a", "b", layout=layout) as devices,
    ):
        await server.start(downlink={"mode": mode, "bits": 8.0})
        (asked, _) = await invited(devices)
        headers = {"Authorization": f"Bearer {devices[0].credential}"}
        url = f"{server.url}/v1/runs/{asked.run}/download?round=1"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            answers = [await session.get(f"{url}&state={number:016x}", headers=headers) for number in range(5)]
            book = server.service.context.federation.open_book(asked.run, 1)
            assert book is not None and list(book.downloads) == ["a"]
            for answer in answers[:-1]:
                with pytest.raises(aiohttp.ClientError):
                    await answer.read()
            assert len(await answers[-1].read()) > layout.size // 2
        await until(lambda: not book.downloads)
        assert not open_files(tmp_path / "runs")


def open_files(folder: Path) -> list[str]:
    """Return which files below ``folder`` this process has open, deleted ones among them, but for journals."""
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [str(link) for link in links if str(link).startswith(str(folder)) and ".journal" not in link.name]
