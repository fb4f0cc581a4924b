"""A TCP proxy that counts every byte, and can cut a connection after so many of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass
class Proxy:
    """Bytes so far; ``cut_after_up`` ends the present connection once so many bytes of it went up."""

    port: int = 0
    up: int = 0
    down: int = 0
    cut_after_up: int | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def proxying(target_port: int) -> AsyncIterator[Proxy]:
    """Forward connections to ``target_port`` of this machine."""
    proxy = Proxy()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_up: bool) -> None:
        passed = 0
        while data := await reader.read(65_536):
            if is_up and proxy.cut_after_up is not None:
                data = data[: proxy.cut_after_up - passed]
            passed += len(data)
            if is_up:
                proxy.up += len(data)
            else:
                proxy.down += len(data)
            writer.write(data)
            await writer.drain()
            if is_up and proxy.cut_after_up is not None and passed >= proxy.cut_after_up:
                break

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target_port)
        ways = [
            asyncio.create_task(forward(reader, far_writer, True)),
            asyncio.create_task(forward(far_reader, writer, False)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        far_writer.close()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    async with server:
        yield proxy
