"""The aggregator's REST interface for people and their scripts.

    async with Client("http://127.0.0.1:8080", token) as client:
        run = await client.start(plan)
        async for status in client.watch(run.run):
            ...

Answers are the models of ``schemas.status``. A problem document (RFC 9457) becomes the exception that says what a
caller can do about it:

    ClientError
    ├── Unreachable   nobody answers there, or not with HTTP of ours
    ├── Refused       401, 403: the token is missing, unknown or allows too little
    ├── NotFound      404
    ├── Invalid       400, 409, 422: the request breaks a rule; ``problem.faults`` has one entry for each
    └── Broken        every other status: the fault is the aggregator's
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp

from schemas.base import Model, parse
from schemas.errors import InvalidInput
from schemas.plan import Plan
from schemas.status import (
    DeviceList,
    Problem,
    RoundList,
    RunList,
    RunPhase,
    RunStatus,
    RunSummary,
    ServerStatus,
    Token,
    TokenRequest,
)

M = TypeVar("M", bound=Model)

ANSWER_SECONDS = 60.0
LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 120.0
LONGEST_PAUSE_SECONDS = 8.0
OVER = (RunPhase.FINISHED, RunPhase.STOPPED, RunPhase.FAILED)


class ClientError(Exception):
    """Base of everything a ``Client`` raises on purpose; ``problem`` is what the aggregator said, if it spoke."""

    def __init__(self, message: str, problem: Problem | None = None) -> None:
        super().__init__(message)
        self.problem = problem


class Unreachable(ClientError):
    """Nobody answers there."""


class Refused(ClientError):
    """The token is missing, unknown or allows too little."""


class NotFound(ClientError):
    """No such thing."""


class Invalid(ClientError):
    """The request breaks a rule."""


class Broken(ClientError):
    """The aggregator failed."""


_BY_STATUS: dict[int, type[ClientError]] = {
    400: Invalid,
    401: Refused,
    403: Refused,
    404: NotFound,
    409: Invalid,
    422: Invalid,
}


class Client:
    """One connection pool to one aggregator; use it as an async context manager."""

    def __init__(self, server: str, token: str = "") -> None:
        self.server = server.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def status(self) -> ServerStatus:
        """Return the aggregator at a glance."""
        return await self._get("/v1/status", ServerStatus)

    async def devices(self) -> DeviceList:
        """Return all enrolled devices."""
        return await self._get("/v1/devices", DeviceList)

    async def runs(self) -> RunList:
        """Return all runs, newest first."""
        return await self._get("/v1/runs", RunList)

    async def run(self, run: str) -> RunStatus:
        """Return one run; ``NotFound`` if there is none of this name."""
        return await self._get(f"/v1/runs/{run}", RunStatus)

    async def rounds(self, run: str) -> RoundList:
        """Return all rounds of a run, oldest first."""
        return await self._get(f"/v1/runs/{run}/rounds", RoundList)

    async def start(self, plan: Plan) -> RunSummary:
        """Start a run, or queue it behind the one under way; ``Invalid`` names what the aggregator cannot do."""
        return await self._post("/v1/runs", plan, RunSummary)

    async def stop(self, run: str) -> RunStatus:
        """Stop a run; its last published model stays."""
        return await self._post(f"/v1/runs/{run}/stop", None, RunStatus)

    async def create_token(self, request: TokenRequest) -> Token:
        """Return a fresh token. It is shown this once."""
        return await self._post("/v1/tokens", request, Token)

    async def model(self, run: str) -> bytes:
        """Return the run's published model as a safetensors file."""
        return await self._request("GET", f"/v1/runs/{run}/model")

    async def export(self, run: str, path: Path) -> int:
        """Write the run's published model to ``path``, whole or not at all; returns its size in bytes."""
        data = await self.model(run)
        await asyncio.to_thread(_write, path, data)
        return len(data)

    async def watch(
        self,
        run: str,
        every_seconds: float = LOOK_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        on_lost: Callable[[Unreachable], None] = lambda error: None,
    ) -> AsyncIterator[RunStatus]:
        """Yield the run's status whenever it changed, the last one when the run is over.

        An aggregator that was there and is gone gets ``patience_seconds`` to come back; ``on_lost`` hears of it once.
        """
        before: RunStatus | None = None
        while before is None or before.phase not in OVER:
            now = await self._look(run, every_seconds, patience_seconds if before else 0.0, on_lost)
            if now != before:
                yield now
            before = now
            if now.phase not in OVER:
                await asyncio.sleep(every_seconds)

    async def _look(
        self, run: str, pause: float, patience_seconds: float, on_lost: Callable[[Unreachable], None]
    ) -> RunStatus:
        """Return the run, asked for again at growing intervals while nobody answers."""
        loop = asyncio.get_running_loop()
        give_up_at, is_told = loop.time() + patience_seconds, False
        while True:
            try:
                return await self.run(run)
            except Unreachable as error:
                if loop.time() + pause >= give_up_at:
                    raise
                if not is_told:
                    on_lost(error)
                is_told = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _get(self, path: str, model: type[M]) -> M:
        return _read(model, await self._request("GET", path), path)

    async def _post(self, path: str, body: Model | None, model: type[M]) -> M:
        document = None if body is None else body.model_dump(mode="json")
        return _read(model, await self._request("POST", path, document), path)

    async def _request(self, method: str, path: str, document: object = None) -> bytes:
        if self._session is None:
            raise RuntimeError("use the client in 'async with'")
        try:
            async with self._session.request(method, self.server + path, json=document) as response:
                body = await response.read()
        except TimeoutError as error:
            raise Unreachable(f"{self.server} gave no answer in {ANSWER_SECONDS:g} s") from error
        except aiohttp.InvalidURL as error:
            raise Unreachable(f"expected a server such as http://127.0.0.1:8080, got {self.server!r}") from error
        except aiohttp.ClientError as error:
            raise Unreachable(f"cannot reach {self.server}: {error or type(error).__name__}") from error
        if response.status >= 400:
            raise _refusal(response.status, body, f"{method} {path}")
        return body


def _refusal(status: int, body: bytes, what: str) -> ClientError:
    kind = _BY_STATUS.get(status, Broken)
    try:
        problem = parse(Problem, json.loads(body), "problem")
    except (ValueError, InvalidInput):
        return kind(f"{what} was answered with {status}: {body[:200].decode('utf-8', 'replace')}")
    faults = "".join(f"\n  {fault.get('key', '')}: {fault.get('message', '')}" for fault in problem.faults)
    return kind(f"{problem.detail or problem.title}{faults}", problem)


def _read(model: type[M], body: bytes, path: str) -> M:
    try:
        document: Any = json.loads(body)
        return parse(model, document, path)
    except InvalidInput as error:
        raise Unreachable(f"expected an aggregator of this version of fedge: {error}") from error
    except ValueError as error:
        raise Unreachable(f"expected JSON from {path}, got {body[:60]!r}") from error


def _write(path: Path, data: bytes) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(data)
    unfinished.replace(path)
