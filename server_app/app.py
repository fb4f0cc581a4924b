"""The aggregator as an aiohttp application: one table of routes, from which ``/openapi.json`` is made as well."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import hdrs, web

from schemas.base import Model
from schemas.messages import Enroll, Enrolled, Receipts, UpdateHeader, UpdateStatus, Work
from schemas.packing import CONTENT_TYPE as MSGPACK
from schemas.plan import Plan
from schemas.status import (
    DeviceList,
    DeviceStatus,
    Problem,
    RoundList,
    RoundStatus,
    RunList,
    RunStatus,
    RunSummary,
    ServerStatus,
    Token,
    TokenRequest,
)
from server_app import handlers_device as device
from server_app import handlers_people as people
from server_app import handlers_split as steps
from server_app import metrics, page, problems
from server_app.context import CONTEXT, Context

JSON = "application/json"
OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Route:
    """One thing that can be asked. ``who`` is a role of ``schemas.status``, "device", or "" for anybody."""

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    who: str
    takes: type[Model] | None = None
    gives: type[Model] | None = None
    media: str = JSON
    query: tuple[str, ...] = ()


async def openapi(request: web.Request) -> web.Response:
    """This description."""
    return web.json_response(describe())


UPDATES = "/v1/runs/{run}/rounds/{number}/updates/me"
SPLIT = "/v1/runs/{run}/split"

ROUTES: tuple[Route, ...] = (
    Route("GET", "/", page.index, "", media="text/html"),
    Route("GET", "/healthz", people.healthz, "", media="text/plain"),
    Route("GET", "/readyz", people.readyz, "", media="text/plain"),
    Route("GET", "/openapi.json", openapi, ""),
    Route("GET", "/metrics", metrics.show, "viewer", media="text/plain"),
    Route("GET", "/v1/status", people.status, "viewer", gives=ServerStatus),
    Route("GET", "/v1/runs", people.list_runs, "viewer", gives=RunList),
    Route("POST", "/v1/runs", people.start_run, "operator", takes=Plan, gives=RunSummary),
    Route("GET", "/v1/runs/{run}", people.show_run, "viewer", gives=RunStatus),
    Route("GET", "/v1/runs/{run}/rounds", people.list_rounds, "viewer", gives=RoundList),
    Route("GET", "/v1/runs/{run}/rounds/{number}", people.show_round, "viewer", gives=RoundStatus),
    Route("GET", "/v1/runs/{run}/model", people.model, "viewer", media=OCTETS),
    Route("GET", "/v1/runs/{run}/events", people.events, "viewer", media="text/event-stream"),
    Route("POST", "/v1/runs/{run}/stop", people.stop_run, "operator", gives=RunStatus),
    Route("GET", "/v1/devices", people.list_devices, "viewer", gives=DeviceList),
    Route("GET", "/v1/devices/{device}", people.show_device, "viewer", gives=DeviceStatus),
    Route("POST", "/v1/tokens", people.create_token, "operator", takes=TokenRequest, gives=Token),
    Route("POST", "/v1/enroll", device.enroll, "device", takes=Enroll, gives=Enrolled, media=MSGPACK),
    Route("GET", "/v1/work", device.work, "device", gives=Work, media=MSGPACK, query=("wait", "run", "round")),
    Route("GET", "/v1/runs/{run}/download", device.download, "device", media=OCTETS, query=("round",)),
    Route("GET", SPLIT, steps.split, "device", media=OCTETS, query=("round", "step", "wait")),
    Route("POST", SPLIT, steps.split_step, "device", media=OCTETS, query=("round", "wait")),
    Route("GET", UPDATES, device.update_status, "device", gives=UpdateStatus, media=MSGPACK),
    Route("PUT", UPDATES, device.upload, "device", takes=UpdateHeader, gives=UpdateStatus, media=MSGPACK),
    Route("GET", "/v1/receipts", device.receipts, "device", gives=Receipts, media=MSGPACK, query=("run",)),
)


def make_app(context: Context) -> web.Application:
    """Return the application."""
    outermost = problems.middleware(context.rejections, partial(device.asking, context))
    app = web.Application(middlewares=[outermost], client_max_size=1 << 20)
    app[CONTEXT] = context
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
    app.on_response_prepare.append(_slim)
    return app


async def _slim(request: web.Request, response: web.StreamResponse) -> None:
    """Leave out what no client of ours reads: on a slow link every header of every answer costs."""
    for name in (hdrs.SERVER, hdrs.DATE):
        response.headers.pop(name, None)


def describe() -> dict[str, Any]:
    """Return the OpenAPI description of ``ROUTES``."""
    paths: dict[str, dict[str, Any]] = {}
    models: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, models)
    return {
        "openapi": "3.1.0",
        "info": {"title": "fedge aggregator", "version": people.package_version()},
        "paths": paths,
        "components": {
            "schemas": models,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, models: dict[str, Any]) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", route.path)
    text = {"type": "string"}
    parameters = [{"name": n, "in": "path", "required": True, "schema": text} for n in names]
    parameters += [{"name": n, "in": "query", "schema": text} for n in route.query]
    problem = {"description": "why not", "content": _content(Problem, problems.CONTENT_TYPE, models)}
    described: dict[str, Any] = {
        "summary": (route.handler.__doc__ or "").strip().splitlines()[0],
        "parameters": parameters,
        "responses": {
            "200": {"description": "as asked", "content": _content(route.gives, route.media, models)},
            "default": problem,
        },
    }
    if route.who:
        described |= {"security": [{"bearer": []}], "x-role": route.who}
    if route.takes is not None:
        described["requestBody"] = {"content": _content(route.takes, route.media, models)}
    return described


def _content(model: type[Model] | None, media: str, models: dict[str, Any]) -> Mapping[str, Any]:
    if model is None:
        return {media: {}}
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    models.update(schema.pop("$defs", {}))
    models[model.__name__] = schema
    return {media: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
