"""``fedge-device``: enrol this device, run its agent, look at it, check it, install it as a service.

Exit codes: 0 done or stopped; 1 something is wrong, as said; 2 wrong usage; 3 the home folder is not enrolled, not
valid or in use; 4 the aggregator does not know this device or its token; 5 the aggregator cannot be reached or
declines; 6 no task can be trained here.
"""

from __future__ import annotations

import asyncio
import json
import platform
import re
import signal
import tomllib
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import click

from device_app import doctor as checks
from device_app import service
from device_app.enrolment import changes, enroll_device, previous
from device_app.errors import AggregatorError, DeviceError, HomeError, TrainerError, Unauthorised
from device_app.faults import CutLink
from device_app.home import Home, default_home
from device_app.host import serve
from device_app.logs import set_up
from device_app.status import describe
from device_app.trainer import Trainer
from device_app.transport import Link
from fedge.tasks.base import full_path
from schemas.base import Model, parse
from schemas.config import DeviceConfig
from schemas.errors import InvalidInput
from schemas.ids import Secret

P = ParamSpec("P")

EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (HomeError, 3),
    (InvalidInput, 2),
    (Unauthorised, 4),
    (AggregatorError, 5),
    (TrainerError, 6),
    (DeviceError, 1),
)
LEVELS = click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False)


def exits(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a command raises into a line on stderr and an exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (DeviceError, InvalidInput) as error:
            _fail(error)

    return run


def _fail(error: Exception) -> NoReturn:
    click.echo(f"fedge-device: {error}", err=True)
    raise SystemExit(next(code for kind, code in EXIT_CODES if isinstance(error, kind)))


home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_home,
    show_default="$FEDGE_DEVICE_HOME or ~/.fedge-device",
    help="This device's folder.",
)


class EnrolmentToken(Model):
    """What ``--token`` takes."""

    token: Secret


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=(__doc__ or "").split("\n\n", 1)[1])
@click.version_option(package_name="fedge")
def main() -> None:
    """Train a shared model on this device's own data, which stays here."""
    set_up("WARNING")


@main.command()
@home_option
@click.option("--server", required=True, help="The aggregator, for example http://pi-hub:8080.")
@click.option("--token", required=True, envvar="FEDGE_TOKEN", help="An enrolment token.")
@click.option("--name", default=None, help="What to call this device; its host name if not given.")
@click.option("--task", default="fedge.tasks.wisdm:task", show_default=True, help="package.module:object")
@click.option("--data", "data", multiple=True, metavar="KEY=VALUE", help="Where the task's data is; repeatable.")
@click.option(
    "--trains",
    type=click.Choice(["either", "whole", "front"]),
    default="either",
    show_default=True,
    help="front: no more than the front half of a model, in runs that split it.",
)
@click.option("--bits", type=float, help="Most bits per coordinate to send.")
@click.option("--bytes-per-round", type=int, help="Most bytes to send in a round.")
@click.option("--bytes-per-second", type=float, help="Speed of the uplink; needs --deadline-seconds.")
@click.option("--deadline-seconds", type=float, help="How long an upload may take.")
@click.option("--download-bits", type=float, help="Most bits per coordinate to receive.")
@click.option("--download-bytes-per-round", type=int, help="Most bytes to receive in a round.")
@click.option("--threads", type=int, default=1, show_default=True, help="Threads to train with.")
@click.option("--tls-ca", default="", help="Certificate of a private authority.")
@exits
def enroll(home: Path, token: str, **options: Any) -> None:
    """Make this device known to an aggregator. Repeating it is safe."""
    config = _config(options)
    parse(EnrolmentToken, {"token": token}, "enroll")
    before = previous(Home(home))
    device = asyncio.run(_enroll(Home(home), config, token))
    for line in changes(before, config):
        click.echo(line)
    taken = f" (another device is called {config.name})" if device != config.name else ""
    click.echo(f"enrolled as {device}{taken}; start it with: fedge-device run --home {home}")


async def _enroll(home: Home, config: DeviceConfig, token: str) -> str:
    async with Trainer(config.threads) as trainer:
        return await enroll_device(home, config, token, trainer)


