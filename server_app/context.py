"""What the handlers reach through the application."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web

from schemas.config import ServerConfig
from schemas.status import Role
from server_app.federation import Federation
from server_app.house import House
from server_app.intake import Intake
from server_app.problems import Rejections


@dataclass(frozen=True, slots=True)
class Context:
    """The aggregator, as its handlers see it. ``is_ending`` lets parked requests go."""

    config: ServerConfig
    house: House
    federation: Federation
    intake: Intake
    tokens: dict[str, Role]
    rejections: Rejections
    started_at: float
    is_ending: asyncio.Event


CONTEXT = web.AppKey("context", Context)
