"""``fedge demo``: a whole federation on this machine, over loopback HTTP.

    fedge demo ── starts ──> aggregator process      state in the demo's folder
        │                         ^   ^
        │ REST, as a person       │   │ frames, as devices
        └─────────────────────────┘   │
        └──────── starts ──> agent processes, each the home of many devices and of one trainer process

Everything is the real thing: the programs are the ones that run on real machines, the bytes are counted on the real
sockets. The demo prepares the devices, starts a run, looks on, ends the agents, reads the totals, ends the aggregator.
With ``--faults`` four devices come to harm on the way (``server_app.demo_faults``).
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from fedge.tasks.base import load
from schemas.config import ServerConfig
from schemas.errors import Fault, InvalidInput
from schemas.plan import Plan, Seconds, plan_from_toml
from schemas.status import Role, RoundPhase, RoundStatus, RunPhase, RunStatus, Traffic
from server_app.client import OVER, Client, Unreachable
from server_app.demo_children import Child, Children
from server_app.demo_devices import Site, enroll, offers
from server_app.demo_faults import CUT_AFTER, LEAST_DEVICES, NARROW_BITS, Cast, Faults
from server_app.errors import ServerError
from server_app.report import Result
from server_app.service import init_state
from server_app.sites import sites_of

LOOK_SECONDS = 0.25
CLOSE_LOOK_SECONDS = 0.05
START_SECONDS = 60.0
ROUND_OVER = (RoundPhase.CLOSED, RoundPhase.ABANDONED)
FAULTY_ROUND = Seconds(min=5.0, max=60.0)
"""With faults a round must not wait long for the dead."""

Via = Callable[[str], AbstractAsyncContextManager[str]]


class DemoError(ServerError):
    """The demo cannot begin or cannot go on."""


class Show(Protocol):
    """Who is told how far the demo is."""

    def stage(self, text: str) -> None:
        """Something else begins."""
        ...

    def round(self, round: RoundStatus) -> None:
        """A round is over."""
        ...


@dataclass(frozen=True, slots=True)
class Demo:
    """What to play. ``via`` puts something between the devices and the aggregator: URL in, URL out."""

    plan: Plan
    devices: int
    processes: int = 2
    with_faults: bool = False
    via: Via = nullcontext


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it; ``model`` is a safetensors file."""

    result: Result
    model: bytes


def default_plan() -> Plan:
    """Return the plan of the demo, ``templates/demo.toml``."""
    return plan_from_toml((files("server_app") / "templates" / "demo.toml").read_text("utf-8"), "demo.toml")


async def play(demo: Demo, folder: Path, show: Show) -> Outcome:
    """Play ``demo`` with everything it writes under ``folder``.

    Raises:
        InvalidInput: the demo asks for what cannot be.
        DemoError: it cannot begin, or the run failed.
        ChildDied: a process ended that should not have.
    """
    check(demo)
    async with Children(folder / "logs") as children:
        return await _Stage(demo, folder, show, children).play()


def check(demo: Demo) -> None:
    """Raise ``InvalidInput``, or a ``FedgeError`` about the task, where ``demo`` asks for what cannot be."""
    sites_of(demo.plan.task, load(demo.plan.task), demo.devices)
    cohort = demo.plan.cohort.devices
    faults = []
    if cohort > demo.devices:
        faults.append(Fault("cohort", f"expected at most {demo.devices}, all devices, got {cohort}"))
    if demo.with_faults and demo.devices < LEAST_DEVICES:
        faults.append(Fault("devices", f"expected at least {LEAST_DEVICES} for --faults, got {demo.devices}"))
    if faults:
        raise InvalidInput("demo", tuple(faults))


