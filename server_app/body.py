"""The body of an upload, taken from the socket as it arrives.

A connection that dies loses nothing that came before: a pump takes bytes off aiohttp's stream the moment they are
there, while ``pieces`` hands them on at the pace of the disk. What is held is bounded, and a full hold stops the pump,
the stream and at last the sender.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from aiohttp import StreamReader
from aiohttp.client_exceptions import ClientError
from aiohttp.web import RequestPayloadError

from server_app.errors import Refused

log = logging.getLogger(__name__)

HELD_BYTES = 256 * 1024
GRACE_SECONDS = 30.0
"""How long a body may take before its speed matters."""


class Body:
    """One upload body of at most ``max_bytes``. Slower than ``min_rate`` bytes a second, it is cut."""

    def __init__(
        self, stream: StreamReader, max_bytes: int, min_rate: float, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self.is_cut = False
        """Whether the connection died, or was too slow, before the body ended."""
        self._stream = stream
        self._max_bytes = max_bytes
        self._min_rate = min_rate
        self._grace_seconds = grace_seconds
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._is_done = False
        self._pumping: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[Self]:
        """Take what arrives while the block runs."""
        self._pumping = asyncio.create_task(self._pump())
        try:
            yield self
        finally:
            self._pumping.cancel()
            await asyncio.wait([self._pumping])

    def cut(self) -> None:
        """End the body here: the same device sends another one."""
        self.is_cut = self._is_done = True
        self._changed.set()

    async def _pump(self) -> None:
        """Take what arrives until the body ends or breaks off."""
        waited, received, is_whole = 0.0, 0, False
        clock = asyncio.get_running_loop().time
        try:
            while not self._is_done:
                started = clock()
                async with asyncio.timeout(self._patience(waited, received)):
                    piece = await self._stream.readany()
                waited += clock() - started
                is_whole = not piece and self._stream.at_eof()
                received += len(piece)
                self._hold(piece)
                if is_whole or received > self._max_bytes:
                    break
                await self._room()
        except (ConnectionError, ClientError, RequestPayloadError, TimeoutError, RuntimeError) as error:
            # A RuntimeError is aiohttp's word for reading on where the connection is closed already.
            log.info("upload cut", extra={"bytes": received, "why": str(error) or type(error).__name__})
        finally:
            self.is_cut = not is_whole
            self._is_done = True
            self._changed.set()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield what was taken; ends with the body, or where it broke off.

        Raises:
            Refused: 413, more than ``max_bytes``.
        """
        total = 0
        while self._held or not self._is_done:
            if not self._held:
                self._changed.clear()
                await self._changed.wait()
                continue
            piece = self._held.popleft()
            self._held_bytes -= len(piece)
            self._changed.set()
            total += len(piece)
            if total > self._max_bytes:
                raise too_large(self._max_bytes)
            yield piece

    def _hold(self, piece: bytes) -> None:
        self._held.append(piece)
        self._held_bytes += len(piece)
        self._changed.set()

    async def _room(self) -> None:
        while self._held_bytes > HELD_BYTES:
            self._changed.clear()
            await self._changed.wait()

    def _patience(self, waited: float, received: int) -> float | None:
        if self._min_rate <= 0:
            return None
        return max(self._grace_seconds + received / self._min_rate - waited, 0.0)


def too_large(max_bytes: int) -> Refused:
    """Return the refusal of a body over its cap."""
    return Refused(413, "too_large", f"expected at most {max_bytes} bytes of update, got more")
