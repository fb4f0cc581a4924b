"""The aggregator as one async context manager: everything it owns is opened, and closed, here.

    async with Service(config) as service:      # service.port, service.url
        await service.wait_closed()             # until service.stop(), SIGTERM or SIGINT through ``serve``

Closing is graceful: no new requests, parked polls are answered, frames under way become durable, the run stays as it is
and goes on at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from schemas.config import ServerConfig
from schemas.status import Role
from server_app.app import make_app
from server_app.auth import hash_secret, new_secret
from server_app.context import Context
from server_app.devices import Devices, from_row
from server_app.errors import ServerError
from server_app.federation import Federation
from server_app.house import Changes, House
from server_app.intake import Intake
from server_app.problems import Rejections
from server_app.store import Store
from server_app.traffic import TrafficBook
from server_app.worker import Evaluator, Worker

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
SHUTDOWN_SECONDS = 10.0
SAVE_SECONDS = 60.0

OpenWorker = Callable[[], AbstractAsyncContextManager[Evaluator]]
"""What makes the worker, and ends it."""


class Service:
    """A running aggregator."""

    def __init__(self, config: ServerConfig, worker: OpenWorker = Worker.running) -> None:
        self.config = config
        self._worker = worker
        self.port = config.port
        self._stack = AsyncExitStack()
        self._closed = asyncio.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        scheme = "https" if self.config.tls_certificate else "http"
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{scheme}://{host}:{self.port}"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            context = await stack.enter_async_context(_house(self.config, self._worker))
            self.context = context
            self.port = await stack.enter_async_context(_listening(context))
            self._stack = stack.pop_all()
        log.info("aggregator listens", extra={"url": self.url})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    def stop(self) -> None:
        """Let ``wait_closed`` return."""
        self._closed.set()

    async def wait_closed(self) -> None:
        """Wait for ``stop``."""
        await self._closed.wait()


async def serve(config: ServerConfig) -> None:
    """Run an aggregator until SIGTERM or SIGINT."""
    async with Service(config) as service:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.stop)
        await service.wait_closed()


async def init_state(config: ServerConfig) -> dict[Role, str]:
    """Make the state directory and database if need be; return a fresh operator and a fresh enrolment token.

    The database keeps their hashes only, so they are shown now or never. An aggregator reads them when it starts.
    """
    state_dir = await asyncio.to_thread(_state_dir, config)
    tokens = {role: new_secret() for role in (Role.OPERATOR, Role.ENROLL)}
    async with Store.open(config.database_url, state_dir) as store:
        for role, secret in tokens.items():
            await store.add_token(hash_secret(secret), role, "fedge-server init", time.time())
    return tokens


def _state_dir(config: ServerConfig) -> Path:
    path = Path(config.state_dir)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


@asynccontextmanager
async def _house(config: ServerConfig, open_worker: OpenWorker) -> AsyncIterator[Context]:
    """Open everything but the sockets, and start what runs in the background."""
    state_dir = await asyncio.to_thread(_state_dir, config)
    async with (
        Store.open(config.database_url, state_dir) as store,
        open_worker() as worker,
        Worker.running() as back_worker,
        asyncio.TaskGroup() as group,
    ):
        clock = asyncio.get_running_loop().time
        devices = Devices(config.offline_seconds, clock, time.time)
        for row in await store.devices():
            devices.add(from_row(row))
        house = House(
            state_dir,
            config.offline_seconds,
            store,
            devices,
            worker,
            TrafficBook(),
            Changes(),
            clock,
            time.time,
            group.create_task,
            config.max_download_state_bytes,
            back_worker,
            config.split_device,
        )
        federation = Federation(house, config.tasks)
        context = Context(
            config,
            house,
            federation,
            Intake(asyncio.Semaphore(config.max_uploads), max(1, config.max_frames_in_flight // config.max_uploads)),
            await store.tokens(),
            Rejections(),
            time.time(),
            asyncio.Event(),
        )
        running = [group.create_task(federation.run()), group.create_task(_save_now_and_then(house, federation))]
        failure: Exception | None = None
        try:
            yield context
        except Exception as error:
            failure = error  # raised again below, where the task group does not wrap it
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            if federation.driver is not None:
                await federation.driver.settle()
            await store.save_devices(devices.take_changed())
    if failure is not None:
        raise failure


async def _save_now_and_then(house: House, federation: Federation) -> None:
    """Write down now and then who was there, which every round's end does, too, and what sockets have carried."""
    while True:
        await asyncio.sleep(SAVE_SECONDS)
        if federation.driver is not None:
            federation.driver.note_traffic()
        try:
            await house.store.save_devices(house.devices.take_changed())
        except (OSError, SQLAlchemyError):
            # Nothing that counts is lost: who was seen when, and their traffic, come with the next request.
            log.exception("devices not saved")


@asynccontextmanager
async def _listening(context: Context) -> AsyncIterator[int]:
    """Serve HTTP; yields the port."""
    runner = web.AppRunner(
        make_app(context),
        access_log=None,
        auto_decompress=False,
        read_bufsize=READ_BYTES,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    await runner.setup()
    await context.federation.is_ready.wait()
    try:
        port = context.config.port
        for family, address in await _addresses(context.config):
            listener = context.house.traffic.listen(family, (address[0], port, *address[2:]))
            await web.SockSite(runner, listener, ssl_context=_tls(context.config)).start()
            port = int(listener.getsockname()[1])
        yield port
    finally:
        context.is_ending.set()
        context.house.changes.notify()
        for device in context.house.devices.by_id:
            context.house.devices.wake(device)
        await runner.cleanup()


async def _addresses(config: ServerConfig) -> list[tuple[int, tuple[Any, ...]]]:
    loop = asyncio.get_running_loop()
    flags, kind = socket.AI_PASSIVE, socket.SOCK_STREAM
    try:
        found = await loop.getaddrinfo(config.host, config.port, type=kind, flags=flags)
    except socket.gaierror as error:
        raise ServerError(f"expected an address of this machine as host, got {config.host!r}: {error}") from error
    return [(family, tuple(address)) for family, _, _, _, address in found]


def _tls(config: ServerConfig) -> ssl.SSLContext | None:
    if not config.tls_certificate:
        return None
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(config.tls_certificate, config.tls_key or None)
    return tls
