"""The mean of what was delivered, segment by segment.

    total[a:b] += w_k · x_k,   weight_s += w_k,   mean[a:b] = total[a:b] / weight_s      s = segment a..b

One float64 vector for any number of devices: O(d) memory. Deltas are added in the order they arrive, and adding
the stored ones again in that order gives the same bits. A segment nobody delivered is reported as such and keeps
its value that round; a device that delivered half its segments counts in those only.

An update that comes late moves the mean by a part of its step: Σ η_k w_k x_k / Σ w_k. If all are late alike the step is
η times the mean, and an update that is alone in its round is not made whole by the division.

``total`` is this plain, unbiased sum whatever the weights: FedDyn's S is made of it. ``mean()`` is plain too, unless
the plan asks for shrinkage (``fedge.weighting``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import AggregationError, LayoutError, UnknownName
from fedge.layout import Kind, Layout, Segment
from fedge.weighting import PLAIN, SHRINKAGE, Shrinkage, Sum


class SegmentSums:
    """Running weighted sums over the segments of ``layout``; ``weights`` says how the mean is made of them.

    >>> sums.add(0, np.ones(4096, np.float32), weight=120.0)
    >>> sums.mean()[sums.mask]     # the coordinates somebody delivered
    """

    __slots__ = ("count", "layout", "moved", "shrinkage", "shrunk_by", "total", "weight")

    def __init__(self, layout: Layout, weights: str = PLAIN) -> None:
        if weights not in (PLAIN, SHRINKAGE):
            raise UnknownName("weights", weights, (PLAIN, SHRINKAGE))
        self.layout = layout
        self.shrinkage = Shrinkage(layout) if weights == SHRINKAGE else None
        self.shrunk_by: float | None = None
        """How far shrinkage moved the last ``mean()``: ‖mean - plain mean‖ / ‖plain mean‖; None where it is plain."""
        self.total: npt.NDArray[np.float64] = np.zeros(layout.size)
        """Σ w_k · x_k, float64 [d]."""
        self.moved: npt.NDArray[np.float64] | None = None
        """Σ η_k · w_k · x_k, float64 [d]; None while all η_k are 1 and it is ``total``."""
        self.weight: npt.NDArray[np.float64] = np.zeros(len(layout.segments))
        """Σ w_k by segment, float64 [segments]."""
        self.count: npt.NDArray[np.int64] = np.zeros(len(layout.segments), np.int64)
        """How many devices delivered each segment, int64 [segments]."""

    def add(
        self,
        segment_index: int,
        x: npt.NDArray[np.floating[Any]],
        weight: float,
        error: float | None = None,
        step: float = 1.0,
    ) -> None:
        """Add ``weight * x``, ``x`` float ``[segment size]``, to segment ``segment_index``.

        ``error`` is the codec's A, E‖x̂ - x‖² = A‖x‖² (``fedge.weighting.error_of``); plain weights do without.
        ``step`` is η, 0 < η <= 1, by which it moves the mean.

        Raises:
            LayoutError: if there is no such segment, or ``x`` is not of its size.
            AggregationError: if ``x`` holds NaN or infinity, ``weight`` is not a positive number, or ``step``
                not one of at most 1; or if the mean is to be shrunk and ``error`` is not a number of at least 0, or
                ``step`` not 1.
        """
        if not 0 <= segment_index < len(self.layout.segments):
            raise LayoutError(f"expected a segment of 0..{len(self.layout.segments) - 1}, got {segment_index}")
        segment = self.layout.segments[segment_index]
        if x.shape != (segment.size,):
            raise LayoutError(f"segment {segment_index}: expected {segment.size} values, got shape {list(x.shape)}")
        if not (np.isfinite(weight) and weight > 0):
            raise AggregationError(f"segment {segment_index}: expected a finite weight above 0, got {weight}")
        if not (step == 1.0 or (0.0 < step < 1.0 and self.shrinkage is None)):
            expected = "above 0 and at most 1" if self.shrinkage is None else "of 1, the mean is to be shrunk"
            raise AggregationError(f"segment {segment_index}: expected a step {expected}, got {step}")
        finite = np.isfinite(x)
        if not finite.all():
            raise AggregationError(f"segment {segment_index}: expected finite values, got {x[~finite][0]}")
        if self.shrinkage is not None:
            if error is None or not (np.isfinite(error) and error >= 0):
                raise AggregationError(f"segment {segment_index}: expected the codec's error to shrink by, got {error}")
            self.shrinkage.add(segment, x, weight, error)
        # Added in arrival order, in float64: replaying the stored payloads gives the same bits.
        if step != 1.0 and self.moved is None:
            self.moved = self.total.copy()
        if self.moved is not None:
            self.moved[segment.slice] += np.float64(step * weight) * x
        self.total[segment.slice] += np.float64(weight) * x
        self.weight[segment_index] += weight
        self.count[segment_index] += 1

    @property
    def delivered(self) -> npt.NDArray[np.bool_]:
        """Which segments somebody delivered, bool ``[segments]``."""
        return self.count > 0

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Which coordinates somebody delivered, bool ``[d]``."""
        return np.repeat(self.delivered, [segment.size for segment in self.layout.segments])

    def trained(self) -> npt.NDArray[np.bool_]:
        """Which coordinates are trained and delivered, bool ``[d]``: ``mask`` without the BUFFER segments."""
        mask = self.mask
        for segment in self.layout.segments:
            if segment.kind is Kind.BUFFER:
                mask[segment.slice] = False
        return mask

    def mean(self) -> npt.NDArray[np.float64]:
        """Return the weighted mean of the steps, float64 ``[d]``, 0 in the segments nobody delivered (see ``mask``)."""
        plain = self._over_weight(lambda segment, total: total)
        if self.shrinkage is None:
            return plain
        mean = self._over_weight(self.shrinkage.shrink)
        length = float(np.sqrt(np.square(plain).sum()))
        self.shrunk_by = float(np.sqrt(np.square(mean - plain).sum())) / length if length else 0.0
        return mean

    def _over_weight(self, total_of: Callable[[Segment, Sum], Sum]) -> Sum:
        total, mean = self.total if self.moved is None else self.moved, np.zeros_like(self.total)
        for segment in self.layout.segments:
            if self.count[segment.index]:
                mean[segment.slice] = total_of(segment, total[segment.slice]) / self.weight[segment.index]
        return mean
