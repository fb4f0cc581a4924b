"""An aggregator in memory for the tests of ``device_app``: the HTTP contract over real sockets, one device, one run.

It keeps what a server must (frames by round, S, receipts) in plain dicts, opens the next round when one is complete,
and lets a test look at every request before it is answered (``on_request``).
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from aiohttp import web

from device_app.agent import WATCH, Watch, plain, run_device
from device_app.errors import StateLost
from device_app.home import Home
from device_app.spool import Spool
from device_app.trainer import Trainer
from device_app.transport import Link
from fedge import algorithms
from fedge.downlink.message import StateId
from fedge.frames import FrameReader, read_frame
from fedge.layout import Layout
from fedge.protocol.ledger import Conflict, Ledger
from fedge.seeds import uniform
from fedge.simulation.downlinks import Downlinks
from fedge.tasks.torch_model import layout_of
from fedge.tasks.wisdm import task
from fedge.update import decode_applied, uplink
from schemas.config import DeviceConfig, TaskConfig
from schemas.ids import DeviceId, RunId
from schemas.messages import (
    Assignment,
    Enroll,
    Enrolled,
    Outcome,
    Receipt,
    UpdateHeader,
    UpdateStatus,
    Work,
)
from schemas.packing import pack, unpack
from schemas.specs import AlgorithmSpec, DownlinkSpec, FedDyn, LocalSpec, UplinkSpec
from schemas.status import Problem

TASK = "fedge.tasks.wisdm:task"
RUN = RunId("wisdm-1")
DEVICE = "pi-1"
QUICK = LocalSpec(epochs=1, batch_size=4096, learning_rate=0.05)

OnRequest = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


def count_frames(count: int) -> None:
    """Let any number of frames pass; raising ConnectionError here breaks the connection."""


async def pass_on(request: web.Request) -> web.StreamResponse | None:
    """Let the request be answered as usual."""
    return None


def wisdm_layout() -> Layout:
    """Return the layout of the task's model."""
    return layout_of(task.model(0))


def make_home(root: Path, server: str, wait_seconds: float = 5.0) -> Home:
    """Return an enrolled home in ``root`` whose device trains the data of one person."""
    home = Home(root)
    home.make_credential()
    tasks = (TaskConfig(task=TASK, data={"user": 7}),)
    home.write_config(DeviceConfig(server=server, name=DeviceId(DEVICE), tasks=tasks, wait_seconds=wait_seconds))
    return home


def problem(status: int, reason: str, retry_after: str | None = None) -> web.Response:
    """Return a problem document."""
    body = Problem(title=reason, status=status, detail=f"because of {reason}", reason=reason).model_dump_json()
    headers = {"Retry-After": retry_after} if retry_after else None
    return web.Response(text=body, status=status, content_type="application/problem+json", headers=headers)


