import hashlib
import time

import numpy as np
import pytest

from fedge.errors import TaskError
from fedge.tasks import partition

LABELS = np.repeat(np.arange(10, dtype=np.uint8), 200)


def deals(seed: int = 0):
    return {
        "iid": partition.iid(len(LABELS), 30, seed),
        "dirichlet": partition.dirichlet(LABELS, 30, 0.3, seed),
        "shards": partition.shards(LABELS, 30, 2, seed),
    }


@pytest.mark.parametrize("how", ["iid", "dirichlet", "shards"])
def test_no_example_is_dealt_twice_and_all_devices_hold_as_many(how):
    hands = deals()[how]
    rows = np.concatenate(hands)
    assert len(set(rows.tolist())) == len(rows) and len(hands) == 30
    assert rows.min() >= 0 and rows.max() < len(LABELS)
    assert {len(hand) for hand in hands} == {66}


@pytest.mark.parametrize("how", ["iid", "dirichlet", "shards"])
def test_the_seed_names_the_partition(how):
    first, again, other = (deals(seed)[how] for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_partition_stays_what_it_was():
    digests = {
        how: hashlib.blake2b(np.concatenate(hands).tobytes(), digest_size=8).hexdigest()
        for how, hands in deals(seed=7).items()
    }
    assert digests == {"iid": "4bd15fc5b91ca3a2", "dirichlet": "0d7bb26409746b7e", "shards": "9f49f49540ea6cb8"}


def test_a_device_of_two_shards_has_few_classes():
    classes = [len(set(LABELS[hand].tolist())) for hand in partition.shards(LABELS, 20, 2, 0)]
    assert max(classes) == 2 and len(classes) == 20


def skew(hands) -> float:
    """The mean share of a device's commonest class."""
    return float(np.mean([np.bincount(LABELS[hand]).max() / len(hand) for hand in hands]))


def test_a_smaller_beta_is_more_uneven():
    shares = [skew(partition.dirichlet(LABELS, 20, beta, 0)) for beta in (0.05, 0.3, 3.0, 1000.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.45 and shares[-1] < 0.25
    assert skew(partition.iid(len(LABELS), 20, 0)) < 0.25


def test_class_shares_are_those_of_a_dirichlet_draw():
    # E max and E sum of squares of Dirichlet(0.3, .., 0.3) over 10 classes; the latter is (β + 1)/(10 β + 1).
    draws = np.array([partition._prior(10, 0.3, seed) for seed in range(2000)])
    draws /= draws.sum(axis=1, keepdims=True)
    squares = (draws**2).sum(axis=1)
    assert abs(squares.mean() - 1.3 / 4) < 4 * squares.std() / 2000**0.5
    assert np.abs(draws.mean(axis=0) - 0.1).max() < 4 * (0.09 / 4 / 2000) ** 0.5


def test_a_tiny_beta_ends_and_deals_everything():
    began = time.process_time()
    hands = partition.dirichlet(LABELS, 10, 1e-4, 0)
    assert time.process_time() - began < 2
    assert sorted(np.concatenate(hands).tolist()) == list(range(len(LABELS)))


@pytest.mark.parametrize(
    ("deal", "message"),
    [
        (lambda: partition.iid(10, 11, 0), "expected 1 to 10 devices for 10 examples, got 11"),
        (lambda: partition.iid(10, 0, 0), "expected 1 to 10 devices"),
        (lambda: partition.shards(LABELS, 1500, 2, 0), "expected 1 to 2000 shards .*, got 3000"),
        (lambda: partition.shards(LABELS, 3, 0, 0), "at least 1 shard"),
        (lambda: partition.dirichlet(LABELS, 3, 0.0, 0), "beta above 0"),
        (lambda: partition.dirichlet(LABELS, 3, float("nan"), 0), "beta above 0"),
    ],
)
def test_an_impossible_partition_is_refused(deal, message):
    with pytest.raises(TaskError, match=message):
        deal()