def _config(options: dict[str, Any]) -> DeviceConfig:
    uplink = {key: options[key] for key in ("bits", "bytes_per_round", "bytes_per_second", "deadline_seconds")}
    downlink = {key: options[f"download_{key}"] for key in ("bits", "bytes_per_round")}
    document = {
        "server": options["server"].rstrip("/"),
        "name": options["name"] or host_name(),
        "tasks": [
            {"task": full_path(options["task"]), "data": dict(map(_pair, options["data"])), "trains": options["trains"]}
        ],
        "limits": {"uplink": _given(uplink), "downlink": _given(downlink)},
        "threads": options["threads"],
        "tls_ca": options["tls_ca"],
    }
    return parse(DeviceConfig, document, "enroll")


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _pair(text: str) -> tuple[str, Any]:
    """Return ``KEY=VALUE`` with the number, boolean or string TOML reads in it, or else the text itself."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise click.BadParameter(f"expected KEY=VALUE, got {text!r}", param_hint="--data")
    with suppress(tomllib.TOMLDecodeError):
        read = tomllib.loads(f"value = {value}")["value"]
        return key, read if isinstance(read, bool | int | float | str) else value
    return key, value


def host_name() -> str:
    """Return this machine's name as a device may be called."""
    return re.sub(r"[^a-z0-9._-]+", "-", platform.node().lower()).strip("-._")[:60] or "device"


@main.command()
@click.option(
    "--home",
    "homes",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="A device's folder; give several to host several devices.",
)
@click.option("--log-level", type=LEVELS, help="Instead of the configured one.")
@click.option("--json-logs", is_flag=True, help="Log JSON lines.")
@click.option("--cut-upload-after", type=click.FloatRange(0.0, 1.0), hidden=True)
@click.option("--cut-every", type=click.IntRange(1), default=1, hidden=True)
@exits
def run(
    homes: tuple[Path, ...], log_level: str | None, json_logs: bool, cut_upload_after: float | None, cut_every: int
) -> None:
    """Take part in rounds until stopped."""
    found = [Home(root) for root in homes or (default_home(),)]
    set_up((log_level or found[0].config().log_level).upper(), json_logs)
    wrap = (lambda link: link) if cut_upload_after is None else partial(_cut, cut_upload_after, cut_every)
    _until_stopped(serve(found, wrap))


def _cut(fraction: float, every: int, link: Link) -> Link:
    return CutLink(link, fraction, every)


def _until_stopped(program: Coroutine[Any, Any, None]) -> None:
    async def run() -> None:
        task = asyncio.ensure_future(program)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())


@main.command()
@home_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@exits
def status(home: Path, as_json: bool) -> None:
    """Show what this device is doing."""
    facts = describe(Home(home))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        click.echo(f"{key:<{width}}  {'-' if value is None else value}")


@main.command()
@home_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@exits
def doctor(home: Path, as_json: bool) -> None:
    """Check what this device needs; exit code 1 if something is missing."""
    findings = asyncio.run(checks.examine(Home(home)))
    if as_json:
        click.echo(json.dumps([finding.to_json() for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{_mark(finding)} {finding.what}: {finding.detail}")
    if not all(finding.is_good for finding in findings):
        raise SystemExit(1)


def _mark(finding: checks.Finding) -> str:
    if not finding.is_good:
        return "BAD "
    return "WARN" if finding.is_warning else "ok  "


@main.command()
@home_option
@click.option("--user", default="", help="The account it runs as; yours if not given.")
@click.option("--unit", "unit_path", type=click.Path(path_type=Path), default=service.UNIT, show_default=True)
@exits
def install(home: Path, user: str, unit_path: Path) -> None:
    """Run the agent as a systemd service, from the next boot on."""
    for line in service.install(Home(home.resolve()), user, unit_path):
        click.echo(line)


@main.command()
@click.option("--unit", "unit_path", type=click.Path(path_type=Path), default=service.UNIT, show_default=True)
@exits
def uninstall(unit_path: Path) -> None:
    """Remove the systemd service. The home folder stays."""
    for line in service.uninstall(unit_path):
        click.echo(line)
