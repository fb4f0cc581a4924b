"""What is shown: the JSON of the REST interface, of ``--json`` and of the report."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from schemas.base import Model
from schemas.ids import DeviceName, RunName
from schemas.plan import Plan
from schemas.specs import Limits


class RunPhase(StrEnum):
    """Where a run is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


class RoundPhase(StrEnum):
    """Where a round is in its life (``fedge.protocol.coordinator`` draws the moves)."""

    SELECTING = "selecting"
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    CLOSED = "closed"
    ABANDONED = "abandoned"


class Traffic(Model):
    """Bytes on the sockets of devices, headers and all. ``up`` is device to aggregator."""

    up: int = Field(default=0, ge=0)
    down: int = Field(default=0, ge=0)


class SplitStatus(Model):
    """What a round's split training did. Bytes are of messages, without HTTP; ``float32_bytes`` of the same batches.

    ``float32_bytes`` counts activations up and gradients down as bare float32; half of it is float16.
    """

    devices: tuple[DeviceName, ...] = Field(default=(), description="whose front halves were served")
    steps: int = Field(default=0, description="steps of the back half")
    batches: int = Field(default=0, description="batches of devices in them; each counts once, however often it came")
    repeats: int = Field(default=0, description="batches that came again and were answered as before")
    refused: int = Field(default=0, description="batches that were none")
    loss: float | None = Field(default=None, description="mean over the last step that had any batch")
    activations: int = Field(default=0, description="bytes up")
    labels: int = Field(default=0, description="bytes up")
    gradients: int = Field(default=0, description="bytes down")
    shared: int = Field(default=0, description="bytes down, of codebooks and index models")
    overhead: Traffic = Field(default=Traffic(), description="bytes of headers and greetings")
    float32_bytes: Traffic = Traffic()

    @property
    def bytes(self) -> Traffic:
        """All bytes of messages."""
        return Traffic(
            up=self.activations + self.labels + self.overhead.up,
            down=self.gradients + self.shared + self.overhead.down,
        )


def total_split(parts: Sequence[SplitStatus | None]) -> SplitStatus | None:
    """Return the sum over rounds, with the loss of the last; None where there is nothing to add up."""
    rounds = [part for part in parts if part is not None]
    if not rounds:
        return None
    counts = ("steps", "batches", "repeats", "refused", "activations", "labels", "gradients", "shared")
    total: dict[str, Any] = {name: sum(getattr(r, name) for r in rounds) for name in counts}
    for name in ("overhead", "float32_bytes"):
        up, down = (sum(getattr(getattr(r, name), way) for r in rounds) for way in ("up", "down"))
        total[name] = Traffic(up=up, down=down)
    devices = tuple(sorted({device for r in rounds for device in r.devices}))
    return SplitStatus(devices=devices, loss=rounds[-1].loss, **total)


class RoundStatus(Model):
    """One round. ``updates`` are complete ones, ``partial`` devices delivered some segments only; ``late`` ones are in
    neither, and in ``cohort`` only where the round was too small without them."""

    round: int
    phase: Annotated[RoundPhase, Field(strict=False)]
    cohort: tuple[DeviceName, ...] = ()
    updates: tuple[DeviceName, ...] = ()
    partial: tuple[DeviceName, ...] = ()
    gone: tuple[DeviceName, ...] = ()
    late: dict[DeviceName, int] = Field(
        default={},
        description="devices whose update of an earlier round counted in this one: how many rounds later",
    )
    reason: str = Field(default="", description="why the round was abandoned")
    opened_at: float | None = Field(default=None, description="seconds since 1970, UTC")
    closed_at: float | None = None
    loss: float | None = Field(default=None, description="mean local training loss of the complete updates")
    shrunk_by: float | None = Field(
        default=None, description="how far shrinkage moved the mean, over the plain mean's length; null: it is plain"
    )
    metrics: dict[str, float] = Field(default={}, description="of the published model on the test data")
    bytes_down: dict[DeviceName, int] = Field(default={}, description="what each device downloaded, without HTTP")
    perturbation: float | None = Field(
        default=None,
        description="E of the squared distance between the model that a device trains from and the aggregator's, "
        "mean over the downloads; null: there were none",
    )
    split: SplitStatus | None = Field(default=None, description="null: every device trained the whole model")
    traffic: Traffic = Traffic()
    frame_bytes: Traffic = Field(default=Traffic(), description="frames alone, without HTTP and polling")
    float32_bytes: Traffic = Field(default=Traffic(), description="the same vectors as bare float32")


