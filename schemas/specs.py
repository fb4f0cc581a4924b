"""The parts of a plan that also travel to the devices: algorithm, local training, codecs, limits."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

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
    """Local training, as the plan states it and as one round gets it."""

    epochs: int = Field(default=5, ge=1, le=10_000)
    batch_size: int = Field(default=32, ge=1, le=1_000_000)
    learning_rate: float = Field(default=0.1, gt=0)
    learning_rate_decay: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float = Field(default=1e-3, ge=0, description="FedDyn wants some: it damps the dual")
    clip_norm: float = Field(default=10.0, ge=0, description="global gradient norm; 0 switches clipping off")
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="adam begins every round without moments")


def codec_name(codec: str, coding: str) -> str:
    """Return the name in the table of codecs of ``codec`` with ``coding``."""
    return f"{codec}-entropy" if codec == "eden" and coding == "entropy" else codec


Coding = Annotated[
    Literal["entropy", "fixed"],
    Field(description="of eden: entropy shares the bits by energy; fixed has a size that is known beforehand"),
]


def _in_words(expected: str) -> WrapValidator:
    """One fault of one key, instead of one for each form that a value may have and does not."""

    def check(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected {expected}, got {_as_written(value)!r}"[:200]) from None

    return WrapValidator(check)


def _as_written(value: object) -> object:
    """Tuples as the lists that they were."""
    return [_as_written(one) for one in value] if isinstance(value, tuple) else value


Magnitude = Annotated[float, Field(ge=0, le=100)]
MagnitudePoint = tuple[Annotated[int, Field(ge=1)], Magnitude]
Magnitudes = Annotated[
    Magnitude | Annotated[tuple[MagnitudePoint, ...], Field(min_length=1)],
    _in_words("a number from 0 to 100, or points [[round, number], ..] with rounds from 1 on"),
]
ErrorFeedback = Annotated[bool | Literal["auto"], _in_words('true, false or "auto"')]


class M22Spec(Model):
    """How M22 quantizes, where it is the codec.

    ``magnitude`` is the paper's M: a number, or points ``[[round, M], ..]`` with straight lines between them. With
    "auto", devices have error feedback unless the algorithm keeps duals, and ``amplitude`` is "guarded" with
    feedback and "projection" without.
    """

    magnitude: Magnitudes = Field(
        default=0.0, description="M of the distortion |g|^M (g - ĝ)², or [[round, M], ..] to change it over rounds"
    )
    levels_bits: int = Field(default=0, ge=0, le=8, description="bits of sign and level; 0: predicted to lose least")
    family: Literal["auto", "gennorm", "weibull", "empirical"] = "auto"
    amplitude: Literal["auto", "guarded", "lengthened", "projection", "designed"] = "auto"
    error_feedback: ErrorFeedback = Field(
        default="auto", description="devices remember what was lost and add it to what follows; not under feddyn"
    )

    @model_validator(mode="after")
    def _feedback_contracts(self) -> Self:
        if self.error_feedback is True and self.amplitude in ("projection", "designed"):
            expected = '"lengthened", "guarded" or "auto"'
            raise ValueError(f'error_feedback needs amplitude {expected}, got "{self.amplitude}"')
        return self

    @model_validator(mode="after")
    def _rounds_ascend(self) -> Self:
        if isinstance(self.magnitude, tuple):
            rounds = [point[0] for point in self.magnitude]
            if any(later <= earlier for earlier, later in pairwise(rounds)):
                raise ValueError(f"the rounds of magnitude must ascend, got {rounds}")
        return self

    def magnitude_at(self, round_number: int) -> float:
        """Return M in a round: on the line between the points around it, that of the nearest point outside them."""
        if isinstance(self.magnitude, float | int):
            return self.magnitude
        points = self.magnitude
        for (start, low), (end, high) in pairwise(points):
            if start <= round_number <= end:
                return low + (high - low) * (round_number - start) / (end - start)
        return points[0][1] if round_number < points[0][0] else points[-1][1]


class UplinkSpec(Model):
    """How updates travel. ``none`` sends float32."""

    codec: Literal["eden", "m22", "none"] = "eden"
    bits: Bits = 1.0
    coding: Coding = "entropy"
    m22: M22Spec = M22Spec()

    @model_validator(mode="after")
    def _settings_of_the_codec(self) -> Self:
        if self.codec != "m22" and self.m22 != M22Spec():
            raise ValueError(f'settings of m22 need codec = "m22", got codec = "{self.codec}"')
        if self.codec == "m22" and self.coding != "entropy":
            raise ValueError(f'coding = "{self.coding}" needs codec = "eden", got codec = "m22"')
        return self

    @property
    def codec_name(self) -> str:
        """The codec as its table names it."""
        return codec_name(self.codec, self.coding)

    @property
    def codec_options(self) -> dict[str, Any]:
        """What the encoder is told beside the rate; decoders need none of it. M is the first round's."""
        if self.codec != "m22":
            return {}
        m22 = self.m22
        chosen: dict[str, Any] = {"levels_bits": m22.levels_bits} if m22.levels_bits else {}
        chosen |= {} if m22.amplitude == "auto" else {"amplitude": m22.amplitude}
        return {"magnitude": m22.magnitude_at(1), "family": m22.family, **chosen}

    @property
    def has_memory(self) -> bool:
        """Whether devices keep what the codec lost and add it to what they send next."""
        return self.codec == "m22" and self.m22.error_feedback is True

    def in_round(self, round_number: int, bits: float, algorithm: AlgorithmSpec) -> Self:
        """Return the spec as a device gets it: its own ``bits``, the round's M, and nothing left to "auto"."""
        if self.codec != "m22":
            return self.model_copy(update={"bits": bits})
        m22 = self.m22
        is_safe = not isinstance(algorithm, FedDyn) and m22.amplitude in ("auto", "guarded", "lengthened")
        feedback = is_safe if m22.error_feedback == "auto" else m22.error_feedback
        amplitude = ("guarded" if feedback else "projection") if m22.amplitude == "auto" else m22.amplitude
        settled = {"magnitude": m22.magnitude_at(round_number), "error_feedback": feedback, "amplitude": amplitude}
        return self.model_copy(update={"bits": bits, "m22": m22.model_copy(update=settled)})


