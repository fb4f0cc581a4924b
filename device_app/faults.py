"""Links that fail on purpose, for demonstrations and tests.

``CutLink`` closes the connection in the middle of an upload, as a train in a tunnel would: what left before the cut
is with the aggregator, and the device has to ask what that was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace

from device_app.transport import STALL_SECONDS, Answer, Body, Link, Socket


class CutOnPurpose(ConnectionError):
    """The connection was closed by ``CutLink``."""


@dataclass(slots=True)
class CutLink:
    """Cuts the first upload of every ``every``-th round after ``fraction`` of its bytes; all else passes."""

    link: Link
    fraction: float
    every: int = 1
    _seen: set[str] = field(default_factory=set)

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        patience_seconds: float = STALL_SECONDS,
    ) -> AbstractAsyncContextManager[Answer]:
        """See ``Link``."""
        if method == "PUT" and body is not None and path not in self._seen:
            self._seen.add(path)
            if (len(self._seen) - 1) % self.every == 0:
                body = cut(body, int(self.fraction * body.size_bytes))
        return self.link.request(method, path, query, body, patience_seconds)

    def socket(self, path: str, query: Mapping[str, str], max_bytes: int) -> AbstractAsyncContextManager[Socket]:
        """See ``Link``."""
        return self.link.socket(path, query, max_bytes)


def cut(body: Body, after_bytes: int) -> Body:
    """Return ``body`` that promises all of its bytes and breaks off after ``after_bytes``."""

    async def pieces() -> AsyncIterator[bytes]:
        left = after_bytes
        async for piece in body.pieces():
            if len(piece) >= left:
                yield piece[:left]
                raise CutOnPurpose(f"cut after {after_bytes} of {body.size_bytes} bytes")
            left -= len(piece)
            yield piece

    return replace(body, pieces=pieces)
