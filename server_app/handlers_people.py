"""What people ask: JSON out, TOML or JSON in (``schemas.status``, ``schemas.plan``)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version

from aiohttp import web

from fedge.codecs import native_available
from schemas.base import Model, parse
from schemas.errors import Fault, InvalidInput
from schemas.ids import DeviceId
from schemas.plan import Plan, plan_from_toml
from schemas.status import (
    DeviceList,
    DeviceStatus,
    Role,
    RoundList,
    RunList,
    RunSummary,
    ServerStatus,
    Token,
    TokenRequest,
)
from server_app.auth import bearer, demand, hash_secret, new_secret
from server_app.blobs import RunFiles, export_model
from server_app.context import CONTEXT, Context
from server_app.errors import Refused

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 15.0
MAX_BODY_BYTES = 64 * 1024


def as_json(message: Model, status: int = 200) -> web.Response:
    """Return a message as JSON."""
    return web.Response(text=message.model_dump_json(), status=status, content_type="application/json")


def allow(request: web.Request, role: Role) -> Context:
    """Return the context if the request's token allows ``role``.

    Raises:
        Refused: 401 or 403.
    """
    context = request.app[CONTEXT]
    demand(role, bearer(request), context.tokens)
    return context


async def healthz(request: web.Request) -> web.Response:
    """The process answers."""
    return web.Response(text="ok\n")


async def readyz(request: web.Request) -> web.Response:
    """The aggregator takes requests: database and journal are open, and it is not about to end."""
    if request.app[CONTEXT].is_ending.is_set():
        raise Refused(503, "ending", "the aggregator is about to end")
    await request.app[CONTEXT].house.store.tokens()
    return web.Response(text="ready\n")


async def status(request: web.Request) -> web.Response:
    """The aggregator at a glance."""
    context = allow(request, Role.VIEWER)
    return as_json(await server_status(context))


async def server_status(context: Context) -> ServerStatus:
    """Return the aggregator at a glance."""
    devices, driver = context.house.devices, context.federation.driver
    return ServerStatus(
        version=package_version(),
        started_at=context.started_at,
        is_native=native_available(),
        devices=len(devices.by_id),
        devices_online=sum(devices.is_online(device) for device in devices.by_id.values()),
        run=driver.run.run if driver else None,
        runs=len(await context.house.store.runs()),
        traffic=context.house.traffic.total.snapshot(),
        rejected=dict(context.rejections.by_reason),
        download_states=driver.downlinks.status() if driver else None,
    )


def package_version() -> str:
    """Return the installed version of fedge."""
    try:
        return version("fedge")
    except PackageNotFoundError:
        return "0+source"


async def list_runs(request: web.Request) -> web.Response:
    """All runs, newest first."""
    context = allow(request, Role.VIEWER)
    return as_json(RunList(runs=tuple(await context.federation.summaries())))


async def start_run(request: web.Request) -> web.Response:
    """Queue a run of the plan in the body."""
    context = allow(request, Role.OPERATOR)
    plan = _plan(request.content_type, await _text(request))
    row = await context.federation.start(plan)
    summary = RunSummary(
        run=row.run,
        task=plan.task,
        phase=row.phase,
        rounds_closed=0,
        rounds_planned=plan.rounds,
        created_at=row.created_at,
    )
    return as_json(summary, status=201)


def _plan(content_type: str, text: str) -> Plan:
    if content_type == "application/toml":
        return plan_from_toml(text)
    if content_type == "application/json":
        return parse(Plan, _json(text), "plan")
    raise Refused(415, "media_type", f"expected application/toml or application/json, got {content_type}")


async def _text(request: web.Request) -> str:
    """Return the body.

    Raises:
        Refused: 413, more than any plan takes; 400, no UTF-8.
    """
    if (request.content_length or 0) > MAX_BODY_BYTES or len(body := await request.read()) > MAX_BODY_BYTES:
        raise Refused(413, "too_large", f"expected at most {MAX_BODY_BYTES} bytes")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Refused(400, "encoding", f"expected UTF-8: {error}") from None


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("body", (Fault("", f"not valid JSON: {error}"),)) from None


async def show_run(request: web.Request) -> web.Response:
    """One run."""
    context = allow(request, Role.VIEWER)
    return as_json(await context.federation.status(request.match_info["run"]))


async def list_rounds(request: web.Request) -> web.Response:
    """All rounds of a run, oldest first."""
    context = allow(request, Role.VIEWER)
    row = await context.federation.find(request.match_info["run"])
    return as_json(RoundList(run=row.run, rounds=tuple(await context.federation.rounds(row.run))))


async def show_round(request: web.Request) -> web.Response:
    """One round."""
    context = allow(request, Role.VIEWER)
    run, number = request.match_info["run"], request.match_info["number"]
    found = [r for r in await context.federation.rounds(run) if str(r.round) == number]
    if not found:
        raise Refused(404, "unknown_round", f"expected the number of a round of {run}, got {number!r}")
    return as_json(found[0])


async def model(request: web.Request) -> web.Response:
    """The published model as safetensors, the tensors by the names they have in the task's model."""
    context = allow(request, Role.VIEWER)
    row = await context.federation.find(request.match_info["run"])
    if row.layout is None:
        raise Refused(404, "no_model", f"expected a run that has begun, {row.run} is {row.phase}")
    path = RunFiles(context.house.state_dir, row.run).state(row.state_round)
    body = await asyncio.to_thread(export_model, path, row.layout)
    name = {"Content-Disposition": f'attachment; filename="{row.run}.safetensors"'}
    return web.Response(body=body, content_type="application/octet-stream", headers=name)