Alpha = Annotated[
    Literal["auto"] | Annotated[float, Field(ge=2.0**-12, le=1)], _in_words('"auto", or a number from 1/4096 to 1')
]
DownlinkMode = Literal["none", "snapshot", "mcm", "rand-mcm"]


class DownlinkSpec(Model):
    """How the model travels to the devices (``fedge.downlink``). ``none`` sends float32.

    ``bits`` are those of a download; a device's own limit lowers them. ``full_bits``, in the modes that send changes,
    are those of the whole model, which a device gets at first and after its state was lost.
    """

    mode: DownlinkMode = Field(
        default="rand-mcm",
        description="rand-mcm: changes of a state of the device's own; mcm: of one that all share; "
        "snapshot: the whole model each time; none: that as float32",
    )
    codec: Literal["eden", "none"] = "eden"
    bits: Bits = 4.0
    full_bits: Bits = Field(default=8.0, description="of the whole model, in the modes that send changes")
    coding: Coding = "entropy"
    alpha: Alpha = Field(
        default="auto", description="step of the state in the modes that send changes; auto: by the codec's error"
    )

    @model_validator(mode="before")
    @classmethod
    def _none_is_none(cls, data: Any) -> Any:
        """``codec = "none"`` and ``mode = "none"`` say the same; either stands for both."""
        if not isinstance(data, Mapping):
            return data
        implied = {"mode": "none"} if data.get("codec") == "none" else {}
        implied |= {"codec": "none"} if data.get("mode") == "none" else {}
        return {**implied, **data}

    @model_validator(mode="after")
    def _mode_fits(self) -> Self:
        if (self.codec == "none") != (self.mode == "none"):
            raise ValueError(
                f'codec = "none" goes with mode = "none" alone, got codec = "{self.codec}", mode = "{self.mode}"'
            )
        if self.alpha != "auto" and not self.has_memory:
            raise ValueError(f'alpha needs mode = "rand-mcm" or "mcm", got mode = "{self.mode}"')
        return self

    @property
    def codec_name(self) -> str:
        """The codec as its table names it."""
        return codec_name(self.codec, self.coding)

    @property
    def step(self) -> float | None:
        """``alpha`` as a number; None where the error decides."""
        return None if self.alpha == "auto" else self.alpha

    @property
    def has_memory(self) -> bool:
        """Whether device and aggregator keep a state between downloads."""
        return self.mode in ("mcm", "rand-mcm")


