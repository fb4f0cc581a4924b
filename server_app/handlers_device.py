"""What devices ask: msgpack in, msgpack out (``schemas.messages``)."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial

from aiohttp import web

from fedge.downlink.message import StateId
from schemas.errors import Fault, InvalidInput
from schemas.ids import NAME
from schemas.messages import Enroll, Enrolled, Receipts, UpdateStatus, Work
from schemas.packing import CONTENT_TYPE, pack, unpack
from schemas.status import Role
from server_app.auth import bearer, demand, hash_secret
from server_app.body import Body, too_large
from server_app.book import Book
from server_app.context import CONTEXT, Context
from server_app.devices import Device
from server_app.downlinks import CHUNK_BYTES, Claim, Download
from server_app.errors import Refused
from server_app.intake import max_body_bytes, round_over
from server_app.problems import as_refused
from server_app.traffic import Meter

FRAMES = "application/octet-stream"
MAX_ENROLL_BYTES = 32 * 1024
STALL_SECONDS = 60.0


def answer(message: Enrolled | Work | UpdateStatus | Receipts) -> web.Response:
    """Return a packed message."""
    return web.Response(body=pack(message), content_type=CONTENT_TYPE)


async def enroll(request: web.Request) -> web.Response:
    """Take a device's introduction. Repeating it gives the same id; the profile is refreshed."""
    context = request.app[CONTEXT]
    if (request.content_length or 0) > MAX_ENROLL_BYTES:
        raise Refused(413, "too_large", f"expected at most {MAX_ENROLL_BYTES} bytes of Enroll")
    # Off the loop: anybody may send this, and reading the worst of it takes a while.
    profile = await asyncio.to_thread(unpack, Enroll, await request.read(), MAX_ENROLL_BYTES)
    known = context.house.devices.by_credential.get(hash_secret(profile.credential))
    if profile.token is not None:
        demand(Role.ENROLL, profile.token, context.tokens)
    elif known is None:
        raise Refused(401, "unauthorized", "expected an enrolment token with a credential that is new")
    elif bearer(request) != profile.credential:
        raise Refused(401, "unauthorized", "expected the credential as bearer where no token comes with it")
    device = context.house.devices.enroll(profile, hash_secret(profile.credential))
    context.house.traffic.meter(request).charge(device.account, context.house.traffic.total)
    await context.house.store.save_devices(context.house.devices.take_changed())
    return answer(Enrolled(device=device.id))


def authenticate(request: web.Request) -> tuple[Context, Device, Meter]:
    """Return who is asking, and charge the connection to it.

    Raises:
        Refused: 401, no credential of an enrolled device.
    """
    context = request.app[CONTEXT]
    device = context.house.devices.by_credential.get(hash_secret(bearer(request)))
    if device is None:
        raise Refused(401, "unauthorized", "expected the credential of an enrolled device; enrol first")
    meter = context.house.traffic.meter(request)
    meter.charge(device.account, context.house.traffic.total)
    context.house.devices.hear(device)
    return context, device, meter


def asking(context: Context, request: web.Request) -> Device | None:
    """Return the device whose credential the request bears; None where it bears none."""
    try:
        return context.house.devices.by_credential.get(hash_secret(bearer(request)))
    except Refused:
        return None


async def work(request: web.Request) -> web.Response:
    """Long poll: an assignment, a receipt, both, or neither after ``wait`` seconds."""
    context, device, meter = authenticate(request)
    wait, pending = _poll(request, context.config.max_wait_seconds)
    house, deadline = context.house, context.house.clock() + wait
    device.busy_until = None
    while True:
        with house.devices.parked(device) as woken:
            found = await context.federation.work_for(device, pending)
            if found is not None or context.is_ending.is_set():
                return answer(found) if found is not None else web.Response(status=204)
            unwatch = meter.watch(partial(house.devices.wake, device.id))
            try:
                async with asyncio.timeout_at(deadline):
                    await woken
            except TimeoutError:
                return web.Response(status=204)
            finally:
                unwatch()
        if meter.is_closed or request.transport is None:
            house.devices.lose(device)
            raise ConnectionResetError("the device hung up")


def seconds_to_wait(request: web.Request, longest: float) -> float:
    """Return how long the device waits for an answer: 0 to ``longest`` seconds."""
    text = request.query.get("wait", "0")
    try:
        wait = float(text)
    except ValueError:
        wait = math.nan
    if math.isnan(wait):
        raise InvalidInput("query", (Fault("wait", f"expected seconds, got {text!r}"),))
    return min(max(wait, 0.0), longest)


def _poll(request: web.Request, longest: float) -> tuple[float, tuple[str, int] | None]:
    """Return seconds to wait and the round of the update the device holds."""
    query, wait = request.query, seconds_to_wait(request, longest)
    try:
        pending = (_run_name(query["run"]), _round(query["round"])) if "run" in query else None
    except (KeyError, ValueError) as error:
        raise InvalidInput("query", (Fault("", f"expected run and round or neither: {error}"),)) from None
    return wait, pending


