"""The back half of a split round as the algorithm sees it: one device more.

It has the examples of all whose front halves it serves, its delta enters the means of the back segments beside those
of devices that train the whole model, and where devices have duals it has one: h stays the sum of all of them.
FedDyn's m counts all devices in every segment, so in a run of front halves alone the back half gets h/m in a round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from fedge.aggregation import SegmentSums
from fedge.algorithms import Algorithm, LocalTerms, ServerState
from fedge.layout import Layout, Segment, Vector
from fedge.seeds import derive
from schemas.messages import Assignment


def back_terms(state: ServerState, fronts: Iterable[Assignment], algorithm: Algorithm) -> LocalTerms:
    """Return what the algorithm adds to the gradient of the back half; ``fronts`` are the assignments it serves."""
    return algorithm.local_terms(state.back_dual, math.fsum(asked.relative_size for asked in fronts))


def back_seed(seed: int, round_number: int) -> int:
    """Return the seed of the back half's steps: dropout, rounding of answers."""
    return derive(seed, "back", round_number)


def fold(sums: SegmentSums, layout: Layout, algorithm: Algorithm, num_examples: int, delta: Vector) -> None:
    """Add ``delta``, float32 ``[d]``, which the back half learnt from ``num_examples``, to the sums of the round."""
    for segment in back_segments(layout):
        sums.add(segment.index, delta[segment.slice], algorithm.weight(num_examples), error=0.0)


def with_back_dual(
    state: ServerState, before: ServerState, algorithm: Algorithm, layout: Layout, delta: Vector
) -> ServerState:
    """Return the ``state`` after a round with the back half's dual moved by its delta, where there are duals."""
    if not algorithm.stateful or state.h is None:
        return state
    dual = np.zeros(layout.size) if before.back_dual is None else before.back_dual
    return replace(state, back_dual=algorithm.commit(dual, back_segments(layout), delta))


def back_segments(layout: Layout) -> tuple[Segment, ...]:
    """Return the segments of the back half."""
    return layout.segments[len(layout.front.segments) :]
