"""What the worker process does for split training: holds the back half of one round, and takes its steps.

    {"ask": "split_open", "task", "pull", "local", "quantizer", "seed", "batch_size", "where"} + anchor [d], [dual [d]]
                                                          -> {"values": d, "width": m, "turns": 1 or 2}: what goes
                                                             into the back half and comes out of it, of an example,
                                                             and how many exchanges a step has
    {"ask": "split_step", "devices": n, "sent": [[device, step], ..]} + (activations, labels) of each
                                                          -> {"outcomes": [[loss, values up, values down, refusal], ..]}
                                                             + an answer of each + the shared state, "" where none
    {"ask": "split_delta"}                                -> {} + float32 [d], zeros in the front half

All of it can be had again: the same requests in the same order give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fedge.algorithms.back import BackRun, Sent
from fedge.algorithms.base import LocalTerms
from fedge.algorithms.local import LocalSpec
from fedge.errors import TaskError
from fedge.split import Options
from fedge.split.message import MOST_VALUES
from fedge.tasks.base import load
from fedge.tasks.split_model import halved

Answer = tuple[dict[str, Any], list[bytes]]


class BackProcess:
    """The back half of the round that was opened last."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # with more the same steps may not give the same bits
        self._run: BackRun | None = None

    def answer(self, request: Mapping[str, Any], parts: Sequence[bytes]) -> Answer:
        """Return the answer to one request.

        Raises:
            FedgeError: it cannot be done.
        """
        match request["ask"]:
            case "split_open":
                return self._open(request, parts)
            case "split_step":
                return self._step(request, parts)
            case "split_delta":
                return {}, [self._opened().delta.tobytes()]
            case other:
                raise TaskError(f"split: expected to open, step or give the delta, got {other!r}")

    def _open(self, request: Mapping[str, Any], parts: Sequence[bytes]) -> Answer:
        self._run = None  # two at a time may be more than there is memory for
        task = load(request["task"])
        model = halved(task, task.model(0).to(request["where"]))
        values, settings = int(np.prod(model.shape)), request["quantizer"]
        if request["batch_size"] * values > MOST_VALUES:
            got = f"{request['batch_size']} x {values}"
            raise TaskError(
                f"split: expected batches of {MOST_VALUES} activations or fewer, got {got}; lower batch_size"
            )
        least = 0 if settings is None else settings.get("least_members", 0)
        if least > request["batch_size"]:
            raise TaskError(
                f"split.least_members: expected at most local.batch_size, {request['batch_size']}, got {least}"
            )
        anchor, *dual = (np.frombuffer(part, np.float32) for part in parts)
        self._run = BackRun(
            model,
            task.loss,
            anchor,
            LocalTerms(request["pull"], dual[0] if dual else None),
            LocalSpec(**request["local"]),
            None if settings is None else Options.of(values, settings),
            request["seed"],
            request["batch_size"] * values,
        )
        return {"values": values, "width": self._run.width, "turns": self._run.turns}, []

    def _step(self, request: Mapping[str, Any], parts: Sequence[bytes]) -> Answer:
        run = self._opened()
        pairs = zip(request["sent"], parts[::2], parts[1::2], strict=True)
        outcomes = run.step([Sent(name, number, *pair) for (name, number), *pair in pairs], request["devices"])
        rows = [[one.loss, one.values_up, one.values_down, one.refusal] for one in outcomes]
        shared = b"" if run.shared is None else run.shared.to_bytes()
        return {"outcomes": rows}, [*(outcome.answer for outcome in outcomes), shared]

    def _opened(self) -> BackRun:
        if self._run is None:
            raise TaskError("split: expected a round that is open, got none")
        return self._run
