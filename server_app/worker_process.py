"""The process that knows torch: ``python -m server_app.worker_process``.

Reads requests from stdin and answers on stdout, one parcel (``schemas.pipe``) each, until stdin ends:

    {"ask": "init", "task": path, "seed": n, "split": b}      -> {"layout": {..}} + params float32 [d]
    {"ask": "evaluate", "task": path, "split": b} + params    -> {"metrics": {..}}, empty where there is no test data
    {"ask": "split_ ..", ..}                                  ``server_app.back_process``
    whatever goes wrong                                       -> {"error": words}

The aggregator itself never imports torch: it starts fast, stays small, and a model that takes the process down takes
only this one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from fedge.tasks.base import Dataset, Task, load
from schemas.pipe import pack_parcel, read_parcel

if TYPE_CHECKING:
    from torch import nn

    from fedge.layout import Layout
    from server_app.back_process import BackProcess

Answer = tuple[dict[str, Any], list[bytes]]


@dataclass(slots=True)
class Loaded:
    """A task that was asked for before; building it again would cost seconds."""

    task: Task
    model: nn.Module
    layout: Layout
    test_data: Dataset | None


class Worker:
    """Answers requests, one after the other."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, bool], Loaded] = {}
        self._back: BackProcess | None = None

    def answer(self, request: Mapping[str, Any], parts: Sequence[bytes]) -> Answer:
        """Return the answer to one request; errors become words."""
        try:
            if request["ask"] == "init":
                return self._init(request["task"], request["seed"], request["split"])
            if request["ask"].startswith("split_"):
                return self._split(request, parts)
            return self._evaluate(request["task"], request["split"], np.frombuffer(parts[0], np.float32))
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}, []

    def _split(self, request: Mapping[str, Any], parts: Sequence[bytes]) -> Answer:
        from server_app.back_process import BackProcess

        if self._back is None:
            self._back = BackProcess()
        return self._back.answer(request, parts)

    def _init(self, path: str, seed: int, split: bool) -> Answer:
        from fedge.tasks.torch_model import get_params

        task = load(path)
        model = task.model(seed)
        layout = _layout(task, model, split)
        return {"layout": layout.to_json()}, [get_params(model, layout).tobytes()]

    def _evaluate(self, path: str, split: bool, params: np.ndarray[Any, np.dtype[np.float32]]) -> Answer:
        from fedge.algorithms.local import evaluate

        key = path, split
        if key not in self._loaded:
            self._loaded[key] = _load(*key)
        loaded = self._loaded[key]
        if loaded.test_data is None or len(loaded.test_data) == 0:
            return {"metrics": {}}, []
        found = evaluate(loaded.task, loaded.model, params, loaded.layout, loaded.test_data)
        return {"metrics": {name: float(value) for name, value in found.items()}}, []


def _load(path: str, split: bool) -> Loaded:
    task = load(path)
    model = task.model(0)
    return Loaded(task, model, _layout(task, model, split), task.test_data())


def _layout(task: Task, model: nn.Module, split: bool) -> Layout:
    from fedge.tasks.split_model import halved
    from fedge.tasks.torch_model import layout_of

    return halved(task, model).layout if split else layout_of(model)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer every request until ``requests`` ends."""
    worker = Worker()
    while (parcel := read_parcel(requests.read)) is not None:
        head, parts = worker.answer(*parcel)
        for piece in pack_parcel(head, parts):
            answers.write(piece)
        answers.flush()


def main() -> None:
    """Serve stdin and stdout; what a task prints goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
