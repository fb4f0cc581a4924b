"""An aggregator that is killed goes on where it was: same round, same sums, same model to the bit."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from schemas.config import ServerConfig
from schemas.messages import Assignment
from schemas.specs import Limits, LinkLimit
from schemas.status import Role, RunStatus
from server_app import driver
from server_app.blobs import RunFiles
from server_app.service import init_state
from server_app.store import Store
from tests.support.aggregator_process import process
from tests.support.http import TASK, Device, initial_params, invited, plan, serving, take_part

KILLS = ("nowhere", "after half an update", "after one update", "at once after the last update")
FEDDYN = {"name": "feddyn", "alpha": 0.1}


class Killable:
    """An aggregator that dies when told and comes back on the same state and port."""

    def __init__(self, state_dir: Path, kill_at: str, how: signal.Signals) -> None:
        self.state_dir, self.kill_at, self.how = state_dir, kill_at, how
        self.tokens: dict[Role, str] = {}
        self.is_killed = False

    async def __aenter__(self) -> Killable:
        self.tokens = await init_state(ServerConfig(state_dir=str(self.state_dir), tasks=(TASK,)))
        await self._start(0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._running.__aexit__(None, None, None)

    async def _start(self, port: int) -> None:
        self._running = process(self.state_dir, port)
        self.child, self.port = await self._running.__aenter__()
        self.url = f"http://127.0.0.1:{self.port}"

    async def pass_by(self, point: str) -> None:
        """Die here, if this is the point, and come back; once."""
        if point != self.kill_at or self.is_killed:
            return
        self.is_killed = True
        self.child.send_signal(self.how)
        await self.child.wait()
        await self._start(self.port)

    async def ask(self, path: str, method: str = "GET", **how: object) -> bytes:
        """Ask as an operator."""
        headers = {"Authorization": f"Bearer {self.tokens[Role.OPERATOR]}"}
        asking = aiohttp.request(method, self.url + path, headers=headers, **how)  # type: ignore[arg-type]
        async with asking as answer:
            body = await answer.read()
            assert answer.status < 300, body
            return body

    async def until_over(self, run: str) -> RunStatus:
        """Wait for the run's end."""
        while (status := RunStatus.model_validate_json(await self.ask(f"/v1/runs/{run}"))).ended_at is None:
            pass
        return status


@asynccontextmanager
async def fleet(server: Killable, **limits: Limits) -> AsyncIterator[list[Device]]:
    """Yield two enrolled devices, a and b; ``limits`` by name."""
    enroll = server.tokens[Role.ENROLL]
    devices = [Device(server.url, name, enroll, limits=limits.get(name, Limits())) for name in ("a", "b")]
    try:
        for device in devices:
            await device.enroll()
        yield devices
    finally:
        for device in devices:
            await device.close()


async def one_round(server: Killable, devices: list[Device], pending: list[Assignment]) -> list[Assignment]:
    """Let a round pass; each device acts as one that forgets nothing: it asks what arrived and sends the rest."""
    a, b = devices
    asked = await invited(devices, pending)
    await a.upload(asked[0], a.frames(asked[0])[:4])
    await server.pass_by("after half an update")
    held = await a.update_status(asked[0])
    assert len(held.segments) == 4
    assert (await a.upload(asked[0], a.frames(asked[0])[4:])).is_complete
    await server.pass_by("after one update")
    await b.upload(asked[1])
    await server.pass_by("at once after the last update")
    return asked


async def play(
    state_dir: Path, kill_at: str, how: signal.Signals = signal.SIGKILL, weights: str = "plain", **limits: Limits
) -> tuple[bytes, RunStatus]:
    """Run two rounds, killing the aggregator in the first; returns the model and the run."""
    async with Killable(state_dir, kill_at, how) as server, fleet(server, **limits) as devices:
        await server.ask("/v1/runs", "POST", json=plan(algorithm=FEDDYN, aggregation={"weights": weights}))
        asked = await one_round(server, devices, [])
        await one_round(server, devices, asked)
        status = await server.until_over("tiny-task-1")
        receipts = await devices[0].receipts("tiny-task-1")
        assert [(r.round, r.outcome) for r in receipts] == [(1, "applied"), (2, "applied")]
        return await server.ask("/v1/runs/tiny-task-1/model"), status


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model of a run that nothing happened to."""
    return asyncio.run(play(tmp_path_factory.mktemp("undisturbed"), "nowhere"))[0]


@pytest.mark.parametrize("kill_at", KILLS[1:])
async def test_a_killed_aggregator_ends_with_the_same_model(tmp_path: Path, undisturbed: bytes, kill_at: str) -> None:
    model, status = await play(tmp_path, kill_at)
    assert model == undisturbed
    assert status.initial_metrics == {"mean": float(initial_params(5).mean())}
    assert (status.phase, status.rounds_closed, status.rounds_abandoned) == ("finished", 2, 0)


async def test_an_aggregator_that_is_asked_to_end_goes_on_with_the_same_round(
    tmp_path: Path, undisturbed: bytes
) -> None:
    model, _ = await play(tmp_path, "after half an update", signal.SIGTERM)
    assert model == undisturbed


async def test_a_killed_aggregator_shrinks_the_mean_of_unlike_rates_to_the_same_model(
    tmp_path: Path, undisturbed: bytes
) -> None:
    slow = Limits(uplink=LinkLimit(bits=0.5))
    killed, _ = await play(tmp_path / "killed", "after one update", weights="shrinkage", a=slow)
    calm, _ = await play(tmp_path / "calm", "nowhere", weights="shrinkage", a=slow)
    assert killed == calm != undisturbed


async def until_broken(state_dir: Path, crash: pytest.MonkeyPatch) -> list[Assignment]:
    """Send the updates of round 1 to an aggregator that breaks down over them; returns what was asked."""
    asked: list[Assignment] = []
    with pytest.raises(BaseExceptionGroup) as caught:
        async with serving(state_dir) as server, server.devices("a", "b") as devices:
            await server.start(algorithm=FEDDYN)
            asked += await invited(devices)
            for device, one in zip(devices, asked, strict=True):
                await device.upload(one)
            await asyncio.get_running_loop().create_future()
    assert caught.value.subgroup(lambda error: "power cut" in str(error)) is not None
    crash.undo()
    return asked


@pytest.mark.parametrize("moment", ["before the state file", "before the transaction", "after the transaction"])
async def test_a_crash_between_any_two_writes_of_a_closing_round_is_safe(
    tmp_path: Path, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def power_cut(*arguments: object) -> None:
        raise RuntimeError("power cut")

    match moment:
        case "before the state file":
            # The initial state is written, too; only that of round 1 must fail.
            real = driver.save_state
            cut = lambda path, state: power_cut() if path.name == "round-1.state" else real(path, state)  # noqa: E731
            monkeypatch.setattr(driver, "save_state", cut)
        case "before the transaction":
            monkeypatch.setattr(Store, "end_round", power_cut)
        case _:
            monkeypatch.setattr(RunFiles, "prune", power_cut)
    asked = await until_broken(tmp_path, monkeypatch)
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        receipts = await asyncio.gather(*(d.receipt(one) for d, one in zip(devices, asked, strict=True)))
        assert [receipt.outcome for receipt in receipts] == ["applied", "applied"]
        await take_part(devices, 1)
        assert (await server.until_over(asked[0].run)).rounds_closed == 2
        headers = {"Authorization": f"Bearer {server.tokens[Role.OPERATOR]}"}
        async with server.session.get(f"{server.url}/v1/runs/{asked[0].run}/model", headers=headers) as answer:
            assert await answer.read() == undisturbed
