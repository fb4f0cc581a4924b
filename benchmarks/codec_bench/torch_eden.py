"""EDEN as one would write it in torch with the paper in hand: the yardstick of our own codec's speed.

Vargaftik et al., EDEN, ICML 2022 (https://arxiv.org/abs/2108.08842): pad the vector to the next power of two, flip
signs at random, one Hadamard transform over all of it, quantize each coordinate by the Lloyd-Max quantizer of N(0, 1),
send S = ||y||²/<y, Q(y)>. One thread, whole bits only, and nothing is packed: indices stay int64 as ``bucketize`` gives
them, so the time that a wire format takes is in our codec's figures and not in these.

There are two of them, which differ in the Hadamard transform only: ``hadamard_``, the quicker, makes one temporary a
stage; ``published_hadamard_`` is written as the authors of DRIVE and EDEN published theirs, with three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedge.codecs.lloyd import LEVELS, MAX_WIDTH

Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Encoded:
    """One encoded vector: int64 indices ``[n]``, n the next power of two, and the scale S."""

    indices: torch.Tensor
    scale: float


def hadamard_(y: torch.Tensor) -> torch.Tensor:
    """Return the orthonormal Hadamard transform of ``y``, float32 ``[n]``, n a power of two, in its own memory."""
    half = 1
    while half < len(y):
        pairs = y.view(-1, 2, half)
        left, right = pairs[:, 0], pairs[:, 1]
        difference = left - right
        left += right
        right.copy_(difference)
        half *= 2
    y *= len(y) ** -0.5
    return y


def published_hadamard_(y: torch.Tensor) -> torch.Tensor:
    """Return what :func:`hadamard_` does, the way it was published: left + right, then that - 2·right."""
    half = 1
    while half < len(y):
        pairs = y.view(-1, 2 * half)
        pairs[:, :half] = pairs[:, :half] + pairs[:, half:]
        pairs[:, half:] = pairs[:, :half] - 2 * pairs[:, half:]
        half *= 2
    y *= len(y) ** -0.5
    return y


class TorchEden:
    """EDEN at ``bits`` per coordinate, 1 to 8, with one of the Hadamard transforms above."""

    def __init__(self, bits: int, hadamard: Transform = hadamard_) -> None:
        if not 1 <= bits <= MAX_WIDTH:
            raise ValueError(f"expected 1 to {MAX_WIDTH} bits, got {bits}")
        self.hadamard = hadamard
        self.centroids = torch.from_numpy(LEVELS[bits - 1].copy())
        self.thresholds = (self.centroids[1:] + self.centroids[:-1]) / 2

    def encode(self, x: torch.Tensor, seed: int) -> Encoded:
        """Encode ``x``, float32 ``[d]``, not all zeros."""
        n = 1 << (len(x) - 1).bit_length()
        y = torch.zeros(n)
        y[: len(x)] = x
        y *= _signs(n, seed)
        y = self.hadamard(y)
        squared = torch.dot(y, y)
        indices = torch.bucketize(y * torch.sqrt(n / squared), self.thresholds)
        return Encoded(indices, float(squared / torch.dot(y, self.centroids[indices])))

    def decode(self, encoded: Encoded, size: int, seed: int) -> torch.Tensor:
        """Decode into float32 ``[size]``."""
        n = len(encoded.indices)
        y = self.hadamard(self.centroids[encoded.indices])
        y *= _signs(n, seed)
        y *= encoded.scale
        return y[:size]


def _signs(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (n,), generator=generator, dtype=torch.float32).mul_(2).sub_(1)
