"""What commands that end in a report share: where it goes, and what they print."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from server_app.cli.exits import Exit, Failure

if TYPE_CHECKING:
    from server_app.report import Result


def default_dir(name: str) -> Path:
    """Return where a report goes unless told otherwise."""
    return Path("reports") / f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"


def new_dir(name: str) -> Path:
    """Make and return the folder a report goes to unless told otherwise, one that nobody else was given."""
    folder, number = default_dir(name), 1
    first = folder.name
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            folder = folder.with_name(f"{first}-{number}")
        except OSError as error:
            raise Failure(f"could not make {folder}: {error.strerror or error}", Exit.BROKEN) from error
        else:
            return folder


def check_unused(folder: Path) -> None:
    """Refuse a folder that holds something: files of two reports must not get mixed."""
    try:
        found = next(folder.iterdir(), None) if folder.is_dir() else None
    except OSError as error:
        raise Failure(f"could not look into {folder}: {error.strerror or error}", Exit.BROKEN) from error
    if found is not None:
        raise Failure(f"expected a new or empty folder, {folder} holds {found.name}", Exit.USAGE)


def finish(result: Result, model: bytes | None, folder: Path, as_json: bool) -> None:
    """Write the report and print the closing table."""
    from server_app import report
    from server_app.cli.tables import closing, show

    report.write(folder, result, model)
    if as_json:
        return click.echo(json.dumps(report.summary(result, folder)))
    for table in closing(result):
        show(table)
    return click.echo(f"\nreport: {folder / 'report.html'}")
