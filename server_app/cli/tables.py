"""What commands print for people: rich tables, and the words in their cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.specs import LinkLimit
from schemas.status import DeviceList, RoundStatus, RunList, RunStatus, RunSummary, ServerStatus
from server_app.report import Result, split_rows, weights_words
from server_app.report import rows as report_rows
from server_app.units import as_bytes, as_percent, as_points, as_ratio, as_seconds

Rows = Sequence[tuple[str, str]]


def show(table: Table) -> None:
    """Print ``table`` on standard output; wide and plain where that is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def facts(rows: Rows, title: str | None = None) -> Table:
    """Return a two-column table without a head."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for label, value in rows:
        table.add_row(Text(label), Text(value))  # not markup: reasons have brackets
    return table


def run_list(runs: RunList, now: float) -> Table:
    """Return one line for each run, newest first."""
    table = _table("run", "task", "phase", "rounds", "accuracy", "up", "down", "began")
    for run in runs.runs:
        table.add_row(
            run.run,
            run.task,
            run.phase,
            progress(run),
            as_percent(run.metrics.get("accuracy")),
            as_bytes(run.traffic.up),
            as_bytes(run.traffic.down),
            f"{as_seconds(max(0.0, now - run.created_at))} ago",
        )
    return table


def run_facts(run: RunStatus) -> Rows:
    """Return what there is to say about one run."""
    rows = [
        ("run", run.run),
        ("task", run.task),
        ("phase", f"{run.phase}{': ' + run.reason if run.reason else ''}"),
        ("rounds", progress(run)),
        ("devices", f"{run.devices} eligible"),
        *((f"  {name} cannot take part", why) for name, why in run.excluded.items()),
        ("model", f"{run.size:,} coordinates"),
        ("weights in the mean", weights_words(run.plan.aggregation.weights)),
        ("metrics", _metrics(run.metrics)),
        ("  of the initial model", _metrics(run.initial_metrics)),
        ("accuracy gained per megabit up", as_points(run.per_bit_accuracy)),
        ("up", _cost(run.traffic.up, run.float32_bytes.up)),
        ("  frames alone", _cost(run.frame_bytes.up, run.float32_bytes.up)),
        ("down", _cost(run.traffic.down, run.float32_bytes.down)),
        ("  frames alone", _cost(run.frame_bytes.down, run.float32_bytes.down)),
    ]
    rows += split_rows(run.split)
    if run.round is not None:
        rows.append(("now", round_words(run.round)))
    return [*rows, ("waiting for", run.waiting_for)] if run.waiting_for else rows


def rounds(rounds: Iterable[RoundStatus]) -> Table:
    """Return one line for each round, oldest first."""
    table = _table("round", "phase", "invited", "complete", "partial", "late", "gone", "loss", "accuracy", "up", "down")
    for r in rounds:
        table.add_row(
            str(r.round),
            f"{r.phase}{': ' + r.reason if r.reason else ''}",
            *(str(len(names)) for names in (r.cohort, r.updates, r.partial, r.late, r.gone)),
            "-" if r.loss is None else f"{r.loss:.4f}",
            as_percent(r.metrics.get("accuracy")),
            as_bytes(r.traffic.up or r.frame_bytes.up),
            as_bytes(r.traffic.down or r.frame_bytes.down),
        )
    return table


def device_list(devices: DeviceList, now: float) -> Table:
    """Return one line for each device."""
    table = _table(
        "device",
        "state",
        "last seen",
        "examples",
        "limit up",
        "limit down",
        "applied",
        "refused",
        "up",
        "down",
        "error",
    )
    for d in devices.devices:
        table.add_row(
            d.device,
            "online" if d.is_online else "offline",
            "never" if d.last_seen_at is None else f"{as_seconds(max(0.0, now - d.last_seen_at))} ago",
            ", ".join(f"{n} (front)" if d.trains.get(path) == "front" else str(n) for path, n in d.tasks.items()),
            limit_words(d.limits.uplink),
            limit_words(d.limits.downlink),
            str(d.updates_applied),
            str(d.rejected),
            as_bytes(d.traffic.up),
            as_bytes(d.traffic.down),
            d.last_error[:60],
        )
    return table


def data_list(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return one line for each data set, as ``fedge data list --json`` gives them."""
    table = _table("name", "here", "content", "licence", "published at")
    for row in rows:
        states = sorted(set(row["states"].values()))
        here = ", ".join(states) or "-"
        table.add_row(row["name"], here, as_bytes(row["size_bytes"]), row["licence"], row["url"] or "nowhere public")
    return table


