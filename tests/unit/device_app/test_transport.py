"""One connection to a small real server on the loopback interface: what leaves, and what answers mean."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from device_app import transport
from device_app.client import Client
from device_app.errors import AggregatorError, Declined, RoundGone, Unauthorised, Unreachable
from device_app.faults import CutLink, CutOnPurpose, cut
from device_app.transport import Body, connect
from fedge.frames import Frame
from schemas.config import DeviceConfig, TaskConfig
from schemas.messages import UpdateHeader, UpdateStatus, Work
from schemas.packing import pack

CREDENTIAL = "c" * 43
HEADER = UpdateHeader(update="ab" * 8, num_examples=3, loss=0.25)
FRAMES = [Frame(0, index, 4, 32.0, bytes([index]) * 16).to_bytes() for index in range(5)]
STATUS = UpdateStatus(run="run-1", round=2, update="ab" * 8, segments=(0, 1), is_complete=False, is_open=True)


@asynccontextmanager
async def linked(handler):
    """Yield a link to a server that answers every request by ``handler``."""
    server = web.Server(handler, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        config = config_of(f"http://127.0.0.1:{runner.addresses[0][1]}/behind/a/proxy")
        async with connect(config, CREDENTIAL) as link:
            yield link
    finally:
        await runner.cleanup()


def config_of(server):
    return DeviceConfig(server=server, name="pi-1", tasks=(TaskConfig(task="tasks.here:task"),))


@asynccontextmanager
async def raw_server(answer):
    """Serve bare sockets: ``answer(reader, writer)``; yields the port."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def packed(message):
    return web.Response(body=pack(message))


async def test_a_request_carries_nothing_but_host_and_credential():
    seen = []

    async def answer(reader, writer):
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with raw_server(answer) as port, connect(config_of(f"http://127.0.0.1:{port}"), CREDENTIAL) as link:
        assert await Client(link).poll(50.0, ("run-1", 2)) == Work()
    assert seen[0].decode().split("\r\n") == [
        "GET /v1/work?wait=50&run=run-1&round=2 HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Authorization: Bearer {CREDENTIAL}",
        "",
        "",
    ]


async def test_an_upload_states_its_length_and_is_header_and_frames_in_the_order_given():
    seen = {}

    async def take(request):
        seen.update(length=request.content_length, body=await request.read(), path=request.path)
        return packed(STATUS)

    async with linked(take) as link:
        assert await Client(link).upload("run-1", 2, HEADER, FRAMES[::-1]) == STATUS
    head = pack(HEADER)
    assert seen["body"] == len(head).to_bytes(4, "little") + head + b"".join(FRAMES[::-1])
    assert seen["length"] == len(seen["body"])
    assert seen["path"] == "/behind/a/proxy/v1/runs/run-1/rounds/2/updates/me"


async def test_requests_share_one_connection():
    peers = set()

    async def note(request):
        peers.add(request.transport.get_extra_info("peername"))
        return packed(STATUS)

    async with linked(note) as link:
        for _ in range(3):
            await Client(link).update_status("run-1", 2)
            await Client(link).upload("run-1", 2, HEADER, FRAMES)
    assert len(peers) == 1


@pytest.mark.parametrize(
    ("status", "reason", "error"),
    [
        (401, "unauthorized", Unauthorised),
        (403, "forbidden", Unauthorised),
        (403, "not_invited", RoundGone),
        (404, "unknown_run", RoundGone),
        (410, "round_over", RoundGone),
        (408, "too_slow", Unreachable),
        (429, "busy", Unreachable),
        (500, "internal", Unreachable),
        (507, "not_stored", Unreachable),
        (409, "conflict", Declined),
        (422, "invalid", Declined),
        (302, "elsewhere", Declined),
    ],
)
async def test_a_refusal_becomes_an_error_that_repeats_the_aggregators_words(status, reason, error):
    async def refuse(request):
        text = f'{{"title": "no", "status": {status}, "detail": "so it is", "reason": "{reason}"}}'
        return web.Response(status=status, text=text, content_type="application/problem+json")

    async with linked(refuse) as link:
        with pytest.raises(error, match=f"{status} to GET .*: so it is") as caught:
            await Client(link).update_status("run-1", 2)
    assert type(caught.value) is error
    assert caught.value.reason == reason


async def test_retry_after_is_passed_on():
    async def busy(request):
        return web.Response(status=503, headers={"Retry-After": "7"})

    async with linked(busy) as link:
        with pytest.raises(Unreachable) as caught:
            await Client(link).update_status("run-1", 2)
    assert caught.value.retry_after_seconds == 7.0


