"""One keep-alive HTTP connection to the aggregator, a WebSocket where one is asked for, and what its answers mean.

    200, 201, 204   an answer
    401, 403        Unauthorised: a person has to enrol this device, unless the problem's reason says ``not_invited``
    404, 410        RoundGone
    408, 429, 5xx   Unreachable, with the Retry-After of the answer
    any other 4xx   Declined
    no answer       Unreachable

Bytes count on a metered link: requests carry no header that HTTP/1.1 does not demand, bodies a Content-Length, and
the connection stays open between requests. Nothing is tried again here: that is the participant machine's business.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from yarl import URL

from device_app.errors import AggregatorError, Declined, NoWebSocket, RoundGone, Unauthorised, Unreachable
from device_app.home import REMEDY
from schemas.base import parse
from schemas.config import DeviceConfig
from schemas.status import Problem

STALL_SECONDS = 60.0
HEARTBEAT_SECONDS = 20.0
CONNECTIONS = 2
"""One, which is kept, and one more while a WebSocket holds it."""
"""How long an answer may bring not a single byte."""
SLOWEST_BYTES_PER_SECOND = 32.0
"""A slower upload is given up: it would hold the device for hours."""
MAX_PROBLEM_BYTES = 1 << 16
_UNSENT = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries: ``size_bytes`` in all, made piece by piece. ``pieces`` may be called once."""

    size_bytes: int
    pieces: Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request, its body yet to be read."""

    status: int
    chunks: AsyncIterator[bytes]

    async def read(self, max_bytes: int) -> bytes:
        """Return the body.

        Raises:
            Unreachable: it is longer than ``max_bytes``, or breaks off.
        """
        data = bytearray()
        async for chunk in self.chunks:
            data += chunk
            if len(data) > max_bytes:
                raise Unreachable(f"expected an answer of at most {max_bytes} bytes, got more", "too_long")
        return bytes(data)


class Link(Protocol):
    """Carries requests to the aggregator."""

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        patience_seconds: float = STALL_SECONDS,
    ) -> AbstractAsyncContextManager[Answer]:
        """Send a request, return its successful answer.

        ``patience_seconds`` bounds the wait for the answer's head once the body is sent.

        Raises:
            AggregatorError: there was no answer, or none that is a success.
        """
        ...

    def socket(self, path: str, query: Mapping[str, str], max_bytes: int) -> AbstractAsyncContextManager[Socket]:
        """Hold a WebSocket whose messages have at most ``max_bytes``.

        Raises:
            NoWebSocket: there is a connection, but no WebSocket; a plain request says why.
            Unreachable: there is no connection.
        """
        ...


class Socket(Protocol):
    """A WebSocket that carries bytes."""

    async def send(self, data: bytes) -> None:
        """Send a message.

        Raises:
            Unreachable: the connection is gone.
        """
        ...

    async def receive(self) -> bytes:
        """Return the next message.

        Raises:
            Declined: the aggregator hung up because of what it was sent.
            Unreachable: the connection is gone.
        """
        ...


@dataclass(frozen=True, slots=True)
class HttpLink:
    """A link over one connection of ``session``."""

    session: aiohttp.ClientSession
    server: URL
    headers: Mapping[str, str]

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        patience_seconds: float = STALL_SECONDS,
    ) -> AsyncIterator[Answer]:
        """See ``Link``."""
        url = self.server / path
        headers = dict(self.headers)
        data: AsyncIterator[bytes] | None = None
        sending = 0.0
        if body is not None:
            headers["Content-Length"] = str(body.size_bytes)
            sending = body.size_bytes / SLOWEST_BYTES_PER_SECOND
            data = body.pieces()
        try:
            async with asyncio.timeout(patience_seconds + sending) as deadline:
                request = self.session.request(method, url, params=query, headers=headers, data=data)
                async with request as response:
                    if response.status >= 300:
                        raise await _error(response)
                    yield Answer(response.status, _chunks(response, deadline))
        except TimeoutError as error:
            raise Unreachable(f"{method} {url}: no answer within its time", "timeout") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{method} {url}: {said(error)}", "no_connection") from error

    @asynccontextmanager
    async def socket(self, path: str, query: Mapping[str, str], max_bytes: int) -> AsyncIterator[Socket]:
        """See ``Link``."""
        url = self.server / path
        try:
            async with asyncio.timeout(STALL_SECONDS):
                # The heartbeat notices a dead link; a long wait for an answer is none.
                found = await self.session.ws_connect(
                    url, params=query, headers=self.headers, heartbeat=HEARTBEAT_SECONDS, max_msg_size=max_bytes
                )
        except TimeoutError as error:
            raise Unreachable(f"{url}: no WebSocket within its time", "timeout") from error
        except aiohttp.WSServerHandshakeError as error:
            raise NoWebSocket(f"{url}: expected a WebSocket, got status {error.status}", "no_websocket") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{url}: {said(error)}", "no_connection") from error
        try:
            yield HttpSocket(found, str(url))
        finally:
            await found.close()


@dataclass(frozen=True, slots=True)
class HttpSocket:
    """A WebSocket of aiohttp's."""

    socket: aiohttp.ClientWebSocketResponse
    name: str

    async def send(self, data: bytes) -> None:
        """See ``Socket``."""
        try:
            await self.socket.send_bytes(data)
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{self.name}: {said(error)}", "no_connection") from error

    async def receive(self) -> bytes:
        """See ``Socket``."""
        message = await self.socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            return bytes(message.data)
        why = f"{self.name}: the WebSocket ended, {_closed(message, self.socket)}"
        if self.socket.close_code == aiohttp.WSCloseCode.UNSUPPORTED_DATA:
            raise Declined(why, "refused")
        raise Unreachable(why, "no_connection")