class _Stage:
    """One demo under way."""

    def __init__(self, demo: Demo, folder: Path, show: Show, children: Children) -> None:
        self.demo, self.folder, self.show, self.children = demo, folder, show, children
        task = load(demo.plan.task)
        names = sites_of(demo.plan.task, task, demo.devices)
        self.cast = Cast.of(list(names)) if demo.with_faults else None
        self.plan = _bear_faults(demo.plan) if demo.with_faults else demo.plan
        narrow = self.cast.narrow if self.cast else None
        self.sites = [
            Site(name, folder / "devices" / name, options, NARROW_BITS if name == narrow else None)
            for name, options in names.items()
        ]

    async def play(self) -> Outcome:
        self.show.stage("starting the aggregator")
        url, tokens = await self._start_aggregator()
        async with Client(url, tokens[Role.OPERATOR]) as client, self.demo.via(url) as devices_url:
            offered = await asyncio.to_thread(offers, self.plan.task, self.sites)
            await self._until_ready(client)
            self.show.stage(f"enrolling {len(self.sites)} devices")
            await enroll(devices_url, tokens[Role.ENROLL], self.plan.task, self.sites, offered)
            enrolled_at = time.time()
            agents = await self._start_agents()
            await self._until_waiting(client, enrolled_at)
            return await self._run(client, agents)

    async def _run(self, client: Client, agents: dict[str, Child]) -> Outcome:
        began = time.monotonic()
        run = await client.start(self.plan)
        self.show.stage(f"{run.run} runs")
        faults = Faults(self.cast, agents, self._start_alone, time.monotonic) if self.cast else None
        ended = await self._follow(client, run.run, faults)
        seconds = time.monotonic() - began
        rounds = (await client.rounds(run.run)).rounds
        if ended.phase is not RunPhase.FINISHED:
            raise DemoError(f"{run.run} {ended.phase}: {ended.reason}; logs are in {self.children.logs}")
        model = await client.model(run.run)
        self.show.stage("stopping the agents")
        await self.children.stop([child for child in self.children.all if child.name != "aggregator"])
        total = await self._final_traffic(client)
        devices = (await client.devices()).devices
        result = Result(
            plan=self.plan,
            run=ended,
            rounds=rounds,
            devices=len(self.sites),
            traffic=total,
            frame_bytes=ended.frame_bytes,
            float32_bytes=ended.float32_bytes,
            seconds=seconds,
            notes=faults.notes(rounds, devices) if faults else (),
        )
        return Outcome(result, model)

    async def _start_aggregator(self) -> tuple[str, Mapping[Role, str]]:
        config = ServerConfig(
            port=_free_port(), state_dir=str(self.folder / "aggregator"), tasks=(self.plan.task,), offline_seconds=10.0
        )
        tokens = await init_state(config)
        path = self.folder / "server.toml"
        facts = config.model_dump(mode="json", exclude_defaults=True)
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in facts.items()), "utf-8")
        await self.children.start("aggregator", ["server_app", "serve", "--config", str(path)])
        return f"http://{config.host}:{config.port}", tokens

    async def _until_ready(self, client: Client) -> None:
        async def is_ready() -> bool:
            try:
                await client.status()
            except Unreachable:
                return False
            return True

        await self._until(is_ready, "the aggregator to answer")

    async def _until_waiting(self, client: Client, since: float) -> None:
        """Wait until every agent has spoken and nothing moves: all their polls are parked, and round 1 has them all."""
        quiet: Traffic | None = None

        async def all_wait() -> bool:
            nonlocal quiet
            seen = [d for d in (await client.devices()).devices if (d.last_seen_at or 0.0) > since]
            before, quiet = quiet, (await client.status()).traffic
            return len(seen) == len(self.sites) and before == quiet

        await self._until(all_wait, f"{len(self.sites)} devices to ask for work")

    async def _until(self, is_so: Callable[[], Awaitable[bool]], what: str) -> None:
        """Look until ``is_so``, or a child has died, or ``START_SECONDS`` have passed."""
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await is_so():
                    self.children.check()
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            tails = "\n".join(f"{child.name}: {child.tail()}" for child in self.children.all)
            raise DemoError(f"waited {START_SECONDS:g} s for {what}\n{tails}") from None

    async def _final_traffic(self, client: Client) -> Traffic:
        """Return the total once it stands still: what the agents sent last may still be in the kernel."""
        before, now = None, (await client.status()).traffic
        while before != now:
            await asyncio.sleep(LOOK_SECONDS)
            before, now = now, (await client.status()).traffic
        return now

    async def _start_agents(self) -> dict[str, Child]:
        """Start the agents; return the ones that host a single device by that device's name."""
        alone = self.cast.alone if self.cast else ()
        many = [site for site in self.sites if site.name not in alone]
        groups = min(self.demo.processes, len(many))
        for index in range(groups):
            await self._start_agent(f"agents-{index + 1}", many[index::groups])
        return {name: await self._start_alone(name) for name in alone}

    async def _start_alone(self, name: str) -> Child:
        site = next(site for site in self.sites if site.name == name)
        is_cut = self.cast is not None and name == self.cast.cut
        return await self._start_agent(
            f"agent-{name}", [site], ["--cut-upload-after", str(CUT_AFTER)] if is_cut else []
        )

    async def _start_agent(self, name: str, sites: Sequence[Site], options: Sequence[str] = ()) -> Child:
        homes = [word for site in sites for word in ("--home", str(site.home))]
        return await self.children.start(name, ["device_app", "run", *homes, *options])

    async def _follow(self, client: Client, run: str, faults: Faults | None) -> RunStatus:
        """Look on until the run is over, and do what harm is due."""
        shown = 0
        while True:
            self.children.check()
            status = await client.run(run)
            if status.rounds_closed + status.rounds_abandoned > shown:
                over = [r for r in (await client.rounds(run)).rounds if r.phase in ROUND_OVER]
                for round in over[shown:]:
                    self.show.round(round)
                shown = len(over)
            if status.phase in OVER:
                return status
            if faults is not None:
                await faults.look(status)
            await asyncio.sleep(CLOSE_LOOK_SECONDS if faults is not None and faults.is_due else LOOK_SECONDS)


def _bear_faults(plan: Plan) -> Plan:
    """Return ``plan`` with rounds that go on without the dead."""
    return plan.model_copy(update={"cohort": plan.cohort.model_copy(update={"seconds": FAULTY_ROUND})})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