async def stop_run(request: web.Request) -> web.Response:
    """End a run; a round that is being closed is closed first."""
    context = allow(request, Role.OPERATOR)
    run = request.match_info["run"]
    await context.federation.stop(run, "stopped by an operator")
    return as_json(await context.federation.status(run), status=202)


async def list_devices(request: web.Request) -> web.Response:
    """All enrolled devices."""
    context = allow(request, Role.VIEWER)
    found = tuple(_device(context, name) for name in context.house.devices.by_id)
    return as_json(DeviceList(devices=found))


async def show_device(request: web.Request) -> web.Response:
    """One device."""
    context = allow(request, Role.VIEWER)
    return as_json(_device(context, request.match_info["device"]))


def _device(context: Context, name: str) -> DeviceStatus:
    devices = context.house.devices
    found = devices.by_id.get(DeviceId(name))
    if found is None:
        raise Refused(404, "unknown_device", f"expected the id of an enrolled device, got {name!r}")
    return found.status(devices.is_online(found))


async def create_token(request: web.Request) -> web.Response:
    """Make a token. It is shown once."""
    context = allow(request, Role.OPERATOR)
    asked = parse(TokenRequest, _json(await _text(request)), "token request")
    secret = new_secret()
    now = context.house.wall_clock()
    await context.house.store.add_token(hash_secret(secret), asked.role, asked.note, now)
    context.tokens[hash_secret(secret)] = asked.role
    log.info("token created", extra={"role": str(asked.role), "note": asked.note})
    return as_json(Token(token=secret, role=asked.role), status=201)


async def events(request: web.Request) -> web.StreamResponse:
    """Server-sent events: ``run`` (a RunStatus) on every change, ``round`` (a RoundStatus) when one is over."""
    context = allow(request, Role.VIEWER)
    run = (await context.federation.find(request.match_info["run"])).run
    response = web.StreamResponse(headers={"Cache-Control": "no-store"})
    response.content_type = "text/event-stream"
    await response.prepare(request)
    async for name, message in _watch(context, run):
        data = message.model_dump_json() if message is not None else ""
        await response.write(f"event: {name}\ndata: {data}\n\n".encode() if message else b": still here\n\n")
    return response


async def _watch(context: Context, run: str) -> AsyncIterator[tuple[str, Model | None]]:
    """Yield what changed until the run is over; a None where nothing did for a while."""
    shown: dict[int, Model] = {}
    last: Model | None = None
    seen: object = None
    while not context.is_ending.is_set():
        change = context.house.changes.next()
        now = await context.federation.status(run)
        over = (now.rounds_closed, now.rounds_abandoned, now.metrics, now.ended_at)
        for status in await context.federation.rounds(run) if over != seen else ():
            if status.closed_at is not None and shown.get(status.round) != status:
                shown[status.round] = status
                yield "round", status
        seen = over
        if now != last:
            last = now
            yield "run", now
        if now.ended_at is not None:
            return
        try:
            async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                await change.wait()
        except TimeoutError:
            yield "", None
