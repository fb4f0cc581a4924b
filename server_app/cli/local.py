"""``fedge demo``, ``fedge simulate`` and ``fedge bench``: what one machine can do alone."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.plan import Plan
from server_app.cli.exits import Exit, Failure, reported
from server_app.cli.plans import altered, read_plan
from server_app.cli.reports import default_dir, finish

if TYPE_CHECKING:
    from server_app.demo import Demo, Outcome
    from server_app.report import Result

report_option = click.option(
    "--report-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the report goes.  [default: reports/NAME-TIME]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="End with one line of JSON instead of a table.")


@click.command()
@click.option("--devices", type=click.IntRange(1), default=36, show_default=True, help="How many devices there are.")
@click.option("--rounds", type=click.IntRange(1), default=60, show_default=True)
@click.option("--task", default="wisdm", show_default=True, help="A ready task's name, or package.module:object.")
@click.option("--seed", type=click.IntRange(0), help="Decides the cohorts, the rotations and the first model.")
@click.option("--cohort", type=click.IntRange(1), help="Devices invited to a round.  [default: 12, or all if fewer]")
@click.option("--codec", type=click.Choice(["eden", "m22"]), help="What codes the updates.  [default: eden]")
@click.option("--uplink-bits", type=float, help="Bits per coordinate, device to aggregator.")
@click.option("--downlink-bits", type=float, help="Bits per coordinate, aggregator to device.")
@click.option("--split", is_flag=True, help="Devices train the front half of the model, the aggregator the rest.")
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True, help="Agent processes.")
@click.option("--faults", is_flag=True, help="Kill, cut and slow down some of the devices on the way.")
@json_option
@report_option
def demo(
    devices: int,
    rounds: int,
    task: str,
    seed: int | None,
    cohort: int | None,
    codec: str | None,
    uplink_bits: float | None,
    downlink_bits: float | None,
    split: bool,
    processes: int,
    faults: bool,
    as_json: bool,
    report_dir: Path | None,
) -> None:
    """Play a whole federation on this machine, over loopback HTTP."""
    with reported():
        from server_app.demo import Demo, check, default_plan
        from server_app.sites import task_path

        changes: dict[str, object] = {"task": task_path(task), "rounds": rounds}
        changes |= {"cohort": {"devices": cohort or min(12, devices)}}
        changes |= {"seed": seed} if seed is not None else {}
        uplink = {"codec": codec, "bits": uplink_bits}
        changes |= {"uplink": {key: value for key, value in uplink.items() if value is not None}}
        changes |= {"downlink": {"bits": downlink_bits}} if downlink_bits is not None else {}
        changes |= {"split": {}} if split else {}
        plan = altered(default_plan(), changes)
        folder, wanted = report_dir or default_dir("demo"), Demo(plan, devices, processes, faults)
        check(wanted)
        outcome = _interruptible(_play(wanted, folder))
        finish(outcome.result, outcome.model, folder, as_json)


@click.command()
@click.argument("plan", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seed", type=click.IntRange(0), help="Instead of the plan's.")
@json_option
@report_option
def simulate(plan: Path, seed: int | None, as_json: bool, report_dir: Path | None) -> None:
    """Run PLAN on virtual devices: the same decisions and the same arithmetic, without a network."""
    with reported():
        agreed = read_plan(plan)
        agreed = agreed if seed is None else altered(agreed, {"seed": seed})
        folder = report_dir or default_dir(plan.stem)
        try:
            folder.mkdir(parents=True, exist_ok=True)  # before the rounds: their work would be lost
        except OSError as error:
            raise Failure(f"could not make {folder}: {error.strerror}", Exit.REFUSED) from None
        result, model = _simulate(agreed, plan.stem)
        finish(result, model, folder, as_json)
        if result.run.phase != "finished":
            raise Failure(f"the run {result.run.phase}: {result.run.reason}", Exit.RUN_FAILED)


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("name")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(name: str, arguments: tuple[str, ...]) -> None:
    """Run a benchmark of the repository, such as: fedge bench codecs."""
    root = Path(__file__).parents[2]
    known = sorted(path.stem for path in (root / "benchmarks").glob("[a-z]*.py") if _is_program(path))
    if not known:
        raise Failure("the benchmarks are in the repository, not in the installed package: clone it", Exit.NOT_FOUND)
    if name not in known:
        raise Failure(f"expected a benchmark of {', '.join(known)}, got {name!r}", Exit.NOT_FOUND)
    ended = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], cwd=root, check=False)
    if ended.returncode:
        raise Failure(f"benchmark {name} ended with {ended.returncode}", Exit.CHILD_DIED)


def _is_program(path: Path) -> bool:
    """The modules beside the benchmarks do nothing when they are run."""
    return 'if __name__ == "__main__":' in path.read_text("utf-8")


async def _play(demo: Demo, folder: Path) -> Outcome:
    from server_app.cli.progress import RunProgress
    from server_app.demo import play

    with tempfile.TemporaryDirectory(prefix="fedge-demo-") as scratch, RunProgress(demo.plan.rounds) as show:
        try:
            return await play(demo, Path(scratch), show)
        except Exception:
            shutil.copytree(Path(scratch) / "logs", folder / "logs", dirs_exist_ok=True)
            click.echo(f"the logs of all processes are in {folder / 'logs'}", err=True)
            raise


def _simulate(plan: Plan, name: str) -> tuple[Result, bytes]:
    from server_app.cli.progress import RunProgress
    from server_app.rehearsal import rehearse

    with RunProgress(plan.rounds) as show:
        show.stage(f"simulating {name}")
        return rehearse(plan, name, show.round, time.monotonic)


def _interruptible(work: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Run ``work``; a signal to end cancels it, so that it can put away what it started."""

    async def inside() -> Outcome:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await task

    return asyncio.run(inside())
