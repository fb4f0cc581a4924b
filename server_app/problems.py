"""Errors as RFC 9457 problem documents (https://www.rfc-editor.org/rfc/rfc9457), and the count of them.

Whatever a handler raises ends here: this is the one place that turns an error into a status, a stable ``reason``, and
words. Every refusal is counted by its reason, and by device where one asked.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from fedge.errors import BudgetError, CodecError, FedgeError, FrameError, UnknownName
from fedge.protocol.ledger import Conflict
from fedge.update import MagnitudeError
from schemas.errors import Fault, InvalidInput, PackingError
from schemas.status import Problem
from server_app.devices import Device
from server_app.errors import Refused

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"

TITLES = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    410: "Round is over",
    413: "Too large",
    415: "Unsupported media type",
    422: "Invalid content",
    500: "Internal error",
    503: "Not ready",
    507: "Not stored",
}


class Rejections:
    """How many requests were refused, by reason."""

    def __init__(self) -> None:
        self.by_reason: Counter[str] = Counter()

    def note(self, refused: Refused, device: Device | None) -> None:
        """Count one refusal."""
        self.by_reason[refused.reason] += 1
        if device is not None:
            device.rejected += 1
            device.last_error = f"{refused.reason}: {refused.detail}"[:500]


def as_refused(error: Exception) -> Refused | None:
    """Return the refusal that ``error`` amounts to; None where it is a fault of ours."""
    match error:
        case Refused():
            return error
        case PackingError():
            return Refused(400, "packing", str(error))
        case InvalidInput():
            return Refused(422, "invalid", str(error), error.faults)
        case Conflict():
            return Refused(409, "conflict", str(error))
        case FrameError():
            return Refused(422, "frame", str(error))
        case MagnitudeError():
            return Refused(422, "magnitude", str(error))
        case CodecError():
            return Refused(422, "payload", str(error))
        case UnknownName():
            return Refused(422, "unknown_name", str(error))
        case BudgetError() | FedgeError():
            return Refused(422, "invalid", str(error))
        case web.HTTPException() if error.status >= 400:
            reason = "too_large" if error.status == 413 else (error.reason or "http").lower().replace(" ", "_")
            return Refused(error.status, reason, error.text or error.reason or "")
        case OSError():
            return Refused(507, "not_stored", f"the aggregator could not write this down: {error.strerror}")
        case _:
            return None


def respond(refused: Refused) -> web.Response:
    """Return ``refused`` as a problem document."""
    problem = Problem(
        title=TITLES.get(refused.status, "Refused"),
        status=refused.status,
        detail=refused.detail,
        reason=refused.reason,
        faults=tuple(_fault(fault) for fault in refused.faults),
    )
    body = problem.model_dump_json(exclude_defaults=True).encode()
    headers = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else None
    return web.Response(body=body, status=refused.status, content_type=CONTENT_TYPE, headers=headers)


def _fault(fault: Fault) -> dict[str, str]:
    return {"key": fault.key, "message": fault.message}


def middleware(rejections: Rejections, asking: Callable[[web.Request], Device | None]) -> Middleware:
    """Return the outermost middleware; ``asking`` names the device a request came from."""

    @web.middleware
    async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ConnectionError:
            # Nobody reads this, unless a proxy between us keeps its side open: then it means, try again.
            return web.Response(status=408)
        except Exception as error:
            refused = as_refused(error)
            if refused is None:
                log.exception("request failed", extra={"method": request.method, "path": request.path})
                refused = Refused(500, "internal", "the aggregator failed; its log says why")
            rejections.note(refused, asking(request))
            facts = {"status": refused.status, "reason": refused.reason, "path": request.path}
            log.info("request refused", extra=facts)
            return respond(refused)

    return problems
