"""The settings of a split run that both ends know. Every departure from the paper is a switch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fedge.codecs.product import MOST_CENTROIDS
from fedge.errors import CodecError
from fedge.split.gradient import GradientCoding, check_gradient_bits
from fedge.split.message import FLOAT_BITS, IndexKind
from fedge.split.quantizer import MOST_EXAMPLES, MOST_SUBVECTORS, Fitting, Shape


class Start(StrEnum):
    """Where a codebook comes from."""

    FRESH = "fresh"  # fitted to every batch from vectors of it: the paper
    WARM = "warm"  # fitted from the shared codebook, in fewer steps
    SHARED = "shared"  # the shared codebook as it is; it is fitted again every ``refresh_steps``


class Coding(StrEnum):
    """How indices travel."""

    PACKED = "packed"  # the paper
    ADAPTIVE = "adaptive"  # coded by what the message itself has shown so far
    SHARED = "shared"  # coded by what the server has seen at every position, and goes on from there


INDEX_KINDS = {
    Coding.PACKED: IndexKind.PACKED,
    Coding.ADAPTIVE: IndexKind.CODED,
    Coding.SHARED: IndexKind.CODED_SHARED,
}


@dataclass(frozen=True, slots=True)
class Options:
    """How activations are quantized and gradients corrected; ``Options.paper(..)`` is FedLite as published.

    ``subvectors`` is the paper's q, ``groups`` R, ``centroids`` L, ``correction`` λ. With ``relative`` λ is a share of
    the gradient's size. ``ramp_steps``: over how many steps λ grows from 0, ``cap``: the most that the correction may
    be of the gradient, both off with 0. ``least_members``: from how many examples a centroid must be a mean at least.
    """

    subvectors: int
    groups: int = 1
    centroids: int = 8
    correction: float = 1e-3
    relative: bool = False
    ramp_steps: int = 0
    cap: float = 0.0
    start: Start = Start.FRESH
    refresh_steps: int = 10
    coding: Coding = Coding.ADAPTIVE
    codebook_bits: int = 8
    gradient_bits: float = 1.0
    gradient_coding: GradientCoding = GradientCoding.EDEN
    least_members: int = 0
    iterations: int = 8
    warm_iterations: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.subvectors <= MOST_SUBVECTORS:
            raise CodecError(f"split: expected 1 to {MOST_SUBVECTORS} subvectors, got {self.subvectors}")
        if not 1 <= self.groups <= self.subvectors:
            raise CodecError(f"split: expected 1 to {self.subvectors} groups, the subvectors, got {self.groups}")
        if not 1 <= self.centroids <= MOST_CENTROIDS:
            raise CodecError(f"split: expected 1 to {MOST_CENTROIDS} centroids, got {self.centroids}")
        if not (0 <= self.correction < math.inf and 0 <= self.cap < math.inf and self.ramp_steps >= 0):
            got = f"{self.correction}, {self.cap} and {self.ramp_steps}"
            raise CodecError(f"split: expected correction, cap and ramp_steps of 0 or more, got {got}")
        if self.codebook_bits not in (8, FLOAT_BITS):
            raise CodecError(f"split: expected codebooks of 8 or {FLOAT_BITS} bits, got {self.codebook_bits}")
        check_gradient_bits(self.gradient_bits, self.gradient_coding)
        if min(self.refresh_steps, self.iterations, self.warm_iterations) < 1:
            got = f"{self.refresh_steps}, {self.iterations} and {self.warm_iterations}"
            raise CodecError(f"split: expected refresh_steps and iterations of 1 or more, got {got}")
        if not 0 <= self.least_members <= MOST_EXAMPLES:
            raise CodecError(f"split: expected least_members of 0 to {MOST_EXAMPLES}, got {self.least_members}")

    @classmethod
    def paper(cls, subvectors: int, groups: int = 1, centroids: int = 2, correction: float = 1e-3) -> Options:
        """Return FedLite as published: packed indices, codebooks and gradients in float32."""
        return cls(
            subvectors,
            groups,
            centroids,
            correction,
            coding=Coding.PACKED,
            codebook_bits=FLOAT_BITS,
            gradient_bits=FLOAT_BITS,
        )

    @classmethod
    def of(cls, values: int, settings: Mapping[str, Any]) -> Options:
        """Return options for rows of ``values`` activations. Without ``subvectors``, of 8 activations each or fewer.

        Raises:
            CodecError: a value out of range, or subvectors that do not divide ``values``.
        """
        length = next(n for n in range(8, 0, -1) if values % n == 0)
        kinds: dict[str, Any] = {"start": Start, "coding": Coding, "gradient_coding": GradientCoding}
        named = {key: kinds[key](value) if key in kinds else value for key, value in settings.items()}
        made = cls(**{"subvectors": values // length, **named})
        made.shape(1, values)
        return made

    def shape(self, examples: int, values: int) -> Shape:
        """Return the shape of a batch.

        Raises:
            CodecError: subvectors that do not divide ``values``, or a batch that is too large.
        """
        return Shape(examples, values, self.subvectors, self.groups, self.centroids)

    def fitting(self, warm: bool) -> Fitting:
        """Return how codebooks are fitted, from scratch or from one that is nearly right."""
        return Fitting(self.warm_iterations if warm else self.iterations, least_members=self.least_members)

    def fits_at(self, step: int) -> bool:
        """Whether devices fit codebooks in this step, even where there is a shared one."""
        return self.start is not Start.SHARED or step % self.refresh_steps == 0
