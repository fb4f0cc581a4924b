"""Which aggregator a command asks: option, environment, file, localhost, in this order."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from schemas.errors import InvalidInput
from server_app.cli.connection import Connection, config_path, connected, save, saved


@click.command()
@connected
def show(connection: Connection) -> None:
    click.echo(f"{connection.server} {connection.token}")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("FEDGE_SERVER", raising=False)
    monkeypatch.delenv("FEDGE_TOKEN", raising=False)


def told(*arguments: str, **environment: str) -> str:
    return CliRunner(env=environment).invoke(show, list(arguments)).output.strip()


def test_option_beats_environment_beats_file_beats_localhost() -> None:
    assert told() == "http://127.0.0.1:8080"
    save(Connection(server="http://file:1", token="of-file"))
    assert told() == "http://file:1 of-file"
    assert told(FEDGE_SERVER="http://env:2") == "http://env:2 of-file"
    assert (
        told("--server", "http://flag:3", "--token", "of-flag", FEDGE_SERVER="http://env:2") == "http://flag:3 of-flag"
    )


def test_the_file_is_written_once_and_readable_by_its_owner_alone() -> None:
    assert save(Connection(token="first")) and not save(Connection(token="second"))
    assert saved().token == "first"
    assert config_path().stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("server", ["127.0.0.1:8080", "ftp://hub", "http://"])
def test_a_server_that_is_no_url_is_wrong_usage(server: str) -> None:
    ended = CliRunner().invoke(show, ["--server", server])
    assert ended.exit_code == 2 and ended.stderr == f"Error: expected http://HOST:PORT, got {server!r}\n"


def test_a_file_with_a_wrong_key_is_refused_by_name() -> None:
    save(Connection())
    config_path().write_text('sever = "http://x"\n')
    with pytest.raises(InvalidInput, match="did you mean 'server'"):
        saved()
    assert "did you mean 'server'" in told()
