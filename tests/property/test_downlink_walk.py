"""Whatever the weather, both ends of a download memory have the same vector under the same name."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.downlink import mcm
from tests.support.downlink_faults import WEIGHTS_ONLY, Walk, Weather

FOUL = Weather(lost=0.25, delayed=0.3, repeated=0.2, corrupted=0.1, crash=0.1, wiped=0.01, restored=0.01)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([Weather(), FOUL]), st.sampled_from([None, 0.6]))
def test_one_name_is_one_vector_in_any_weather(seed, weather, alpha):
    counts = Walk(seed, weather, 4, "eden", alpha).take(300)
    assert counts["mismatches"] == 0 and counts["checks"] > 20


def test_one_name_is_one_vector_with_entropy_coding():
    counts = Walk(5, Weather(), 5, "eden-entropy", None).take(600)
    assert counts["mismatches"] == 0 and counts["checks"] > 100


def test_few_fulls_follow_the_first_ones():
    """Measured over 100,000 steps: see the slow walk."""
    counts = Walk(7, Weather(), 20, "eden", None).take(6_000)
    assert counts["mismatches"] == 0 and counts["checks"] > 1500
    assert counts["taken full"] - counts["first"] < 0.02 * counts["sent"]


@pytest.mark.slow
def test_a_hundred_thousand_steps_end_without_a_mismatch():
    weather = dataclasses.replace(Weather(), wiped=0.0001, restored=0.0001)
    counts = Walk(11, weather, 60, "eden", None, WEIGHTS_ONLY).take(100_000)
    assert counts["mismatches"] == 0 and counts["checks"] > 30_000
    caused = counts["first"] + counts["wiped"] + counts["restored"]
    assert counts["taken full"] - caused < 0.02 * counts["sent"]


def test_the_walk_finds_a_device_that_takes_deltas_for_other_states(monkeypatch):
    def careless(channel, own, message):
        return mcm.apply_to(channel, dataclasses.replace(own, id=message.base), message)

    monkeypatch.setattr("fedge.downlink.ledger.apply_message", careless)
    assert Walk(7, Weather(), 20, "eden", None).take(4_000)["mismatches"] > 0
