"""Every kind of end has its number, and the documentation knows it."""

import asyncio
import re
from pathlib import Path

import click
import pytest

from fedge.errors import UnknownName
from schemas.errors import Fault, InvalidInput
from server_app.cli.exits import Exit, Failure, reported
from server_app.client import Broken, Client, ClientError, Invalid, NotFound, Refused, Unreachable, _refusal
from server_app.demo_children import ChildDied
from server_app.errors import ServerError

DOCUMENT = Path(__file__).parents[3] / "docs" / "exit-codes.md"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("plan", (Fault("rounds", "missing"),)), 3),
        (Invalid("no"), 3),
        (UnknownName("task", "wisdn", ["wisdm"]), 3),
        (Unreachable("nobody"), 4),
        (Refused("who?"), 5),
        (NotFound("no such run"), 6),
        (Broken("500"), 1),
        (ServerError("port in use"), 1),
        (ChildDied("agent ended"), 8),
        (KeyboardInterrupt(), 130),
        (asyncio.CancelledError(), 130),
    ],
)
def test_an_error_ends_the_command_with_its_code(error: BaseException, code: int) -> None:
    with pytest.raises(Failure) as caught, reported():
        raise error
    assert caught.value.exit_code == code


def test_an_error_nobody_expected_is_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


def test_a_failure_keeps_its_own_code() -> None:
    with pytest.raises(click.ClickException) as caught, reported():
        raise Failure("stopped", Exit.RUN_FAILED)
    assert caught.value.exit_code == 7


def test_every_exit_code_is_documented() -> None:
    table = DOCUMENT.read_text().split("## `fedge-device`")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == [int(code) for code in Exit]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Invalid), (401, Refused), (403, Refused), (404, NotFound), (409, Invalid), (422, Invalid), (500, Broken)],
)
def test_a_problem_document_becomes_the_exception_for_its_status(status: int, kind: type[ClientError]) -> None:
    body = b'{"title": "t", "status": 422, "detail": "why", "reason": "r", "faults": [{"key": "a.b", "message": "m"}]}'
    error = _refusal(status, body, "GET /x")
    assert type(error) is kind and str(error) == "why\n  a.b: m" and error.problem is not None
    assert "<html>" in str(_refusal(status, b"<html>", "GET /x"))


async def test_a_server_that_is_none_is_unreachable_and_named() -> None:
    for server in ("http://127.0.0.1:9", "nonsense", "http://"):
        async with Client(server) as client:
            with pytest.raises(Unreachable) as caught:
                await client.status()
        assert server in str(caught.value)
