"""JSON Schema of every model, one file each: ``python -m schemas.export docs/schemas``.

What a person may write into a plan or a configuration, what travels, and what REST and ``--json`` show, for editors
and for programs in other languages. A test holds the files in ``docs/schemas`` to the models.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from schemas import config, messages, plan, specs, status
from schemas.base import Model

MODULES: tuple[ModuleType, ...] = (plan, specs, config, messages, status)


def models() -> Iterator[type[Model]]:
    """Yield every model that a module of ``MODULES`` defines, by name."""
    found = {
        name: value
        for module in MODULES
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Model) and value.__module__ == module.__name__
    }
    yield from (found[name] for name in sorted(found))


def documents() -> dict[str, str]:
    """Return file name -> text, one JSON Schema for each model."""
    return {f"{model.__name__}.json": _text(model) for model in models()}


def export(folder: Path) -> tuple[Path, ...]:
    """Write the documents into ``folder`` and remove those of models that are gone; returns what it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = documents()
    for stale in set(folder.glob("*.json")) - {folder / name for name in wanted}:
        stale.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, "utf-8")
    return tuple(folder / name for name in wanted)


def _text(model: type[Model]) -> str:
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Run as a program; the one argument is the folder to write into."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m schemas.export FOLDER\n")
        return 2
    sys.stdout.write(f"wrote {len(export(Path(arguments[0])))} schemas to {arguments[0]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
