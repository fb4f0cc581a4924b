"""``fedge data``: the data sets that tasks need and that do not ship with fedge."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fedge.registry import find
from fedge.tasks.sources import SOURCES, VARIABLE, Source
from server_app.cli.exits import reported

folder_option = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    envvar=VARIABLE,
    help=f"Where data sets lie, each in a folder of its own.  [default: {VARIABLE}]",
)


@click.group()
def data() -> None:
    """Data sets that do not ship with fedge: what they are, and fetching them."""


@data.command("list")
@folder_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_data(folder: Path | None, as_json: bool) -> None:
    """All data sets and, where a folder is named, what there is of them."""
    with reported():
        rows = [_row(source, folder) for source in SOURCES.values()]
    if as_json:
        return click.echo(json.dumps(rows, indent=2))
    from server_app.cli.tables import data_list, show

    return show(data_list(rows))


@data.command("get")
@click.argument("name")
@folder_option
@click.option("--from", "url", metavar="URL", help="A folder on the web that has the files, instead of the usual one.")
def get_data(name: str, folder: Path | None, url: str | None) -> None:
    """Fetch the data set NAME, check it, and put it into its folder. Resumes what broke off."""
    if folder is None:
        raise click.UsageError(f"expected a folder: give --folder DIR, or set {VARIABLE}")
    with reported():
        from server_app import datasets

        source = find("data set", name, SOURCES)
        place = folder / source.name
        fetched = datasets.get(source, place, source.url if url is None else url, _Progress())
    for path in fetched:
        click.echo(f"{path}: {path.stat().st_size:,} bytes, checksum right")
    if not fetched:
        click.echo(f"{place}: complete already")
    click.echo(f"For tasks to find it: export {VARIABLE}={folder.absolute()}")


class _Progress:
    """Says on standard error every few megabytes how far a download is."""

    every = 5_000_000

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def __call__(self, name: str, size_bytes: int) -> None:
        if size_bytes >= self._next.get(name, 0):
            self._next[name] = size_bytes + self.every
            click.echo(f"{name}: {size_bytes / 1e6:.1f} MB", err=True)


def _row(source: Source, folder: Path | None) -> dict[str, object]:
    from server_app import datasets

    states = {}
    if folder is not None:
        place = folder / source.name
        states = {file.name: str(datasets.state_of(file, place)) for file in source.files}
    return {
        "name": source.name,
        "files": [file.name for file in source.files],
        "size_bytes": sum(file.size_bytes for file in source.files),
        "licence": source.licence,
        "url": source.url,
        "layout": source.layout,
        "states": states,
    }
