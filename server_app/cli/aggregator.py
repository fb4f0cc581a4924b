"""``fedge-server``: make an aggregator's state, and serve it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import click

from schemas.base import parse_toml
from schemas.config import ServerConfig
from schemas.status import Role
from server_app.cli import connection, logs
from server_app.cli.exits import Exit, Failure, reported

DEFAULT_CONFIG = Path("server.toml")
DATABASE = "fedge.sqlite"
EVERYWHERE = ("", "0.0.0.0", "::")

config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration; deploy/server.toml documents each key.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fedge", prog_name="fedge-server")
def server() -> None:
    """The aggregator of a federation."""


@server.command()
@config_option
@click.option("--state-dir", help="Journals, models and database.  [default: fedge-server]")
@click.option("--host", help="Where to listen; 0.0.0.0 for every interface.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="[default: 8080]")
@click.option("--task", "tasks", multiple=True, help="A task plans may name, package.module:object; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the tokens as JSON.")
def init(
    config: Path, state_dir: str | None, host: str | None, port: int | None, tasks: tuple[str, ...], as_json: bool
) -> None:
    """Make the state directory and print the first tokens, this once.

    Writes the configuration unless there is one, and ~/.config/fedge/client.toml unless there is one, so that 'fedge'
    finds this aggregator. On an aggregator that has state already, only makes two more tokens.
    """
    given = {"state_dir": state_dir, "host": host, "port": port, "tasks": tasks or None}
    changes = {key: value for key, value in given.items() if value is not None}
    with reported():
        if config.exists() and changes:
            named = ", ".join(f"--{key.replace('_', '-').removesuffix('s')}" for key in changes)
            raise Failure(f"{config} is there already: change it by hand, or leave out {named}", Exit.USAGE)
        settings = _read(config) if config.exists() else _write(config, changes)
        from server_app.service import init_state

        tokens = asyncio.run(init_state(settings))
        is_saved = connection.save(connection.Connection(server=_url(settings), token=tokens[Role.OPERATOR]))
    if as_json:
        return click.echo(json.dumps({str(role): secret for role, secret in tokens.items()}))
    where = connection.config_path()
    kept = f"kept for 'fedge' in {where}" if is_saved else f"{where} is there already and was left alone"
    note = "" if is_saved else _other_client(where)
    return click.echo(
        f"state       {Path(settings.state_dir).resolve()}\n"
        f"config      {config.resolve()}\n"
        f"operator    {tokens[Role.OPERATOR]}   ({kept})\n"
        f"enrolment   {tokens[Role.ENROLL]}\n\n"
        "The tokens are not shown again. Next:\n"
        f"  here            fedge-server serve --config {config}\n"
        "  on each device  fedge-device enroll --server http://THIS-MACHINE:"
        f"{settings.port} --token ENROLMENT-TOKEN && fedge-device run"
        f"{note}"
    )


@server.command()
@config_option
@click.option(
    "--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), help="Instead of the configured."
)
@click.option("--json-logs", is_flag=True, help="Log JSON lines.")
def serve(config: Path, log_level: str | None, json_logs: bool) -> None:
    """Run the aggregator until it is told to stop (SIGTERM, Ctrl-C)."""
    with reported():
        if not config.exists():
            raise Failure(f"expected a configuration in {config}, got none: run 'fedge-server init'", Exit.INVALID)
        settings = _read(config)
        _check_state(settings)
        logs.set_up(log_level or settings.log_level, json_logs)
        try:
            _serve(settings)
        except OSError as error:
            where = f"{settings.state_dir} on {settings.host}:{settings.port}"
            raise Failure(f"could not serve {where}: {error}", Exit.BROKEN) from error


def _serve(settings: ServerConfig) -> None:
    """Serve until told to stop; an error that came alone in a group is raised as itself."""
    from server_app import service

    try:
        asyncio.run(service.serve(settings))
    except ExceptionGroup as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from group


def _check_state(settings: ServerConfig) -> None:
    """A mistyped folder must not become a second, empty aggregator that knows no token."""
    path = Path(settings.state_dir)
    has_state = path.is_dir() and (bool(settings.database_url) or (path / DATABASE).exists())
    if not has_state:
        raise Failure(f"no state in {path.resolve()}; run 'fedge-server init' first", Exit.INVALID)


def _url(settings: ServerConfig) -> str:
    """Return where this machine reaches the aggregator."""
    host = "127.0.0.1" if settings.host in EVERYWHERE else settings.host
    scheme = "https" if settings.tls_certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _other_client(where: Path) -> str:
    return (
        f"\n\n'fedge' goes on using the server and the token in {where}, not the ones above:\n"
        "give --server and --token, or edit that file."
    )


def _read(path: Path) -> ServerConfig:
    return parse_toml(ServerConfig, path.read_text("utf-8"), str(path))


def _write(path: Path, changes: Mapping[str, object]) -> ServerConfig:
    """Write the keys that are not at their default, and where they lie; return the configuration."""
    wanted = {"host": "127.0.0.1", "port": 8080, "state_dir": "fedge-server", **changes}
    lines = [f"{key} = {json.dumps(value)}" for key, value in wanted.items()]
    text = "# Written by 'fedge-server init'; deploy/server.toml documents every key.\n" + "\n".join(lines) + "\n"
    config = parse_toml(ServerConfig, text, "options")
    path.write_text(text, "utf-8")
    return config
