"""A run as a folder that explains itself: what was agreed, what came of it, what it cost.

    report.html          all of the below in one file, plots included; opens without a network
    accuracy_over_rounds.png  accuracy_over_bytes.png  per_bit_accuracy.png  loss.png  perturbation.png
    metrics.jsonl        one ``RoundStatus`` a line, oldest first
    model.safetensors    the published model, tensors by their own names; not there before a run has begun
    plan.toml            the plan, every key written out; ``fedge run start`` takes it
    status.json          what the aggregator said of the run, a ``RunStatus``; of ``fedge run report`` alone
    summary.json         the closing table as one JSON object

The three ways to count bytes stand side by side, and never mixed: ``bytes`` crossed the devices' sockets, headers,
polling and enrolment included; ``bytes_frames`` are the encoded updates and models alone; ``bytes_float32`` is what
the same vectors weigh as bare float32. A simulation has no sockets and reports frames only. What was gained per megabit
(``fedge.per_bit``) counts all that crossed the sockets, or frames where there were none.

A demo and a simulation look on from start to end. Of another run there is only what an aggregator says of it
(``server_app.run_report``): ``bytes`` then are those that passed while the run was under way, by its status.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from fedge.per_bit import per_bit_accuracy
from schemas.plan import Plan
from schemas.status import RoundStatus, RunStatus, RunSummary, SplitStatus, Traffic, total_split
from server_app.report_plots import draw
from server_app.units import as_bytes, as_percent, as_points, as_ratio, as_seconds


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was done to one device, and what became of it."""

    device: str
    what: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Result:
    """A run. ``traffic`` counts all device sockets; it is zero where there were none.

    ``status`` is set where all there is of the run is what an aggregator says; its numbers are then the report's.
    ``as_of`` is when it said so, in seconds since 1970, of a run that is not over. ``seconds`` is None before the first
    round, ``notes`` where nobody looked on.
    """

    plan: Plan
    run: RunSummary
    rounds: tuple[RoundStatus, ...]
    devices: int
    traffic: Traffic
    frame_bytes: Traffic
    float32_bytes: Traffic
    seconds: float | None
    notes: tuple[Note, ...] | None = ()
    status: RunStatus | None = None
    as_of: float | None = None

    @property
    def accuracy(self) -> float | None:
        """The published model's accuracy on the test data, a share of one; None where it was not measured."""
        tested = [r.metrics["accuracy"] for r in self.rounds if "accuracy" in r.metrics]
        return self.run.metrics.get("accuracy", tested[-1] if tested else None)

    @property
    def initial_accuracy(self) -> float | None:
        """The initial model's accuracy on the same test data; None where it was not measured."""
        return self.run.initial_metrics.get("accuracy")

    @property
    def per_bit_accuracy(self) -> float | None:
        """Percentage points of accuracy gained per megabit up, by the end of the round tested last."""
        if self.status is not None:
            return self.status.per_bit_accuracy
        tested = [index for index, r in enumerate(self.rounds) if "accuracy" in r.metrics]
        later = self.rounds[tested[-1] + 1 :] if tested else ()
        if self.traffic.up:
            bytes_up = self.traffic.up - sum(r.traffic.up for r in later)
        else:
            bytes_up = self.frame_bytes.up - sum(r.frame_bytes.up for r in later)
        return per_bit_accuracy(self.accuracy, self.initial_accuracy, bytes_up)

    @property
    def bytes_down(self) -> dict[str, int]:
        """What each device downloaded in the whole run, without HTTP."""
        total: Counter[str] = Counter()
        for r in self.rounds:
            total.update(r.bytes_down)
        return dict(sorted(total.items()))

    @property
    def perturbation(self) -> float | None:
        """E‖ŵ - w‖² of the last round that had downloads: what devices trained from beside the aggregator's model."""
        told = [r.perturbation for r in self.rounds if r.perturbation is not None]
        return told[-1] if told else None

    @property
    def split(self) -> SplitStatus | None:
        """What split training did in all rounds; None where every device trained the whole model."""
        return total_split([r.split for r in self.rounds])

    @property
    def late_updates(self) -> int:
        """How many updates counted in a later round than their own."""
        return sum(len(r.late) for r in self.rounds)

    @property
    def shrunk_by(self) -> float | None:
        """How far shrinkage moved the mean in the median round, over the plain mean's length; None: plain weights."""
        moved = [r.shrunk_by for r in self.rounds if r.shrunk_by is not None]
        return median(moved) if moved else None

    @property
    def standing(self) -> str:
        """When this was so, and what the run waits for; empty of a run that is over."""
        if self.as_of is None:
            return ""
        waiting_for = self.status.waiting_for if self.status is not None else ""
        at = f"as of {datetime.fromtimestamp(self.as_of, UTC):%Y-%m-%d %H:%M:%S} UTC"
        return f"{at}, waiting for {waiting_for}" if waiting_for else at


