"""``fedge bench codecs``: the yardsticks are right, and tables, plots and figures are written."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import codecs
from benchmarks.codec_bench import error, inputs, theory
from benchmarks.codec_bench.configurations import CONFIGURATIONS
from benchmarks.codec_bench.torch_eden import TorchEden, Transform, hadamard_, published_hadamard_
from fedge.codecs.native import kernels
from fedge.layout import Kind, Layout, TensorSpec

PNG = b"\x89PNG\r\n\x1a\n"


def relative_error(x_hat: torch.Tensor, x: torch.Tensor) -> float:
    return float(((x_hat - x).double() ** 2).sum() / (x.double() ** 2).sum())


@pytest.mark.parametrize("hadamard", [hadamard_, published_hadamard_])
@pytest.mark.parametrize(("bits", "expected"), [(1, math.pi / 2 - 1), (2, 0.133121), (4, 0.00959214)])
def test_either_yardstick_has_the_error_of_eden_on_whole_vectors(
    bits: int, expected: float, hadamard: Transform
) -> None:
    x = torch.from_numpy(np.random.default_rng(1).lognormal(size=1 << 16).astype(np.float32))
    eden = TorchEden(bits, hadamard)
    errors = [relative_error(eden.decode(eden.encode(x, seed), len(x), seed), x) for seed in range(8)]
    assert np.mean(errors) == pytest.approx(expected, rel=0.02)
    assert theory.whole_vector_eden(bits) == pytest.approx(expected, rel=1e-4)


def test_the_yardstick_pads_the_whole_vector_to_a_power_of_two_and_is_unbiased() -> None:
    x = torch.from_numpy(np.random.default_rng(2).standard_normal(300).astype(np.float32))
    eden = TorchEden(1)
    assert len(eden.encode(x, 0).indices) == 512
    mean = torch.stack([eden.decode(eden.encode(x, seed), 300, seed) for seed in range(400)]).double().mean(0)
    # 512 symbols for 300 coordinates make the error of one estimate smaller than .571; the mean of 400 has 1/400 of it.
    assert relative_error(mean, x) < 0.571 / 400


@pytest.mark.parametrize("hadamard", [hadamard_, published_hadamard_])
def test_the_hadamard_transform_of_either_yardstick_is_the_matrix_product(hadamard: Transform) -> None:
    matrix = torch.ones(1, 1)
    for _ in range(4):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    x = torch.randn(16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hadamard(x.clone()), matrix @ x / 4)


def test_theory_joins_at_whole_bits_and_stays_above_the_floor() -> None:
    for bits in (1.0, 2.0, 7.0, 8.0):
        near = [theory.whole_vector_eden(bits + step) for step in (-1e-9, 0.0, 1e-9)]
        assert near == pytest.approx([near[1]] * 3, rel=1e-6)
    grid = np.geomspace(0.05, 8.5, 200)
    assert all(theory.whole_vector_eden(b) > 1.5 * theory.floor(b) for b in grid)
    assert theory.whole_vector_eden(1.5) == pytest.approx(0.240431 / 0.759569, rel=1e-5)
    assert theory.floor(1.0) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("bits", "size", "sent", "width"), [(0.5, 300, 150, 1), (2, 300, 512, 1), (2.2, 450, 495, 2)])
def test_padded_eden_drops_rotated_coordinates_until_the_rest_fits(
    bits: float, size: int, sent: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(5)
    x, centroids, errors = torch.randn(size, generator=generator), TorchEden(width).centroids, []
    for _ in range(80):
        rotation = torch.linalg.qr(torch.randn(512, 512, generator=generator))[0][:, :size]
        y, kept = rotation @ x, (torch.randperm(512, generator=generator) < sent) * (512 / sent)
        quantized = centroids[torch.bucketize(y * (512 / (y @ y)) ** 0.5, (centroids[1:] + centroids[:-1]) / 2)]
        errors.append(relative_error(rotation.T @ (quantized * kept * (y @ y) / (y @ quantized)), x))
    assert np.mean(errors) == pytest.approx(theory.padded_eden(bits, size), rel=0.04)
    assert theory.padded_eden(bits, 512) > theory.whole_vector_eden(bits) * (1 - 1e-9)


def test_bytes_are_those_of_the_frames_and_raw_tensors_count_for_nothing() -> None:
    layout = Layout.of([TensorSpec("w", (64, 64), Kind.WEIGHT), TensorSpec("b", (64,), Kind.RAW)])
    x = np.random.default_rng(3).standard_normal((1, layout.size)).astype(np.float32)
    x[:, 4096:] *= 1000
    point = error.measure(CONFIGURATIONS[0], inputs.Input("task", "round 1", layout, x, repeats=4), 2.0)
    payload = sum(
        CONFIGURATIONS[0].codec(2.0).size_bytes(s.size) + 20 for s in layout.segments if s.kind is Kind.WEIGHT
    )
    assert point.wire_bits == pytest.approx(8 * payload / 4096)
    assert point.vnmse == pytest.approx(0.1331, rel=0.1) and point.encodes == 4
    assert point.gain == pytest.approx(theory.whole_vector_eden(point.wire_bits) / point.vnmse)


def captured_file(folder: Path) -> None:
    """Write what ``benchmarks.capture_updates`` would, of a tiny model."""
    layout = Layout.of([TensorSpec("w", (40, 50), Kind.WEIGHT), TensorSpec("b", (50,), Kind.RAW)])
    deltas = np.random.default_rng(4).standard_normal((3, layout.size)).astype(np.float32)
    deltas[2] = 0.0
    np.savez(
        folder / "toy-round-07.npz",
        deltas=deltas,
        segment_start=[segment.start for segment in layout.segments],
        segment_stop=[segment.stop for segment in layout.segments],
        segment_kind=[str(segment.kind) for segment in layout.segments],
        tensor_name=[tensor.name for tensor in layout.tensors],
        tensor_start=[layout.offsets[tensor.name] for tensor in layout.tensors],
        tensor_shape=["x".join(map(str, tensor.shape)) for tensor in layout.tensors],
    )


def test_captured_updates_are_read_with_their_layout_and_without_those_that_did_not_move(tmp_path: Path) -> None:
    captured_file(tmp_path)
    (given,) = inputs.captured(tmp_path)
    assert (given.title, given.round, given.vectors.shape, given.weights) == ("toy, round 7", 7, (2, 2050), 2000)
    assert 0 < given.raw_energy < 0.1


def test_the_benchmark_writes_tables_figures_and_three_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    captured_file(tmp_path)
    out = tmp_path / "out"
    best = kernels.isa() if kernels else "numpy"
    command = ["codecs", "--sizes", "4096", "8192", "--bits", "0.5", "1", "--seconds", "0.01", "--kernels", best]
    monkeypatch.setattr(sys, "argv", [*command, "--updates", str(tmp_path), "--out", str(out)])
    codecs.main()
    told = capsys.readouterr().out
    assert told.count("torch/") == told.count("published/") == 2
    assert "toy, round 7" in told and "Student t" in told and str(out) in told
    assert told.count(f"\n{best} ") >= 2 * (1 + 2 * len(CONFIGURATIONS))
    for name in ("error_over_bits", "time_over_size", "gain_on_real_updates"):
        assert (out / f"{name}.png").read_bytes().startswith(PNG)
    report = json.loads((out / "codecs.json").read_text())
    assert {row["implementation"] for row in report["time"]} == {best, "numpy"}
    for row in report["time"]:
        for timed in (row["least_torch_over"], row["least_published_over"]):
            assert (timed["encode"] is not None) == (row["bits"] == 1.0)
        assert all(ratio > 0 for ratio in row["least_over_copy"].values())
    assert len(report["error"]) == (4 + 1) * 2 * len(CONFIGURATIONS)
    for point in report["error"]:
        assert point["over_floor"] > 1
        if point["codec"] == "eden":  # its own constants at the rate asked for; two frame headers are the rest
            assert point["wire_bits"] > point["bits"]
            assert point["vnmse"] == pytest.approx(theory.whole_vector_eden(point["bits"]), rel=0.15)


def test_a_folder_without_captured_updates_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["codecs", "--updates", str(tmp_path)])
    with pytest.raises(SystemExit):
        codecs.main()
    assert "expected files TASK-round-NN.npz" in capsys.readouterr().err
