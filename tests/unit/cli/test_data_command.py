"""``fedge data`` against a web server on loopback that can break off, lie, and resume."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedge.tasks.sources import SHAKESPEARE, SOURCES, Source, SourceFile
from server_app.cli import main
from server_app.datasets import get

CONTENT = bytes(range(256)) * 2000
PLAIN = SourceFile("plain.npz", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
PACKED = SourceFile("packed.gz", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Web:
    """Files by name, and what to do wrong. ``asked`` are names and Range headers, in order."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {PLAIN.name: CONTENT, PACKED.name: gzip.compress(CONTENT, 1)}
        self.cut_after: int | None = None
        self.can_resume = True
        self.says_length = True
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""


@pytest.fixture
def web() -> Iterator[Web]:
    state = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, wanted = self.path.rpartition("/")[2], self.headers.get("Range")
            state.asked.append((name, wanted))
            if name not in state.files:
                return self.send_error(404)
            data, begin = state.files[name], 0
            if wanted and state.can_resume:
                begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if begin >= len(data):
                    return self.send_error(416)
            body = data[begin:]
            self.send_response(206 if begin else 200)
            if state.says_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if state.cut_after is None else body[: state.cut_after])
            return None

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/files"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more data set, of which we know the content; and no proxy and no folder of this machine."""
    source = Source("sample", (PLAIN, PACKED), url="", licence="none", layout="plain and packed")
    monkeypatch.setattr("server_app.cli.data.SOURCES", {**SOURCES, "sample": source})
    monkeypatch.delenv("FEDGE_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fedge(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["data", *arguments])


def fetch(web: Web, folder: Path) -> Result:
    return fedge("get", "sample", "--folder", str(folder), "--from", web.url)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_files_are_fetched_checked_and_not_fetched_again(web: Web, tmp_path: Path) -> None:
    ended = fetch(web, tmp_path)
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "sample" / PLAIN.name).read_bytes() == CONTENT
    assert left_in(tmp_path) == [PACKED.name, PLAIN.name]
    assert f"export FEDGE_DATA={tmp_path}" in ended.stdout
    again = fetch(web, tmp_path)
    assert again.exit_code == 0 and "complete already" in again.stdout
    assert len(web.asked) == 2


def test_content_packed_in_another_way_is_the_same_content(web: Web, tmp_path: Path) -> None:
    web.files[PACKED.name] = gzip.compress(CONTENT, 9)
    assert fetch(web, tmp_path).exit_code == 0


def test_a_download_that_breaks_off_goes_on_where_it_was(web: Web, tmp_path: Path) -> None:
    web.cut_after = 100_000
    ended = fetch(web, tmp_path)
    assert ended.exit_code == 1 and "the connection ended after 100,000 of 512,000 bytes" in ended.stderr
    assert "100,000 bytes are kept" in ended.stderr and left_in(tmp_path) == [PLAIN.name + ".part"]
    web.cut_after = None
    assert fetch(web, tmp_path).exit_code == 0
    assert web.asked[1] == (PLAIN.name, "bytes=100000-")
    assert left_in(tmp_path) == [PACKED.name, PLAIN.name]


def test_a_server_that_cannot_resume_sends_everything_once_more(web: Web, tmp_path: Path) -> None:
    web.cut_after = 100_000
    fetch(web, tmp_path)
    web.cut_after, web.can_resume = None, False
    assert fetch(web, tmp_path).exit_code == 0
    assert (tmp_path / "sample" / PLAIN.name).read_bytes() == CONTENT


def test_a_part_that_is_all_there_is_checked_and_taken(web: Web, tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / f"{PLAIN.name}.part").write_bytes(CONTENT)
    assert fetch(web, tmp_path).exit_code == 0
    assert web.asked[0] == (PLAIN.name, f"bytes={len(CONTENT)}-")


