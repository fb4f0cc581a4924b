"""What a round's split training is made of: between the driver and ``server_app.back_half``."""

from __future__ import annotations

import numpy as np

from fedge.algorithms import Algorithm, ServerState
from fedge.layout import Vector
from fedge.protocol.back_device import back_seed, back_terms, fold, with_back_dual
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
    terms, number = back_terms(state, fronts, algorithm), book.round.number
    dual, params = terms.dual, np.asarray(state.params, np.float32)
    request = {
        "ask": "split_open",
        "task": run.plan.task,
        "pull": terms.pull,
        "local": _local(fronts[0].local),
        "quantizer": run.plan.split.quantizer,
        "seed": back_seed(run.plan.seed, number),
        "batch_size": fronts[0].local.batch_size,
        "where": house.split_device,
    }
    recipe = Recipe(request, params, None if dual is None else np.asarray(dual, np.float32))
    gather = run.plan.split.gather_seconds
    path = files.split(number)
    return BackHalf(recipe, house.back_worker, path, gather, book.at_work, book.split_steps, house.clock)


def next_state(
    algorithm: Algorithm, state: ServerState, book: Book, members: int, back: BackHalf | None, learnt: Vector | None
) -> ServerState:
    """Return the state after a round of ``members`` devices in all; ``learnt`` is the back half's delta, if any."""
    if back is None or learnt is None:
        return algorithm.server_step(state, book.sums, members)
    size = sum(book.sizes[device] for device in back.served)
    fold(book.sums, book.layout, algorithm, size, learnt)
    after = algorithm.server_step(state, book.sums, members)
    return with_back_dual(after, state, algorithm, book.layout, learnt)


def _local(spec: LocalSpec) -> dict[str, object]:
    """Return ``spec`` as ``fedge.algorithms.local.LocalSpec`` takes it."""
    chosen = spec.model_dump(exclude={"learning_rate_decay"})
    return {**chosen, "clip_norm": spec.clip_norm or None}