def server_facts(status: ServerStatus, now: float) -> Rows:
    """Return what there is to say about the aggregator."""
    refused = ", ".join(f"{reason} {count}" for reason, count in status.rejected.items())
    return [
        ("version", status.version),
        ("up since", f"{as_seconds(max(0.0, now - status.started_at))}"),
        ("codecs", "native" if status.is_native else "NumPy: the C extension was not built"),
        ("devices", f"{status.devices_online} online of {status.devices}"),
        ("run", status.run or "none under way"),
        ("runs", str(status.runs)),
        ("device traffic since start", f"{as_bytes(status.traffic.up)} up, {as_bytes(status.traffic.down)} down"),
        ("refused requests", refused or "none"),
        *_download_states(status),
    ]


def _download_states(status: ServerStatus) -> Rows:
    kept = status.download_states
    if kept is None or kept.count == 0:
        return []
    room = f"{kept.count}, {as_bytes(kept.bytes)} of at most {as_bytes(kept.max_bytes)}"
    return [("download states", f"{room}; {kept.evicted} deleted for want of it, {kept.resyncs} resyncs")]


def progress(run: RunSummary) -> str:
    """Return how far a run is, such as ``12 of 60, 1 abandoned``."""
    abandoned = f", {run.rounds_abandoned} abandoned" if run.rounds_abandoned else ""
    return f"{run.rounds_closed} of {run.rounds_planned}{abandoned}"


def round_words(r: RoundStatus) -> str:
    """Return one round in one line."""
    parts = [f"round {r.round} {r.phase}", f"{len(r.updates)} of {len(r.cohort)} updates"]
    parts += [f"{len(names)} {word}" for names, word in ((r.partial, "partial"), (r.gone, "gone")) if names]
    parts += [f"{r.split.steps} split steps"] if r.split is not None else []
    parts += [f"loss {r.loss:.3f}"] if r.loss is not None else []
    parts += [f"mean shrunk by {as_percent(r.shrunk_by)}"] if r.shrunk_by is not None else []
    parts += [f"accuracy {as_percent(r.metrics['accuracy'])}"] if "accuracy" in r.metrics else []
    return ", ".join([*parts, *([r.reason] if r.reason else [])])


def limit_words(link: LinkLimit) -> str:
    """Return the limit a device states for one direction; a dash where the plan decides."""
    parts = [
        f"{link.bits:g} bit" if link.bits is not None else "",
        f"{as_bytes(link.bytes_per_round)} a round" if link.bytes_per_round is not None else "",
        f"{as_bytes(link.bytes_per_second)}/s" if link.bytes_per_second is not None else "",
    ]
    return ", ".join(filter(None, parts)) or "-"


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or "-"


def _cost(sent: int, bare: int) -> str:
    ratio = as_ratio(bare, sent) if bare else "-"
    return f"{as_bytes(sent)}, float32 would be {as_bytes(bare)} ({ratio})"


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column in {"run", "device", "round"})
    return table


def closing(result: Result) -> Iterator[Table]:
    """Yield the tables that end a demo, a simulation or the report of a run."""
    yield facts(report_rows(result), title=f"{result.run.run}: {result.run.phase}")
    if result.notes:
        table = _table("device", "what happened to it", "what became of it")
        for note in result.notes:
            table.add_row(note.device, note.what, note.outcome)
        yield table
