"""What the web page makes of the status: its script, run by Node on a document of a few lines."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.resources import files

import pytest

from schemas.status import DeviceList, RunList, RunPhase, RunSummary, ServerStatus, SplitStatus, Traffic

NODE = shutil.which("node")
BROWSER = """
const element = tag => ({tag, cells: [], append(cell) { this.cells.push(cell); }, addEventListener() {},
  replaceChildren(...rows) { this.rows = rows; }});
const elements = {};
const document = {createElement: element, getElementById: id => elements[id] ??= element(id)};
const sessionStorage = {token: "t"};
const setInterval = () => 0;
const fetch = async path => ({ok: true, json: async () => answers[path]});
"""
PRINT = """
;setTimeout(() => console.log(JSON.stringify(
  {error: $("error").textContent, rows: $("runs").rows.map(row => row.cells.map(cell => cell.textContent))})), 50);
"""


def a_run(name: str, **what: object) -> RunSummary:
    """Return a finished run of two rounds."""
    fixed = {"task": "t", "phase": RunPhase.FINISHED, "rounds_closed": 2, "rounds_planned": 2, "created_at": 0.0}
    return RunSummary.model_validate({"run": name, **fixed, "traffic": Traffic(up=5, down=6), **what})


def shown(runs: Sequence[RunSummary]) -> list[list[str]]:
    """Return the cells of the table of runs."""
    status = ServerStatus(version="0", started_at=0.0, is_native=False, devices=0, devices_online=0, runs=len(runs))
    answers = {"/v1/status": status, "/v1/runs": RunList(runs=tuple(runs)), "/v1/devices": DeviceList(devices=())}
    text = files("server_app").joinpath("templates", "status.html").read_text("utf-8")
    (script,) = re.findall("<script>(.*)</script>", text, re.DOTALL)
    given = f"const answers = {json.dumps({path: one.model_dump(mode='json') for path, one in answers.items()})};"
    command = [str(NODE), "-e", given + BROWSER + script.replace('"use strict";', "") + PRINT]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    page = json.loads(result.stdout)
    assert page["error"] == ""
    return list(page["rows"])


@pytest.mark.skipif(NODE is None, reason="needs Node")
def test_runs_have_split_steps_and_late_updates_where_they_have_them() -> None:
    split = SplitStatus(
        steps=24, activations=1000, labels=400, gradients=700, shared=20, overhead=Traffic(up=100, down=3)
    )
    assert (split.bytes.up, split.bytes.down) == (1500, 723)
    runs = [a_run("both", split=split, late_updates=3), a_run("split", split=split), a_run("plain")]
    head, *rows = shown(runs)
    assert head[4:] == ["up", "down", "split steps", "split up", "split down", "late updates"]
    assert [row[:1] + row[6:] for row in rows] == [
        ["both", "24", "1.5 kB", "723 B", "3"],
        ["split", "24", "1.5 kB", "723 B", ""],
        ["plain", "", "", "", ""],
    ]


@pytest.mark.skipif(NODE is None, reason="needs Node")
def test_without_any_the_page_is_as_it_was() -> None:
    head, row = shown([a_run("plain")])
    assert head == ["run", "phase", "rounds", "metrics", "up", "down"]
    assert row == ["plain", "finished", "2 of 2", "", "5 B", "6 B"]
