"""The four ways of training that ``split_end_to_end`` compares, each with every byte of its messages.

split_arm    a step at a time: front half down, activations and labels up, gradient down, gradient of w_c up. Without
             options all of it is float32; with ``Options.paper`` the activations alone are quantized
rounds_arm   ours: a round is  front half down → T steps → delta of the front half up.  In each step K devices send
             activations and labels and get gradients; the back half takes one step with the mean over them, each
             device a step of its own front half, with FedDyn's terms. The front half goes down by rand-mcm, its
             delta up through EDEN, and the codebooks of a round's steps start from one that went down with it
whole_arm    FedDyn, EDEN and rand-mcm on devices that hold the whole model, by ``fedge.simulation``
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.split_gradients import BATCH, CUT, DEVICES, RATE, TOGETHER, VALUES, draw, network
from fedge import seeds
from fedge.aggregation import SegmentSums
from fedge.algorithms import Algorithm, Dual
from fedge.algorithms.split import BackHalf, Batch, FrontHalf, Seen, descend, split_step
from fedge.downlink import Mode
from fedge.downlink.ledger import Asked, Ledger, answer, receive
from fedge.downlink.mcm import channel_of
from fedge.downlink.message import State, origin
from fedge.layout import Vector
from fedge.simulation import Simulation, World
from fedge.simulation.training import TaskTrainer
from fedge.split import Memory, Options, Shared, Start, write_labels
from fedge.tasks.base import Dataset
from fedge.tasks.split_model import activation_shape, cut
from fedge.tasks.torch_model import get_params, layout_of, set_params
from fedge.update import by_segment, decode_applied, encode_update, uplink
from schemas.base import parse
from schemas.plan import Plan
from schemas.status import RoundStatus

CODEC, LABEL_BITS = "eden-entropy", 4
KINDS = ("activations", "labels", "front half up", "gradients", "front half down", "codebook down")

Loss = nn.functional.cross_entropy


@dataclass(slots=True)
class Run:
    """What one seed gave. ``spent`` are all bytes until each of the evaluations, ``kinds`` the bytes of a device's step
    on average, ``device_steps`` how many there were."""

    accuracies: list[float] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)
    kinds: dict[str, float] = field(default_factory=dict)
    device_steps: int = 0

    def add(self, kind: str, size: int) -> None:
        """Count so many bytes."""
        self.kinds[kind] = self.kinds.get(kind, 0.0) + size

    def evaluated(self, accuracy: float) -> None:
        """Write down an accuracy and what was spent for it."""
        self.accuracies.append(accuracy)
        self.spent.append(sum(self.kinds.values()))

    def finished(self) -> Run:
        """Turn totals into means."""
        self.kinds = {kind: total / self.device_steps for kind, total in self.kinds.items()}
        return self

    @property
    def bytes_of_a_step(self) -> float:
        """All bytes of a device's step, both ways."""
        return sum(self.kinds.values())


def accuracy(model: nn.Module, test: Dataset) -> float:
    """Return the share of right answers of the whole model, unquantized."""
    model.eval()
    with torch.no_grad():
        parts = zip(np.array_split(test.inputs, 4), np.array_split(test.targets, 4), strict=True)
        right = sum(int((model(torch.from_numpy(x)).argmax(1).numpy() == y).sum()) for x, y in parts)
    model.train()
    return right / len(test)


def _batches(devices: Sequence[Dataset], chosen: Sequence[int], rng: np.random.Generator) -> list[Batch]:
    return [draw(devices[k], rng) for k in chosen]


def _cohort(rng: np.random.Generator) -> list[int]:
    return [int(k) for k in rng.choice(DEVICES, TOGETHER, replace=False)]


def _labels(targets: Tensor) -> int:
    return len(write_labels(targets.numpy(), LABEL_BITS))


def split_arm(
    devices: Sequence[Dataset], test: Dataset, options: Options | None, steps: int, every: int, seed: int
) -> Run:
    """Train split, all in float32 or FedLite as published."""
    run, rng, model = Run(), np.random.default_rng(100 + seed), network(seed)
    parts = cut(model, CUT)
    front = 4 * sum(parameter.numel() for parameter in parts.front.parameters())
    for step in range(steps):
        batches = _batches(devices, _cohort(rng), rng)
        done = split_step(parts, Loss, batches, options, RATE, step, seed)
        for (_, targets), up, down in zip(batches, done.bytes_up, done.bytes_down, strict=True):
            for kind, size in zip(KINDS, (up, _labels(targets), front, down, front), strict=False):
                run.add(kind, size)
        run.device_steps += TOGETHER
        if (step + 1) % every == 0:
            run.evaluated(accuracy(model, test))
    return run.finished()


