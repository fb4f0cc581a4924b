"""Deal the examples of a data set without owners out to devices: IID, Dirichlet, or shards of sorted labels.

Everything follows from ``fedge.seeds``, so that a device that holds the whole data set finds its own part alone and
all devices together use no example twice.

``dirichlet`` is the recipe of the FedDyn authors (https://github.com/alpemreacar/FedDyn; Acar et al., Federated
Learning Based on Dynamic Regularization, ICLR 2021): every device has room for as many examples and a class prior of
its own, drawn from Dirichlet(β, .., β). Again and again, a device with room is picked at random, draws a class from
its prior, and takes the next example of that class. They draw again where a class is exhausted; here the prior is
renormalised over the remaining classes instead, which is the same distribution and ends for any β.

``shards`` is that of McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
AISTATS 2017 (https://arxiv.org/abs/1602.05629): sort by label, cut into equal shards, give each device a few.

What does not divide evenly stays undealt, fewer examples than there are devices (or shards). Priors go through
logarithms, whose last bit may differ between C libraries: two machines disagree about an example with a chance of
about 1e-11 for a whole data set.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from fedge import seeds
from fedge.errors import TaskError

Rows = npt.NDArray[np.int64]
"""The examples of one device, int64 ``[n]``, in the order they were dealt."""


def iid(count: int, devices: int, seed: int) -> list[Rows]:
    """Deal ``count`` shuffled examples out in equal parts."""
    size = _size(count, devices, "devices")
    order = seeds.permutation(seeds.derive(seed, "partition", "iid"), count)
    return [order[start : start + size] for start in range(0, size * devices, size)]


def shards(labels: npt.NDArray[np.integer], devices: int, per_device: int, seed: int) -> list[Rows]:
    """Deal each device ``per_device`` shards of the examples sorted by label."""
    if per_device < 1:
        raise TaskError(f"partition: expected at least 1 shard for each device, got {per_device}")
    size = _size(len(labels), devices * per_device, "shards")
    shuffled = seeds.permutation(seeds.derive(seed, "partition", "examples"), len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    cut = by_label[: size * devices * per_device].reshape(-1, size)
    dealt = seeds.permutation(seeds.derive(seed, "partition", "shards"), len(cut)).reshape(devices, per_device)
    return [cut[own].reshape(-1) for own in dealt]


def dirichlet(labels: npt.NDArray[np.integer], devices: int, beta: float, seed: int) -> list[Rows]:
    """Deal every device as many examples by a class prior of its own, from Dirichlet(``beta``, .., ``beta``)."""
    if not 0 < beta < math.inf:
        raise TaskError(f"partition: expected beta above 0 and finite, got {beta}")
    size = _size(len(labels), devices, "devices")
    order = seeds.permutation(seeds.derive(seed, "partition", "examples"), len(labels)).tolist()
    classes = int(labels.max()) + 1
    piles: list[list[int]] = [[] for _ in range(classes)]
    for row, label in zip(order, labels[order].tolist(), strict=True):
        piles[label].append(row)
    priors = [_prior(classes, beta, seeds.derive(seed, "partition", "prior", device)) for device in range(devices)]
    hands: list[list[int]] = [[] for _ in range(devices)]
    with_room, left = list(range(devices)), [bool(pile) for pile in piles]
    cumulative = [_cumulative(prior, left) for prior in priors]
    draws = seeds.uniform(seeds.derive(seed, "partition", "draws"), 2 * size * devices).reshape(-1, 2)
    for which, what in draws.tolist():
        place = int(which * len(with_room))
        device = with_room[place]
        own = cumulative[device]
        label = bisect_right(own, min(what * own[-1], math.nextafter(own[-1], 0.0)))
        hands[device].append(piles[label].pop())
        if len(hands[device]) == size:
            with_room[place] = with_room[-1]
            with_room.pop()
        if not piles[label]:
            left[label] = False
            cumulative = [_cumulative(prior, left) for prior in priors] if any(left) else cumulative
    return [np.array(hand, np.int64) for hand in hands]


def _size(count: int, parts: int, what: str) -> int:
    if not 1 <= parts <= count:
        raise TaskError(f"partition: expected 1 to {count} {what} for {count} examples, got {parts}")
    return count // parts


def _cumulative(prior: list[float], left: list[bool]) -> list[float]:
    """Return running sums of ``prior`` over the classes that are left; of equal shares where it gives them none.

    A draw u below the last sum belongs to the first class whose sum exceeds u, which is one of positive share.
    """
    shares = [share if some else 0.0 for share, some in zip(prior, left, strict=True)]
    if sum(shares) == 0.0:
        shares = [float(some) for some in left]
    return list(accumulate(shares))


def _prior(classes: int, beta: float, seed: int) -> list[float]:
    """Return one draw from Dirichlet(``beta``, .., ``beta``): gammas, divided by the largest of them."""
    stream = _stream(seed)
    logs = [_log_gamma(beta, stream) for _ in range(classes)]
    return [math.exp(value - max(logs)) for value in logs]


def _log_gamma(shape: float, stream: Iterator[float]) -> float:
    """Return the logarithm of a draw from Gamma(``shape``, 1).

    Marsaglia and Tsang, A Simple Method for Generating Gamma Variables, TOMS 2000, for shape + 1, times U^(1/shape).
    In logarithms, because U^(1/shape) underflows for a small shape.
    """
    d = shape + 1 - 1 / 3
    c = 1 / math.sqrt(9 * d)
    normal = NormalDist()
    while True:
        x, u, boost = normal.inv_cdf(next(stream)), next(stream), next(stream)
        v = (1 + c * x) ** 3
        if v > 0 and math.log(u) < x * x / 2 + d - d * v + d * math.log(v):
            return math.log(d * v) + math.log(boost) / shape


def _stream(seed: int) -> Iterator[float]:
    """Yield numbers in (0, 1) without end."""
    part = 0
    while True:
        for word in seeds.words(seeds.derive(seed, part), 64).tolist():
            yield ((word >> 12) + 0.5) * 2.0**-52
        part += 1