class RunSummary(Model):
    """One line of ``fedge run list``."""

    run: RunName
    task: str
    phase: Annotated[RunPhase, Field(strict=False)]
    reason: str = ""
    rounds_closed: int
    rounds_planned: int
    rounds_abandoned: int = 0
    created_at: float
    ended_at: float | None = None
    metrics: dict[str, float] = Field(default={})
    initial_metrics: dict[str, float] = Field(default={}, description="of the initial model on the same test data")
    split: SplitStatus | None = Field(
        default=None, description="sum over all rounds, the one under way included; null: whole models were trained"
    )
    late_updates: int = Field(
        default=0, description="how many `late` updates counted in all rounds, the one under way included"
    )
    traffic: Traffic = Traffic()


class RunStatus(RunSummary):
    """One run: its plan, its sizes, its present round and its totals."""

    plan: Plan
    size: int = Field(default=0, description="coordinates of the model")
    devices: int = Field(default=0, description="devices eligible for this run")
    excluded: dict[DeviceName, str] = Field(
        default={}, description="devices that train the task and cannot take part, and why; while the run is under way"
    )
    round: RoundStatus | None = Field(default=None, description="the round under way")
    waiting_for: str = Field(default="", description="what keeps a running run from its next round")
    frame_bytes: Traffic = Traffic()
    float32_bytes: Traffic = Traffic()
    per_bit_accuracy: float | None = Field(
        default=None,
        description="percentage points of accuracy gained per megabit up, by the end of the round tested last; "
        "null: accuracy was not measured, or nothing was sent",
    )


class RunList(Model):
    """All runs, newest first."""

    runs: tuple[RunSummary, ...]


class RoundList(Model):
    """All rounds of one run, oldest first."""

    run: RunName
    rounds: tuple[RoundStatus, ...]


class DeviceStatus(Model):
    """One enrolled device."""

    device: DeviceName
    is_online: bool
    last_seen_at: float | None = None
    enrolled_at: float
    tasks: dict[str, int] = Field(default={}, description="task path -> examples")
    trains: dict[str, Literal["either", "whole", "front"]] = Field(
        default={}, description="task path -> what it can train of the model"
    )
    limits: Limits = Limits()
    version: str = ""
    platform: str = ""
    traffic: Traffic = Traffic()
    updates_applied: int = 0
    rejected: int = Field(default=0, description="requests of this device that were refused")
    last_error: str = ""


class DeviceList(Model):
    """All enrolled devices."""

    devices: tuple[DeviceStatus, ...]


class DownloadStates(Model):
    """What an aggregator keeps of what devices have of the model, on disk."""

    count: int = 0
    bytes: int = 0
    max_bytes: int = Field(default=0, description="max_download_state_bytes of the configuration")
    evicted: int = Field(default=0, description="deleted to stay below that, since the aggregator started")
    resyncs: int = Field(default=0, description="whole models sent to devices that had one, since it started")


class ServerStatus(Model):
    """The aggregator at a glance."""

    version: str
    started_at: float
    is_native: bool = Field(description="whether the C extension is in use")
    devices: int
    devices_online: int
    run: RunName | None = Field(default=None, description="the run under way")
    runs: int
    traffic: Traffic = Field(default=Traffic(), description="all device sockets since the start")
    rejected: dict[str, int] = Field(default={}, description="refused requests by reason")
    download_states: DownloadStates | None = Field(default=None, description="of the run under way")


class Role(StrEnum):
    """What a token allows: to enrol a device, to look, or to look and steer."""

    ENROLL = "enroll"
    VIEWER = "viewer"
    OPERATOR = "operator"


class TokenRequest(Model):
    """``POST /v1/tokens``."""

    role: Annotated[Role, Field(strict=False)]
    note: str = Field(default="", max_length=200)


class Token(Model):
    """A fresh token; it is shown once and stored only as a hash."""

    token: str
    role: Annotated[Role, Field(strict=False)]


class Problem(Model):
    """An error, as RFC 9457 describes it. ``reason`` is a stable word to script against."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str
    faults: tuple[dict[str, str], ...] = ()
