"""What can be wrong with something that arrives.

    SchemaError
    ├── PackingError    bytes that are no message of ours: version, size, nesting, types
    └── InvalidInput    a message, plan or configuration whose content breaks a rule; lists every fault

An ``InvalidInput`` names, for each fault, the key, what was expected and what came, and the nearest valid key
where one was misspelt.
"""

from __future__ import annotations

from dataclasses import dataclass


class SchemaError(Exception):
    """Base of everything this package raises on purpose."""


class PackingError(SchemaError, ValueError):
    """Bytes that are no message of ours."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken rule: ``key`` is a dotted path such as ``cohort.updates.min``."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class InvalidInput(SchemaError, ValueError):
    """Content that breaks a rule. ``faults`` has one entry for each."""

    def __init__(self, what: str, faults: tuple[Fault, ...]) -> None:
        self.what = what
        self.faults = faults
        lines = "; ".join(str(fault) for fault in faults)
        super().__init__(f"{what}: {lines}")
