"""What device and aggregator say to each other. Bulk numbers travel as frames (``fedge.frames``), not in here.

device                              aggregator
  POST /v1/enroll    Enroll      ->            token or credential, tasks, limits
                                 <- Enrolled   the device's id
  GET  /v1/work                  -> Work       an assignment, receipts, or neither (long poll)
  GET  .../download              -> frames     the model this device starts from
  PUT  .../updates/me            -> UpdateStatus   body: u32 length | UpdateHeader | frames in random order
  GET  .../updates/me            -> UpdateStatus   which segments arrived, after a cut
  GET  /v1/runs/R/split          -> WebSocket      steps of split training (``fedge.split.exchange``)
  GET  /v1/receipts              -> Receipts   which of its frames were applied
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from schemas.base import Model
from schemas.ids import DeviceName, Digest, RunName, Secret, TaskPath
from schemas.specs import AlgorithmSpec, DownlinkSpec, Limits, LocalSpec, SplitSpec, Trains, UplinkSpec

Text = Annotated[str, StringConstraints(max_length=500)]


class TaskOffer(Model):
    """A task this device can train: how much data it has, and the model it would build."""

    num_examples: int = Field(ge=1, le=2**53)
    layout: Digest
    split_layout: Digest | None = Field(default=None, description="of the model cut in two, where the task cuts it")
    trains: Trains = "either"


class Enroll(Model):
    """A device introduces itself. ``credential`` is made and kept by the device; repeating is safe.

    The first time it comes with an enrolment ``token``; later ones with the credential as bearer and no token.
    """

    credential: Secret
    name: DeviceName
    token: Secret | None = None
    tasks: dict[TaskPath, TaskOffer] = Field(max_length=64)
    limits: Limits = Limits()
    version: Text = ""
    platform: Text = ""


class Enrolled(Model):
    """The id the aggregator knows the device by."""

    device: DeviceName


class Assignment(Model):
    """One device's part in one round. Everything random is derived from ``seed``, run, round and device."""

    run: RunName
    round: int = Field(ge=1)
    task: TaskPath
    layout: Digest
    seed: int = Field(ge=0, lt=2**63)
    algorithm: AlgorithmSpec
    relative_size: float = Field(gt=0, description="w_k = n_k·m / Σn, fixed for a device and run")
    local: LocalSpec
    uplink: UplinkSpec
    downlink: DownlinkSpec
    seconds_left: float = Field(ge=0)
    dual_epoch: int = Field(ge=0, description="another number than the device's own: its dual starts at 0")
    last_applied: int = Field(
        ge=0, description="round of the last update of this device that was applied in this epoch; 0: none"
    )
    split: SplitSpec | None = Field(default=None, description="the device trains the front half; null: all of it")


class Outcome(StrEnum):
    """What became of an update."""

    APPLIED = "applied"
    PARTIAL = "partial"
    LATE = "late"
    ABANDONED = "abandoned"


class Receipt(Model):
    """Which segments of a device's update in one round were applied, for ever the same answer."""

    run: RunName
    round: int = Field(ge=1)
    update: Digest | None
    outcome: Annotated[Outcome, Field(strict=False)]
    applied: tuple[int, ...]


class Work(Model):
    """What the aggregator has for a device right now; the receipt is settled before the assignment."""

    assignment: Assignment | None = None
    receipt: Receipt | None = None


class Receipts(Model):
    """All receipts a device asked for, oldest first."""

    receipts: tuple[Receipt, ...]


class Refusal(StrEnum):
    """Why a device will not take part in a round."""

    UNKNOWN_TASK = "unknown_task"
    LAYOUT_DIFFERS = "layout_differs"
    STATE_LOST = "state_lost"
    TRAINING_FAILED = "training_failed"
    BUDGET_TOO_SMALL = "budget_too_small"


class UpdateHeader(Model):
    """What precedes the frames of an update; a ``refusal`` comes with no frames."""

    update: Digest
    num_examples: int = Field(ge=1, le=2**53, description="for people; the weight comes from what was enrolled")
    loss: float | None = None
    refusal: Annotated[Refusal, Field(strict=False)] | None = None
    reason: Text = ""


class UpdateStatus(Model):
    """Which segments of a device's update are durable."""

    run: RunName
    round: int = Field(ge=1)
    update: Digest | None
    segments: tuple[int, ...]
    is_complete: bool
    is_open: bool
