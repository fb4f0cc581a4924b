"""An upload body: bounded in size, held and time."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from server_app.body import HELD_BYTES, Body
from server_app.errors import Refused


def stream() -> StreamReader:
    """Return a stream of aiohttp's that no socket feeds."""
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop, Mock())
    protocol.transport = Mock()
    return StreamReader(protocol, 2**16, loop=loop)


async def read(body: Body) -> bytes:
    """Return the whole body."""
    async with body.arriving():
        return b"".join([piece async for piece in body.pieces()])


async def test_a_body_that_ends_is_whole() -> None:
    source = stream()
    source.feed_data(b"abc")
    source.feed_data(b"def")
    source.feed_eof()
    body = Body(source, 100, 64.0)
    assert (await read(body), body.is_cut) == (b"abcdef", False)


async def test_what_came_before_the_connection_died_is_not_lost() -> None:
    source = stream()
    body = Body(source, 100, 64.0)
    async with body.arriving():
        await asyncio.sleep(0)
        source.feed_data(b"abc")
        source.set_exception(ConnectionResetError("gone"))
        found = [piece async for piece in body.pieces()]
    assert (found, body.is_cut) == ([b"abc"], True)


async def test_a_body_that_does_not_arrive_is_cut() -> None:
    source = stream()
    source.feed_data(b"abc")
    body = Body(source, 100, 1e6, grace_seconds=0.0)
    assert (await read(body), body.is_cut) == (b"abc", True)


async def test_a_body_over_its_cap_is_refused() -> None:
    source = stream()
    source.feed_data(b"x" * 101)
    with pytest.raises(Refused, match="at most 100 bytes"):
        await read(Body(source, 100, 64.0))


async def test_no_more_is_held_than_the_bound_and_one_piece() -> None:
    source = stream()
    body = Body(source, 1 << 30, 64.0)
    piece = b"x" * 2**16
    async with body.arriving():
        for _ in range(40):
            source.feed_data(piece)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert HELD_BYTES < body._held_bytes <= HELD_BYTES + len(piece)
        source.feed_eof()
        assert sum([len(found) async for found in body.pieces()]) == 40 * len(piece)


async def test_a_body_that_was_cut_for_another_ends() -> None:
    body = Body(stream(), 100, 64.0)
    body.cut()
    assert (await read(body), body.is_cut) == (b"", True)
