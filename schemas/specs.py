"""The parts of a plan that also travel to the devices: algorithm, local training, codecs, limits."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Model

Bits = Annotated[float, Field(ge=0.05, le=8.0)]


class FedAvg(Model):
    """McMahan et al. 2017: mean of the deltas, weighted by examples."""

    name: Literal["fedavg"]


class FedProx(Model):
    """Li et al. 2020: FedAvg with a pull of strength ``mu`` towards the anchor."""

    name: Literal["fedprox"]
    mu: float = Field(default=0.01, gt=0)


class FedDyn(Model):
    """Acar et al. 2021: dynamic regularization of strength ``alpha``."""

    name: Literal["feddyn"]
    alpha: float = Field(default=0.1, gt=0)
    integral_gain: float = Field(default=1.0, gt=0, le=16)


AlgorithmSpec = Annotated[FedAvg | FedProx | FedDyn, Field(discriminator="name")]


class LocalSpec(Model):
    """Local training: plain SGD, as the plan states it and as one round gets it."""

    epochs: int = Field(default=5, ge=1, le=10_000)
    batch_size: int = Field(default=32, ge=1, le=1_000_000)
    learning_rate: float = Field(default=0.1, gt=0)
    learning_rate_decay: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float = Field(default=1e-3, ge=0, description="FedDyn wants some: it damps the dual")
    clip_norm: float = Field(default=10.0, ge=0, description="global gradient norm; 0 switches clipping off")


def codec_name(codec: str, coding: str) -> str:
    """Return the name in the table of codecs of ``codec`` with ``coding``."""
    return f"{codec}-entropy" if codec == "eden" and coding == "entropy" else codec


Coding = Annotated[
    Literal["entropy", "fixed"],
    Field(description="of eden: entropy shares the bits by energy; fixed has a size that is known beforehand"),
]


class UplinkSpec(Model):
    """How updates travel. ``none`` sends float32."""

    codec: Literal["eden", "none"] = "eden"
    bits: Bits = 1.0
    coding: Coding = "entropy"

    @property
    def codec_name(self) -> str:
        """The codec as its table names it."""
        return codec_name(self.codec, self.coding)


class DownlinkSpec(Model):
    """How the model travels to the devices. ``none`` sends float32."""

    codec: Literal["eden", "none"] = "eden"
    bits: Bits = 4.0
    coding: Coding = "entropy"

    @property
    def codec_name(self) -> str:
        """The codec as its table names it."""
        return codec_name(self.codec, self.coding)


class LinkLimit(Model):
    """What a device may send or receive in one round: bits, bytes, or a speed held for some seconds."""

    bits: Bits | None = None
    bytes_per_round: int | None = Field(default=None, ge=1)
    bytes_per_second: float | None = Field(default=None, gt=0)
    deadline_seconds: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _speed_needs_deadline(self) -> Self:
        if (self.bytes_per_second is None) != (self.deadline_seconds is None):
            raise ValueError("bytes_per_second and deadline_seconds are given together or not at all")
        return self


class Limits(Model):
    """A device's own limits, one for each direction; an empty one means the plan decides."""

    uplink: LinkLimit = LinkLimit()
    downlink: LinkLimit = LinkLimit()
