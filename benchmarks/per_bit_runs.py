"""One run of ``per_bit_accuracy``: a few devices, a method of compression, a rate, a seed.

The local loop, frames, error feedback, sums and the server's step are fedge's own. The baselines code all weights as
one vector, under the budget that M22 has for them, and pay for the same frame headers and biases.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from benchmarks.sparse_baselines import Baseline, baselines
from fedge import feedback, seeds
from fedge.aggregation import SegmentSums
from fedge.algorithms import FedAvg
from fedge.algorithms.local import LocalSpec, Optimizer, evaluate, train
from fedge.codecs.m22.codec import HIGHEST_BITS
from fedge.errors import TaskError
from fedge.frames import HEADER_BYTES
from fedge.layout import Kind, Layout, Vector
from fedge.tasks import partition
from fedge.tasks.base import Dataset
from fedge.tasks.fashion_mnist import task
from fedge.tasks.torch_model import get_params, layout_of
from fedge.update import Stream, by_segment, decode_applied, encode_update, update_bytes, uplink

ROUNDS, EXAMPLES = 10, 1000
BETA, POOL, LEAST_EXAMPLES = 1.0, 3, 25
"""Of Dirichlet; examples are dealt from a third of the training set; the least a device trains on in a round."""
LOCAL: Mapping[str, LocalSpec] = {
    "sgd": LocalSpec(1, 5, 0.1, 0.0, 10.0, "sgd"),
    "adam": LocalSpec(1, 10, 0.002, 0.0, 10.0, "adam"),
}
TESTED, TESTED_AT_END, AT_ONCE = 500, 2000, 250


@dataclass(frozen=True, slots=True)
class Method:
    """How updates travel: a codec with its options, or a baseline. ``last_magnitude``: M goes there in a line."""

    codec: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    last_magnitude: float | None = None

    def in_round(self, t: int, rounds: int) -> Mapping[str, Any]:
        """Return the codec's options in round ``t`` of 0 .. ``rounds`` - 1."""
        if self.last_magnitude is None:
            return self.options
        first, share = self.options["magnitude"], t / max(rounds - 1, 1)
        return {**self.options, "magnitude": first + share * (self.last_magnitude - first)}


METHODS: Mapping[str, Method] = {
    "none": Method("none"),
    "eden": Method("eden-entropy"),
    "m22": Method("m22"),
    "m22-empirical": Method("m22", {"family": "empirical"}),
    "m22-M2": Method("m22", {"magnitude": 2.0}),
    "m22-M4to0": Method("m22", {"magnitude": 4.0}, 0.0),
    "m22-projection": Method("m22", {"amplitude": "projection"}),
    "m22-M2-designed": Method("m22", {"magnitude": 2.0, "amplitude": "designed"}),
    **{name: Method() for name in ("stc", "topk-fp8", "topk-fp4", "topk-uniform", "tinyscript", "qsgd", "sketch")},
}


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    devices: int
    optimizer: Optimizer
    method: str
    feedback: bool
    bits: float
    seed: int
    participation: float = 1.0
    rounds: int = ROUNDS
    examples: int = EXAMPLES

    @property
    def key(self) -> str:
        """What names the run in the file of results."""
        return json.dumps(asdict(self), sort_keys=True)


def send(
    method: Method, case: Case, layout: Layout, v: Vector, stream: Stream, t: int, baseline: Baseline | None
) -> tuple[Vector, int]:
    """Return what the server has of ``v`` float32 ``[d]`` and the bytes that it took, headers and all."""
    budget = update_bytes(layout, "m22", min(case.bits, HIGHEST_BITS))
    if baseline is None:
        rate, frames = (
            case.bits,
            encode_update(layout, v, stream, method.codec, case.bits, method.in_round(t, case.rounds)),
        )
        while method.codec == "eden-entropy" and sum(map(len, frames)) > budget and rate > 0.05:
            rate = max(rate - 8 * (sum(map(len, frames)) - budget) / layout.size - 1e-4, 0.05)
            frames = encode_update(layout, v, stream, method.codec, rate)
        every = range(len(layout.segments))
        return decode_applied(layout, by_segment(frames), stream, every, FedAvg().trust), sum(map(len, frames))
    count = sum(segment.size for segment in layout.segments if segment.kind is Kind.WEIGHT)
    besides = HEADER_BYTES * len(layout.segments) + 4 * (layout.size - count)
    x_hat, used = baseline(np.ascontiguousarray(v[:count]), budget - besides, stream.frame_seed(0))
    return np.concatenate((x_hat, v[count:])), used + besides