def test_a_part_of_something_else_is_found_out_and_deleted(web: Web, tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / f"{PLAIN.name}.part").write_bytes(b"x" * 1000)
    ended = fetch(web, tmp_path)
    assert ended.exit_code == 1 and "was deleted: expected sha256" in ended.stderr
    assert left_in(tmp_path) == []
    assert fetch(web, tmp_path).exit_code == 0


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (PLAIN.name, CONTENT[:-1] + b"?", f"expected sha256 {PLAIN.sha256}, got "),
        (PLAIN.name, CONTENT[:-1], "expected 512,000 bytes, got 511,999"),
        (PLAIN.name, CONTENT + b"?", "expected 512,000 bytes, got more"),
        (PLAIN.name, CONTENT * 10, "expected 512,000 bytes, got more"),
        (PACKED.name, b"<html>404</html>", "expected a whole gzip file"),
        (PACKED.name, gzip.compress(CONTENT)[:-5], "expected a whole gzip file"),
        (PACKED.name, gzip.compress(bytes(50_000_000)), "expected 512,000 bytes, got more"),
    ],
)
def test_a_file_that_is_not_the_one_expected_leaves_nothing_behind(
    web: Web, tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    web.files[name] = data
    ended = fetch(web, tmp_path)
    assert ended.exit_code == 1 and "not the file expected and was deleted" in ended.stderr and message in ended.stderr
    assert name not in "".join(left_in(tmp_path))


def test_a_server_that_says_no_length_is_found_out_by_the_content(web: Web, tmp_path: Path) -> None:
    web.says_length, web.cut_after = False, 1000
    ended = fetch(web, tmp_path)
    assert ended.exit_code == 1 and "expected 512,000 bytes, got 1,000" in ended.stderr
    web.cut_after = None
    assert fetch(web, tmp_path).exit_code == 0


def test_a_file_that_is_there_and_wrong_is_left_alone_and_named(web: Web, tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    own = tmp_path / "sample" / PLAIN.name
    own.write_bytes(b"mine")
    ended = fetch(web, tmp_path)
    assert ended.exit_code == 1 and f"{own} is there already and not the file expected" in ended.stderr
    assert own.read_bytes() == b"mine" and web.asked == []


def test_a_missing_file_and_a_server_that_is_none_are_named_with_their_address(web: Web, tmp_path: Path) -> None:
    del web.files[PLAIN.name]
    ended = fetch(web, tmp_path)
    assert ended.exit_code == 1 and f"could not fetch {web.url}/{PLAIN.name}: 404" in ended.stderr
    for url in ("http://127.0.0.1:9", "nonsense"):
        ended = fedge("get", "sample", "--folder", str(tmp_path), "--from", url)
        assert ended.exit_code == 1 and f"could not fetch {url}/{PLAIN.name}" in ended.stderr


def test_data_without_a_public_address_says_so_and_names_the_layout(tmp_path: Path) -> None:
    ended = fedge("get", "shakespeare", "--folder", str(tmp_path))
    assert ended.exit_code == 1 and "no public address is known for shakespeare" in ended.stderr
    assert SHAKESPEARE.layout in ended.stderr and "--from URL" in ended.stderr
    assert left_in(tmp_path) == []


def test_the_folder_and_the_name_have_to_be_right(tmp_path: Path) -> None:
    nowhere = fedge("get", "sample")
    assert nowhere.exit_code == 2 and "give --folder DIR, or set FEDGE_DATA" in nowhere.stderr
    unknown = fedge("get", "fashion", "--folder", str(tmp_path))
    assert unknown.exit_code == 3 and "did you mean 'fashion-mnist'" in unknown.stderr


def test_the_list_says_what_there_is_of_each(web: Web, tmp_path: Path) -> None:
    web.cut_after = 100_000
    fetch(web, tmp_path)
    (tmp_path / "sample" / PACKED.name).write_bytes(gzip.compress(b"other"))
    rows = json.loads(fedge("list", "--json", "--folder", str(tmp_path)).stdout)
    assert [row["name"] for row in rows] == ["fashion-mnist", "shakespeare", "sample"]
    assert rows[2]["states"] == {PLAIN.name: "part", PACKED.name: "wrong"}
    assert set(rows[0]["states"].values()) == {"missing"}
    table = fedge("list")
    assert table.exit_code == 0 and "fashion-mnist" in table.stdout and "nowhere public" in table.stdout


def test_a_folder_that_cannot_be_written_is_answered(web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = fetch(web, tmp_path / "file")
    assert ended.exit_code in (1, 2) and ended.stderr


def test_get_reports_progress(web: Web, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    source = Source("sample", (PLAIN,), web.url, "none", "plain")
    get(source, tmp_path, web.url, lambda name, size: seen.append((name, size)))
    assert seen[-1] == (PLAIN.name, len(CONTENT))
