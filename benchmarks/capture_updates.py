"""Real updates, for benchmarks of codecs: what devices send after rounds 1, 5 and 15 of the three ready tasks.

    python -m benchmarks.capture_updates --out DIR [--data DIR] [--tasks wisdm shakespeare] [--rounds 1 5 15]

Each federation is simulated (``fedge.simulation``) to the last of the rounds asked for, with FedDyn, EDEN at 2 bits
up and 4 bits down, and the accuracy after every round is printed. For each of the rounds one file is written,
``DIR/TASK-round-RR.npz``:

    deltas         float32 [k, d], before encoding, one row for each update the round counted
    devices        who sent them, [k];  num_examples int64 [k]
    segment_start, segment_stop, segment_kind      the layout: ``deltas[:, start:stop]`` is what a codec encodes
                                                   where the kind is "weight"
    tensor_name, tensor_start, tensor_shape        the model's tensors, for whoever wants to look closer
    anchor         float32 [d], the params that the round sent out, before the downlink's encoding
    accuracy       of the model after the round

``wisdm`` comes with fedge; the others need their data: ``fedge data get``, then ``--data`` or ``FEDGE_DATA``.
Fashion-MNIST: 20 devices of 3,000 pictures, Dirichlet(0.3), 10 a round. Shakespeare: the 10 roles that say most, all
of them in every round. One thread; the same seed gives the same files.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedge.algorithms.base import LocalTerms
from fedge.layout import Layout, Vector
from fedge.simulation import Simulation, Trainer, World
from fedge.simulation.training import TaskTrainer
from fedge.simulation.world import Trained
from fedge.tasks import load
from fedge.tasks.base import Task
from fedge.tasks.fashion_mnist import FashionMnist
from fedge.tasks.shakespeare import Shakespeare
from fedge.tasks.sources import VARIABLE
from fedge.tasks.wisdm import Wisdm
from schemas.plan import Plan
from schemas.specs import LocalSpec
from schemas.status import RoundStatus

ROUNDS = [1, 5, 15]
Sites = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class Federation:
    """What is simulated: which devices, and the parts of the plan that differ between tasks."""

    task: str
    sites: Callable[[], Sites]
    cohort: int
    local: Mapping[str, float]
    alpha: float = 0.1

    def plan(self, rounds: int, seed: int) -> Plan:
        """Return the plan of ``rounds`` rounds."""
        return Plan.model_validate(
            {
                "task": self.task,
                "rounds": rounds,
                "seed": seed,
                # Virtual seconds: nobody is late, so every round counts its whole cohort.
                "cohort": {"devices": self.cohort, "seconds": {"min": 3600.0, "max": 36000.0}},
                "algorithm": {"name": "feddyn", "alpha": self.alpha},
                "local": self.local,
                "uplink": {"codec": "eden", "bits": 2.0},
                "downlink": {"codec": "eden", "bits": 4.0},
            }
        )


def clothes() -> Sites:
    """Twenty devices of Fashion-MNIST."""
    return {f"fashion-{k:02d}": {"devices": 20, "device": k, "beta": 0.3} for k in range(20)}


def talkers() -> Sites:
    """The ten roles with most to say."""
    task = Shakespeare()
    sites = task.sites()
    by_size = sorted(sites, key=lambda name: -len(task.train_data(sites[name])))
    return {name: sites[name] for name in by_size[:10]}


FEDERATIONS: Mapping[str, Federation] = {
    "wisdm": Federation(
        "fedge.tasks.wisdm:task",
        Wisdm().sites,
        cohort=12,
        local={"epochs": 5, "batch_size": 16, "learning_rate": 0.1, "weight_decay": 0.001},
    ),
    FashionMnist().name: Federation(
        "fedge.tasks.fashion_mnist:task",
        clothes,
        cohort=10,
        local={"epochs": 2, "batch_size": 50, "learning_rate": 0.1, "weight_decay": 0.001},
    ),
    Shakespeare().name: Federation(
        "fedge.tasks.shakespeare:task",
        talkers,
        cohort=10,
        local={"epochs": 2, "batch_size": 10, "learning_rate": 2.0, "weight_decay": 0.0},
        # Steps are long here: with alpha 0.1 every role stayed at character frequencies for the first rounds.
        alpha=0.01,
    ),
}


class Recorder:
    """A trainer that remembers what each device trained last."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.last = trainer, dict[str, Vector]()

    @property
    def layout(self) -> Layout:
        return self.trainer.layout

    def initial(self, seed: int) -> Vector:
        return self.trainer.initial(seed)

    def num_examples(self, device: str) -> int:
        return self.trainer.num_examples(device)

    def begin(
        self, device: str, anchor: Vector, terms: LocalTerms, local: LocalSpec, seed: int
    ) -> Callable[[], Trained]:
        result = self.trainer.begin(device, anchor, terms, local, seed)

        def finish() -> Trained:
            trained = result()
            self.last[device] = trained.delta
            return trained

        return finish

    def evaluate(self, params: Vector) -> dict[str, float]:
        return self.trainer.evaluate(params)


