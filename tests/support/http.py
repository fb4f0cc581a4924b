"""The aggregator under test, and devices that speak its HTTP without ``device_app``.

``serving`` runs a real ``Service`` on a free port with a state directory of its own. Its worker is ``ReadyWorker``,
which needs no torch, unless a test wants the real one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from fedge.downlink import Mode
from fedge.downlink.common import receive_all
from fedge.downlink.mcm import channel_of
from fedge.downlink.message import State, origin
from fedge.downlink.snapshot import decode_snapshot, downlink
from fedge.frames import FrameReader
from fedge.layout import Kind, Layout, TensorSpec, Vector
from fedge.seeds import derive, uniform
from fedge.update import encode_update, uplink
from schemas.config import ServerConfig
from schemas.ids import DeviceId
from schemas.messages import (
    Assignment,
    Enroll,
    Enrolled,
    Receipt,
    Receipts,
    TaskOffer,
    UpdateHeader,
    UpdateStatus,
    Work,
)
from schemas.packing import pack, unpack
from schemas.specs import Limits
from schemas.status import Problem, Role, RunStatus
from server_app.service import Service, init_state

TASK = "tests.support.tiny_task:task"
LAYOUT = Layout.of(
    [
        TensorSpec("first.weight", (64, 128), Kind.WEIGHT),
        TensorSpec("first.bias", (64,), Kind.RAW),
        TensorSpec("steps", (2,), Kind.BUFFER),
    ]
)


@dataclass(frozen=True)
class ReadyWorker:
    """A model that needs no torch: ``layout``, drawn from the seed; its metric is the mean of its params."""

    layout: Layout = LAYOUT

    async def initial(self, task: str, seed: int, split: bool = False) -> tuple[Layout, Vector]:
        """Return the layout and params in [-0.1, 0.1)."""
        return self.layout, initial_params(seed, self.layout)

    async def evaluate(self, task: str, params: Vector, split: bool = False) -> dict[str, float]:
        """Return the mean of ``params``."""
        return {"mean": float(params.mean())}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ReadyWorker]:
        """Yield itself: there is nothing to end."""
        yield self


def initial_params(seed: int, layout: Layout = LAYOUT) -> Vector:
    """Return the params every run of ``seed`` starts from."""
    return (uniform(derive("initial", seed), layout.size) * 0.2 - 0.1).astype(np.float32)


def plan(**changes: Any) -> dict[str, Any]:
    """Return a plan of two devices and two rounds that closes as soon as both were heard."""
    cohort = {"devices": 2, "updates": {"min": 2, "max": 2}, "seconds": {"min": 0.0, "max": 60.0}}
    return {"task": TASK, "rounds": 2, "seed": 5, "cohort": cohort, "algorithm": {"name": "fedavg"}} | changes


def cohort(
    devices: int, least: int, most: int | None = None, seconds: tuple[float, float] = (0.0, 60.0)
) -> dict[str, Any]:
    """Return the cohort of a plan."""
    updates = {"min": least, "max": most or devices}
    return {"devices": devices, "updates": updates, "seconds": {"min": seconds[0], "max": seconds[1]}}


@dataclass
class Serving:
    """A running aggregator, its tokens, and a session for people."""

    service: Service
    tokens: dict[Role, str]
    session: aiohttp.ClientSession
    url: str

    async def ask(self, method: str, path: str, token: str | None = None, **how: Any) -> tuple[int, Any]:
        """Ask as an operator (or with ``token``); returns the status and the JSON."""
        headers = {"Authorization": f"Bearer {token or self.tokens[Role.OPERATOR]}", **how.pop("headers", {})}
        async with self.session.request(method, self.url + path, headers=headers, **how) as answer:
            return answer.status, await answer.json(content_type=None)

    async def metrics(self) -> str:
        """Return what Prometheus is told."""
        headers = {"Authorization": f"Bearer {self.tokens[Role.OPERATOR]}"}
        async with self.session.get(self.url + "/metrics", headers=headers) as answer:
            assert answer.status == 200
            return await answer.text()

    async def start(self, **changes: Any) -> str:
        """Start a run; returns its name."""
        status, body = await self.ask("POST", "/v1/runs", json=plan(**changes))
        assert status == 201, body
        return str(body["run"])

    async def run(self, name: str) -> RunStatus:
        """Return a run as people see it."""
        return await self.service.context.federation.status(name)

    async def until_over(self, name: str) -> RunStatus:
        """Wait until a run has ended."""
        while (status := await self._look(name)).ended_at is None:
            await self._changed.wait()
        return status

    async def _look(self, name: str) -> RunStatus:
        self._changed = self.service.context.house.changes.next()
        return await self.run(name)

    def device(self, name: str, **how: Any) -> Device:
        """Return a device of this aggregator."""
        return Device(how.pop("url", self.url), name, self.tokens[Role.ENROLL], **how)

    @asynccontextmanager
    async def devices(self, *names: str, **how: Any) -> AsyncIterator[list[Device]]:
        """Yield enrolled devices, in the order of ``names``."""
        found = [self.device(name, **how) for name in names]
        try:
            for device in found:
                await device.enroll()
            yield found
        finally:
            for device in found:
                await device.close()


@asynccontextmanager
async def serving(state_dir: Path, worker: Any = ReadyWorker().running, **changes: Any) -> AsyncIterator[Serving]:
    """Run an aggregator in ``state_dir``; its configuration is for tests, with ``changes``."""
    config = ServerConfig(port=0, state_dir=str(state_dir), tasks=(TASK,), **changes)
    tokens = await init_state(config)
    async with Service(config, worker) as service, aiohttp.ClientSession() as session:
        yield Serving(service, tokens, session, service.url)


@dataclass
class Refused(Exception):
    """The aggregator refused; ``problem`` says why."""

    problem: Problem


@dataclass
class Device:
    """One device over one keep-alive connection."""

    url: str
    name: str
    token: str | None
    num_examples: int = 10
    limits: Limits = field(default_factory=Limits)
    layout: Layout = LAYOUT
    id: str = ""
    held: State | None = None

    def __post_init__(self) -> None:
        self.credential = hashlib.sha256(f"credential of {self.name}".encode()).hexdigest()
        connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=600)
        self.session = aiohttp.ClientSession(connector=connector)

    async def close(self) -> None:
        """Hang up."""
        await self.session.close()

    async def send(self, method: str, path: str, **how: Any) -> bytes:
        """Return the answer's body; raises ``Refused``."""
        headers = {"Authorization": f"Bearer {self.credential}", **how.pop("headers", {})}
        async with self.session.request(method, self.url + path, headers=headers, **how) as answer:
            body = await answer.read()
            if answer.status >= 400:
                raise Refused(Problem.model_validate_json(body))
            return body

    async def enroll(self) -> str:
        """Enrol; returns the id."""
        profile = Enroll(
            credential=self.credential,
            name=DeviceId(self.name),
            token=self.token,
            tasks={TASK: TaskOffer(num_examples=self.num_examples, layout=self.layout.digest)},
            limits=self.limits,
            version="0",
        )
        self.id = unpack(Enrolled, await self.send("POST", "/v1/enroll", data=pack(profile))).device
        return self.id

    async def work(self, wait: float = 20.0, pending: Assignment | None = None) -> Work:
        """Poll."""
        query = f"&run={pending.run}&round={pending.round}" if pending else ""
        body = await self.send("GET", f"/v1/work?wait={wait}{query}")
        return unpack(Work, body) if body else Work()

    async def assignment(self, pending: Assignment | None = None) -> Assignment:
        """Poll until there is an assignment."""
        while (found := (await self.work(pending=pending)).assignment) is None:
            pass
        return found

    async def receipt(self, pending: Assignment) -> Receipt:
        """Poll until there is a receipt."""
        while (found := (await self.work(pending=pending)).receipt) is None:
            pass
        return found

    async def download(self, asked: Assignment) -> Vector:
        """Return the anchor, and keep the download state that comes with it."""
        spec, path = asked.downlink, f"/v1/runs/{asked.run}/download?round={asked.round}"
        if not spec.has_memory:
            frames = list(FrameReader().feed(await self.send("GET", path)))
            stream = downlink(asked.seed, asked.round, self.id)
            return decode_snapshot(self.layout, frames, stream, spec.codec_name, spec.bits)
        own = self.held or origin(self.layout)
        body = await self.send("GET", f"{path}&state={own.id}")
        channel = channel_of(self.layout, asked.seed, self.id, Mode(spec.mode), spec.codec_name)
        delivered = receive_all(channel, own, body)
        self.held = delivered.state
        return delivered.anchor

    def frames(self, asked: Assignment) -> list[bytes]:
        """Return this device's update: a delta drawn from its name, encoded, in the order it travels."""
        drawn = uniform(derive("delta", self.name, asked.round), self.layout.size)
        delta = ((drawn - 0.5) * 0.02).astype(np.float32)
        stream = uplink(asked.seed, asked.round, self.id)
        frames = encode_update(self.layout, delta, stream, asked.uplink.codec_name, asked.uplink.bits)
        return [frames[index] for index in stream.order(len(frames))]

    def header(self, frames: Sequence[bytes], **changes: Any) -> UpdateHeader:
        """Return the header that names ``frames``."""
        update = hashlib.blake2b(b"".join(sorted(frames)), digest_size=16).hexdigest()
        return UpdateHeader(**{"update": update, "num_examples": self.num_examples, "loss": 0.5, **changes})

    async def upload(
        self, asked: Assignment, frames: Sequence[bytes] | None = None, header: UpdateHeader | None = None
    ) -> UpdateStatus:
        """Send an update, the whole one unless told otherwise."""
        whole = self.frames(asked)
        sent = whole if frames is None else frames
        return await self.put(asked, body_of(header or self.header(whole), sent))

    async def put(self, asked: Assignment, body: Any, **how: Any) -> UpdateStatus:
        """Send any body as an update."""
        headers = {"Content-Type": "application/octet-stream"} | how.pop("headers", {})
        answer = await self.send("PUT", update_path(asked), data=body, headers=headers, **how)
        return unpack(UpdateStatus, answer)

    async def update_status(self, asked: Assignment) -> UpdateStatus:
        """Ask what arrived."""
        return unpack(UpdateStatus, await self.send("GET", update_path(asked)))

    async def receipts(self, run: str) -> tuple[Receipt, ...]:
        """Return all receipts of a run."""
        return unpack(Receipts, await self.send("GET", f"/v1/receipts?run={run}")).receipts


