"""Plans as commands meet them: in a file, or as the demo's with some keys changed by options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.base import parse
from schemas.errors import Fault, InvalidInput
from schemas.plan import Plan, plan_from_toml


def read_plan(path: Path) -> Plan:
    """Return the plan in the file at ``path``.

    Raises:
        InvalidInput: naming each key that is wrong.
    """
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(str(path), (Fault("", f"expected UTF-8 text: {error.reason}"),)) from None
    return plan_from_toml(text, str(path))


def altered(plan: Plan, changes: dict[str, Any]) -> Plan:
    """Return ``plan`` with ``changes``, checked; a table among them is merged into the plan's."""
    document = plan.model_dump(mode="json")
    if "cohort" in changes:
        document["cohort"].pop("updates")  # they follow from the number of devices
    for key, value in changes.items():
        document[key] = {**(document[key] or {}), **value} if isinstance(value, dict) else value
    return parse(Plan, document, "options")
