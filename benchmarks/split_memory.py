"""The most memory that a device needs for the front half of a split run, beside what training that half needs anyway.

    python -m benchmarks.split_memory [--repeats 5] [--steps 24] [--heap]

The FEMNIST network of ``fedlite_speed``: conv 3x3, 32, ReLU, conv 3x3, 64, ReLU, pool 2, flatten | 9,216 to 128, ReLU,
62. Batches of 20, d = 9,216, q = 1,152, on synthetic pictures.

    plain    torch alone: forward and backward of the front half and a step of SGD, by a gradient that was there before
    device   ``Fronts`` of the trainer process: front_open, then front_forward and front_backward for every step, with
             the answers of a real back half, which another process had recorded

Both take the same batches. A line is the median over fresh processes, which take turns: peaks of resident memory
(VmHWM) above what the process had after its imports and with its data read, MB of 10^6 bytes. ``open`` is the peak of
front_open, where the whole model is built and cut, ``steps`` that of all steps after it; ``over`` says by how much the
greater of the two is above ``plain``. The front half's own params, the gradient, tables of the codec and pages of code
that are first needed there count for ``device``; params and gradient do not for ``plain``.

Arrays from 64 KiB on are ``mapped`` one by one and given back when they are freed, so that the peak is what was in use
at once. With ``--heap`` there follows what it is on glibc's heap, where a large array does not fit in the hole that a
smaller one left: from one process to the next these peaks differ by more than what is measured here, in torch alone as
well. Mapping everything takes twice the time of a step, so that the trainer does not do it.

Exits with 1 unless L = 2 and L = 32 as plans have them by default stay within 4 MB of ``plain``, mapped, with the tape
and without.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.fedlite_speed import SUBVECTORS, VALUES, front_half, pictures
from device_app.front_process import Fronts
from fedge import seeds
from fedge.algorithms.back import BackRun, Sent
from fedge.algorithms.base import LocalTerms
from fedge.algorithms.local import LocalSpec, batches
from fedge.split import Options
from fedge.tasks.base import Dataset
from fedge.tasks.split_model import Halves, cut, halved
from fedge.tasks.torch_model import initialise, read_tensors
from schemas.pipe import pack_parcel, read_parcel
from schemas.specs import SplitSpec

TASK = "benchmarks.split_memory:task"
BATCH, CLASSES, HIDDEN, SEED = 20, 62, 128, 7
LOCAL: dict[str, Any] = {"epochs": 1, "batch_size": BATCH, "learning_rate": 0.1}
ALLOWED_BYTES = 4_000_000
MAPPED, HEAP, MAPPED_FROM = "mapped", "heap", "65536"
DEFAULT, PAPER = "default", "as published"
AS_PUBLISHED = {"start": "fresh", "coding": "packed", "codebook_bits": 32, "gradient_bits": 32.0}


@dataclass(frozen=True)
class Femnist:
    """The task: ``{"examples": n}`` synthetic pictures."""

    name: str = "femnist-synthetic"

    def model(self, seed: int) -> nn.Module:
        """Return the whole network."""
        back = [nn.Linear(VALUES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)]
        return initialise(nn.Sequential(*front_half(), *back), seed)

    def split(self, model: nn.Module) -> Halves:
        """Return the layers up to the flattening, and the others."""
        return cut(model, "6", example=torch.zeros(1, 1, 28, 28))

    def train_data(self, options: Mapping[str, object]) -> Dataset:
        """Return pictures and classes, most of them the same: rows of gradients are of unlike energy then."""
        count = int(str(options["examples"]))
        which = np.arange(count)
        return Dataset(pictures(count).numpy(), np.where(which % 8, 0, which * 7 % CLASSES))

    def test_data(self) -> None:
        """There are none."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy."""
        return nn.functional.cross_entropy(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the accuracy."""
        return {"accuracy": float((outputs.argmax(1) == targets).float().mean())}


task = Femnist()


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run said: the front half it began with, and of each step answer, shared state, message and loss."""

    quantizer: Mapping[str, Any]
    anchor: bytes
    answers: list[bytes]
    shared: list[bytes]
    messages: list[bytes]
    losses: list[float]

    def save(self, path: Path) -> None:
        """Write it to a file."""
        parts = [self.anchor, *self.answers, *self.shared, *self.messages]
        path.write_bytes(b"".join(pack_parcel({"quantizer": dict(self.quantizer), "losses": self.losses}, parts)))

    @classmethod
    def load(cls, path: Path) -> Recorded:
        """Read what :meth:`save` wrote."""
        with path.open("rb") as stream:
            parcel = read_parcel(stream.read)
        assert parcel is not None
        head, (anchor, *parts) = parcel
        third = len(parts) // 3
        answers, shared, messages = parts[:third], parts[third : 2 * third], parts[2 * third :]
        return cls(head["quantizer"], anchor, answers, shared, messages, head["losses"])


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the trainer process."""

    fronts: Fronts
    data: Dataset

    def ask(self, op: str, parts: Iterable[bytes] = (), **changes: Any) -> list[bytes]:
        """Make one request; return the vectors of its answer."""
        request = {"op": op, "task": TASK, "options": {}, "key": "device", **changes}
        return self.fronts.answer(request, list(parts), self.data)[1]

    def open(self, quantizer: Mapping[str, Any], anchor: bytes, steps: int, keeps_tape: bool) -> None:
        """Begin a round."""
        how = {"local": LOCAL, "pull": 0.0, "seed": SEED, "quantizer": quantizer, "steps": steps, "next": 0}
        self.ask("front_open", [anchor, b"", b""], keeps_tape=keeps_tape, **how)


def settings(name: str, centroids: int) -> dict[str, Any]:
    """Return a quantizer's settings as the plan would give them."""
    changes: dict[str, Any] = {} if name == DEFAULT else AS_PUBLISHED
    found = SplitSpec.model_validate({"subvectors": SUBVECTORS, "centroids": centroids, **changes}).quantizer
    assert found is not None
    return found


def record(quantizer: Mapping[str, Any], steps: int) -> Recorded:
    """Train device and server together; return what they said."""
    model = halved(task, task.model(0))
    whole = np.concatenate([read_tensors(half, layout) for half, layout in _halves_of(model)])
    anchor, options = whole[: model.layout.front.size], Options.of(VALUES, quantizer)
    back = BackRun(model, task.loss, whole, LocalTerms(0.0), LocalSpec(**LOCAL), options, SEED, BATCH * VALUES)
    device = Device(Fronts(), task.train_data({"examples": steps * BATCH}))
    device.open(quantizer, anchor.tobytes(), steps, keeps_tape=True)
    said = Recorded(quantizer, anchor.tobytes(), [], [], [], [])
    for step in range(steps):
        said.shared.append(b"" if back.shared is None else back.shared.to_bytes())
        message, labels = device.ask("front_forward", [said.shared[-1]])
        (outcome,) = back.step([Sent("device", step, message, labels)], 1)
        assert not outcome.refusal, outcome.refusal
        device.ask("front_backward", [outcome.answer], loss=outcome.loss)
        said.messages.append(message)
        said.answers.append(outcome.answer)
        said.losses.append(outcome.loss)
    return said


def _halves_of(model: Any) -> list[tuple[Mapping[str, Tensor], Any]]:
    layout = model.layout
    return [(model.front, layout.front), (model.back, type(layout)(layout.tensors[layout.num_front :]))]


def replay(said: Recorded, keeps_tape: bool) -> dict[str, int]:
    """Train the device by recorded answers; return peaks, bytes over what there was before."""
    steps = len(said.answers)
    device = Device(Fronts(), task.train_data({"examples": steps * BATCH}))
    begin = settle()
    device.open(said.quantizer, said.anchor, steps, keeps_tape)
    opened = peak() - begin
    reset()
    for step in range(steps):
        message, _ = device.ask("front_forward", [said.shared[step]])
        assert message == said.messages[step], f"step {step} is another one than the recorded"
        device.ask("front_backward", [said.answers[step]], loss=said.losses[step])
    return {"open": opened, "steps": peak() - begin}


def plain(steps: int) -> dict[str, int]:
    """Train the front half by torch alone; return the peak, bytes over what there was before."""
    inputs = torch.from_numpy(task.train_data({"examples": steps * BATCH}).inputs)
    front = task.split(task.model(0)).front
    gradient = torch.from_numpy(np.random.default_rng(1).normal(0, 1e-4, (BATCH, VALUES)).astype(np.float32))
    begin = settle()
    for rows in batches(len(inputs), BATCH, seeds.derive(SEED, 0)):
        train(front, inputs[rows], gradient)
    return {"open": 0, "steps": peak() - begin}


def train(front: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
    """Take a step of SGD. Not by ``torch.optim``, which imports much that has nothing to do with training."""
    front(inputs).backward(gradient)
    with torch.no_grad():
        for parameter in front.parameters():
            assert parameter.grad is not None
            parameter.add_(parameter.grad, alpha=-LOCAL["learning_rate"])
            parameter.grad = None


def settle() -> int:
    """Have torch's code in memory, give unused memory back, forget the peak, and return what is left, bytes."""
    train(front_half(), torch.zeros(1, 1, 28, 28), torch.zeros(1, VALUES))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset()
    return _status("VmRSS")


def reset() -> None:
    """Let the peak be what there is now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Return the most resident memory since ``reset``, bytes."""
    return _status("VmHWM")


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def child(heap: str, *arguments: str) -> dict[str, int]:
    """Return what a fresh process measured."""
    command = [sys.executable, "-m", "benchmarks.split_memory", *arguments]
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": MAPPED_FROM} if heap == MAPPED else {})
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    measured: dict[str, int] = json.loads(found) if found else {}
    return measured


def record_all(steps: int, folder: Path) -> dict[str, list[str]]:
    """Record a run for each setting; return what asks for each line of the table."""
    asked = {"plain": ["--plain", "--steps", str(steps)]}
    for name, centroids in itertools.product((DEFAULT, PAPER), (2, 32)):
        path = str(folder / f"{name}-{centroids}")
        child(MAPPED, "--record", path, "--name", name, "--centroids", str(centroids), "--steps", str(steps))
        line = f"L {centroids:<3} {name:13}"
        asked |= {f"{line} tape": ["--replay", path], f"{line} no tape": ["--replay", path, "--no-tape"]}
    return asked


def measure(heap: str, repeats: int, asked: Mapping[str, list[str]]) -> bool:
    """Print a table; return whether the bound holds in it."""
    found: dict[str, list[dict[str, int]]] = {line: [] for line in asked}
    for _ in range(repeats):
        for line, arguments in asked.items():
            found[line].append(child(heap, *arguments))
    need, passed = statistics.median(one["steps"] for one in found["plain"]), True
    print(f"{heap:27} {'open':>7} {'steps':>7} {'over':>7}   least and most of both, MB; medians of {repeats}")
    for line, results in found.items():
        opened, stepped = (statistics.median(one[which] for one in results) for which in ("open", "steps"))
        over = statistics.median(max(one.values()) for one in results) - need
        print(f"{line:27} {opened / 1e6:7.2f} {stepped / 1e6:7.2f} {over / 1e6:+7.2f}   {_spread(results)}", flush=True)
        passed &= DEFAULT not in line or over <= ALLOWED_BYTES
    return passed


def _spread(results: list[dict[str, int]]) -> str:
    peaks = sorted(max(one.values()) / 1e6 for one in results)
    return f"{peaks[0]:.2f} to {peaks[-1]:.2f}"


def main() -> int:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes a line")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--heap", action="store_true", help="measure on glibc's heap, too")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--no-tape", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--name", default=DEFAULT, help=argparse.SUPPRESS)
    parser.add_argument("--centroids", type=int, default=2, help=argparse.SUPPRESS)
    own = parser.parse_args()
    torch.set_num_threads(1)
    if own.plain:
        print(json.dumps(plain(own.steps)))
    elif own.record:
        record(settings(own.name, own.centroids), own.steps).save(own.record)
    elif own.replay:
        print(json.dumps(replay(Recorded.load(own.replay), not own.no_tape)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asked = record_all(own.steps, Path(folder))
            passed = measure(MAPPED, own.repeats, asked)
            if own.heap:
                measure(HEAP, own.repeats, asked)
        return 0 if passed else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
