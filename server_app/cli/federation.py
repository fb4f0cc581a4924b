"""``fedge``: look at a federation, steer it, or try one out."""

from __future__ import annotations

import time

import click

from server_app.cli.connection import Connection, ask, connected, echo_json, json_option
from server_app.cli.data import data
from server_app.cli.local import bench, demo, simulate
from server_app.cli.runs import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fedge", prog_name="fedge")
def main() -> None:
    """Federated learning on edge devices over slow, uneven and unreliable links."""


@main.command()
@json_option
@connected
def status(connection: Connection, as_json: bool) -> None:
    """The aggregator at a glance."""
    answer = ask(connection, lambda client: client.status())
    if as_json:
        return echo_json(answer)
    from server_app.cli.tables import facts, server_facts, show

    return show(facts(server_facts(answer, time.time())))


@main.command()
@json_option
@connected
def devices(connection: Connection, as_json: bool) -> None:
    """All enrolled devices."""
    answer = ask(connection, lambda client: client.devices())
    if as_json:
        return echo_json(answer)
    from server_app.cli.tables import device_list, show

    return show(device_list(answer, time.time()))


@main.group()
def token() -> None:
    """Tokens: who may enrol a device, look, or steer."""


@token.command("create")
@click.option("--role", type=click.Choice(["enroll", "viewer", "operator"]), required=True, help="What it allows.")
@click.option("--note", default="", help="What it is for, kept with its hash.")
@json_option
@connected
def create_token(connection: Connection, role: str, note: str, as_json: bool) -> None:
    """Make a token. It is shown this once; the aggregator keeps its hash only."""
    from schemas.status import Role, TokenRequest

    answer = ask(connection, lambda client: client.create_token(TokenRequest(role=Role(role), note=note)))
    return echo_json(answer) if as_json else click.echo(answer.token)


for command in (run, demo, simulate, data, bench):
    main.add_command(command)