def _closed(message: aiohttp.WSMessage, socket: aiohttp.ClientWebSocketResponse) -> str:
    """Return how a WebSocket ended, in words."""
    if message.type is aiohttp.WSMsgType.CLOSE:
        return f"code {message.data} {message.extra or ''}".strip()
    return str(socket.exception() or f"code {socket.close_code}")


@asynccontextmanager
async def connect(config: DeviceConfig, credential: str) -> AsyncIterator[HttpLink]:
    """Hold a link to the aggregator of ``config``; it connects on the first request."""
    context = ssl.create_default_context(cafile=config.tls_ca) if config.tls_ca else True
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=context, keepalive_timeout=600.0)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),
        skip_auto_headers=_UNSENT,
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield HttpLink(session, URL(config.server), {"Authorization": f"Bearer {credential}"})


def said(error: Exception) -> str:
    """Return why there is no connection, without the address, which the caller names."""
    cause: BaseException = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and (cause.errno or 0) > 0 and not isinstance(cause, ssl.SSLError):
        return os.strerror(cause.errno or 0).lower()
    return str(cause) or type(cause).__name__


async def _chunks(response: aiohttp.ClientResponse, deadline: asyncio.Timeout) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    deadline.reschedule(loop.time() + STALL_SECONDS)
    async for chunk in response.content.iter_any():
        yield chunk
        deadline.reschedule(loop.time() + STALL_SECONDS)


async def _error(response: aiohttp.ClientResponse) -> AggregatorError:
    """Return the error that a refusing answer stands for."""
    problem = _problem(response.status, await response.content.read(MAX_PROBLEM_BYTES))
    said = f"the aggregator answered {response.status} to {response.method} {response.url.path}"
    message = f"{said}: {problem.detail or problem.title}"
    wait = _seconds(response.headers.get("Retry-After"))
    if response.status in (401, 403) and problem.reason != "not_invited":
        return Unauthorised(f"{message}; {REMEDY} with a token it gave", problem.reason)
    if response.status in (403, 404, 410):
        return RoundGone(message, problem.reason)
    if response.status in (408, 429) or response.status >= 500:
        return Unreachable(message, problem.reason, wait)
    return Declined(message, problem.reason)


def _problem(status: int, body: bytes) -> Problem:
    """Return the problem document in ``body``, or one that says as much as the status does."""
    try:
        return parse(Problem, json.loads(body), "problem")
    except ValueError:  # no JSON, no text, or no problem document
        return Problem(title=f"status {status}", status=status, detail="", reason="no_reason")


def _seconds(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