async def test_an_answer_that_is_no_message_is_declined():
    async def babble(request):
        return web.Response(body=b"\x01\xc1")

    async with linked(babble) as link:
        with pytest.raises(Declined, match="no UpdateStatus"):
            await Client(link).update_status("run-1", 2)


async def test_nobody_listening_is_unreachable():
    async with raw_server(lambda reader, writer: None) as port:
        pass
    async with connect(config_of(f"http://127.0.0.1:{port}"), CREDENTIAL) as link:
        with pytest.raises(Unreachable):
            await Client(link).update_status("run-1", 2)


async def test_an_aggregator_that_says_nothing_is_unreachable_after_a_while(monkeypatch):
    async def hold(reader, writer):
        await reader.read()

    async with raw_server(hold) as port, connect(config_of(f"http://127.0.0.1:{port}"), CREDENTIAL) as link:
        with pytest.raises(Unreachable, match="no answer within its time"):
            async with link.request("GET", "v1/work", patience_seconds=0.05):
                pass


async def test_a_download_that_stalls_is_unreachable_after_a_while(monkeypatch):
    async def stall(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + FRAMES[0])
        await reader.read()

    monkeypatch.setattr(transport, "STALL_SECONDS", 0.05)
    async with raw_server(stall) as port, connect(config_of(f"http://127.0.0.1:{port}"), CREDENTIAL) as link:
        with pytest.raises(Unreachable):
            await Client(link).download("run-1", 2, 5)


async def test_a_download_says_what_the_device_has_and_comes_back_as_it_was_sent():
    asked = []

    async def send(request):
        asked.append(dict(request.query))
        return web.Response(body=b"".join(FRAMES))

    body = b"".join(FRAMES)
    async with linked(send) as link:
        client = Client(link)
        assert await client.download("run-1", 2, len(body)) == body
        assert await client.download("run-1", 2, len(body), "ab" * 8) == body
        assert await client.download("run-1", 2, len(body), "ab" * 8, "cd" * 8) == body
    said = {"round": "2", "state": "ab" * 8}
    assert asked == [{"round": "2"}, said, said | {"checksum": "cd" * 8}]


async def test_a_download_that_is_longer_than_it_can_be_is_worth_another_try():
    async def send(request):
        return web.Response(body=b"".join(FRAMES))

    async with linked(send) as link:
        with pytest.raises(Unreachable, match="at most 99 bytes"):
            await Client(link).download("run-1", 2, 99)


async def test_a_refusal_in_the_middle_of_a_large_upload_is_heard_or_worth_another_try():
    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    frames = [bytes(1 << 16)] * 256
    async with raw_server(refuse) as port, connect(config_of(f"http://127.0.0.1:{port}"), CREDENTIAL) as link:
        with pytest.raises(AggregatorError) as caught:
            await Client(link).upload("run-1", 2, HEADER, frames)
    assert isinstance(caught.value, RoundGone | Unreachable)


async def test_a_cut_link_delivers_its_part_of_the_first_upload_of_each_round_and_then_all():
    bodies = []

    async def take(request):
        data = bytearray()
        bodies.append(data)
        async for chunk in request.content.iter_any():
            data += chunk
        return packed(STATUS)

    async with linked(take) as link:
        client = Client(CutLink(link, fraction=0.5))
        for number in (1, 2):
            with pytest.raises(Unreachable):
                await client.upload("run-1", number, HEADER, FRAMES)
            assert await client.upload("run-1", number, HEADER, FRAMES) == STATUS
    whole = len(bodies[1])
    assert [len(body) for body in bodies] == [whole // 2, whole, whole // 2, whole]


async def test_a_cut_link_may_spare_rounds():
    async def take(request):
        await request.read()
        return packed(STATUS)

    async with linked(take) as link:
        client = Client(CutLink(link, fraction=0.5, every=2))
        cuts = []
        for number in range(4):
            try:
                await client.upload("run-1", number, HEADER, FRAMES)
            except Unreachable:
                cuts.append(number)
    assert cuts == [0, 2]


@pytest.mark.parametrize("after", [0, 1, 9, 10])
async def test_a_cut_body_breaks_off_at_the_byte(after):
    async def pieces():
        for piece in (b"01234", b"56789"):
            yield piece

    came = b""
    with pytest.raises(CutOnPurpose):
        async for piece in cut(Body(10, pieces), after).pieces():
            came += piece
    assert came == b"0123456789"[:after]
