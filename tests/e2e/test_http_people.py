"""What people see: events as they happen, evaluations that fail, the page, the counters, and TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from fedge.layout import Vector
from schemas.config import ServerConfig
from schemas.status import Role, RunPhase
from server_app.errors import WorkerError
from server_app.service import Service, init_state
from tests.support.http import TASK, ReadyWorker, invited, serving, take_part


async def events_of(answer: aiohttp.ClientResponse) -> list[tuple[str, dict[str, object]]]:
    """Read server-sent events until they end."""
    found, name = [], ""
    async for line in answer.content:
        kind, _, value = line.decode().strip().partition(": ")
        if kind == "event":
            name = value
        elif kind == "data":
            found.append((name, json.loads(value)))
    return found


async def test_events_tell_each_round_and_end_with_the_run(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=2)
        headers = {"Authorization": f"Bearer {server.tokens[Role.OPERATOR]}"}
        async with server.session.get(f"{server.url}/v1/runs/{run}/events", headers=headers) as answer:
            assert answer.content_type == "text/event-stream"
            reading = asyncio.create_task(events_of(answer))
            await take_part(devices, 2)
            events = await reading
    rounds = {event["round"]: event for name, event in events if name == "round"}
    assert sorted(rounds) == [1, 2]
    assert all(event["metrics"] for event in rounds.values())
    last = [event for name, event in events if name == "run"][-1]
    assert (last["phase"], last["rounds_closed"]) == ("finished", 2)


async def test_a_device_that_died_at_work_is_offline_once_its_run_is_stopped(tmp_path: Path) -> None:
    async with serving(tmp_path, offline_seconds=0.001) as server, server.devices("a", "b") as devices:
        run = await server.start()
        await devices[0].download((await invited(devices))[0])
        for device in devices:
            await device.close()
        assert (await server.ask("GET", "/v1/status"))[1]["devices_online"] == 2
        await server.ask("POST", f"/v1/runs/{run}/stop")
        await server.until_over(run)
        assert (await server.ask("GET", "/v1/status"))[1]["devices_online"] == 0


async def test_a_refusal_says_whether_there_was_no_token_or_a_wrong_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert "got 5 characters that are none" in (await server.ask("GET", "/v1/status", "wrong"))[1]["detail"]
        enroll = (await server.ask("GET", "/v1/status", server.tokens[Role.ENROLL]))[1]["detail"]
        assert enroll == "expected a viewer token, got one for enroll"
        unknown = (await server.ask("POST", "/v1/tokens", "x" * 43, json={"role": "viewer"}))[1]["detail"]
        assert unknown == "expected an operator token, got one that is unknown"
        async with server.session.get(server.url + "/v1/status") as answer:
            assert "got none" in (await answer.json(content_type=None))["detail"]


@dataclass(frozen=True)
class BlindWorker(ReadyWorker):
    """A worker whose test data is gone."""

    async def evaluate(self, task: str, params: Vector, split: bool = False) -> dict[str, float]:
        """Fail."""
        raise WorkerError("TaskError: no test data here")


async def test_a_run_whose_evaluation_fails_finishes_and_says_why(tmp_path: Path) -> None:
    async with serving(tmp_path, BlindWorker().running) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=1)
        await take_part(devices, 1)
        status = await server.until_over(run)
    assert (status.phase, status.metrics) == (RunPhase.FINISHED, {})
    assert status.reason == "evaluation of round 1 failed: TaskError: no test data here"


@dataclass(frozen=True)
class AbsentWorker(ReadyWorker):
    """A worker that cannot make the model."""

    async def initial(self, task: str, seed: int, split: bool = False) -> tuple[object, Vector]:  # type: ignore[override]
        """Fail."""
        raise WorkerError("UnknownName: unknown task")


async def test_a_run_whose_model_cannot_be_made_fails_and_the_next_is_not_held_up(tmp_path: Path) -> None:
    async with serving(tmp_path, AbsentWorker().running) as server:
        runs = [await server.start(), await server.start()]
        for run in runs:
            status = await server.until_over(run)
            assert (status.phase, status.reason) == (RunPhase.FAILED, "UnknownName: unknown task")
        assert (await server.ask("GET", f"/v1/runs/{runs[0]}/model"))[0] == 404


async def test_the_page_the_counters_and_the_description_are_there(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a"):
        async with server.session.get(server.url + "/") as answer:
            assert "fedge" in await answer.text()
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        text = await server.metrics()
        assert "fedge_devices 1.0" in text and 'fedge_device_bytes_total{direction="up"}' in text
        async with server.session.get(server.url + "/openapi.json") as answer:
            assert (await answer.json())["openapi"].startswith("3.")
        async with server.session.get(server.url + "/readyz") as answer:
            assert (answer.status, "Server" in answer.headers, "Date" in answer.headers) == (200, False, False)
        status, body = await server.ask("GET", "/v1/nothing")
        assert (status, body["reason"]) == (404, "not_found")
        assert (await server.ask("DELETE", "/v1/runs"))[0] == 405


@asynccontextmanager
async def over_tls(folder: Path) -> AsyncIterator[tuple[Service, ssl.SSLContext]]:
    """Run an aggregator with a certificate of its own."""
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names, *files]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    config = ServerConfig(
        port=0,
        state_dir=str(folder / "state"),
        tasks=(TASK,),
        tls_certificate=str(folder / "cert.pem"),
        tls_key=str(folder / "key.pem"),
    )
    await init_state(config)
    async with Service(config, ReadyWorker().running) as service:
        yield service, ssl.create_default_context(cafile=str(folder / "cert.pem"))


async def test_it_serves_tls_where_it_has_a_certificate(tmp_path: Path) -> None:
    async with over_tls(tmp_path) as (service, trusted), aiohttp.ClientSession() as session:
        assert service.url.startswith("https://")
        async with session.get(service.url + "/healthz", ssl=trusted) as answer:
            assert answer.status == 200


async def test_a_restart_keeps_devices_runs_and_what_was_counted(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        run = await server.start(rounds=1)
        await take_part(devices, 1)
        await server.until_over(run)
        _, before = await server.ask("GET", f"/v1/runs/{run}")
    async with serving(tmp_path) as server:
        _, after = await server.ask("GET", f"/v1/runs/{run}")
        _, listed = await server.ask("GET", "/v1/devices")
        known = server.device("a")
        known.id = "a"
        assert [receipt.outcome for receipt in await known.receipts(run)] == ["applied"]
        await known.close()
    assert after == before
    assert [(d["device"], d["updates_applied"], d["is_online"]) for d in listed["devices"]] == [
        ("a", 1, False),
        ("b", 1, False),
    ]
    assert all(d["traffic"]["up"] > 0 for d in listed["devices"])


async def test_ending_answers_parked_polls_and_leaves_the_round_open(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b", "c") as devices:
        await server.start()
        asked = await invited(devices[:2])
        await devices[0].upload(asked[0])
        parked = asyncio.create_task(devices[0].work(pending=asked[0]))
        await asyncio.sleep(0)
    await asyncio.gather(parked, return_exceptions=True)
    assert (tmp_path / "runs" / asked[0].run / "round-1.journal").stat().st_size > 1000
