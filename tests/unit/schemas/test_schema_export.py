"""``docs/schemas`` says what the models say."""

import json
from pathlib import Path

from schemas.export import documents, export, main

ROOT = Path(__file__).parents[3]


def test_the_published_schemas_are_current() -> None:
    published = {path.name: path.read_text("utf-8") for path in (ROOT / "docs" / "schemas").glob("*.json")}
    assert published == documents(), "run: make schemas"


def test_export_writes_every_model_and_removes_those_that_are_gone(tmp_path: Path) -> None:
    (tmp_path / "Gone.json").write_text("{}")
    written = export(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written} == set(documents())
    assert json.loads((tmp_path / "Plan.json").read_text())["additionalProperties"] is False


def test_the_program_wants_exactly_one_folder(tmp_path: Path) -> None:
    assert (main([]), main(["-h"]), main([str(tmp_path)])) == (2, 2, 0)
