"""The process that holds torch, one for all devices of an agent: ``python -m device_app.trainer_process``.

    stdin   requests     {"op": "describe", "id", "task", "options"}
                         {"op": "train", "id", "task", "options", "local", "pull", "seed"} + anchor f32 [+ dual f32]
                         {"op": "cancel", "id"}
    stdout  answers      {"id", "event": "described", "layout", "split_layout", "num_examples"}
                         {"id", "event": "progress", "epoch", "loss"}
                         {"id", "event": "trained", "loss", "num_examples"} + delta f32
                         {"id", "event": "failed", "reason"}

Both are parcels (``schemas.pipe``). Models and data stay loaded between rounds. A thread reads requests while the
main thread works on one, so that a cancellation takes effect before the next step, and so that the end of stdin ends
the process at once: it never outlives its agent, however that died. What a task prints goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from device_app.front_process import Fronts
from fedge.algorithms.base import LocalTerms
from fedge.algorithms.local import LocalSpec, train
from fedge.errors import FedgeError
from fedge.layout import Layout
from fedge.tasks.base import Dataset, Task, load
from fedge.tasks.split_model import SplitTask, halved
from fedge.tasks.torch_model import layout_of
from schemas.pipe import pack_parcel, read_parcel

Parcel = tuple[dict[str, Any], list[bytes]]
NICENESS = 10


@dataclass(slots=True)
class Loaded:
    """A task with its model, and the data of each device that trains it.

    The model is made when it is needed and not before: who trains the front half alone has no room for more.
    """

    task: Task
    data: dict[str, Dataset] = field(default_factory=dict)
    _model: nn.Module | None = None

    @property
    def model(self) -> nn.Module:
        """The whole model."""
        if self._model is None:
            self._model = self.task.model(0)
        return self._model

    def layouts(self) -> dict[str, Any]:
        """Return the layout of the model, and that of the model cut in two, None where the task does not cut it."""
        model = self.task.model(0)
        split = halved(self.task, model).layout.to_json() if isinstance(self.task, SplitTask) else None
        return {"layout": layout_of(model).to_json(), "split_layout": split}

    def layout_of(self, split: bool) -> Layout:
        """Return the layout in which the vectors of a run come."""
        return halved(self.task, self.model).layout if split else layout_of(self.model)

    def data_of(self, options: dict[str, Any]) -> Dataset:
        """Return the examples that ``options`` name, read once."""
        key = repr(sorted(options.items()))
        if key not in self.data:
            self.data[key] = self.task.train_data(options)
        return self.data[key]


@dataclass(slots=True)
class Desk:
    """Takes requests from one stream, answers on another."""

    answers: BinaryIO
    requests: queue.SimpleQueue[Parcel] = field(default_factory=queue.SimpleQueue)
    cancelled: set[int] = field(default_factory=set)
    loaded: dict[str, Loaded] = field(default_factory=dict)
    fronts: Fronts = field(default_factory=Fronts)

    def read_requests(self, stream: BinaryIO) -> None:
        """Pass requests on until the agent is gone, then end the process."""
        with suppress(Exception):
            while (parcel := read_parcel(stream.read)) is not None:
                if parcel[0]["op"] == "cancel":
                    self.cancelled.add(parcel[0]["id"])
                else:
                    self.requests.put(parcel)
        os._exit(0)

    def work(self) -> None:
        """Answer requests for ever, one after the other."""
        while True:
            request, parts = self.requests.get()
            try:
                answer, vectors = self.answer(request, parts)
            except Exception as error:  # a task is other people's code: whatever it raises is an answer
                reason = str(error) if isinstance(error, FedgeError) else f"{type(error).__name__}: {error}"
                answer, vectors = {"event": "failed", "reason": reason[:400]}, []
            self.cancelled.discard(request["id"])
            self.say(request, answer, vectors)

    def answer(self, request: dict[str, Any], parts: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        """Return what ``request`` asks for."""
        if request["op"].startswith("front_"):
            return self.fronts.answer(request, parts, self._load(request["task"]).data_of(request["options"]))
        loaded = self._load(request["task"])
        data = loaded.data_of(request["options"])
        if request["op"] == "describe":
            return {"event": "described", "num_examples": len(data), **loaded.layouts()}, []
        vectors = [np.frombuffer(part, np.float32) for part in parts]
        result = train(
            loaded.task,
            loaded.model,
            data,
            vectors[0],
            loaded.layout_of(request["split"]),
            LocalTerms(request["pull"], vectors[1] if len(vectors) > 1 else None),
            LocalSpec(**request["local"]),
            request["seed"],
            lambda epoch, loss: self.say(request, {"event": "progress", "epoch": epoch, "loss": loss}),
            lambda: request["id"] in self.cancelled,
        )
        if not result.completed:
            return {"event": "failed", "reason": "cancelled"}, []
        answer = {"event": "trained", "loss": result.loss, "num_examples": result.num_examples}
        return answer, [result.delta.tobytes()]

    def say(self, request: dict[str, Any], answer: dict[str, Any], parts: Sequence[bytes] = ()) -> None:
        """Write one answer to ``request``."""
        for piece in pack_parcel({"id": request["id"], **answer}, parts):
            self.answers.write(piece)
        self.answers.flush()

    def _load(self, path: str) -> Loaded:
        if path not in self.loaded:
            self.loaded[path] = Loaded(load(path))
        return self.loaded[path]


def main() -> None:
    """Serve requests until stdin ends."""
    parser = argparse.ArgumentParser(prog="device_app.trainer_process")
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's; it closes stdin when it is done
    with suppress(OSError):
        os.nice(NICENESS)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    desk = Desk(answers)
    threading.Thread(target=desk.read_requests, args=(sys.stdin.buffer,), daemon=True).start()
    desk.work()


if __name__ == "__main__":
    main()