Subvectors = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=1, le=65_535)], _in_words('"auto", or a whole number from 1 to 65535')
]


class SplitSpec(Model):
    """Split training (``fedge.split``): devices train the front half of the model, the aggregator the rest.

    ``subvectors`` is FedLite's q, ``groups`` R, ``centroids`` L, ``correction`` λ (docs/split.md).
    """

    devices: Literal["all", "front-only"] = Field(
        default="all",
        description="who trains the front half: all: whoever can; front-only: those that can do no more, the others "
        "train the whole model",
    )
    steps: int = Field(default=0, ge=0, le=1_000_000, description="steps in a round; 0: local.epochs passes")
    gather_seconds: float = Field(
        default=0.5, ge=0, le=60, description="how long a step of the back half waits for devices at work"
    )
    codec: Literal["fedlite", "none"] = Field(default="fedlite", description="none: float32, both ways")
    subvectors: Subvectors = Field(default="auto", description="auto: of eight activations each")
    groups: int = Field(default=1, ge=1, le=65_535)
    centroids: int = Field(default=8, ge=1, le=256)
    correction: float = Field(default=1e-3, ge=0)
    relative: bool = Field(default=False, description="correction is a share of the gradient's size")
    ramp_steps: int = Field(default=0, ge=0, description="steps over which the correction grows from 0")
    cap: float = Field(default=0.0, ge=0, description="the most the correction may be of the gradient; 0: no limit")
    start: Literal["fresh", "warm", "shared"] = Field(default="shared", description="where a codebook comes from")
    refresh_steps: int = Field(
        default=10, ge=1, description="steps between two states that all share, and two fits of shared codebooks"
    )
    coding: Literal["packed", "adaptive", "shared"] = "adaptive"
    codebook_bits: Literal[8, 32] = 8
    gradient_bits: float = Field(
        default=1.0,
        ge=0.05,
        le=32,
        description="of a coordinate of the answer: 0.05 to 8 by eden, 2 to 8 by uniform; 32",
    )
    gradient_coding: Literal["eden", "uniform"] = "eden"
    least_members: int = Field(default=0, ge=0, le=65_535, description="examples that a centroid must be a mean of")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.subvectors != "auto" and self.groups > self.subvectors:
            raise ValueError(f"groups must not exceed subvectors, got {self.groups} > {self.subvectors}")
        bits, is_uniform = self.gradient_bits, self.gradient_coding == "uniform"
        if bits != 32 and (bits > 8 or (is_uniform and bits not in range(2, 9))):
            which = "2, 3, .. 8" if is_uniform else "0.05 to 8"
            raise ValueError(f"gradient_bits must be {which}, or 32, by {self.gradient_coding}, got {bits:g}")
        return self

    @property
    def quantizer(self) -> dict[str, Any] | None:
        """The settings of the quantizer (``fedge.split.Options``), without subvectors where those are "auto"."""
        if self.codec == "none":
            return None
        chosen = self.model_dump(exclude={"devices", "steps", "gather_seconds", "codec"})
        return {name: value for name, value in chosen.items() if value != "auto"}


Half = Literal["whole", "front"]
"""What a device trains of a model."""
Trains = Literal["either", "whole", "front"]
"""What a device can train: "either" is the whole model, and its front half."""


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