@dataclass(frozen=True, slots=True)
class Ours:
    """Settings of ``rounds_arm``."""

    options: Options
    algorithm: Algorithm
    local_steps: int = 5
    up_bits: float = 1.0
    down_bits: float = 2.0
    full_bits: float = 8.0


class Fronts:
    """The front half as devices and server have it: states, duals, and how it travels."""

    def __init__(self, front: nn.Module, how: Ours, seed: int) -> None:
        self.front, self.layout, self.how, self.seed = front, layout_of(front), how, seed
        self.server = how.algorithm.initial(get_params(front, self.layout))
        self.duals: dict[int, Dual] = {}
        self.states: dict[int, State] = {}
        self.ledgers: dict[int, Ledger] = {}

    def download(self, k: int, number: int, run: Run) -> LocalFront:
        """Return what device ``k`` starts round ``number`` with."""
        channel = channel_of(self.layout, self.seed, f"d{k}", Mode.RAND_MCM, CODEC)
        own = self.states.get(k) or origin(self.layout)
        asked = Asked(own.id, self.server.params, number, self.how.down_bits, full_bits=self.how.full_bits)
        self.ledgers[k], data = answer(channel, self.ledgers.get(k, Ledger()), asked)
        run.add("front half down", len(data))
        delivered = receive(channel, own, data)
        self.states[k] = delivered.state
        return LocalFront(self, k, np.ascontiguousarray(delivered.anchor, np.float32))

    def dual(self, k: int) -> Dual | None:
        """Return the dual of device ``k``, zeros at first; None if the algorithm has none."""
        return self.duals.get(k, np.zeros(self.layout.size)) if self.how.algorithm.stateful else None

    def aggregate(self, devices: Sequence[LocalFront], number: int, run: Run) -> None:
        """Take the deltas of a round into the server's state and the devices' duals; publish."""
        algorithm, layout, sums = self.how.algorithm, self.layout, SegmentSums(self.layout)
        for own in devices:
            stream = uplink(self.seed, number, f"d{own.k}")
            frames = encode_update(layout, own.delta, stream, CODEC, self.how.up_bits)
            run.add("front half up", sum(map(len, frames)))
            everything = range(len(layout.segments))
            decoded = decode_applied(layout, by_segment(frames), stream, everything, algorithm.trust)
            for segment in layout.segments:
                sums.add(segment.index, decoded[segment.slice], algorithm.weight(1))
            if (dual := self.dual(own.k)) is not None:
                self.duals[own.k] = algorithm.commit(dual, layout.segments, decoded)
        self.server = algorithm.server_step(self.server, sums, DEVICES)
        set_params(self.front, layout, np.ascontiguousarray(self.server.published, np.float32))


class LocalFront:
    """One device's front half in a round."""

    def __init__(self, fronts: Fronts, k: int, anchor: Vector) -> None:
        self.k, self.anchor, self.layout = k, anchor, fronts.layout
        self.half = FrontHalf(copy.deepcopy(fronts.front), fronts.how.options)
        set_params(self.half.front, self.layout, anchor)
        terms = fronts.how.algorithm.local_terms(fronts.dual(k), 1.0)
        self.pull, self.rate = terms.pull, min(RATE, 1 / terms.pull) if terms.pull else RATE
        centre = self.layout.unpack(anchor if terms.dual is None else (anchor - terms.dual).astype(np.float32))
        self.centre = [torch.from_numpy(np.array(centre[name])) for name, _ in self.half.front.named_parameters()]

    def step(self, data: bytes) -> None:
        """Take a step of SGD with what the server answered."""
        trained = self.half.trained
        parts = np.split(self.half.backward(data), np.cumsum([x.numel() for x in trained])[:-1])
        grads = [torch.from_numpy(part).view_as(x) for part, x in zip(parts, trained, strict=True)]
        with torch.no_grad():
            pulled = [g + self.pull * (x - c) for g, x, c in zip(grads, trained, self.centre, strict=True)]
        descend(trained, pulled, self.rate)

    @property
    def delta(self) -> Vector:
        """What the round changed, float32 ``[d]``."""
        return get_params(self.half.front, self.layout) - self.anchor


