"""A plan: what a person writes in TOML to start a run. Every key is checked, unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Model, parse_toml
from schemas.ids import TaskPath
from schemas.specs import AlgorithmSpec, DownlinkSpec, FedDyn, LocalSpec, SplitSpec, UplinkSpec


class Updates(Model):
    """How many complete updates a round wants: enough at ``min``, closed at ``max``."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)


class Seconds(Model):
    """When a round may close: not before ``min`` unless all were heard, not after ``max``."""

    min: float = Field(default=20.0, ge=0)
    max: float = Field(default=60.0, gt=0)


class Cohort(Model):
    """Who takes part in one round, and what is enough."""

    devices: int = Field(default=12, ge=1, le=1_000_000)
    updates: Updates = Field(
        default=Updates(min=8, max=12), description="left out: max is devices, min two thirds of it"
    )
    seconds: Seconds = Seconds()

    @model_validator(mode="before")
    @classmethod
    def _fill_updates(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("devices", 12), int):
            return data
        devices, updates = data.get("devices", 12), data.get("updates", {})
        if not isinstance(updates, Mapping):
            return data
        filled = {"max": devices, **updates}
        at_least = -(-2 * devices // 3)
        filled.setdefault("min", min(at_least, filled["max"]) if isinstance(filled["max"], int) else at_least)
        return {**data, "updates": filled}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        updates, seconds = self.updates, self.seconds
        if updates.min > updates.max:
            raise ValueError(f"updates.min must not exceed updates.max, got {updates.min} > {updates.max}")
        if updates.max > self.devices:
            raise ValueError(
                f"updates.max must not exceed devices, got {updates.max} updates from {self.devices} devices"
            )
        if seconds.min > seconds.max:
            raise ValueError(f"seconds.min must not exceed seconds.max, got {seconds.min} > {seconds.max}")
        return self


class Aggregation(Model):
    """How updates are averaged, and until when they count (docs/algorithms.md).

    ``shrinkage`` trades a bias for less error where rates differ. Its error estimate is of whole steps: none is late.
    """

    weights: Literal["plain", "shrinkage"] = Field(
        default="plain", description="plain: unbiased; shrinkage: leans on devices that send more bits"
    )
    max_staleness: int = Field(
        default=0,
        ge=0,
        le=100,
        description="rounds after its own in which an update still counts, its step divided by 1 + the rounds it is "
        "late; 0: its own round alone",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.max_staleness and self.weights == "shrinkage":
            raise ValueError('max_staleness: late updates need weights = "plain", got weights = "shrinkage"')
        return self


class Plan(Model):
    """One run, from its task to its codecs."""

    task: TaskPath
    rounds: int = Field(ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    evaluate_every: int = Field(default=1, ge=1, description="rounds between two tests of the model")
    abandon_after: int = Field(default=20, ge=1, description="abandoned rounds in a row that fail the run")
    cohort: Cohort = Cohort()
    algorithm: AlgorithmSpec = FedDyn(name="feddyn")
    local: LocalSpec = LocalSpec()
    aggregation: Aggregation = Aggregation()
    uplink: UplinkSpec = UplinkSpec()
    downlink: DownlinkSpec = DownlinkSpec()
    split: SplitSpec | None = Field(default=None, description="left out: every device trains the whole model")

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.uplink.has_memory and isinstance(self.algorithm, FedDyn):
            raise ValueError(
                "uplink.m22.error_feedback: feddyn is its own error feedback, and both together diverge; "
                'leave it out, or set it to false or "auto"'
            )
        if self.uplink.codec == "m22" and self.aggregation.weights == "shrinkage":
            raise ValueError('aggregation.weights: shrinkage needs an unbiased codec, got uplink.codec = "m22"')
        if self.split is not None and self.local.optimizer != "sgd":
            raise ValueError(f'local.optimizer: split needs "sgd", got "{self.local.optimizer}"')
        if self.split is not None and self.downlink.mode == "mcm":
            raise ValueError('downlink.mode: split needs "rand-mcm", "snapshot" or "none", got "mcm"')
        return self

    @property
    def is_split(self) -> bool:
        """Whether the model is cut in two, and some devices train its front half."""
        return self.split is not None


def plan_from_toml(text: str, what: str = "plan") -> Plan:
    """Parse a plan.

    Raises:
        InvalidInput: naming each key that is unknown, missing or wrong, and the nearest valid one.
    """
    return parse_toml(Plan, text, what)
