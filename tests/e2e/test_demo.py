"""The demo for real: an aggregator process, agent processes, sockets, and nothing left of them afterwards."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from schemas.plan import plan_from_toml
from schemas.status import RoundPhase, RoundStatus
from server_app.cli import main
from server_app.cli.plans import altered
from server_app.demo import Demo, default_plan, play
from tests.support.proxy import Proxy, proxying

FEDGE = [sys.executable, "-c", "from server_app.cli import main; main()"]


class Silent:
    def stage(self, text: str) -> None: ...

    def round(self, round: RoundStatus) -> None: ...


def processes_naming(folder: Path) -> list[str]:
    """Return the command lines of all processes that have ``folder`` in their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode("utf-8", "replace").replace("\0", " ")
        except OSError:
            continue
        found += [words] if str(folder) in words else []
    return found


async def test_a_folder_called_fedge_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fedge").mkdir()
    monkeypatch.chdir(tmp_path)
    plan = altered(default_plan(), {"rounds": 1, "cohort": {"devices": 2}})
    outcome = await play(Demo(plan, devices=2), tmp_path / "report", Silent())
    assert [r.phase for r in outcome.result.rounds] == [RoundPhase.CLOSED]


async def test_the_bytes_a_demo_prints_are_the_bytes_that_crossed_the_sockets(tmp_path: Path) -> None:
    proxies: list[Proxy] = []

    @asynccontextmanager
    async def counted(url: str) -> AsyncIterator[str]:
        async with proxying(int(url.rpartition(":")[2])) as proxy:
            proxies.append(proxy)
            yield proxy.url

    plan = altered(default_plan(), {"rounds": 3, "cohort": {"devices": 4}})
    outcome = await play(Demo(plan, devices=6, via=counted), tmp_path, Silent())
    result, proxy = outcome.result, proxies[0]
    assert (result.traffic.up, result.traffic.down) == (proxy.up, proxy.down)
    assert [r.phase for r in result.rounds] == [RoundPhase.CLOSED] * 3
    assert all(len(r.updates) == 4 for r in result.rounds)
    assert 0 < result.frame_bytes.up < result.traffic.up < result.float32_bytes.up / 8
    assert 0 < result.frame_bytes.down < result.traffic.down < result.float32_bytes.down / 4
    assert result.accuracy is not None and result.accuracy > 0.4
    assert result.initial_accuracy is not None and result.initial_accuracy < result.accuracy
    gained = 100 * (result.accuracy - result.initial_accuracy)
    assert result.per_bit_accuracy == pytest.approx(gained / (8 * proxy.up / 1e6))
    assert processes_naming(tmp_path) == []


def test_a_demo_with_faults_ends_well_and_says_what_became_of_each(tmp_path: Path) -> None:
    options = ["--devices", "8", "--rounds", "6", "--cohort", "6", "--faults", "--json", "--seed", "3"]
    ended = CliRunner().invoke(main, ["demo", *options, "--report-dir", str(tmp_path / "report")])
    assert ended.exit_code == 0, ended.output
    summary = json.loads(ended.stdout.splitlines()[-1])
    restarted, lost, narrow, cut = summary["notes"]
    assert summary["rounds"] == 6 and summary["seed"] == 3 and summary["devices"] == 8
    assert "started again" in restarted["what"] and "killed in round" in lost["what"]
    assert "not invited again" in lost["outcome"]
    assert narrow["device"] == "user-04" and "updates complete; " in narrow["outcome"]
    assert "cut after 50%" in cut["what"] and not cut["outcome"].startswith("0 of")
    report = tmp_path / "report"
    assert len((report / "metrics.jsonl").read_text().splitlines()) == 6
    assert plan_from_toml((report / "plan.toml").read_text()).seed == 3
    assert sum(tensor.size for tensor in load_file(report / "model.safetensors").values()) > 10_000
    assert restarted["outcome"] in (report / "report.html").read_text()


def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    options = ["--devices", "4", "--rounds", "500", "--processes", "1", "--report-dir", str(tmp_path / "report")]
    with subprocess.Popen([*FEDGE, "demo", *options], env=environment, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if line.startswith("round 1 "):
                break
        assert len(processes_naming(tmp_path)) >= 3
        demo.send_signal(signal.SIGINT)
        rest = demo.stderr.read()
        assert demo.wait(30) == 130, rest
    assert processes_naming(tmp_path) == []
    assert list(tmp_path.glob("fedge-demo-*")) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cohort", "40"], "cohort: expected at most 36"),
        (["--faults", "--devices", "4"], "devices: expected at least 6 for --faults, got 4"),
        (["--task", "wism"], "did you mean 'wisdm'?"),
        (["--devices", "37"], "expected 1 to 36 devices, got 37"),
        (["--uplink-bits", "9"], "uplink.bits: should be less than or equal to 8, got 9"),
    ],
)
def test_a_demo_that_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, options: list[str], message: str
) -> None:
    ended = CliRunner().invoke(main, ["demo", *options, "--report-dir", str(tmp_path / "report")])
    assert ended.exit_code == 3 and message in ended.stderr, ended.output
    assert not (tmp_path / "report").exists()
