"""Training for a simulation in worker processes, one for each core: a cohort trains side by side, as real devices do.

Every worker loads the task and all its sites once, and trains on one thread, so the result is the same to the bit
however many there are.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Self

from fedge.algorithms.base import LocalTerms
from fedge.layout import Vector
from fedge.simulation.training import TaskTrainer
from fedge.simulation.world import Trained
from fedge.tasks.base import load
from schemas.specs import LocalSpec

Sites = Mapping[str, Mapping[str, object]]


class PooledTrainer(TaskTrainer):
    """A ``TaskTrainer`` whose local runs happen in ``workers`` processes; use it in a ``with`` block."""

    def __init__(self, path: str, sites: Sites, workers: int | None = None, split: bool = False) -> None:
        self._pool = ProcessPoolExecutor(
            workers or os.cpu_count() or 1, multiprocessing.get_context("spawn"), _start, (path, sites, split)
        )
        super().__init__(load(path), sites, split)

    def begin(
        self, device: str, anchor: Vector, terms: LocalTerms, local: LocalSpec, seed: int
    ) -> Callable[[], Trained]:
        """Hand the run to a worker; what is returned waits for it."""
        return self._pool.submit(_train, device, anchor, terms, local, seed).result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


_trainer: TaskTrainer | None = None
"""A worker's own; None in any other process."""


def _start(path: str, sites: Sites, split: bool) -> None:
    global _trainer  # noqa: PLW0603  the one state of a worker process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the pool
    _trainer = TaskTrainer(load(path), sites, split)


def _train(device: str, anchor: Vector, terms: LocalTerms, local: LocalSpec, seed: int) -> Trained:
    if _trainer is None:
        raise RuntimeError("expected a worker of the pool, got another process")
    return _trainer.train(device, anchor, terms, local, seed)