def summary(result: Result, report_dir: Path | None) -> dict[str, Any]:
    """Return the closing table as plain values; scripts rely on these keys."""
    sent, frames, bare = result.traffic, result.frame_bytes, result.float32_bytes
    return {
        "run": result.run.run,
        "task": result.plan.task,
        "phase": str(result.run.phase),
        "reason": result.run.reason,
        "as_of": result.as_of,
        "test_accuracy": result.accuracy,
        "metrics": result.run.metrics,
        "initial_metrics": result.run.initial_metrics,
        "per_bit_accuracy": result.per_bit_accuracy,
        "rounds": result.run.rounds_closed,
        "rounds_abandoned": result.run.rounds_abandoned,
        "late_updates": result.late_updates,
        "devices": result.devices,
        "seed": result.plan.seed,
        "weights": result.plan.aggregation.weights,
        "shrunk_by": result.shrunk_by,
        "seconds": None if result.seconds is None else round(result.seconds, 3),
        "bytes_up": sent.up or frames.up,
        "bytes_down": sent.down or frames.down,
        "bytes_up_frames": frames.up,
        "bytes_down_frames": frames.down,
        "bytes_up_float32": bare.up,
        "bytes_down_float32": bare.down,
        "bytes_down_by_device": result.bytes_down,
        "downlink": result.plan.downlink.mode,
        "perturbation": result.perturbation,
        "split": None if result.split is None else result.split.model_dump(mode="json"),
        "notes": None if result.notes is None else [asdict(note) for note in result.notes],
        "report_dir": None if report_dir is None else str(report_dir),
    }


def rows(result: Result) -> list[tuple[str, str]]:
    """Return the closing table as people read it: label and value, in order."""
    sent, frames, bare = result.traffic, result.frame_bytes, result.float32_bytes
    cohorts = [len(r.cohort) for r in result.rounds if r.cohort]
    table = [
        ("accuracy on the test data", as_percent(result.accuracy)),
        ("accuracy gained per megabit up", as_points(result.per_bit_accuracy)),
        ("rounds", f"{result.run.rounds_closed} of {result.plan.rounds}{_abandoned(result)}"),
        ("devices", f"{result.devices}, {max(cohorts, default=0)} invited to a round"),
        ("weights in the mean", weights_words(result.plan.aggregation.weights, result.shrunk_by)),
    ]
    if result.standing:
        table.insert(0, ("not over yet", result.standing))
    if result.plan.aggregation.max_staleness:
        table.append(("late updates that counted", str(result.late_updates)))
    if result.seconds is not None:
        table.append(("time", as_seconds(result.seconds)))
    for label, is_up in (("up", True), ("down", False)):
        s, f, b = ((t.up if is_up else t.down) for t in (sent, frames, bare))
        if s:
            table.append((f"bytes {label}, all that crossed the sockets", f"{as_bytes(s)}  ({s:,} bytes)"))
            table.append(("  ratio to float32", f"{as_ratio(b, s)}  ({as_bytes(b)} as float32)"))
        table.append((f"frames {label} alone, without HTTP", as_bytes(f)))
        table.append(("  ratio to float32", f"{as_ratio(b, f)}  ({as_bytes(b)} as float32)"))
    if each := sorted(result.bytes_down.values()):
        words = f"{as_bytes(each[0])} to {as_bytes(each[-1])}, median {as_bytes(int(median(each)))}"
        what = "front half down to one device" if result.split is not None else "frames down to one device"
        table.append((what, words))
    if result.perturbation is not None:
        table.append((f"E‖ŵ - w‖² of the last downloads, {result.plan.downlink.mode}", f"{result.perturbation:.3g}"))
    if result.split is not None:
        own = result.split.bytes
        rest = f"{as_bytes(frames.up - own.up)}, {as_bytes(frames.down - own.down)}"
        table += [*split_rows(result.split), ("  updates up, models down", rest)]
    return table


