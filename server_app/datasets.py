"""``fedge data get``: fetch the files of a data set, when a person asks and never otherwise.

A file arrives as ``NAME.part`` beside its place. A download that breaks off leaves it there, and the next attempt asks
for the rest (``Range``; a server that sends everything is taken at its word and the file begun anew). A whole file is
unpacked once, in pieces and never beyond the size it should have, and its content's checksum compared; then it is
renamed. A file that is not the one expected is deleted and its place stays empty.

Files that are there already are checked and never overwritten.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, cast

from fedge.tasks.sources import Source, SourceFile
from server_app.errors import DataError

PIECE_BYTES = 1 << 18
TIMEOUT_SECONDS = 60.0
_SLACK = 1.01, 1 << 16  # compressing what does not compress adds this much at most

OnProgress = Callable[[str, int], None]
"""Called with a file's name and the bytes of it that are here."""


class State(StrEnum):
    """What there is of a file."""

    MISSING = "missing"
    PART = "part"
    WRONG = "wrong"
    COMPLETE = "complete"


def state_of(file: SourceFile, folder: Path) -> State:
    """Return what there is of ``file`` in ``folder``; reads all of it."""
    path = folder / file.name
    if path.is_file():
        return State.WRONG if fault_of(file, path) else State.COMPLETE
    return State.PART if _part(path).exists() else State.MISSING


def get(source: Source, folder: Path, url: str, on_progress: OnProgress) -> list[Path]:
    """Fetch what is missing of ``source`` from ``url`` into ``folder``, and return what was fetched.

    Raises:
        DataError: there is no address, the download failed, or what came or was there is not the file expected.
    """
    missing = []
    for file in source.files:
        if not (path := folder / file.name).exists():
            missing.append(file)
        elif fault := fault_of(file, path):
            raise DataError(f"{path} is there already and not the file expected: {fault}. Move it away to fetch it")
    if missing and not url:
        raise DataError(
            f"no public address is known for {source.name}: put {', '.join(file.name for file in missing)} into "
            f"{folder} yourself, or name a place that has it with --from URL. Wanted is a {source.layout}; "
            "docs/tasks.md has the whole layout"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_fetch(file, folder / file.name, f"{url.rstrip('/')}/{file.name}", on_progress) for file in missing]
    except OSError as error:
        raise DataError(f"could not write to {folder}: {error}") from error


def fault_of(file: SourceFile, path: Path) -> str:
    """Return what is wrong with the file at ``path``, nothing if it is ``file``."""
    digest, size = hashlib.sha256(), 0
    try:
        for piece in _content(path, is_packed=file.name.endswith(".gz")):
            digest.update(piece)
            size += len(piece)
            if size > file.size_bytes:
                return f"expected {file.size_bytes:,} bytes, got more"
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return f"expected a whole gzip file: {error}"
    if size != file.size_bytes:
        return f"expected {file.size_bytes:,} bytes, got {size:,}"
    if digest.hexdigest() != file.sha256:
        return f"expected sha256 {file.sha256}, got {digest.hexdigest()}"
    return ""


def _content(path: Path, is_packed: bool) -> Iterator[bytes]:
    with cast(BinaryIO, gzip.open(path) if is_packed else path.open("rb")) as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


def _fetch(file: SourceFile, path: Path, url: str, on_progress: OnProgress) -> Path:
    part = _part(path)
    try:
        _download(file, part, url, on_progress)
    except urllib.error.HTTPError as error:
        raise DataError(f"could not fetch {url}: {error.code} {error.reason}") from error
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        kept = f"; {part.stat().st_size:,} bytes are kept and the next attempt goes on there" if part.exists() else ""
        raise DataError(f"could not fetch {url}: {error}{kept}") from error
    if fault := fault_of(file, part):
        part.unlink()
        raise DataError(f"what came from {url} is not the file expected and was deleted: {fault}")
    part.replace(path)
    return path


def _download(file: SourceFile, part: Path, url: str, on_progress: OnProgress) -> None:
    """Append to ``part`` what it lacks."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    limit = int(file.size_bytes * _SLACK[0]) + _SLACK[1]
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if have and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all of it is here, or it is another file: the checksum knows
        raise
    with response:
        resumed = have > 0 and response.status == HTTPStatus.PARTIAL_CONTENT
        have = have if resumed else 0
        announced = response.length
        whole = None if announced is None else have + announced
        with part.open("ab" if resumed else "wb") as out:
            while piece := response.read(PIECE_BYTES):
                out.write(piece)
                have += len(piece)
                on_progress(file.name, have)
                if have > limit:
                    return  # longer than any packing of this file: the check that follows will say so
            out.flush()
            os.fsync(out.fileno())
    if whole is not None and have < whole:
        raise ConnectionError(f"the connection ended after {have:,} of {whole:,} bytes")


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")