def rounds_arm(devices: Sequence[Dataset], test: Dataset, how: Ours, steps: int, every: int, seed: int) -> Run:
    """Train as the service does."""
    run, rng, model = Run(), np.random.default_rng(100 + seed), network(seed)
    parts, memory = cut(model, CUT), Memory(how.options.shape(BATCH, VALUES))
    fronts, shape = Fronts(parts.front, how, seed), activation_shape(parts.front, torch.from_numpy(test.inputs[:1]))
    back = BackHalf(parts.back, Loss, shape, how.options)
    for number, first in enumerate(range(0, steps, how.local_steps), 1):
        chosen, last = _cohort(rng), min(first + how.local_steps, steps)
        shared = None if how.options.start is Start.FRESH or memory.codebook is None else memory.publish()
        local = [fronts.download(k, number, run) for k in chosen]
        run.add("codebook down", 0 if shared is None else TOGETHER * len(shared.to_bytes()))
        for step in range(first, last):
            seen = _step(local, back, _batches(devices, chosen, rng), shared, step, seed, run)
            memory = memory.after(seen)
        fronts.aggregate(local, number, run)
        if last // every > first // every:
            run.evaluated(accuracy(model, test))
    return run.finished()


def _step(
    local: Sequence[LocalFront],
    back: BackHalf,
    batches: Sequence[Batch],
    shared: Shared | None,
    step: int,
    seed: int,
    run: Run,
) -> list[Seen]:
    """Take one step of a round; return what the memory learns from."""
    sent = [
        own.half.forward(inputs, step, seeds.derive(seed, step, k), shared)
        for k, (own, (inputs, _)) in enumerate(zip(local, batches, strict=True))
    ]
    received = [back.receive(data, shared) for data in sent]
    pairs = [(z, targets) for (z, _), (_, targets) in zip(received, batches, strict=True)]
    answers, _ = back.step(pairs, RATE, seeds.derive(seed, step, "back"))
    for own, up, (_, targets), down in zip(local, sent, batches, answers, strict=True):
        own.step(down)
        for kind, size in zip(KINDS, (len(up), _labels(targets), 0, len(down)), strict=False):
            run.add(kind, size)
    run.device_steps += len(local)
    return [seen for _, seen in received if seen is not None]


@dataclass(frozen=True, slots=True)
class Digits:
    """The task of ``whole_arm``: the devices' examples are dealt here."""

    devices: Sequence[Dataset]
    test: Dataset
    name: str = "digits"

    def model(self, seed: int) -> nn.Module:
        return network(seed)

    def train_data(self, options: Mapping[str, object]) -> Dataset:
        return self.devices[int(str(options["device"]))]

    def test_data(self) -> Dataset | None:
        return self.test

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return Loss(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"accuracy": float((outputs.argmax(1) == targets).float().mean())}


def whole_arm(devices: Sequence[Dataset], test: Dataset, steps: int, seed: int, alpha: float = 0.1) -> Run:
    """Train the whole model on devices, an epoch a round; weight decay and clipping are a plan's defaults."""
    names = tuple(f"d{k}" for k in range(DEVICES))
    steps_a_round = -(-len(devices[0]) // BATCH)
    document = {
        "task": "benchmarks.split_arms:task",
        "rounds": max(steps // steps_a_round, 1),
        "seed": seed,
        "cohort": {
            "devices": TOGETHER,
            "updates": {"min": TOGETHER, "max": TOGETHER},
            "seconds": {"min": 0, "max": 1e6},
        },
        "algorithm": {"name": "feddyn", "alpha": alpha},
        "local": {"epochs": 1, "batch_size": BATCH, "learning_rate": RATE},
        "uplink": {"bits": 1.0},
        "downlink": {"mode": "rand-mcm", "bits": 2.0},
    }
    run = Run()

    def tell(status: RoundStatus) -> None:
        run.add("model up", status.frame_bytes.up)
        run.add("model down", status.frame_bytes.down)
        run.device_steps += TOGETHER * steps_a_round
        run.evaluated(status.metrics["accuracy"])

    trainer = TaskTrainer(Digits(devices, test), {name: {"device": k} for k, name in enumerate(names)})
    Simulation(parse(Plan, document, "plan"), trainer, World(names), tell).run()
    return run.finished()
