"""Which aggregator a command talks to, and with which token: flag, then environment, then file, then localhost.

    fedge --server URL --token T ...      FEDGE_SERVER  FEDGE_TOKEN      ~/.config/fedge/client.toml

``fedge-server init`` writes the file for the machine it runs on, readable by its owner alone, unless there is one
already. ``XDG_CONFIG_HOME`` moves it, as usual.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from schemas.base import Model, parse_toml
from schemas.ids import URL
from server_app.cli.exits import Exit, Failure, reported
from server_app.client import Client

DEFAULT_SERVER = "http://127.0.0.1:8080"

T = TypeVar("T")


class Connection(Model):
    """``client.toml``."""

    server: str = DEFAULT_SERVER
    token: str = ""


def config_path() -> Path:
    """Return where ``client.toml`` lies."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "fedge" / "client.toml"


def saved() -> Connection:
    """Return what ``client.toml`` says; the defaults where there is none.

    Raises:
        InvalidInput: the file breaks a rule.
    """
    path = config_path()
    return parse_toml(Connection, path.read_text("utf-8"), str(path)) if path.exists() else Connection()


def save(connection: Connection) -> bool:
    """Write ``client.toml`` unless there is one; says whether it did."""
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f'server = "{connection.server}"\ntoken = "{connection.token}"\n')
    return True


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the options --server and --token, and the ``Connection`` that follows as first argument."""

    @click.option("--server", envvar="FEDGE_SERVER", help=f"The aggregator's URL.  [default: {DEFAULT_SERVER}]")
    @click.option("--token", envvar="FEDGE_TOKEN", help="A viewer's or operator's token.")
    @wraps(command)
    def wrapped(*args: Any, server: str | None, token: str | None, **kwargs: Any) -> None:
        with reported():
            known = saved()
            command(Connection(server=_url(server or known.server), token=token or known.token), *args, **kwargs)

    return wrapped


def _url(server: str) -> str:
    if not re.match(URL, server):
        raise Failure(f"expected http://HOST:PORT, got {server!r}", Exit.USAGE)
    return server


def ask(connection: Connection, question: Callable[[Client], Awaitable[T]]) -> T:
    """Return the answer to ``question``, asked over a connection of its own."""

    async def inside() -> T:
        async with Client(connection.server, connection.token) as client:
            return await question(client)

    return asyncio.run(inside())


def json_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the flag --json, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


def echo_json(model: Model) -> None:
    """Print ``model`` as JSON on standard output."""
    click.echo(model.model_dump_json(indent=2))
