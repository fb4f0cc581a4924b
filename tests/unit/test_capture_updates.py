"""The benchmark that keeps real updates for other benchmarks."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import capture_updates
from fedge.tasks.torch_model import layout_of
from fedge.tasks.wisdm import task


def test_the_updates_of_a_round_are_kept_with_their_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["capture_updates", "--out", str(tmp_path), "--tasks", "wisdm", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", command)
    capture_updates.main()
    assert "wisdm" in capsys.readouterr().out
    layout = layout_of(task.model(0))
    with np.load(tmp_path / "wisdm-round-01.npz") as kept:
        assert kept["deltas"].shape == (12, layout.size) and kept["deltas"].dtype == np.float32
        assert (np.linalg.norm(kept["deltas"], axis=1) > 0.1).all() and len(set(kept["devices"])) == 12
        cuts = zip(kept["segment_start"], kept["segment_stop"], kept["segment_kind"], strict=True)
        assert list(cuts) == [(s.start, s.stop, str(s.kind)) for s in layout.segments]
        assert kept["anchor"].shape == (layout.size,) and 0 < kept["accuracy"] < 1
