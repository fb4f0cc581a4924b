"""How a command ends: one number for each kind of end, and one place that turns an exception into it.

A message goes to standard error and says what was expected and what came; ``docs/exit-codes.md`` says what to do next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import click

from fedge.errors import FedgeError
from schemas.errors import InvalidInput
from server_app.client import Broken, ClientError, Invalid, NotFound, Refused, Unreachable
from server_app.demo_children import ChildDied
from server_app.errors import ServerError


class Exit(IntEnum):
    """Exit codes. Numbers never change their meaning."""

    OK = 0
    BROKEN = 1
    USAGE = 2
    INVALID = 3
    UNREACHABLE = 4
    REFUSED = 5
    NOT_FOUND = 6
    RUN_FAILED = 7
    CHILD_DIED = 8
    INTERRUPTED = 130


_BY_ERROR: tuple[tuple[type[Exception], Exit], ...] = (
    (ChildDied, Exit.CHILD_DIED),
    (InvalidInput, Exit.INVALID),
    (Invalid, Exit.INVALID),
    (Unreachable, Exit.UNREACHABLE),
    (Refused, Exit.REFUSED),
    (NotFound, Exit.NOT_FOUND),
    (Broken, Exit.BROKEN),
    (FedgeError, Exit.INVALID),
    (ServerError, Exit.BROKEN),
)


class Failure(click.ClickException):
    """The end of a command that did not do what was asked."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.exit_code: int = code  # type: ignore[misc]


@contextmanager
def reported() -> Iterator[None]:
    """Turn what is raised on purpose inside the block into a message and an exit code."""
    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise Failure("interrupted", Exit.INTERRUPTED) from None
    except InvalidInput as error:
        lines = "".join(f"\n  {fault}" for fault in error.faults)
        raise Failure(f"{error.what} is not valid:{lines}", Exit.INVALID) from error
    except (ClientError, FedgeError, ServerError) as error:
        code = next(code for kind, code in _BY_ERROR if isinstance(error, kind))
        raise Failure(_with_hint(error, code), code) from error


def _with_hint(error: Exception, code: Exit) -> str:
    if code is Exit.REFUSED:
        return f"{error}\n  Give a token with --token or FEDGE_TOKEN; 'fedge-server init' prints the first ones."
    if code is Exit.UNREACHABLE:
        return f"{error}\n  Is 'fedge-server serve' running there? Name it with --server or FEDGE_SERVER."
    return str(error)
