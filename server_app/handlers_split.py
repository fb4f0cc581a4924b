"""Steps of split training: a WebSocket for each device and round, and requests for where WebSockets do not get through.

    GET  /v1/runs/{run}/split?round=N          with Upgrade: Hello, then an Answer to each Batch, until one side closes
                                               without: Hello; with step=T&wait=S: the answer to that step, or 204
    POST /v1/runs/{run}/split?round=N&wait=S   a Batch; its Answer, or 204 after S seconds: ask for it by GET

Frames are those of ``fedge.split.exchange``. A device has one batch on its way at most: nothing more is read from it
before that is answered, so it can send no faster than the back half learns. Whatever is cut off, the batch stays, and
its answer is there for whoever asks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from fedge.errors import CodecError
from fedge.protocol.ledger import Conflict
from fedge.split.exchange import Answer, Batch, Hello, Over, Refusal, read_exchange
from schemas.errors import Fault, InvalidInput
from schemas.ids import DeviceId
from server_app.back_half import BackHalf
from server_app.body import Body
from server_app.context import Context
from server_app.devices import Device
from server_app.errors import Refused
from server_app.handlers_device import FRAMES, authenticate, round_number, seconds_to_wait
from server_app.intake import round_over
from server_app.problems import as_refused

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 30.0


async def split(request: web.Request) -> web.StreamResponse:
    """Steps of split training by WebSocket (docs/split_runs.md); without one, the answer to a step, by long poll."""
    context, device, _ = authenticate(request)
    back = await _back_half(request, context, device.id)
    if web.WebSocketResponse().can_prepare(request):
        return await _socket(request, context, device, back)
    step = request.query.get("step")
    if step is None:
        return _answer(await back.hello(device.id))
    if not step.isdecimal() or len(step) > 9:
        raise InvalidInput("query", (Fault("step", f"expected the number of a step, got {step!r}"),))
    return await _within(request, context, partial(back.answer, device.id, int(step)))


async def split_step(request: web.Request) -> web.StreamResponse:
    """One step of split training: a batch up, its answer down (docs/split_runs.md)."""
    context, device, _ = authenticate(request)
    back = await _back_half(request, context, device.id)
    if request.content_type != FRAMES:
        raise Refused(415, "media_type", f"expected {FRAMES}, got {request.content_type}")
    await back.ready()
    body = Body(request.content, back.most_bytes(), context.config.min_upload_bytes_per_second)
    if (before := back.bodies.get(device.id)) is not None:
        before.cut()  # of two at a time the first is likely dead
    back.bodies[device.id] = body
    data = bytearray()
    try:
        async with body.arriving():
            async for piece in body.pieces():
                data += piece
    finally:
        if back.bodies.get(device.id) is body:
            del back.bodies[device.id]
    if body.is_cut:
        raise ConnectionResetError("a batch broke off")
    return await _within(request, context, partial(back.exchange, device.id, _batch(bytes(data))))


async def _back_half(request: web.Request, context: Context, device: DeviceId) -> BackHalf:
    """Return the back half of the round that the request names.

    Raises:
        Refused: there is none for this device.
    """
    number = round_number(request.query.get("round", ""))
    book = await context.federation.book(request.match_info["run"], number)
    asked, driver = book.assignment(device, number), context.federation.driver
    if asked.split is None or driver is None or driver.back is None:
        raise Refused(409, "not_split", f"{device} was asked to train the whole model in round {number} of {book.run}")
    if not book.wants(device):
        raise round_over(book.run, number)
    return driver.back


async def _within(
    request: web.Request, context: Context, work: Callable[[], Coroutine[Any, Any, Answer | Refusal | Over]]
) -> web.Response:
    """Return what ``work`` comes to, or 204 where that takes longer than the device waits."""
    wait = seconds_to_wait(request, context.config.max_wait_seconds)
    doing, ending = asyncio.create_task(work()), asyncio.create_task(context.is_ending.wait())
    waits: set[asyncio.Future[Any]] = {doing, ending}
    try:
        await asyncio.wait(waits, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done() and ending.done():
            raise Refused(503, "ending", "the aggregator ends; the round goes on when it is back")
        return _answer(doing.result()) if doing.done() else web.Response(status=204)
    finally:
        doing.cancel()
        ending.cancel()


def _answer(frame: Hello | Answer | Refusal | Over) -> web.Response:
    return web.Response(body=frame.to_bytes(), content_type=FRAMES)


def _batch(data: bytes) -> Batch:
    frame = read_exchange(data)
    if not isinstance(frame, Batch):
        raise CodecError(f"expected a batch, got {type(frame).__name__}")
    return frame


async def _socket(request: web.Request, context: Context, device: Device, back: BackHalf) -> web.WebSocketResponse:
    hello = await back.hello(device.id)
    # No compression: everything is coded already. Not more at a time than one batch.
    socket = web.WebSocketResponse(heartbeat=HEARTBEAT_SECONDS, compress=False, max_msg_size=back.most_bytes())
    await socket.prepare(request)
    if (before := back.connections.get(device.id)) is not None:
        before.abort()  # likely dead: a farewell would wait for its answer
    if request.transport is not None:
        back.connections[device.id] = request.transport
    try:
        await socket.send_bytes(hello.to_bytes())
        if isinstance(hello, Hello):
            await _steps(socket, context, device, back)
        await socket.close()
    except ConnectionError:
        log.info("split connection lost", extra={"device": device.id})
    except Exception as error:
        await _refuse(socket, context, device, error)
    finally:
        if back.connections.get(device.id) is request.transport:
            back.connections.pop(device.id, None)
    return socket


async def _steps(socket: web.WebSocketResponse, context: Context, device: Device, back: BackHalf) -> None:
    """Answer batches until the device closes, or there is nothing more to answer.

    What comes is read all the time, if only to notice that the device is gone; a batch before the last is answered is
    one too many.
    """
    receiving: asyncio.Task[WSMessage] = asyncio.create_task(socket.receive())
    ends = [asyncio.create_task(event.wait()) for event in (back.over, context.is_ending)]
    answering: asyncio.Task[Answer | Refusal | Over] | None = None
    try:
        while True:
            work: set[asyncio.Future[Any]] = {receiving, *(ends if answering is None else [answering])}
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            if answering is not None and answering.done():
                answer, answering = answering.result(), None
                await socket.send_bytes(answer.to_bytes())
                if not isinstance(answer, Answer):
                    return
            elif receiving.done():
                message = receiving.result()
                context.house.devices.hear(device)
                if not _is_batch(message, device.id, back):
                    return
                if answering is not None:
                    raise Conflict("expected no batch before the one before it is answered, got one")
                answering = asyncio.create_task(back.exchange(device.id, _batch(message.data)))
                receiving = asyncio.create_task(socket.receive())
            else:
                if not back.over.is_set():
                    raise Refused(503, "ending", "the aggregator ends; the round goes on when it is back")
                await socket.send_bytes((await back.hello(device.id)).to_bytes())
                return
    finally:
        for task in (receiving, *ends, *([answering] if answering is not None else [])):
            task.cancel()


def _is_batch(message: WSMessage, device: DeviceId, back: BackHalf) -> bool:
    """Say whether a message may be a batch; False where the device has closed the connection."""
    if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
        if message.type is WSMsgType.CLOSE and message.data == WSCloseCode.OK:
            back.left(device)
        return False
    if message.type is not WSMsgType.BINARY:
        raise CodecError(f"expected a batch, got a {message.type.name.lower()} message")
    return True


async def _refuse(socket: web.WebSocketResponse, context: Context, device: Device, error: Exception) -> None:
    """Say why the device is not served any further, and hang up."""
    refused = as_refused(error)
    if refused is None:
        log.exception("split connection failed", extra={"device": device.id})
        refused = Refused(500, "internal", "the aggregator failed; its log says why")
    context.rejections.note(refused, device)
    log.info("split step refused", extra={"device": device.id, "reason": refused.reason})
    code = WSCloseCode.TRY_AGAIN_LATER if refused.status >= 500 else WSCloseCode.UNSUPPORTED_DATA
    await socket.close(code=code, message=f"{refused.reason}: {refused.detail}".encode()[:120])