@dataclass
class Aggregator:
    """The server's side of a run with one device. ``applied`` counts how often each round's update was added to S."""

    layout: Layout
    algorithm: AlgorithmSpec = field(default_factory=lambda: FedDyn(name="feddyn"))
    local: LocalSpec = QUICK
    uplink: UplinkSpec = field(default_factory=lambda: UplinkSpec(bits=1.0))
    downlink: DownlinkSpec = field(default_factory=lambda: DownlinkSpec(bits=4.0))
    on_request: OnRequest = pass_on
    last_round: int = 1_000
    round: int = 1
    epoch: int = 0
    last_applied: int = 0
    closes: bool = True
    on_frames: Callable[[int], None] = count_frames
    requests: list[str] = field(default_factory=list)
    profiles: list[Enroll] = field(default_factory=list)
    refusals: list[UpdateHeader] = field(default_factory=list)
    receipts: dict[int, Receipt] = field(default_factory=dict)
    bodies: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.h = np.zeros(self.layout.size)
        self.downlinks = Downlinks(self.layout, 11)
        self.frames: dict[int, bytes] = {}
        self.ledger = Ledger(len(self.layout.segments))
        self.changed = asyncio.Condition()
        self.url = ""

    @property
    def last_request(self) -> str:
        """Method, path and query of the newest request; empty before the first."""
        return self.requests[-1] if self.requests else ""

    def assignment(self) -> Assignment:
        """Return what the device is asked in the present round."""
        return Assignment(
            run=RUN,
            round=self.round,
            task=TASK,
            layout=self.layout.digest,
            seed=11,
            algorithm=self.algorithm,
            relative_size=1.0,
            local=self.local,
            uplink=self.uplink,
            downlink=self.downlink,
            seconds_left=60.0,
            dual_epoch=self.epoch,
            last_applied=self.last_applied,
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Aggregator]:
        """Answer on a free port of the loopback interface."""
        app = web.Application(middlewares=[self._watch], client_max_size=1 << 30)
        update = "/v1/runs/{run}/rounds/{round}/updates/me"
        app.add_routes(
            [
                web.post("/v1/enroll", self._enroll),
                web.get("/v1/work", self._work),
                web.get("/v1/runs/{run}/download", self._download),
                web.put(update, self._take_update),
                web.get(update, self._update_status),
                web.get("/healthz", self._healthy),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def until_settled(self, number: int) -> None:
        """Wait until the device has settled round ``number`` and asks for work with nothing pending."""
        idle = re.compile(r"GET /v1/work\?wait=[^&]*")
        await self.until(lambda: number in self.receipts and idle.fullmatch(self.last_request) is not None)

    async def until_round(self, number: int) -> None:
        """Wait until round ``number`` is open."""
        await self.until(lambda: self.round >= number)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until ``is_so``; looked at after every change."""
        async with self.changed:
            await self.changed.wait_for(is_so)

    async def close_round(self, applied: tuple[int, ...] | None = None) -> None:
        """Apply what arrived (or ``applied`` of it), write the receipt, open the next round."""
        segments = tuple(sorted(self.frames)) if applied is None else applied
        delivery = self.ledger.deliveries.get(DEVICE)
        if segments:
            frames = {index: read_frame(data) for index, data in self.frames.items()}
            algorithm = algorithms.build(**self.algorithm.model_dump())
            decoded = decode_applied(self.layout, frames, uplink(11, self.round, DEVICE), segments, algorithm.trust)
            self.h = algorithm.commit(self.h, [self.layout.segments[index] for index in segments], decoded)
            self.last_applied = self.round
        complete = len(segments) == len(self.layout.segments)
        outcome = Outcome.APPLIED if complete else Outcome.PARTIAL if segments else Outcome.ABANDONED
        update = delivery.header.update if delivery else None
        self.receipts[self.round] = Receipt(run=RUN, round=self.round, update=update, outcome=outcome, applied=segments)
        self.round += 1
        self.frames, self.ledger = {}, Ledger(len(self.layout.segments))
        await self._notify()

    async def start_epoch(self) -> None:
        """Start h and the duals afresh, as after a device said that it lost its own."""
        self.h, self.epoch, self.last_applied = np.zeros(self.layout.size), self.epoch + 1, 0
        await self.close_round(applied=())

    @web.middleware
    async def _watch(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        await self._notify()
        answer = await self.on_request(request) or await handler(request)
        await self._notify()
        return answer

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _healthy(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _enroll(self, request: web.Request) -> web.Response:
        self.profiles.append(unpack(Enroll, await request.read()))
        return _packed(Enrolled(device=DeviceId(DEVICE)))

    async def _work(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(float(request.query["wait"])), self.changed:
                await self.changed.wait_for(lambda: self._work_for(request) != Work())
        except TimeoutError:
            return web.Response(status=204)
        return _packed(self._work_for(request))

    def _work_for(self, request: web.Request) -> Work:
        pending = request.query.get("round")
        receipt = self.receipts.get(int(pending)) if pending else None
        waits = pending is not None and receipt is None and int(pending) != self.round
        is_open = self.round <= self.last_round and not self.ledger.is_complete(DEVICE) and not waits
        return Work(assignment=self.assignment() if is_open else None, receipt=receipt)

    async def _download(self, request: web.Request) -> web.Response:
        number = int(request.query["round"])
        if number != self.round:
            return problem(410, "round_over")
        params = (uniform(number, self.layout.size) * 0.2 - 0.1).astype(np.float32)
        said, numbers = request.query.get("state", ""), request.query.get("checksum")
        data = self.downlinks.answer(self.assignment(), DEVICE, params, StateId(said), numbers and StateId(numbers))
        return web.Response(body=data)

    async def _take_update(self, request: web.Request) -> web.Response:
        number = int(request.match_info["round"])
        if number != self.round:
            return problem(410, "round_over")
        reader = request.content
        head = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "little"))
        header = unpack(UpdateHeader, head)
        if header.refusal is not None:
            self.refusals.append(header)
            return _packed(self._status())
        try:
            self.ledger.take_header(DEVICE, header)
        except Conflict:
            return problem(409, "conflict")
        self.bodies.append([])
        try:
            await self._take_frames(reader)
        except ConnectionError:
            if request.transport is not None:
                request.transport.abort()
            raise
        if self.closes and self.ledger.is_complete(DEVICE):
            status = self._status()
            await self.close_round()
            return _packed(status)
        return _packed(self._status())

    async def _take_frames(self, reader: asyncio.StreamReader) -> None:
        frames = FrameReader()
        try:
            async for chunk in reader.iter_any():
                for data in frames.feed(chunk):
                    frame = read_frame(data)
                    self.ledger.take_frame(DEVICE, frame.segment, int.from_bytes(data[16:20], "little"))
                    self.frames[frame.segment] = data
                    self.bodies[-1].append(frame.segment)
                    self.on_frames(len(self.bodies[-1]))
        finally:
            await self._notify()

    async def _update_status(self, request: web.Request) -> web.Response:
        return _packed(self._status(int(request.match_info["round"])))

    def _status(self, number: int | None = None) -> UpdateStatus:
        is_open = number in (None, self.round)
        delivery = self.ledger.deliveries.get(DEVICE) if is_open else None
        return UpdateStatus(
            run=RUN,
            round=number or self.round,
            update=delivery.header.update if delivery else None,
            segments=self.ledger.segments(DEVICE) if is_open else (),
            is_complete=is_open and self.ledger.is_complete(DEVICE),
            is_open=is_open,
        )


@asynccontextmanager
async def running(
    home: Home, trainer: Trainer, wrap: Callable[[Link], Link] = plain, watch: Watch = WATCH
) -> AsyncIterator[None]:
    """Run the device of ``home`` while the block lasts; what it ends with ends the block."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(run_device(home, trainer, wrap, watch))
        yield
        task.cancel()


@dataclass(frozen=True)
class AgentProcess:
    """``fedge-device run`` in a process of its own; ``lines`` is its log so far, then None."""

    process: asyncio.subprocess.Process
    lines: asyncio.Queue[str | None]

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self.process.pid

    async def end(self, number: signal.Signals) -> int:
        """Send it a signal and return what it ended with."""
        self.process.send_signal(number)
        return await self.process.wait()

    async def until_logged(self, text: str) -> None:
        """Wait for a line of its log that has ``text``."""
        while (line := await self.lines.get()) is not None:
            if text in line:
                return
        raise AssertionError(f"the log ended without {text!r}")


@asynccontextmanager
async def agent_process(*homes: Home) -> AsyncIterator[AgentProcess]:
    """Run an agent of ``homes`` while the block lasts."""
    words = [word for home in homes for word in ("--home", str(home.root))]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "device_app", "run", *words, "--log-level", "debug"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    agent = AgentProcess(process, asyncio.Queue())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_read_log(agent))
        try:
            yield agent
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _read_log(agent: AgentProcess) -> None:
    assert agent.process.stderr is not None
    async for line in agent.process.stderr:
        agent.lines.put_nowait(line.decode())
    agent.lines.put_nowait(None)


def children_of(process_id: int) -> list[int]:
    """Return the ids of the processes that ``process_id`` started."""
    listed = Path(f"/proc/{process_id}/task/{process_id}/children").read_text()
    return [int(child) for child in listed.split()]


def dual_of(home: Home, layout: Layout) -> np.ndarray:
    """Return the dual in ``home``'s spool, float64 [d]."""
    spool = Spool(home.spool_path)
    state = spool.state()
    if state.run is None:
        raise StateLost("expected a device that took part in a run")
    dual = spool.dual(state.run, state.dual_epoch, state.last_applied, layout.size)
    return np.zeros(layout.size) if dual is None else dual


def _packed(message: Enrolled | Work | UpdateStatus) -> web.Response:
    return web.Response(body=pack(message), content_type="application/msgpack")
