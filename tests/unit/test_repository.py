"""What the repository promises a stranger: two commands, no private places, and documents that say what is so."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TEXT = {".py", ".md", ".toml", ".txt", ".c", ".html", ".json", ".service", ".sh", ""}
SKIPPED = {".git", ".venv", "build", "dist", "data", "__pycache__", "reports", "results", ".hypothesis"}


def is_ours(folder: Path) -> bool:
    is_environment = (folder / "pyvenv.cfg").exists()
    return folder.name not in SKIPPED and not folder.name.endswith((".egg-info", "_cache")) and not is_environment


def texts() -> list[Path]:
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if is_ours(Path(folder) / name)]
        found += [Path(folder) / name for name in names if Path(name).suffix in TEXT]
    return found


def make_targets() -> dict[str, str]:
    rule = re.compile(r"^([a-z0-9-]+):(?:.*?)(?:## (.+))?$", re.MULTILINE)
    return dict(rule.findall((ROOT / "Makefile").read_text()))


def test_no_file_names_a_package_registry_or_a_place_of_one_machine() -> None:
    places = r"(?<![\w.])/(?:work|farm|root|home/\w+)/\w"
    private = re.compile(places + r"|pypi\.org|pythonhosted\.org|download\.pytorch\.org")
    others = [path for path in texts() if path != Path(__file__)]
    named = [(path, private.findall(path.read_text("utf-8", "replace"))) for path in others]
    assert [(path, places) for path, places in named if places] == []


def test_no_source_file_has_grown_past_400_lines() -> None:
    long = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in texts() if path.suffix == ".py"}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for texts in (project["dependencies"], *extras) for text in texts]


def test_every_requirement_has_exactly_one_pin_that_satisfies_it() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonical(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert len(pins) == len(lines)
    for requirement in requirements():
        assert canonical(requirement.name) in pins, requirement
        assert requirement.specifier.contains(pins[canonical(requirement.name)]), requirement


def test_everything_that_is_imported_is_required() -> None:
    names = {canonical(requirement.name) for requirement in requirements()}
    ours = {"fedge", "schemas", "server_app", "device_app", "benchmarks", "tests"}
    comes_with = {"packaging": "pytest", "pydantic-core": "pydantic", "yarl": "aiohttp"}
    for path in texts():
        if path.suffix == ".py":
            outside = {canonical(module) for module in imported(path) - ours - sys.stdlib_module_names}
            missing = {name for name in outside if comes_with.get(name, name) not in names}
            assert not missing, f"{path.relative_to(ROOT)} imports {missing}, which pyproject.toml does not require"


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).partition(".")[0])
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_make_target_is_explained_and_the_documents_name_only_real_ones() -> None:
    targets = make_targets()
    assert {"setup", "demo", "check", "test", "bench", "schemas", "clean", "help", "system-packages"} <= targets.keys()
    assert [name for name, words in targets.items() if not words] == []
    for document in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        for named in re.findall(r"(?:^|`|&& )make ([a-z0-9-]+)", (ROOT / document).read_text(), re.MULTILINE):
            assert named in targets, f"{document}: make {named}"


def test_make_help_lists_the_targets() -> None:
    told = subprocess.run(["make", "help"], cwd=ROOT, text=True, capture_output=True, check=True).stdout
    assert all(f"make {name} " in told for name in make_targets())


def test_every_link_in_the_documents_leads_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    links = [(path, link) for path in documents for link in re.findall(r"\]\(([^)#]+)", path.read_text())]
    broken = [
        f"{path.name}: {link}"
        for path, link in links
        if not link.startswith(("http://", "https://")) and not (path.parent / link).exists()
    ]
    assert broken == [] and len(links) > 10


def test_what_the_readme_calls_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all((ROOT / name).exists() for name in re.findall(r"examples/\w+\.toml", readme))
    assert {"make setup", "make demo"} <= set(re.findall(r"make \w+", readme))


def test_the_ci_script_is_executable_and_ends_with_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text().splitlines()
    assert script.stat().st_mode & 0o111 and "set -euo pipefail" in lines
    assert lines.index("make check") < lines.index("make test") == len(lines) - 1


@pytest.mark.parametrize("name", ["README", "CONTRIBUTING", "CHANGELOG", "SECURITY"])
def test_the_usual_files_are_there(name: str) -> None:
    assert len((ROOT / f"{name}.md").read_text()) > 500


def test_the_licence_is_the_one_that_is_named() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and len(text.splitlines()) == 202
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"
