"""Requests that make no sense get an answer that says so, and never a 500."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from schemas.errors import InvalidInput
from schemas.ids import DeviceId
from schemas.messages import Enroll, TaskOffer
from schemas.packing import pack
from tests.support.http import LAYOUT, TASK, Refused, Serving, plan, serving

TOML = "application/toml"
JSON = "application/json"
DEEP = 20_000


async def post(server: Serving, path: str, body: bytes, content_type: str) -> tuple[int, str]:
    """Return status and reason."""
    status, answer = await server.ask("POST", path, data=body, headers={"Content-Type": content_type})
    return status, answer["reason"]


BODIES = {
    "no UTF-8": (b'{"rounds": "\xff"}', JSON, 400, "encoding"),
    "no UTF-8 in TOML": (b'task = "\xff"', TOML, 400, "encoding"),
    "an unknown charset": (b"{}", JSON + "; charset=klingon", 422, "invalid"),
    "deep JSON": (b"[" * DEEP, JSON, 422, "invalid"),
    "deep JSON that ends": (b'{"task":' + b"[" * 900 + b"]" * 900 + b"}", JSON, 422, "invalid"),
    "deep TOML": (b"a = " + b"[" * DEEP, TOML, 422, "invalid"),
    "a TOML number without end": (b"rounds = " + b"9" * 5000, TOML, 422, "invalid"),
    "a JSON number without end": (b'{"rounds": ' + b"9" * 5000 + b"}", JSON, 422, "invalid"),
    "half a character": (json.dumps(plan(task="\ud800")).encode(), JSON, 422, "invalid"),
    "no number": (b'{"task": "a:b", "rounds": NaN}', JSON, 422, "invalid"),
    "more than a plan takes": (b" " * 70_000, JSON, 413, "too_large"),
    "far more than a plan takes": (b" " * 2_000_000, JSON, 413, "too_large"),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_a_body_that_is_no_plan_is_refused(tmp_path: Path, body: tuple[bytes, str, int, str]) -> None:
    data, content_type, status, reason = body
    async with serving(tmp_path) as server:
        assert await post(server, "/v1/runs", data, content_type) == (status, reason)
        if content_type != TOML:
            assert await post(server, "/v1/tokens", data, content_type) == (status, reason)


async def test_more_than_a_plan_takes_is_refused_without_a_declared_length(tmp_path: Path) -> None:
    async def in_pieces() -> object:
        for _ in range(7):
            yield b" " * 10_000

    async with serving(tmp_path) as server:
        headers = {"Content-Type": JSON}
        status, answer = await server.ask("POST", "/v1/runs", data=in_pieces(), headers=headers)
        assert (status, answer["reason"]) == (413, "too_large")


@pytest.mark.parametrize(
    "query",
    ["run=a&round=99999999999999999999", "run=a&round=0", "run=a&round=-1", "run=A%20B&round=1", "run=%ff&round=1"],
)
async def test_a_poll_for_a_round_that_cannot_be_is_refused(tmp_path: Path, query: str) -> None:
    async with serving(tmp_path) as server, server.devices("a") as (a,):
        with pytest.raises(Refused) as caught:
            await a.send("GET", f"/v1/work?wait=0&{query}")
        assert caught.value.problem.status in (404, 422)


async def test_paths_that_no_database_takes_are_not_found(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a") as (a,):
        for token in (next(iter(server.tokens.values())), a.credential):
            for path in (b"/v1/runs/\xff", b"/v1/runs/%00", b"/v1/runs/%ff/rounds", b"/v1/devices/\xff"):
                for target in (path, path + b"/rounds/1/updates/me", path + b"/download?round=1"):
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.service.port)
                    head = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer "
                    writer.write(head + token.encode() + b"\r\n\r\n")
                    answer = await reader.read()
                    assert answer.split()[1][:1] == b"4", (target, answer)
                    writer.close()
        with pytest.raises(Refused) as caught:
            await a.send("GET", "/v1/receipts?run=%ed%a0%80")
        assert caught.value.problem.status == 422


async def test_a_secret_that_is_malformed_is_not_repeated(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a") as (a,):
        offer = {TASK: TaskOffer(num_examples=1, layout=LAYOUT.digest)}
        message = pack(Enroll(credential=a.credential, name=DeviceId("a"), token="t" * 43, tasks=offer))
        with pytest.raises(Refused) as caught:
            await a.send("POST", "/v1/enroll", data=message.replace(b"t" * 43, b"t" * 42 + b"!"))
        assert caught.value.problem.status == 422
        assert "t" * 42 not in caught.value.problem.detail
        _, shown = await server.ask("GET", "/v1/devices/a")
        assert "token" in shown["last_error"]
        assert "t" * 42 not in shown["last_error"]


def test_an_offer_of_more_examples_than_can_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal"):
        TaskOffer(num_examples=2**53 + 1, layout=LAYOUT.digest)
    assert issubclass(InvalidInput, ValueError)
