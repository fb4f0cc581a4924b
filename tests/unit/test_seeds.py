import numpy as np

from fedge.seeds import derive, permutation, uniform, words


def test_the_stream_is_splitmix64():
    # First outputs of SplitMix64 from state 1234567, as its authors' reference program prints them.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert words(1234567, 4).tolist() == expected


def test_a_longer_stream_begins_with_the_shorter_one():
    assert np.array_equal(words(7, 1000)[:10], words(7, 10))


def test_seeds_wrap_at_64_bits_and_may_be_negative():
    assert np.array_equal(words(2**64 + 5, 3), words(5, 3))
    assert np.array_equal(words(-1, 3), words(2**64 - 1, 3))


def test_parts_that_only_look_alike_name_different_seeds():
    named = [derive(1, "2"), derive("1", 2), derive(12), derive("12"), derive("1", "2"), derive(1, 2), derive()]
    assert len(set(named)) == len(named)


def test_derived_seeds_are_the_same_for_ever():
    assert derive(7, "up", 3, "pi-kitchen", 0) == 8651794225046206132


def test_uniform_numbers_fill_the_unit_interval_evenly():
    x = uniform(3, 200_000)
    assert x.min() >= 0.0 and x.max() < 1.0
    assert abs(x.mean() - 0.5) < 5 * np.sqrt(1 / 12 / x.size)
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 5 / np.sqrt(x.size)


def test_a_permutation_holds_every_index_once():
    assert sorted(permutation(9, 1000).tolist()) == list(range(1000))
    assert permutation(9, 0).tolist() == []