def split_rows(split: SplitStatus | None) -> list[tuple[str, str]]:
    """Return what split training cost. Ratios of activations and gradients are of those alone, by both baselines."""
    if split is None:
        return []
    again = f", {split.repeats} came again" if split.repeats else ""
    refused = f", {split.refused} refused" if split.refused else ""
    return [
        ("front halves served", f"{len(split.devices)} devices, {split.batches} batches{again}{refused}"),
        ("  steps of the back half", str(split.steps)),
        ("  activations up", _cost(split.activations, split.float32_bytes.up)),
        ("  labels up", as_bytes(split.labels)),
        ("  gradients down", _cost(split.gradients, split.float32_bytes.down)),
        ("  codebooks down", as_bytes(split.shared)),
        ("  headers up, down", f"{as_bytes(split.overhead.up)}, {as_bytes(split.overhead.down)}"),
    ]


def _cost(part: int, bare: int) -> str:
    halved = as_ratio(bare / 2, part)
    return f"{as_bytes(part)}  ({as_ratio(bare, part)} less than float32, {halved} than float16)"


def weights_words(weights: str, shrunk_by: float | None = None) -> str:
    """Return how the updates were averaged, and what that means."""
    if weights == "plain":
        return "plain, unbiased"
    moved = "" if shrunk_by is None else f"; moved the mean by {as_percent(shrunk_by)}"
    return f"{weights}, biased towards devices that send more bits{moved}"


def write(folder: Path, result: Result, model: bytes | None) -> None:
    """Write the report of ``result`` into ``folder``; ``model`` is a safetensors file, None where there is none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    images = draw(result.rounds, result.initial_accuracy)
    for name, data in images.items():
        (folder / name).write_bytes(data)
    lines = [r.model_dump_json() + "\n" for r in result.rounds]
    (folder / "metrics.jsonl").write_text("".join(lines), "utf-8")
    if model is not None:
        (folder / "model.safetensors").write_bytes(model)
    if result.status is not None:
        (folder / "status.json").write_text(result.status.model_dump_json(indent=2) + "\n", "utf-8")
    (folder / "plan.toml").write_text(plan_toml(result.plan), "utf-8")
    text = json.dumps(summary(result, folder), indent=2, ensure_ascii=False)
    (folder / "summary.json").write_text(text + "\n", "utf-8")
    (folder / "report.html").write_text(html(result, images), "utf-8")


def html(result: Result, images: Mapping[str, bytes]) -> str:
    """Return the page; images travel inside it."""
    from jinja2 import Environment, StrictUndefined

    text = (files("server_app") / "templates" / "report.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"bytes": as_bytes, "percent": as_percent}
    inline = {name: "data:image/png;base64," + base64.b64encode(data).decode() for name, data in images.items()}
    return environment.from_string(text).render(
        result=result,
        table=rows(result),
        images=inline,
        plan=plan_toml(result.plan),
        ratio=as_ratio,
        seconds=as_seconds,
    )


def plan_toml(plan: Plan) -> str:
    """Return ``plan`` as TOML with every key written out; reading it gives the same plan."""
    document = plan.model_dump(mode="json", exclude_none=True)
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in document.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _abandoned(result: Result) -> str:
    count = result.run.rounds_abandoned
    return f", {count} abandoned" if count else ""
