"""``fedge`` as far as it goes without an aggregator."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from schemas.ids import NAME
from schemas.plan import Plan, plan_from_toml
from schemas.status import DownloadStates, RunPhase, RunStatus, ServerStatus, Traffic
from server_app.cli import main, server
from server_app.cli.exits import Exit, Failure
from server_app.cli.plans import altered
from server_app.cli.tables import run_facts, server_facts
from server_app.demo import Demo, default_plan
from server_app.rehearsal import _run_id
from server_app.units import as_bytes, as_percent, as_points, as_ratio, as_seconds

COMMANDS = Path(__file__).parents[3] / "docs" / "cli.md"
PLAN = 'task = "fedge.tasks.wisdm:task"\nrounds = 2\n[cohort]\ndevices = 3\n[local]\nepochs = 1\n'


def fedge(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_a_simulation_prints_a_table_and_keeps_a_report(tmp_path: Path) -> None:
    plan, report = tmp_path / "small.toml", tmp_path / "report"
    plan.write_text(PLAN)
    ended = fedge("simulate", str(plan), "--report-dir", str(report))
    assert ended.exit_code == 0, ended.output
    kept = json.loads((report / "summary.json").read_text())
    gained = 100 * (kept["test_accuracy"] - kept["initial_metrics"]["accuracy"])
    assert kept["per_bit_accuracy"] == pytest.approx(gained / (8 * kept["bytes_up_frames"] / 1e6))
    assert f"accuracy gained per megabit up {as_points(kept['per_bit_accuracy'])}" in re.sub(" +", " ", ended.stdout)
    assert "accuracy on the test data" in ended.stdout and "round 2 closed, 3 of 3 updates" in ended.stderr
    assert "sockets" not in ended.stdout
    assert sum(tensor.size for tensor in load_file(report / "model.safetensors").values()) > 10_000


def test_the_same_seed_simulates_the_same_bytes_and_accuracy(tmp_path: Path) -> None:
    plan = tmp_path / "small.toml"
    plan.write_text(PLAN)
    facts = []
    for number, seed in enumerate((4, 4, 5)):
        options = ["--json", "--seed", str(seed), "--report-dir", str(tmp_path / str(number))]
        summary = json.loads(fedge("simulate", str(plan), *options).stdout.splitlines()[-1])
        facts.append((summary["metrics"], summary["bytes_up_frames"], summary["seed"]))
    assert facts[0] == facts[1] != facts[2]
    assert facts[0][2] == 4


MISSPELT = (PLAN.replace("rounds", "ronds"), "ronds: unknown key; did you mean 'rounds'?")
NO_TOML = ("task = ", "not valid TOML")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        MISSPELT,
        NO_TOML,
        (PLAN.replace("wisdm:", "wisdn:"), "did you mean 'fedge.tasks.wisdm:task'?"),
        (PLAN.replace("devices = 3", "devices = 37"), "cohort.devices: expected at most 36"),
    ],
)
def test_a_plan_that_cannot_be_simulated_ends_with_3_and_names_its_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    ended = fedge("simulate", str(tmp_path / "plan.toml"))
    assert ended.exit_code == 3 and message in ended.stderr


@pytest.mark.parametrize(("text", "message"), [MISSPELT, NO_TOML])
def test_a_plan_is_checked_before_the_aggregator_is_asked(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    ended = fedge("run", "start", str(tmp_path / "plan.toml"), "--server", "http://127.0.0.1:9")
    assert ended.exit_code == 3 and message in ended.stderr


def test_an_aggregator_that_does_not_answer_ends_with_4(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    ended = fedge("run", "start", str(tmp_path / "plan.toml"), "--server", "http://127.0.0.1:9")
    assert ended.exit_code == 4 and "cannot reach http://127.0.0.1:9" in ended.stderr


def test_a_plan_that_is_no_text_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_bytes(b"\xff\xfe")
    ended = fedge("simulate", str(tmp_path / "plan.toml"))
    assert ended.exit_code == 3 and "expected UTF-8 text" in ended.stderr


def test_a_missing_plan_is_wrong_usage_and_an_unknown_benchmark_is_not_found() -> None:
    assert fedge("simulate", "no-such-plan.toml").exit_code == 2
    ended = fedge("bench", "no-such-benchmark")
    assert ended.exit_code == 6 and "codecs" in ended.stderr


def test_a_module_that_benchmarks_share_is_not_listed_and_not_run_as_one() -> None:
    ended = fedge("bench", "per_bit_runs")
    listed = ended.stderr.split(", got ")[0]
    assert ended.exit_code == 6 and "per_bit_accuracy" in listed and "m22_speed" in listed
    assert not any(name in listed for name in ("per_bit_runs", "per_bit_tables", "sparse_baselines"))


@pytest.mark.parametrize(
    ("options", "uplink"), [([], ("eden", 2.0)), (["--codec", "m22", "--uplink-bits", "0.5"], ("m22", 0.5))]
)
def test_a_demo_codes_updates_by_the_codec_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], uplink: tuple[str, float]
) -> None:
    async def refuse(demo: Demo, folder: Path) -> None:
        plans.append(demo.plan)
        raise Failure("enough", Exit.REFUSED)

    plans: list[Plan] = []
    monkeypatch.setattr("server_app.cli.local._play", refuse)
    assert fedge("demo", *options, "--report-dir", str(tmp_path / "report")).exit_code == 5
    assert (plans[0].uplink.codec, plans[0].uplink.bits) == uplink


def test_every_command_explains_itself_and_is_documented() -> None:
    documented = COMMANDS.read_text()
    for name, group in (("fedge", main), ("fedge-server", server)):
        for command in group.commands.values():
            assert (command.help or "").strip().endswith("."), command.name
            subcommands = getattr(command, "commands", {"": None})
            for subcommand in subcommands:
                assert f"{name} {command.name} {subcommand}".strip() in documented


def test_an_altered_plan_is_checked_and_its_updates_follow_the_cohort() -> None:
    plan = altered(default_plan(), {"cohort": {"devices": 6}, "uplink": {"bits": 1.5}})
    assert (plan.cohort.updates.min, plan.cohort.updates.max, plan.uplink.bits) == (4, 6, 1.5)
    assert plan.uplink.codec == default_plan().uplink.codec and isinstance(plan, Plan)


def test_quantities_read_well() -> None:
    assert [as_bytes(n) for n in (0, 999, 1000, 9996, 12_345, 999_600, 79_367_040, 10**16)] == [
        "0 B", "999 B", "1.00 kB", "10.0 kB", "12.3 kB", "1.00 MB", "79.4 MB", "10000 TB",
    ]  # fmt: skip
    assert [as_seconds(s) for s in (0.04, 59.9, 60, 3725)] == ["0.0 s", "59.9 s", "1 min 00 s", "1 h 02 min"]
    assert (as_ratio(32, 3), as_ratio(1, 0), as_percent(None), as_percent(0.5)) == ("10.7x", "-", "-", "50.0 %")
    assert [as_points(p) for p in (None, 0.01234, 12.345, -7.0, 999.4, 62_500.4)] == [
        "-", "0.0123 points", "12.3 points", "-7 points", "999 points", "62,500 points",
    ]  # fmt: skip


def test_a_run_shows_what_its_initial_model_was_worth_and_what_a_megabit_bought() -> None:
    plan = plan_from_toml(PLAN)
    run = {"run": "wisdm-1", "task": plan.task, "phase": RunPhase.RUNNING, "rounds_closed": 1, "rounds_planned": 2}
    measured = {"metrics": {"accuracy": 0.5}, "initial_metrics": {"accuracy": 0.125}, "per_bit_accuracy": 12.345}
    told = dict(run_facts(RunStatus(**run, created_at=0.0, plan=plan, **measured)))
    assert (told["metrics"], told["  of the initial model"]) == ("accuracy 0.5", "accuracy 0.125")
    assert told["accuracy gained per megabit up"] == "12.3 points"


def test_a_run_without_traffic_shows_no_ratio_to_float32() -> None:
    plan = plan_from_toml(PLAN)
    run = {"run": "wisdm-1", "task": plan.task, "phase": RunPhase.RUNNING, "rounds_closed": 0, "rounds_planned": 2}
    told = dict(run_facts(RunStatus(**run, created_at=0.0, plan=plan, traffic=Traffic(up=900))))
    assert told["up"] == "900 B, float32 would be 0 B (-)"
    assert told["weights in the mean"] == "plain, unbiased"
    assert (told["  of the initial model"], told["accuracy gained per megabit up"]) == ("-", "-")
    sums = {"frame_bytes": Traffic(up=100), "float32_bytes": Traffic(up=1500)}
    rows = run_facts(RunStatus(**run, created_at=0.0, plan=plan, traffic=Traffic(up=900), **sums))
    assert ("  frames alone", "100 B, float32 would be 1.50 kB (15.0x)") in rows


@pytest.mark.parametrize(
    ("name", "run"),
    [("wisdm", "wisdm-simulated"), ("My Plan", "my-plan-simulated"), ("-M0-", "m0-simulated"), ("Ü", "plan-simulated")],
)
def test_a_plan_may_be_called_anything(name, run):
    assert _run_id(name) == run


def test_a_run_of_a_plan_with_the_longest_name_has_a_valid_id():
    assert re.fullmatch(NAME, _run_id("x" * 300))


def test_download_states_are_told_where_there_are_some() -> None:
    status = ServerStatus(version="0", started_at=0.0, is_native=True, devices=2, devices_online=2, runs=1)
    assert "download states" not in dict(server_facts(status, 1.0))
    kept = DownloadStates(count=2, bytes=5_000_000, max_bytes=4 << 30, evicted=1, resyncs=3)
    told = dict(server_facts(status.model_copy(update={"download_states": kept}), 1.0))
    assert told["download states"] == "2, 5.00 MB of at most 4.29 GB; 1 deleted for want of it, 3 resyncs"
