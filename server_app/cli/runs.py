"""``fedge run``: start, list, show, watch, stop, export, report."""

from __future__ import annotations

import time
from pathlib import Path

import click

from schemas.status import RunPhase, RunStatus, RunSummary
from server_app.cli.connection import Connection, ask, connected, echo_json, json_option
from server_app.cli.exits import Exit, Failure
from server_app.cli.plans import read_plan
from server_app.cli.reports import check_unused, finish, new_dir
from server_app.client import Client, Unreachable


@click.group()
def run() -> None:
    """Runs: start, list, show, watch, stop, export, report."""


@run.command()
@click.argument("plan", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@connected
def start(connection: Connection, plan: Path, as_json: bool) -> None:
    """Start the run that PLAN, a TOML file, describes."""
    agreed = read_plan(plan)
    answer = ask(connection, lambda client: client.start(agreed))
    if as_json:
        return echo_json(answer)
    return click.echo(f"{answer.run} is {answer.phase}; follow it with: fedge run watch {answer.run}")


@run.command("list")
@json_option
@connected
def list_runs(connection: Connection, as_json: bool) -> None:
    """All runs, newest first."""
    answer = ask(connection, lambda client: client.runs())
    if as_json:
        return echo_json(answer)
    from server_app.cli.tables import run_list, show

    return show(run_list(answer, time.time()))


@run.command("show")
@click.argument("run")
@click.option("--rounds", "with_rounds", is_flag=True, help="All rounds too (with --json: instead).")
@json_option
@connected
def show_run(connection: Connection, run: str, with_rounds: bool, as_json: bool) -> None:
    """One run: its plan, its sizes, its present round and its totals."""
    if as_json:
        if with_rounds:
            return echo_json(ask(connection, lambda client: client.rounds(run)))
        return echo_json(ask(connection, lambda client: client.run(run)))
    from server_app.cli.tables import facts, rounds, run_facts, show

    show(facts(run_facts(ask(connection, lambda client: client.run(run)))))
    if with_rounds:
        show(rounds(ask(connection, lambda client: client.rounds(run)).rounds))
    return None


@run.command()
@click.argument("run")
@json_option
@connected
def watch(connection: Connection, run: str, as_json: bool) -> None:
    """Follow a run to its end; one line for each change (with --json: one RunStatus a line)."""

    async def follow(client: Client) -> RunStatus:
        async for status in client.watch(run, on_lost=_say_lost):
            click.echo(status.model_dump_json() if as_json else _line(status))
        return status

    ended = ask(connection, follow)
    if ended.phase is not RunPhase.FINISHED:
        raise Failure(f"{run} {ended.phase}: {ended.reason or 'no reason given'}", Exit.RUN_FAILED)


@run.command()
@click.argument("run")
@json_option
@connected
def stop(connection: Connection, run: str, as_json: bool) -> None:
    """Stop a run; its last published model stays."""
    answer = ask(connection, lambda client: client.stop(run))
    words = "stopping" if answer.phase in (RunPhase.QUEUED, RunPhase.RUNNING) else str(answer.phase)
    return echo_json(answer) if as_json else click.echo(f"{answer.run} is {words}")


@run.command()
@click.argument("run")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@connected
def export(connection: Connection, run: str, file: Path) -> None:
    """Write the run's published model to FILE, as safetensors."""

    async def fetch(client: Client) -> tuple[int, RunStatus]:
        return await client.export(run, file), await client.run(run)

    try:
        size_bytes, status = ask(connection, fetch)
    except OSError as error:
        raise Failure(f"could not write {file}: {error.strerror or error}", Exit.BROKEN) from error
    click.echo(f"{file}: {size_bytes:,} bytes")
    _note_untrained(status)


@run.command()
@click.argument("run")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the report goes, a new or empty folder.  [default: reports/RUN-TIME]",
)
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON instead of a table.")
@connected
def report(connection: Connection, run: str, out: Path | None, as_json: bool) -> None:
    """Write a report of a run, over or not, as the aggregator tells it.

    A page with plots, the rounds, the plan, the totals and the published model; a viewer's token is enough.
    """
    from server_app import run_report

    if out is not None:
        check_unused(out)
    result, model = ask(connection, lambda client: run_report.ask(client, run, time.time))
    folder = out or new_dir(result.run.run)
    check_unused(folder)
    try:
        finish(result, model, folder, as_json)
    except OSError as error:
        raise Failure(f"could not write {folder}: {error.strerror or error}", Exit.BROKEN) from error
    if model is not None:
        _note_untrained(result.run)


def _note_untrained(run: RunSummary) -> None:
    if run.rounds_closed == 0:
        click.echo(f"note: no round of {run.run} has closed: this is the untrained initial model", err=True)


def _say_lost(error: Unreachable) -> None:
    click.echo(f"aggregator unreachable, trying again: {error}", err=True)


def _line(status: RunStatus) -> str:
    from server_app.cli.tables import progress, round_words

    now = f"; {round_words(status.round)}" if status.round is not None else ""
    waiting = f"; waiting for {status.waiting_for}" if status.waiting_for else ""
    return f"{status.run} {status.phase}, {progress(status)} rounds{now}{waiting}"
