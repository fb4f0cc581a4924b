import pytest

from fedge.protocol.ledger import Conflict, Ledger, Verdict
from schemas.messages import UpdateHeader

FIRST = UpdateHeader(update="ab" * 8, num_examples=10)
OTHER = UpdateHeader(update="cd" * 8, num_examples=10)


def ledger_with(*segments: int) -> Ledger:
    ledger = Ledger(3)
    ledger.take_header("a", FIRST)
    for segment in segments:
        ledger.take_frame("a", segment, 100 + segment)
    return ledger


def test_an_update_is_complete_with_its_last_segment():
    assert not ledger_with(0, 2).is_complete("a")
    assert ledger_with(0, 2, 1).is_complete("a")
    assert not Ledger(3).is_complete("a")


def test_a_frame_that_comes_twice_is_taken_once():
    ledger = ledger_with(1)
    assert ledger.take_frame("a", 1, 101) is Verdict.DUPLICATE
    assert ledger.segments("a") == (1,)


def test_a_different_frame_of_a_segment_is_a_conflict():
    with pytest.raises(Conflict, match="segment 1 again"):
        ledger_with(1).check_frame("a", 1, 999)


def test_a_second_update_of_a_device_is_a_conflict_and_the_first_stays():
    ledger = ledger_with(0)
    with pytest.raises(Conflict, match="expected update abab"):
        ledger.take_header("a", OTHER)
    assert ledger.deliveries["a"].header == FIRST
    assert ledger.check_header("a", FIRST) is Verdict.DUPLICATE


def test_a_frame_without_a_header_is_a_conflict():
    with pytest.raises(Conflict, match="header of z"):
        ledger_with().check_frame("z", 0, 1)


def test_a_device_that_owes_fewer_segments_is_complete_with_those():
    ledger = Ledger(3, {"front": 2})
    for name in ("front", "whole"):
        ledger.take_header(name, FIRST)
        ledger.take_frame(name, 0, 1)
        ledger.take_frame(name, 1, 1)
    assert ledger.is_complete("front") and not ledger.is_complete("whole")
