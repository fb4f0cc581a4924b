"""A report's files exist, parse, agree with each other, and say what the run said."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from schemas.plan import Aggregation, Plan, plan_from_toml
from schemas.specs import FedProx
from schemas.status import RoundPhase, RoundStatus, RunPhase, RunStatus, RunSummary, SplitStatus, Traffic
from server_app.cli.reports import new_dir
from server_app.report import Note, Result, plan_toml, rows, summary, write
from server_app.report_plots import draw, spent

PNG = b"\x89PNG\r\n\x1a\n"


def closed(number: int, **changes: object) -> RoundStatus:
    values = {
        "round": number,
        "phase": RoundPhase.CLOSED,
        "cohort": ("a", "b"),
        "updates": ("a",),
        "loss": 1.0 / number,
        "bytes_down": {"a": 30, "b": 20},
        "perturbation": 0.5 / number,
        "metrics": {"accuracy": 1 - 0.5 / number},
        "traffic": Traffic(up=30, down=60),
        "frame_bytes": Traffic(up=20, down=50),
        "float32_bytes": Traffic(up=300, down=420),
    }
    return RoundStatus.model_validate(values | changes)


def a_result(rounds: tuple[RoundStatus, ...], traffic: Traffic = Traffic(up=100, down=210)) -> Result:  # noqa: B008
    plan = Plan(task="fedge.tasks.wisdm:task", rounds=3, seed=5)
    run = RunSummary(
        run="wisdm-1",
        task=plan.task,
        phase=RunPhase.FINISHED,
        rounds_closed=2,
        rounds_planned=3,
        rounds_abandoned=1,
        created_at=0.0,
        metrics={"accuracy": 0.8333},
        initial_metrics={"accuracy": 0.2333},
    )
    note = Note("b <script>", "killed", "not seen again")
    frames, bare = Traffic(up=60, down=150), Traffic(up=900, down=1260)
    return Result(plan, run, rounds, 2, traffic, frames, bare, 4.2, (note,))


ROUNDS = (closed(1), closed(2, phase=RoundPhase.ABANDONED, reason="too few", metrics={}, loss=None), closed(3))


def test_every_file_is_there_and_parses(tmp_path: Path) -> None:
    model = save({"0.weight": np.ones((2, 3), np.float32)})
    write(tmp_path / "new" / "folder", a_result(ROUNDS), model)
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {
        "report.html", "accuracy_over_rounds.png", "accuracy_over_bytes.png", "per_bit_accuracy.png", "loss.png",
        "perturbation.png",
        "metrics.jsonl", "model.safetensors", "plan.toml", "summary.json",
    }  # fmt: skip
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert tuple(RoundStatus.model_validate_json(line) for line in lines) == ROUNDS
    assert load_file(folder / "model.safetensors")["0.weight"].shape == (2, 3)
    assert plan_from_toml((folder / "plan.toml").read_text()) == a_result(ROUNDS).plan
    assert json.loads((folder / "summary.json").read_text())["report_dir"] == str(folder)
    assert all((folder / name).read_bytes().startswith(PNG) for name in draw(()))


def test_the_page_needs_no_network_and_trusts_no_name(tmp_path: Path) -> None:
    write(tmp_path, a_result(ROUNDS), b"")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert "b &lt;script&gt;" in page and "abandoned: too few" in page and "83.3 %" in page


def test_what_each_device_downloaded_and_what_it_lost_is_told() -> None:
    told = dict(rows(a_result(ROUNDS)))
    assert told["frames down to one device"] == "60 B to 90 B, median 75 B"
    assert told["E‖ŵ - w‖² of the last downloads, rand-mcm"] == "0.167"
    facts = summary(a_result(ROUNDS), None)
    assert facts["bytes_down_by_device"] == {"a": 90, "b": 60}
    assert sum(facts["bytes_down_by_device"].values()) == facts["bytes_down_frames"]
    assert facts["perturbation"] == pytest.approx(1 / 6)
    nothing = a_result(tuple(r.model_copy(update={"bytes_down": {}, "perturbation": None}) for r in ROUNDS))
    assert not any("one device" in label or "E‖" in label for label, _ in rows(nothing))


def test_the_summary_keeps_three_ways_to_count_apart() -> None:
    facts = summary(a_result(ROUNDS), None)
    assert (facts["bytes_up"], facts["bytes_up_frames"], facts["bytes_up_float32"]) == (100, 60, 900)
    assert (facts["bytes_down"], facts["bytes_down_frames"], facts["bytes_down_float32"]) == (210, 150, 1260)
    assert (facts["rounds"], facts["rounds_abandoned"], facts["devices"], facts["seed"]) == (2, 1, 2, 5)
    assert facts["test_accuracy"] == 0.8333


def test_the_closing_table_says_what_the_ratio_is_of() -> None:
    table = rows(a_result(ROUNDS))
    assert ("rounds", "2 of 3, 1 abandoned") in table
    assert ("bytes up, all that crossed the sockets", "100 B  (100 bytes)") in table
    assert [value for label, value in table if label == "  ratio to float32"] == [
        "9.0x  (900 B as float32)", "15.0x  (900 B as float32)",
        "6.0x  (1.26 kB as float32)", "8.4x  (1.26 kB as float32)",
    ]  # fmt: skip


def test_a_report_says_how_the_updates_were_weighed() -> None:
    plain = a_result(ROUNDS)
    assert ("weights in the mean", "plain, unbiased") in rows(plain)
    assert (summary(plain, None)["weights"], summary(plain, None)["shrunk_by"]) == ("plain", None)
    plan = plain.plan.model_copy(update={"aggregation": Aggregation(weights="shrinkage")})
    shrunk = replace(plain, plan=plan, rounds=(closed(1, shrunk_by=0.1), ROUNDS[1], closed(3, shrunk_by=0.3)))
    words = "shrinkage, biased towards devices that send more bits; moved the mean by 20.0 %"
    assert ("weights in the mean", words) in rows(shrunk)
    assert (summary(shrunk, None)["weights"], summary(shrunk, None)["shrunk_by"]) == ("shrinkage", 0.2)


def test_a_simulation_claims_no_sockets() -> None:
    table = rows(a_result(ROUNDS, traffic=Traffic()))
    assert not any("sockets" in label for label, _ in table)
    assert ("frames up alone, without HTTP", "60 B") in table


def test_accuracy_gained_per_megabit_counts_all_that_crossed_the_sockets_and_frames_where_there_were_none() -> None:
    sockets, frames = a_result(ROUNDS), a_result(ROUNDS, traffic=Traffic())
    assert summary(sockets, None)["per_bit_accuracy"] == pytest.approx(60 / (8 * 100 / 1e6))
    assert summary(frames, None)["per_bit_accuracy"] == pytest.approx(60 / (8 * 60 / 1e6))
    assert summary(sockets, None)["initial_metrics"] == {"accuracy": 0.2333}
    assert ("accuracy gained per megabit up", "75,000 points") in rows(sockets)
    assert ("accuracy gained per megabit up", "125,000 points") in rows(frames)


def test_what_was_sent_after_the_last_test_bought_nothing_that_is_known() -> None:
    later = closed(4, metrics={}, traffic=Traffic(up=40), frame_bytes=Traffic(up=10))
    sockets, frames = a_result((*ROUNDS, later)), a_result((*ROUNDS, later), traffic=Traffic())
    assert sockets.per_bit_accuracy == pytest.approx(60 / (8 * 60 / 1e6))
    assert frames.per_bit_accuracy == pytest.approx(60 / (8 * 50 / 1e6))


def test_nothing_is_said_to_be_gained_where_no_accuracy_was_measured() -> None:
    result = a_result(ROUNDS)
    for told in ({"metrics": {"loss": 0.1}}, {"initial_metrics": {}}, {"initial_metrics": {"loss": 0.1}}):
        untold = replace(result, rounds=(), run=result.run.model_copy(update=told))
        assert summary(untold, None)["per_bit_accuracy"] is None
        assert ("accuracy gained per megabit up", "-") in rows(untold)


def test_accuracy_falls_back_to_the_last_round_that_was_tested() -> None:
    result = a_result((closed(1), closed(2, metrics={})))
    untold = replace(result, run=result.run.model_copy(update={"metrics": {}}))
    assert untold.accuracy == 0.5


def test_bytes_of_abandoned_rounds_are_counted_on_the_way() -> None:
    assert spent(ROUNDS, as_float32=False) == [90, 180, 270]
    assert spent(ROUNDS, as_float32=True) == [720, 1440, 2160]
    assert spent((closed(1, traffic=Traffic()),), as_float32=False) == [70]


@pytest.mark.parametrize("rounds", [(), (closed(1, metrics={}, loss=None),), (closed(1),)])
def test_a_run_with_next_to_nothing_measured_still_has_plots(rounds: tuple[RoundStatus, ...]) -> None:
    for initial in (None, 0.2):
        assert all(data.startswith(PNG) and len(data) > 5000 for data in draw(rounds, initial).values())


def test_a_plan_as_toml_reads_back_the_same() -> None:
    plan = Plan(task="a:b", rounds=2, algorithm=FedProx(name="fedprox", mu=1e-05))
    assert plan_from_toml(plan_toml(plan)) == plan


def test_late_updates_that_counted_are_added_up() -> None:
    calm = a_result(ROUNDS)
    assert summary(calm, None)["late_updates"] == 0
    assert "late updates that counted" not in dict(rows(calm))
    plan = calm.plan.model_copy(update={"aggregation": Aggregation(max_staleness=3)})
    late = replace(calm, plan=plan, rounds=(closed(1), closed(2, late={"b": 1}), closed(3, late={"b": 2, "c": 1})))
    assert summary(late, None)["late_updates"] == 3
    assert dict(rows(late))["late updates that counted"] == "3"


SPLIT = SplitStatus(
    devices=("a", "b"),
    steps=3,
    batches=6,
    repeats=1,
    activations=100,
    labels=10,
    gradients=200,
    shared=20,
    overhead=Traffic(up=5, down=7),
    float32_bytes=Traffic(up=8000, down=8000),
)


def test_what_split_training_cost_is_told_by_kind_against_both_baselines(tmp_path: Path) -> None:
    other = SPLIT.model_copy(update={"devices": ("c",), "refused": 2})
    result = a_result((closed(1, split=SPLIT), closed(2), closed(3, split=other)))
    told = dict(rows(result))
    assert told["front halves served"] == "3 devices, 12 batches, 2 came again, 2 refused"
    assert told["  activations up"] == "200 B  (80.0x less than float32, 40.0x than float16)"
    assert told["  gradients down"] == "400 B  (40.0x less than float32, 20.0x than float16)"
    assert told["  headers up, down"] == "10 B, 14 B"
    split = summary(result, None)["split"]
    assert (split["activations"], split["labels"], split["shared"]) == (200, 20, 40)
    assert SPLIT.bytes == Traffic(up=115, down=227)
    assert summary(a_result(ROUNDS), None)["split"] is None


def told(**changes: object) -> Result:
    """Return the same run as an aggregator tells it."""
    seen = a_result(ROUNDS)
    status = RunStatus(**seen.run.model_dump(), plan=seen.plan, devices=2, per_bit_accuracy=7.5)
    return replace(seen, run=status, status=status, notes=None, **changes)


def test_what_nobody_looked_on_for_is_left_out_and_the_aggregators_word_counts(tmp_path: Path) -> None:
    result = told(seconds=None)
    assert dict(rows(result)).keys() == dict(rows(a_result(ROUNDS))).keys() - {"time"}
    facts = summary(result, None)
    assert (facts["notes"], facts["seconds"], facts["as_of"], facts["per_bit_accuracy"]) == (None, None, None, 7.5)
    write(tmp_path, result, None)
    assert not (tmp_path / "model.safetensors").exists()
    assert RunStatus.model_validate_json((tmp_path / "status.json").read_text()) == result.status
    page = (tmp_path / "report.html").read_text()
    assert "What was done to the devices" not in page and "not over" not in page and "of 3 rounds</span>" in page


def test_a_run_that_goes_on_says_so_and_what_it_waits_for(tmp_path: Path) -> None:
    result = told(as_of=1e9)
    assert rows(result)[0] == ("not over yet", "as of 2001-09-09 01:46:40 UTC")
    assert result.status is not None
    waiting = replace(result, status=result.status.model_copy(update={"waiting_for": "0 of 2 devices online"}))
    write(tmp_path, waiting, b"")
    words = "everything below is as of 2001-09-09 01:46:40 UTC, waiting for 0 of 2 devices online."
    assert words in (tmp_path / "report.html").read_text()
    assert summary(waiting, None)["as_of"] == 1e9


def test_a_split_plan_as_toml_reads_back_the_same() -> None:
    plan = Plan.model_validate({"task": "a:b", "rounds": 2, "split": {"subvectors": 12, "gradient_bits": 0.5}})
    assert plan_from_toml(plan_toml(plan)) == plan


def test_reports_asked_for_in_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("server_app.cli.reports.default_dir", lambda name: Path("reports") / name)
    folders = [new_dir("wisdm-1") for _ in range(3)]
    assert [folder.name for folder in folders] == ["wisdm-1", "wisdm-1-2", "wisdm-1-3"]
    assert all(folder.is_dir() for folder in folders)
