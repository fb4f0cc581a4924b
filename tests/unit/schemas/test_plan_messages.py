"""A plan that cannot be carried out is refused with the key, what was expected, and the nearest valid one."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from schemas.errors import InvalidInput
from schemas.plan import Plan, plan_from_toml
from schemas.specs import FedAvg, FedDyn

LEAST = 'task = "fedge.tasks.wisdm:task"\nrounds = 3\n'


def faults(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        plan_from_toml(text)
    return "\n".join(str(fault) for fault in caught.value.faults)


def test_a_plan_needs_a_task_and_a_number_of_rounds_only() -> None:
    plan = plan_from_toml(LEAST)
    assert (plan.cohort.devices, plan.cohort.updates.min, plan.cohort.updates.max) == (12, 8, 12)
    assert plan.algorithm == FedDyn(name="feddyn", alpha=0.1)
    assert (plan.aggregation.weights, plan.aggregation.max_staleness) == ("plain", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_staleness = 101", "aggregation.max_staleness"),
        ("max_staleness = -1", "aggregation.max_staleness"),
        ('max_staleness = 1\nweights = "shrinkage"', 'late updates need weights = "plain"'),
    ],
)
def test_staleness_has_bounds_and_does_not_go_with_shrinkage(text: str, message: str) -> None:
    assert message in faults(LEAST + "[aggregation]\n" + text)


M22 = '[uplink]\ncodec = "m22"\n[uplink.m22]\n'
FEDAVG = FedAvg(name="fedavg")


@pytest.mark.parametrize(
    ("number", "magnitude"), [(1, 4.0), (2, 4.0), (7, 2.5), (12, 1.0), (13, 0.5), (14, 0.0), (99, 0.0)]
)
def test_the_magnitude_of_m22_goes_straight_from_point_to_point(number: int, magnitude: float) -> None:
    uplink = plan_from_toml(LEAST + M22 + "magnitude = [[2, 4], [12, 1], [14, 0]]\n").uplink
    assert uplink.in_round(number, 0.5, FEDAVG).codec_options["magnitude"] == magnitude


@pytest.mark.parametrize(
    ("text", "algorithm", "feedback", "amplitude"),
    [
        ("", FEDAVG, True, "guarded"),
        ('amplitude = "lengthened"\n', FEDAVG, True, "lengthened"),
        ('amplitude = "lengthened"\n', FedDyn(name="feddyn"), False, "lengthened"),
        ("", FedDyn(name="feddyn"), False, "projection"),
        ("error_feedback = false\n", FEDAVG, False, "projection"),
        ('amplitude = "designed"\n', FEDAVG, False, "designed"),
    ],
)
def test_a_device_is_told_whether_to_remember_and_how_long_estimates_are(
    text: str, algorithm: FedAvg | FedDyn, feedback: bool, amplitude: str
) -> None:
    given = plan_from_toml(LEAST + M22 + text).uplink.in_round(1, 1.0, algorithm)
    assert (given.has_memory, given.codec_options["amplitude"]) == (feedback, amplitude)


def test_updates_follow_the_cohort_where_they_are_left_out() -> None:
    updates = plan_from_toml(LEAST + "[cohort]\ndevices = 4\n").cohort.updates
    assert (updates.min, updates.max) == (3, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "epochs = 3\n", "epochs: unknown key"),
        (LEAST + "ronds = 3\n", "ronds: unknown key; did you mean 'rounds'?"),
        (LEAST + "[local]\nlearning_rte = 0.1\n", "local.learning_rte: unknown key; did you mean 'learning_rate'?"),
        (LEAST + "[cohort]\nupdates = {mn = 3}\n", "cohort.updates.mn: unknown key; did you mean 'min'?"),
        (LEAST + '[algorithm]\nname = "feddyn"\nalhpa = 1.0\n', "algorithm.alhpa: unknown key; did you mean 'alpha'?"),
        (LEAST + '[algorithm]\nname = "fedavgg"\n', "did you mean 'fedavg'?"),
        (LEAST + "[algorithm]\nalpha = 0.1\n", "algorithm.name: missing"),
        (
            LEAST + '[uplink]\ncodec = "edn"\n',
            "codec: should be 'eden', 'm22' or 'none', got 'edn'; did you mean 'eden'?",
        ),
        (LEAST + "[uplink]\nbits = 9\n", "uplink.bits: should be less than or equal to 8, got 9"),
        (
            LEAST + '[aggregation]\nweights = "shrinkge"\n',
            "aggregation.weights: should be 'plain' or 'shrinkage', got 'shrinkge'; did you mean 'shrinkage'?",
        ),
        (LEAST + "[aggregation]\nweigts = 1\n", "aggregation.weigts: unknown key; did you mean 'weights'?"),
        ('task = "fedge.tasks.wisdm:task"\n', "rounds: missing; this key is required"),
        (
            'task = "wisdm"\nrounds = 3\n',
            "fedge.tasks.wisdm:task, got 'wisdm'",
        ),
        ('task = "a:b"\nrounds = "3"\n', "rounds: should be a valid integer, got '3'"),
        ('task = "a:b"\nrounds = 0\n', "rounds: should be greater than or equal to 1, got 0"),
        (LEAST + "[cohort]\ndevices = 4\nupdates = {min = 5, max = 4}\n", "got 5 > 4"),
        (LEAST + "[cohort]\ndevices = 4\nupdates = {min = 2, max = 9}\n", "got 9 updates from 4 devices"),
        (LEAST + "[cohort]\nseconds = {min = 9, max = 3}\n", "got 9.0 > 3.0"),
        (LEAST + "rounds = 4\n", "not valid TOML"),
        (LEAST + "[downlink]\nalpha = 2\n", 'downlink.alpha: expected "auto", or a number from 1/4096 to 1, got 2'),
        (LEAST + "[downlink]\nalpha = 1e-50\n", "a number from 1/4096 to 1, got 1e-50"),
        (LEAST + "[downlink]\ncodec = 'none'\nmode = 'mcm'\n", 'codec = "none" goes with mode = "none" alone'),
        (LEAST + "[downlink]\nmode = 'snapshot'\nalpha = 0.5\n", 'alpha needs mode = "rand-mcm" or "mcm"'),
        (LEAST + "[uplink.m22]\nmagnitude = 2\n", 'settings of m22 need codec = "m22", got codec = "eden"'),
        (LEAST + M22 + "magnitude = [[5, 1], [2, 0]]\n", "the rounds of magnitude must ascend, got [5, 2]"),
        (
            LEAST + '[uplink]\ncodec = "m22"\ncoding = "fixed"\n',
            'coding = "fixed" needs codec = "eden", got codec = "m22"',
        ),
        (LEAST + M22 + "magnitud = 1\n", "uplink.m22.magnitud: unknown key; did you mean 'magnitude'?"),
        (LEAST + M22 + "error_feedback = true\n", "feddyn is its own error feedback"),
        (LEAST + M22 + 'error_feedback = true\namplitude = "designed"\n', 'needs amplitude "lengthened", "guarded"'),
        (
            LEAST + '[uplink]\ncodec = "m22"\n[aggregation]\nweights = "shrinkage"\n',
            'shrinkage needs an unbiased codec, got uplink.codec = "m22"',
        ),
    ],
)
def test_a_fault_names_its_key_and_what_was_expected(text: str, message: str) -> None:
    assert message in faults(text)


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ('magnitude = "a"', "'a'"),
        ("magnitude = -1", "-1"),
        ("magnitude = 101", "101"),
        ("magnitude = nan", "nan"),
        ("magnitude = true", "True"),
        ("magnitude = []", "[]"),
        ("magnitude = [1, 2]", "[1, 2]"),
        ("magnitude = [[1, -2]]", "[[1, -2]]"),
        ("magnitude = [[0, 1]]", "[[0, 1]]"),
        ("magnitude = [[1, 2, 3]]", "[[1, 2, 3]]"),
        ('error_feedback = "yes"', "'yes'"),
        ("error_feedback = 1", "1"),
    ],
)
def test_a_value_that_has_none_of_its_forms_is_one_fault(text: str, came: str) -> None:
    expected = {
        "magnitude": "expected a number from 0 to 100, or points [[round, number], ..] with rounds from 1 on",
        "error_feedback": 'expected true, false or "auto"',
    }
    key = text.split(" ")[0]
    assert faults(LEAST + M22 + text + "\n") == f"uplink.m22.{key}: {expected[key]}, got {came}"


def test_all_faults_are_told_at_once() -> None:
    text = faults('task = "a:b"\nronds = 1\n[local]\nepochs = 0\n')
    assert "rounds: missing" in text and "ronds: unknown key" in text and "local.epochs" in text


def test_the_demo_and_the_example_are_one_plan() -> None:
    packaged = (files("server_app") / "templates" / "demo.toml").read_text("utf-8")
    example = (Path(__file__).parents[3] / "examples" / "wisdm.toml").read_text("utf-8")
    assert plan_from_toml(packaged) == plan_from_toml(example)


def test_every_example_plan_is_valid() -> None:
    found = sorted((Path(__file__).parents[3] / "examples").glob("*.toml"))
    plans = [plan_from_toml(path.read_text("utf-8"), path.name) for path in found]
    assert len(plans) >= 3 and any(plan.algorithm == FedAvg(name="fedavg") for plan in plans)


def test_a_plan_survives_json() -> None:
    plan = plan_from_toml(LEAST)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert tomllib.loads(LEAST)["rounds"] == plan.rounds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[split]\ngroups = 9\nsubvectors = 8", "groups must not exceed subvectors, got 9 > 8"),
        ("[split]\nsubvector = 8", "subvectors"),
        ('[split]\nsubvectors = "some"', 'expected "auto", or a whole number from 1 to 65535'),
        ("[split]\ncentroids = 257", "split.centroids"),
        ("[split]\ngradient_bits = 9", "gradient_bits must be 0.05 to 8, or 32, by eden, got 9"),
        ('[split]\ngradient_bits = 2.5\ngradient_coding = "uniform"', "gradient_bits must be 2, 3, .. 8, or 32"),
        ('[split]\ndevices = "some"', "split.devices"),
        ('[local]\noptimizer = "adam"\n[split]', 'split needs "sgd", got "adam"'),
        ('[downlink]\nmode = "mcm"\n[split]', 'split needs "rand-mcm", "snapshot" or "none", got "mcm"'),
    ],
)
def test_a_split_that_cannot_be_is_refused(text: str, message: str) -> None:
    assert message in faults(LEAST + text)


def test_a_split_needs_no_more_than_its_table() -> None:
    plan = plan_from_toml(LEAST + "[split]\n")
    assert plan.is_split and plan.split is not None
    assert plan.split.quantizer is not None and "subvectors" not in plan.split.quantizer
    assert not plan_from_toml(LEAST).is_split
    bare = plan_from_toml(LEAST + '[split]\ncodec = "none"\n').split
    assert bare is not None and bare.quantizer is None
