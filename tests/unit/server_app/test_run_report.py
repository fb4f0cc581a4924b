"""What is made of two answers of an aggregator between which the run may have moved."""

from typing import Any

import pytest

from schemas.plan import Plan
from schemas.status import RoundPhase, RoundStatus, RunPhase, RunStatus, SplitStatus, Traffic
from server_app.report import Result, summary
from server_app.run_report import result_of

PLAN = Plan(task="a:b", rounds=3)
SPLIT = SplitStatus(devices=("a",), steps=1, batches=2, activations=5)


def a_round(number: int, phase: RoundPhase = RoundPhase.CLOSED, **changes: Any) -> RoundStatus:
    at = {"opened_at": 100.0 * number, "closed_at": 100.0 * number + 50, "metrics": {"accuracy": number / 10}}
    cost = {"traffic": Traffic(up=9, down=8), "frame_bytes": Traffic(up=7, down=6)}
    return RoundStatus(round=number, phase=phase, **at | cost | changes)


def under_way(number: int, **changes: Any) -> RoundStatus:
    return a_round(number, RoundPhase.COLLECTING, closed_at=None, metrics={}, **changes)


def a_status(**changes: Any) -> RunStatus:
    facts = {"run": "b-1", "task": "a:b", "phase": RunPhase.RUNNING, "rounds_closed": 1, "rounds_planned": 3}
    return RunStatus(**facts | {"created_at": 5.0, "plan": PLAN} | changes)


def sums(result: Result) -> tuple[int, int]:
    return sum(r.traffic.up for r in result.rounds), sum(r.frame_bytes.down for r in result.rounds)


def test_rounds_that_came_after_the_status_are_left_out_and_the_one_under_way_is_as_it_was() -> None:
    now = under_way(2, traffic=Traffic(up=4), frame_bytes=Traffic(down=3), split=SPLIT)
    status = a_status(round=now, metrics={"accuracy": 0.1}, traffic=Traffic(up=13), frame_bytes=Traffic(down=9))
    result = result_of(status, [a_round(1), a_round(2), under_way(3)], asked_at=250.0)
    assert result.rounds == (a_round(1), now)
    assert sums(result) == (status.traffic.up, status.frame_bytes.down)
    assert (result.split, result.accuracy, result.as_of, result.seconds) == (SPLIT, 0.1, 250.0, 150.0)


def test_a_round_that_was_tested_after_the_status_counts_as_untested() -> None:
    status = a_status(rounds_closed=2, round=under_way(3), metrics={"accuracy": 0.1})
    result = result_of(status, [a_round(1), a_round(2), under_way(3)], asked_at=350.0)
    assert [r.metrics for r in result.rounds] == [{"accuracy": 0.1}, {}, {}]
    untested = result_of(a_status(round=under_way(2)), [a_round(1), a_round(2)], asked_at=250.0)
    assert untested.accuracy is None and [r.metrics for r in untested.rounds] == [{}, {}]


def test_a_run_whose_turn_had_not_come_has_no_rounds_and_no_time() -> None:
    result = result_of(a_status(phase=RunPhase.QUEUED, rounds_closed=0), [under_way(1)], asked_at=150.0)
    assert (result.rounds, result.seconds, result.as_of) == ((), None, 150.0)
    assert summary(result, None)["phase"] == "queued"


@pytest.mark.parametrize(("phase", "abandoned"), [(RunPhase.FINISHED, 0), (RunPhase.STOPPED, 0), (RunPhase.FAILED, 1)])
def test_a_run_that_is_over_has_all_its_rounds_and_the_counts_of_its_status(phase: RunPhase, abandoned: int) -> None:
    rounds = [a_round(1), a_round(2, RoundPhase.ABANDONED, metrics={}, reason="stopped by an operator")]
    status = a_status(phase=phase, ended_at=260.0, rounds_abandoned=abandoned, reason="because")
    result = result_of(status, rounds, asked_at=900.0)
    facts = summary(result, None)
    assert (result.rounds, result.as_of, facts["seconds"]) == (tuple(rounds), None, 160.0)
    assert (facts["rounds"], facts["rounds_abandoned"], facts["reason"]) == (1, abandoned, "because")


def test_a_run_that_waits_for_its_last_test_has_all_its_rounds_and_is_not_over() -> None:
    status = a_status(rounds_closed=2, waiting_for="the evaluation of the last round", metrics={"accuracy": 0.2})
    result = result_of(status, [a_round(1), a_round(2)], asked_at=300.0)
    assert len(result.rounds) == 2 and result.accuracy == 0.2
    assert result.standing.endswith("waiting for the evaluation of the last round")
