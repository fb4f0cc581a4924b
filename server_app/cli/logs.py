"""How the aggregator's log looks on standard error: one event a line with its facts, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(level: str, as_json: bool) -> None:
    """Send records of ``level`` and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(as_json))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(max(logging.WARNING, logging.getLogger().level))


class Lines(logging.Formatter):
    """One event a line; a traceback goes below it, or into the JSON."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return ``record`` as a line."""
        at = datetime.fromtimestamp(record.created, UTC)
        facts = {key: value for key, value in vars(record).items() if key not in _OWN}
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self.as_json:
            head = {"at": at.isoformat(timespec="milliseconds"), "level": record.levelname, "logger": record.name}
            added = {"traceback": trace} if trace else {}
            return json.dumps(head | {"event": record.getMessage()} | facts | added, default=str)
        words = " ".join(f"{key}={value}" for key, value in facts.items())
        line = f"{at.astimezone():%H:%M:%S} {record.levelname:<7} {record.getMessage()}  {words}".rstrip()
        return f"{line}\n{trace}" if trace else line