async def download(request: web.Request) -> web.StreamResponse:
    """What this device makes the model that it starts from of: frames, or messages for the state that it says it has.

    The same request gives the same bytes while the round is open.
    """
    context, device, _ = authenticate(request)
    number, claim = round_number(request.query.get("round", "")), _claim(request)
    book = await context.federation.book(request.match_info["run"], number)
    asked = book.assignment(device.id, number)
    driver = context.federation.driver
    if driver is None or driver.state is None or not book.round.is_open:
        raise round_over(book.run, number)
    with book.downloading(device.id, request.transport):
        part = book.part(device.id)
        params = driver.state.params[: part.size]
        found = await driver.downlinks.answer(part, asked, device.id, params, claim)
        with closing(found):
            if not book.round.is_open:
                raise round_over(book.run, number)
            sending = book.downloaded.begin(device.id, found.size, 4 * part.size, found.perturbation)
            leave = partial(book.downloaded.leave, sending)
            try:
                return await _send(request, found, leave, context.config.min_upload_bytes_per_second)
            finally:
                await book.downloaded.end(sending)


async def _send(
    request: web.Request,
    found: Download,
    leave: Callable[[int], Awaitable[None]],
    slowest_bytes_per_second: float,
) -> web.StreamResponse:
    """Send a download; ``leave`` hears of each piece before it leaves.

    A device that takes next to nothing of it is hung up on.
    """
    response = web.StreamResponse(headers={"Content-Type": FRAMES, "Content-Length": str(found.size)})
    await response.prepare(request)
    slow = slowest_bytes_per_second
    patience = STALL_SECONDS + CHUNK_BYTES / slow if slow else None
    try:
        async for chunk in found.chunks():
            await leave(len(chunk))
            async with asyncio.timeout(patience):
                await response.write(chunk)
    except OSError:  # a timeout is one
        # Half of it is out: another answer would be taken for the rest.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("a download was not taken") from None
    await response.write_eof()
    return response


def _claim(request: web.Request) -> Claim | None:
    """Return which download state the device says that it has."""
    said, numbers = request.query.get("state"), request.query.get("checksum")
    for key, text in (("state", said), ("checksum", numbers)):
        if text is not None and not re.fullmatch("[0-9a-f]{16}", text):
            raise InvalidInput("query", (Fault(key, f"expected 16 hexadecimal digits in lower case, got {text!r}"),))
    return None if said is None else Claim(StateId(said), None if numbers is None else StateId(numbers))


async def update_status(request: web.Request) -> web.Response:
    """Which segments of this device's update are durable."""
    context, device, _ = authenticate(request)
    run, number = request.match_info["run"], round_number(request.match_info["number"])
    return answer(await context.federation.update_status(run, number, device.id))


async def upload(request: web.Request) -> web.Response:
    """Take an update; what was durable before a fault, or before the connection died, stays."""
    context, device, _ = authenticate(request)
    number = round_number(request.match_info["number"])
    book = await context.federation.book(request.match_info["run"], number, device.id)
    book.assignment(device.id, number)
    _check_kind(request)
    cap = max_body_bytes(book.layout)
    if (request.content_length or 0) > cap:
        raise too_large(cap)
    if not book.round.is_open:
        raise round_over(book.run, number)
    body = Body(request.content, cap, context.config.min_upload_bytes_per_second)
    try:
        status = await context.intake.take(book, device.id, number, body)
    except ConnectionError:
        raise
    except Exception as error:
        raise _with_progress(error, book, device) from error
    response = answer(status)
    if body.is_cut:
        response.force_close()
    return response


def _check_kind(request: web.Request) -> None:
    if request.content_type != FRAMES or request.headers.get("Content-Encoding", "identity") != "identity":
        came = f"{request.content_type}, {request.headers.get('Content-Encoding', 'no encoding')}"
        raise Refused(415, "media_type", f"expected {FRAMES} without a content encoding, got {came}")


def _with_progress(error: Exception, book: Book, device: Device) -> Exception:
    """Return the refusal ``error`` amounts to, saying which segments arrived all the same."""
    refused = as_refused(error)
    if refused is None:
        return error
    arrived = list(book.ledger.segments(device.id))
    detail = f"{refused.detail}; segments accepted so far: {arrived}"
    return Refused(refused.status, refused.reason, detail, refused.faults)


async def receipts(request: web.Request) -> web.Response:
    """All receipts of this device, of one run or of all."""
    context, device, _ = authenticate(request)
    run = request.query.get("run")
    try:
        found = await context.house.store.receipts(device.id, _run_name(run) if run is not None else None)
    except ValueError as error:
        raise InvalidInput("query", (Fault("run", str(error)),)) from None
    return answer(Receipts(receipts=tuple(found)))


def _run_name(text: str) -> str:
    if not re.fullmatch(NAME, text):
        raise ValueError(f"expected the name of a run, got {text!r}")
    return text


def _round(text: str) -> int:
    number = round_number(text)
    if number < 1:
        raise ValueError(f"expected a round from 1, got {number}")
    return number


def round_number(text: str) -> int:
    """Return the number of a round that a path or a query names."""
    if not text.isdecimal() or len(text) > 9:
        raise Refused(404, "unknown_round", f"expected the number of a round, got {text!r}")
    return int(text)
