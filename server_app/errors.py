"""Everything the aggregator raises on purpose.

ServerError
├── JournalError     a journal that can take no more records
├── WorkerError      the worker process failed, or said that the task did
│   └── WorkerDied   it ended; asked again, it is started again
├── DataError        a data set that could not be fetched, or is not the one expected
├── Stopped          a person stopped the run
├── RunFailed        the run cannot go on; says why
└── Refused          a request that is not served: status, a stable reason, words, and the faults
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.errors import Fault


class ServerError(Exception):
    """Base of every error the aggregator raises on purpose."""


class JournalError(ServerError):
    """A journal that can take no more records."""


class WorkerError(ServerError):
    """The worker process failed, or said that the task did."""


class WorkerDied(WorkerError):
    """The worker process ended; asked again, it is started again."""


class DataError(ServerError):
    """A data set that could not be fetched, or is not the one expected."""


class Stopped(ServerError):
    """A person stopped the run."""


class RunFailed(ServerError):
    """The run cannot go on; says why."""


class Refused(ServerError):
    """A request that is not served. ``reason`` is a stable word to script against, ``detail`` is for people."""

    def __init__(self, status: int, reason: str, detail: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(f"{status} {reason}: {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail
        self.faults = tuple(faults)