def capture(name: str, federation: Federation, rounds: list[int], seed: int, out: Path) -> None:
    """Simulate ``federation`` and write one file into ``out`` for each of ``rounds``."""
    task: Task = load(federation.task)
    sites = federation.sites()
    recorder = Recorder(TaskTrainer(task, sites))
    began = time.perf_counter()

    def on_round(status: RoundStatus) -> None:
        nonlocal anchor
        accuracy = status.metrics.get("accuracy", float("nan"))
        seconds = time.perf_counter() - began
        loss = float("nan") if status.loss is None else status.loss
        print(f"{name:14} {status.round:>5} {len(status.updates):>8} {loss:8.4f} {accuracy:9.4f} {seconds:8.1f}")
        sys.stdout.flush()
        if status.round in rounds:
            save(out / f"{name}-round-{status.round:02d}.npz", recorder, status, anchor, accuracy)
        recorder.last.clear()
        anchor = simulation.aggregator.state.params.astype(np.float32)

    simulation = Simulation(federation.plan(max(rounds), seed), recorder, World(tuple(sites)), on_round)
    anchor = simulation.aggregator.state.params.astype(np.float32)
    simulation.run()


def save(path: Path, recorder: Recorder, status: RoundStatus, anchor: Vector, accuracy: float) -> None:
    """Write the updates that ``status`` counts."""
    layout, devices = recorder.layout, sorted(status.updates)
    np.savez(
        path,
        deltas=np.stack([recorder.last[device] for device in devices]),
        devices=np.array(devices),
        num_examples=np.array([recorder.num_examples(device) for device in devices]),
        segment_start=np.array([segment.start for segment in layout.segments]),
        segment_stop=np.array([segment.stop for segment in layout.segments]),
        segment_kind=np.array([str(segment.kind) for segment in layout.segments]),
        tensor_name=np.array([tensor.name for tensor in layout.tensors]),
        tensor_start=np.array([layout.offsets[tensor.name] for tensor in layout.tensors]),
        tensor_shape=np.array(["x".join(map(str, tensor.shape)) for tensor in layout.tensors]),
        anchor=anchor,
        accuracy=accuracy,
    )


def main() -> None:
    """Parse the command line and capture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"the data sets; otherwise {VARIABLE}")
    parser.add_argument("--tasks", nargs="+", choices=list(FEDERATIONS), default=list(FEDERATIONS), metavar="TASK")
    parser.add_argument("--rounds", type=int, nargs="+", default=ROUNDS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(options.rounds) < 1:
        parser.error(f"argument --rounds: expected rounds from 1, got {min(options.rounds)}")
    if options.data is not None:
        os.environ[VARIABLE] = str(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{'task':14} {'round':>5} {'updates':>8} {'loss':>8} {'accuracy':>9} {'seconds':>8}")
    for name in options.tasks:
        capture(name, FEDERATIONS[name], options.rounds, options.seed, options.out)


if __name__ == "__main__":
    main()
