"""What a round's split training is made of, and what it leaves: between the driver and ``server_app.back_half``.

To the algorithm the back half is one device more, with the examples of all whose front halves it serves. Its delta
enters the means of the back segments, and where devices have duals it has one too: the mean of all duals stays h/m.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedge.algorithms import Algorithm, ServerState
from fedge.layout import Layout, Segment, Vector
from fedge.seeds import derive
from schemas.specs import LocalSpec
from server_app.back_half import BackHalf, Recipe
from server_app.blobs import RunFiles
from server_app.book import Book
from server_app.house import House
from server_app.rows import RunRow


def back_half_of(
    house: House, run: RunRow, book: Book, state: ServerState, algorithm: Algorithm, files: RunFiles
) -> BackHalf | None:
    """Return the back half of the round of ``book``; None where nobody was asked to train a front half."""
    fronts = [asked for asked in book.assignments.values() if asked.split is not None]
    if not fronts or run.plan.split is None:
        return None
    terms = algorithm.local_terms(state.back_dual, sum(asked.relative_size for asked in fronts))
    number, dual = book.round.number, terms.dual
    request = {
        "ask": "split_open",
        "task": run.plan.task,
        "pull": terms.pull,
        "local": _local(fronts[0].local),
        "quantizer": run.plan.split.quantizer,
        "seed": derive(run.plan.seed, "back", number),
        "batch_size": fronts[0].local.batch_size,
        "where": house.split_device,
    }
    recipe = Recipe(
        request, np.asarray(state.params, np.float32), None if dual is None else np.asarray(dual, np.float32)
    )
    gather = run.plan.split.gather_seconds
    return BackHalf(recipe, house.back_worker, files.split(number), gather, book.at_work, house.clock)


def fold(book: Book, algorithm: Algorithm, back: BackHalf, delta: Vector) -> None:
    """Add what the back half learnt to the sums of the round, as one more device's."""
    weight = algorithm.weight(sum(int(book.sizes[device]) for device in back.served))
    for segment in back_segments(book.layout):
        book.sums.add(segment.index, delta[segment.slice], weight, error=0.0)


def with_back_dual(
    state: ServerState, before: ServerState, algorithm: Algorithm, layout: Layout, delta: Vector
) -> ServerState:
    """Return the state with the back half's dual moved by its delta, where the algorithm has duals."""
    if not algorithm.stateful or state.h is None:
        return state
    dual = np.zeros(layout.size) if before.back_dual is None else before.back_dual
    return replace(state, back_dual=algorithm.commit(dual, back_segments(layout), delta))


def back_segments(layout: Layout) -> tuple[Segment, ...]:
    """Return the segments of the back half."""
    return layout.segments[len(layout.front.segments) :]


def _local(spec: LocalSpec) -> dict[str, object]:
    """Return ``spec`` as ``fedge.algorithms.local.LocalSpec`` takes it."""
    chosen = spec.model_dump(exclude={"learning_rate_decay"})
    return {**chosen, "clip_norm": spec.clip_norm or None}
