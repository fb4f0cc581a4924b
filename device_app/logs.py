"""How log records look: one line each, for people or as JSON.

07:12:03 INFO  agent: idle -> fetching  device=pi-1 event=WorkArrived run=wisdm-3 round=7
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(level: str, as_json: bool = False) -> None:
    """Send records of ``level`` and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else OneLine())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def facts(record: logging.LogRecord) -> dict[str, object]:
    """Return what ``extra`` added to ``record``."""
    return {key: value for key, value in vars(record).items() if key not in _OWN}


class OneLine(logging.Formatter):
    """Time of day, level, part of the program, event, facts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return ``record`` as one line, and its traceback below where it has one."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        part = record.name.removeprefix("device_app.")
        added = "".join(f" {key}={_shown(value)}" for key, value in facts(record).items())
        line = f"{at} {record.levelname:<7} {part}: {record.getMessage()}{' ' if added else ''}{added}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return ``record`` as JSON."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "level": record.levelname, "logger": record.name, "event": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line | facts(record), default=str)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return json.dumps(text) if " " in text else text
