"""``GET /``: a page that shows runs and devices. It asks for a viewer token and keeps it in the browser."""

from __future__ import annotations

import asyncio
from importlib.resources import files

from aiohttp import web

HEADERS = {"Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"}


async def index(request: web.Request) -> web.Response:
    """The web page."""
    path = files("server_app").joinpath("templates", "status.html")
    text = await asyncio.to_thread(path.read_text, encoding="utf-8")
    return web.Response(text=text, content_type="text/html", headers=HEADERS)