def run(case: Case) -> dict[str, Any]:
    """Return the result of one run: accuracy, loss and bits sent, before the first round and after each."""
    torch.set_num_threads(1)
    began, method, spec, algorithm = time.process_time(), METHODS[case.method], LOCAL[case.optimizer], FedAvg()
    pool, test = _data()
    model = task.model(case.seed)
    layout = layout_of(model)
    cuts = [layout.offsets[one.name] for one in layout.tensors if one.kind is Kind.WEIGHT][1:]
    baseline = None if method.codec else baselines(cuts)[case.method]
    owned = _deal(pool, case.devices, case.seed)
    share = max(LEAST_EXAMPLES, round(case.examples / (case.devices * case.participation)))
    state, sent, bits = algorithm.initial(get_params(model, layout)), 0, []
    memories: dict[int, feedback.Memory] = {}
    figures = [_score(model, state.params, layout, test, TESTED_AT_END)]
    for t in range(case.rounds):
        sums = SegmentSums(layout)
        targets: dict[int, Vector] = {}
        for k in _cohort(case, t):
            rows = np.take(owned[k], np.arange(t * share, (t + 1) * share), mode="wrap")
            own = seeds.derive(case.seed, t, k)
            data = Dataset(pool.inputs[rows], pool.targets[rows])
            delta = train(task, model, data, state.params, layout, algorithm.local_terms(None, 1.0), spec, own).delta
            targets[k] = feedback.corrected(delta, memories.get(k)) if case.feedback else delta
        if case.method == "sketch":  # linear: what is decoded is the mean of all sketches, drawn from one seed
            mean = np.mean(list(targets.values()), axis=0, dtype=np.float64).astype(np.float32)
            targets = dict.fromkeys(targets, mean)
        for k, target in targets.items():
            stream = uplink(case.seed, t, "all" if case.method == "sketch" else f"device-{k}")
            decoded, size = send(method, case, layout, target, stream, t, baseline)
            sent += 8 * size
            for segment in layout.segments:
                sums.add(segment.index, decoded[segment.slice], 1.0)
            if case.feedback:
                memories[k] = feedback.commit(memories.get(k), layout.segments, target - decoded)
        state = algorithm.server_step(state, sums, case.devices)
        bits.append(sent)
        last = t == case.rounds - 1
        figures.append(_score(model, state.params, layout, test, TESTED_AT_END if last else TESTED))
    updates = sum(len(_cohort(case, t)) for t in range(case.rounds))
    return {
        **asdict(case),
        "accuracy": [round(one["accuracy"], 5) for one in figures],
        "loss": [round(one["loss"], 5) for one in figures],
        "uplink_bits": [0, *bits],
        "bits_per_coordinate": sent / updates / layout.size,
        "cpu_seconds": round(time.process_time() - began, 2),
    }


def _cohort(case: Case, t: int) -> list[int]:
    draws = seeds.uniform(seeds.derive(case.seed, "cohort", t), case.devices)
    return [int(k) for k in np.flatnonzero(draws < case.participation)] or [int(draws.argmin())]


@lru_cache(maxsize=1)
def _data() -> tuple[Dataset, Dataset]:
    """Return the examples that are dealt out, and those to test on."""
    test = task.test_data()
    if test is None:
        raise TaskError("expected --data DIR or the data's place in the environment, got neither")
    pool = task.train_data({"partition": "iid", "devices": POOL, "device": 0})
    return pool, Dataset(test.inputs[:TESTED_AT_END], test.targets[:TESTED_AT_END])


def _deal(pool: Dataset, devices: int, seed: int) -> list[partition.Rows]:
    if devices == 2:
        return partition.iid(len(pool), devices, seed)
    return partition.dirichlet(pool.targets, devices, BETA, seed)


def _score(model: torch.nn.Module, params: Vector, layout: Layout, test: Dataset, count: int) -> dict[str, float]:
    """Return the metrics on the first ``count`` examples, in pieces that fit a cache."""
    cuts = range(0, count, AT_ONCE)
    pieces = (Dataset(test.inputs[k : k + AT_ONCE], test.targets[k : k + AT_ONCE]) for k in cuts)
    scores = [evaluate(task, model, params, layout, piece) for piece in pieces]
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