def update_path(asked: Assignment) -> str:
    """Return where an update goes."""
    return f"/v1/runs/{asked.run}/rounds/{asked.round}/updates/me"


def body_of(header: UpdateHeader, frames: Sequence[bytes]) -> bytes:
    """Return an upload body."""
    head = pack(header)
    return len(head).to_bytes(4, "little") + head + b"".join(frames)


async def until(is_so: Callable[[], bool]) -> None:
    """Let everything else run until ``is_so``."""
    while not is_so():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def invited(devices: Sequence[Device], pending: Sequence[Assignment | None] = ()) -> list[Assignment]:
    """Let all poll at once until each has an assignment; ``pending`` names what each sent last."""
    held = list(pending) or [None] * len(devices)
    return await asyncio.gather(*(d.assignment(p) for d, p in zip(devices, held, strict=True)))


async def take_part(devices: Sequence[Device], rounds: int, pending: Sequence[Assignment] = ()) -> list[Assignment]:
    """Let ``devices`` take part in ``rounds`` rounds, sending in the order given; returns their last assignments."""
    asked = list(pending)
    for _ in range(rounds):
        asked = await invited(devices, asked)
        for device, one in zip(devices, asked, strict=True):
            await device.download(one)
            assert (await device.upload(one)).is_complete
    return asked
