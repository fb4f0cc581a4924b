"""Who takes part in a run, with which weight."""

from __future__ import annotations

from dataclasses import replace

from fedge.protocol.run import Run
from schemas.base import parse
from schemas.ids import DeviceId, RunId
from schemas.messages import Enroll, TaskOffer
from schemas.plan import Plan
from schemas.specs import Limits, LinkLimit
from server_app import planning
from server_app.devices import Device
from server_app.rows import Member, RunRow
from tests.support.http import LAYOUT, TASK, plan

PLAN = parse(Plan, plan(), "plan")
RUN = RunRow(RunId("tiny-1"), PLAN, 0.0, Run(2, 20))


def device(name: str, num_examples: int = 10, layout: str = LAYOUT.digest, limits: Limits | None = None) -> Device:
    """Return a device with so many examples."""
    tasks = {TASK: TaskOffer(num_examples=num_examples, layout=layout)}
    profile = Enroll(credential="c" * 43, name=DeviceId(name), tasks=tasks, limits=limits or Limits())
    return Device(DeviceId(name), "hash", profile, 0.0)


def test_sizes_are_relative_to_the_mean_of_the_first_round_and_stay() -> None:
    run, fresh = planning.join(RUN, [device("a", 10), device("b", 30)], {})
    assert (run.mean_examples, [member.relative_size for member in fresh]) == (20.0, [0.5, 1.5])
    known = {member.device: member for member in fresh}
    later, more = planning.join(run, [device("a", 99), device("c", 40)], known)
    assert (later.mean_examples, more) == (20.0, [Member(DeviceId("c"), 40, 2.0)])


def test_a_claim_beyond_all_others_is_cut_and_leaves_their_sizes_as_they_are() -> None:
    honest = [device(name, 10) for name in "abcd"]
    run, fresh = planning.join(RUN, [*honest, device("liar", 2**53)], {})
    assert run.mean_examples == 28.0  # the liar's counts as ten times the median
    assert [member.num_examples for member in fresh] == [10, 10, 10, 10, 280]
    _, (late,) = planning.join(run, [device("late", 2**53)], {})
    assert (late.num_examples, late.relative_size) == (280, 10.0)
    _, (tiny,) = planning.join(replace(RUN, mean_examples=0.01), [device("tiny", 1)], {})
    assert tiny.num_examples == 1


def test_a_device_is_kept_out_with_the_reason() -> None:
    assert planning.obstacle(PLAN, LAYOUT, device("a")) is None
    other_layout = planning.obstacle(PLAN, LAYOUT, device("a", layout="0" * 32))
    assert other_layout is not None and "expected a model of layout" in other_layout
    tight = Limits(uplink=LinkLimit(bytes_per_round=10))
    assert "expected a budget of at least" in str(planning.obstacle(PLAN, LAYOUT, device("a", limits=tight)))
    elsewhere = PLAN.model_copy(update={"task": "other:task"})
    assert planning.obstacle(elsewhere, LAYOUT, device("a")) == "does not train other:task"


def test_a_device_that_introduces_itself_anew_is_looked_at_again() -> None:
    eligibility, pi = planning.Eligibility(PLAN), device("pi", layout="0" * 32)
    assert eligibility.obstacle(LAYOUT, pi) is not None
    assert list(eligibility.excluded(LAYOUT, [pi])) == ["pi"]
    pi.profile = device("pi").profile
    assert eligibility.obstacle(LAYOUT, pi) is None
    assert eligibility.excluded(LAYOUT, [pi]) == {}


def test_a_round_applied_in_an_earlier_dual_epoch_no_longer_counts() -> None:
    member = Member(DeviceId("a"), 10, 0.5, dual_epoch=1, last_applied=7)
    run = replace(RUN, dual_epoch=1)
    assert planning.standing(run, member, device("a"), is_stateful=True).last_applied == 7
    assert planning.standing(run, member, device("a"), is_stateful=False).last_applied == 0
    assert planning.standing(replace(run, dual_epoch=2), member, device("a"), is_stateful=True).last_applied == 0


def able(trains: str, split_layout: str | None = "d" * 32) -> Device:
    """Return a device that trains so much of a model."""
    offer = TaskOffer.model_validate(
        {"num_examples": 10, "layout": LAYOUT.digest, "split_layout": split_layout, "trains": trains}
    )
    profile = Enroll(credential="c" * 43, name=DeviceId("pi"), tasks={TASK: offer})
    return Device(DeviceId("pi"), "hash", profile, 0.0)


def test_who_trains_which_half() -> None:
    everyone = parse(Plan, plan(split={}), "plan")
    weak = parse(Plan, plan(split={"devices": "front-only"}), "plan")
    kinds = ("either", "whole", "front")
    assert [planning.half_of(everyone, able(kind)) for kind in kinds] == ["front", "whole", "front"]
    assert [planning.half_of(weak, able(kind)) for kind in kinds] == ["whole", "whole", "front"]
    assert [planning.half_of(PLAN, able(kind)) for kind in kinds] == ["whole", "whole", None]
    assert planning.half_of(everyone, able("either", None)) is None


def test_who_cannot_train_its_half_is_kept_out_with_the_reason() -> None:
    split = parse(Plan, plan(split={}), "plan")
    assert "the plan has no [split]" in str(planning.obstacle(PLAN, LAYOUT, able("front")))
    assert "does not know where the model" in str(planning.obstacle(split, LAYOUT, able("either", None)))
    assert "expected a model of layout" in str(planning.obstacle(split, LAYOUT, able("either")))
