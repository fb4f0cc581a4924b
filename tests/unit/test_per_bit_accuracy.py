"""The benchmark of accuracy per bit: what a run sends, what its tables say, and that a run is not repeated."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import per_bit_accuracy, per_bit_distortion, per_bit_tables
from benchmarks.per_bit_runs import METHODS, Case, Method, send
from benchmarks.sparse_baselines import baselines
from fedge.tasks.fashion_mnist import task
from fedge.tasks.torch_model import layout_of
from fedge.update import update_bytes, uplink

LAYOUT = layout_of(task.model(0))
DELTA = np.random.default_rng(0).laplace(scale=0.01, size=LAYOUT.size).astype(np.float32)


@pytest.mark.parametrize("bits", [0.1, 1.0])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_no_method_sends_more_than_m22_may_and_biases_arrive_as_they_are(name: str, bits: float) -> None:
    case = Case(2, "sgd", name, False, bits, 0)
    baseline = None if METHODS[name].codec else baselines()[name]
    decoded, size = send(case, LAYOUT, DELTA, uplink(0, 0, "a"), 0, baseline)
    assert 0 < size <= update_bytes(LAYOUT, "m22", bits)
    assert np.array_equal(decoded[-186:], DELTA[-186:]) and np.isfinite(decoded).all()


def test_a_scheduled_magnitude_goes_in_a_line_from_the_first_round_to_the_last() -> None:
    method = Method("m22", {"magnitude": 4.0}, 0.0)
    assert [method.in_round(t, 5)["magnitude"] for t in range(5)] == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("cases", [per_bit_accuracy.grid(3), per_bit_accuracy.break_even(3)])
def test_no_run_is_there_twice(cases) -> None:
    keys = [case.key for case in cases]
    assert len(set(keys)) == len(keys) > 100


def line(method: str, seed: int, last: float, **other: object) -> dict[str, object]:
    case = json.loads(Case(2, "sgd", method, method == "m22", 1.0, seed).key)
    figures = {"accuracy": [0.1, 0.6, last], "loss": [2.3, 1.0, 0.5], "uplink_bits": [0, 10**6, 2 * 10**6]}
    return {**case, **figures, "bits_per_coordinate": 1.1, **other}


def test_accuracy_per_bit_is_the_gain_over_all_bits() -> None:
    one = line("m22", 0, 0.8)
    assert per_bit_tables.per_bit(one) == pytest.approx(35)
    assert per_bit_tables.loss_per_bit(one) == pytest.approx(0.9)
    assert (per_bit_tables.bits_to(one, 0.7), per_bit_tables.bits_to(one, 0.9)) == (2.0, None)


def test_tables_compare_runs_of_the_same_seed(tmp_path: Path) -> None:
    lines = [line("m22", s, 0.80 + s / 100) for s in (0, 1, 2)] + [line("eden", s, 0.79 + s / 100) for s in (1, 0)]
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    per_bit_tables.write(path, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert "| 1 | m22 | 3 | 1.100 | 0.810 ± 0.006 | 35.50 ± 0.29 |" in text
    assert "| 2 | sgd | 1 | - | - | - | - | - | 1.0 ± 0.0 (2) |" in text
    assert {name.name for name in tmp_path.iterdir()} == {"runs.jsonl", "tables.md", "accuracy.png", "per_bit.png"}


def test_a_run_that_is_there_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(line("m22", 0, 0.8)) + "\n")
    per_bit_accuracy.run_all([Case(2, "sgd", "m22", True, 1.0, 0)], path, 1)
    assert "1 runs, 1 of them done before" in capsys.readouterr().out
    assert len(per_bit_tables.read(path)) == 1


def test_the_error_of_an_update_is_that_of_its_weights() -> None:
    x_hat = DELTA.copy()
    x_hat[:-186] *= np.float32(0.5)
    x_hat[-186:] = 7.0
    assert per_bit_distortion.error(LAYOUT, DELTA, x_hat) == pytest.approx(0.25)
