"""What the trainer process does for split training: front halves, a step at a time.

    {"op": "front_open", "task", "options", "key", "local", "pull", "seed", "quantizer", "steps", "keeps_tape", "next"}
        + anchor [d], dual [d] or "", params [d] or ""     -> {"next": t, "steps": T, "num_examples": n}
    front_forward  + the shared state or ""                -> {"next": t} + activations, labels
    front_backward + the gradient; "loss"                  -> {"next": t + 1} + params [d]
    front_skip     "next"                                  -> {"next": t}
    front_close                                            -> {"loss": .., "steps": done} + delta [d]; forgets it
    front_drop                                             -> {}; forgets it

Vectors are those of the layout's front half. ``key`` names a device's run; the others say it too, beside task and
options. A front half stays open while its device waits for an answer: the process works for others meanwhile. A key
that is not open gets {"event": "unknown"}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedge.algorithms.base import LocalTerms
from fedge.algorithms.front import FrontRun
from fedge.algorithms.local import LocalSpec
from fedge.codecs.entropy import prepare_reading
from fedge.errors import TaskError
from fedge.split import Options, Shared
from fedge.split.message import FLOAT_BITS, MOST_VALUES
from fedge.tasks.base import Dataset, load
from fedge.tasks.split_model import halved

Parcel = tuple[dict[str, Any], list[bytes]]


@dataclass(slots=True)
class Fronts:
    """The front halves that are being trained, by key."""

    runs: dict[str, FrontRun] = field(default_factory=dict)

    def answer(self, request: Mapping[str, Any], parts: Sequence[bytes], data: Dataset) -> Parcel:
        """Return what ``request`` asks for; ``data`` are the examples it names.

        Raises:
            FedgeError: it cannot be done.
        """
        key = request["key"]
        match request["op"]:
            case "front_open":
                run = self.runs[key] = _open(request, parts, data)
                return {"event": "front", "next": run.next, "steps": run.steps, "num_examples": run.num_examples}, []
            case "front_drop":
                self.runs.pop(key, None)
                return {"event": "front"}, []
        if key not in self.runs:  # this process is another than the one that it was opened in
            return {"event": "unknown"}, []
        run = self.runs[key]
        match request["op"]:
            case "front_forward":
                shared = Shared.from_bytes(parts[0], MOST_VALUES) if parts[0] else None
                batch = run.forward(shared)
                return {"event": "front", "next": run.next}, [batch.activations, batch.labels]
            case "front_backward":
                run.backward(parts[0], request["loss"])
                return {"event": "front", "next": run.next}, [run.params.tobytes()]
            case "front_skip":
                run.skip(request["next"])
                return {"event": "front", "next": run.next}, []
            case "front_close":
                delta = run.delta
                del self.runs[key]
                return {"event": "front", "loss": run.loss, "steps": run.done}, [delta.tobytes()]
            case other:
                raise TaskError(f"split: expected something that is done with a front half, got {other!r}")


def _open(request: Mapping[str, Any], parts: Sequence[bytes], data: Dataset) -> FrontRun:
    task, settings = load(request["task"]), request["quantizer"]
    if settings is not None and settings.get("gradient_bits") != FLOAT_BITS:
        prepare_reading()  # before anything large is in memory
    model = halved(task, task.model(0))
    anchor, dual, params = (np.frombuffer(part, np.float32) if part else None for part in parts)
    if anchor is None:
        raise TaskError("split: expected params to start from, got none")
    run = FrontRun(
        model,
        data,
        anchor,
        LocalTerms(request["pull"], dual),
        LocalSpec(**request["local"]),
        None if settings is None else Options.of(int(np.prod(model.shape)), settings),
        request["seed"],
        request["steps"],
        request["keeps_tape"],
        task.loss,
    )
    if params is not None:
        run.resume(request["next"], params)
    return run
