"""Bytes on the sockets of devices, headers, TLS records and all.

The listening socket hands out sockets that count what the kernel took and gave, so nothing between here and the wire
can be forgotten: not a header, not a long poll without an answer. A connection is charged to a device from its first
authenticated request on, with all that passed before. Connections of people are charged to nobody.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from schemas.status import Traffic


@dataclass(slots=True)
class Account:
    """Bytes so far; ``up`` is device to aggregator."""

    up: int = 0
    down: int = 0

    def snapshot(self) -> Traffic:
        """Return the present totals."""
        return Traffic(up=self.up, down=self.down)


class Since:
    """Bytes of all devices since a mark. ``total`` is theirs since the aggregator started."""

    def __init__(self, total: Account) -> None:
        self._total, self._up, self._down = total, total.up, total.down

    def traffic(self) -> Traffic:
        """Return what passed since the mark."""
        return Traffic(up=self._total.up - self._up, down=self._total.down - self._down)

    def move(self, by: Traffic) -> None:
        """Set the mark later, by what is counted elsewhere from now on."""
        self._up, self._down = self._up + by.up, self._down + by.down

    def carry(self, before: Traffic) -> None:
        """Count what passed before the aggregator was started again, too."""
        self._up, self._down = self._up - before.up, self._down - before.down


class Meter:
    """Counts one connection, and says when it closes."""

    def __init__(self) -> None:
        self.here = Account()
        self.charged: Account | None = None
        self.is_closed = False
        self._accounts: tuple[Account, ...] = ()
        self._on_close: set[Callable[[], None]] = set()

    def charge(self, device: Account, total: Account) -> None:
        """From now on this connection is ``device``'s; the first time, all that passed before is too."""
        if self.charged is device:
            return
        if self.charged is None:
            for account in (device, total):
                account.up += self.here.up
                account.down += self.here.down
        self.charged = device
        self._accounts = (device, total)

    def count(self, up: int = 0, down: int = 0) -> None:
        """Note bytes that passed."""
        for account in (self.here, *self._accounts):
            account.up += up
            account.down += down

    def watch(self, on_close: Callable[[], None]) -> Callable[[], None]:
        """Call ``on_close`` when the connection closes, at once if it has; returns what takes it back."""
        if self.is_closed:
            on_close()
        self._on_close.add(on_close)
        return lambda: self._on_close.discard(on_close)

    def close(self) -> None:
        """Tell those who watch, once."""
        self.is_closed = True
        watchers, self._on_close = self._on_close, set()
        for on_close in watchers:
            on_close()


class CountingSocket(socket.socket):
    """A connection that counts, with the calls that asyncio's transports make."""

    meter: Meter
    meters: dict[int, Meter]

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        data = super().recv(bufsize, flags)
        self.meter.count(up=len(data))
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        count = super().recv_into(buffer, nbytes, flags)
        self.meter.count(up=count)
        return count

    def send(self, data: Any, flags: int = 0) -> int:
        count = super().send(data, flags)
        self.meter.count(down=count)
        return count

    def sendmsg(self, buffers: Iterable[Any], *rest: Any) -> int:
        count = super().sendmsg(buffers, *rest)
        self.meter.count(down=count)
        return count

    def close(self) -> None:
        self.meters.pop(self.fileno(), None)
        super().close()
        self.meter.close()


class CountingListener(socket.socket):
    """A listening socket whose connections count."""

    meters: dict[int, Meter]

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, address = super().accept()
        connection = CountingSocket(accepted.family, accepted.type, accepted.proto, accepted.detach())
        connection.meter = self.meters[connection.fileno()] = Meter()
        connection.meters = self.meters
        return connection, address


class TrafficBook:
    """All live connections by descriptor, and the total of all devices since the start."""

    def __init__(self) -> None:
        self.total = Account()
        self._meters: dict[int, Meter] = {}

    @property
    def live_connections(self) -> int:
        """How many connections are open, people's among them."""
        return len(self._meters)

    def listen(self, family: int, address: Any) -> socket.socket:
        """Return a bound socket whose connections are counted."""
        listener = CountingListener(family, socket.SOCK_STREAM)
        listener.meters = self._meters
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        return listener

    def meter(self, request: web.BaseRequest) -> Meter:
        """Return the meter of the request's connection; one that is closed where that is."""
        transport = request.transport
        handle = transport.get_extra_info("socket") if transport is not None else None
        found = self._meters.get(handle.fileno() if handle is not None else -1)
        if found is None:
            found = Meter()
            found.is_closed = True
        return found
