"""The data sets that do not ship with fedge: which files they are, and where those lie on this machine.

fedge fetches nothing by itself. A person puts the files into a folder, or asks ``fedge data get NAME`` to, and names
the folder in one of two ways; the first that is set counts:

    folder = "/srv/data"      an option of ``train_data``, in the device's configuration
    FEDGE_DATA=/srv/data      in the environment, on devices and on the server

A file of the data set NAME is looked for in FOLDER/NAME, then in FOLDER itself. The server, whose ``test_data`` takes
no options, looks in ``FEDGE_DATA`` only; where that is not set it has no test data.

A checksum is that of a file's content: of what ``.gz`` unpacks to, so that a mirror that compressed the same bytes
anew is as good as the origin.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedge.errors import TaskError

VARIABLE = "FEDGE_DATA"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file: ``size_bytes`` and ``sha256`` are those of its content, unpacked if its name ends in ``.gz``."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """A data set. ``url`` is the folder its files are published in; empty where there is no such place."""

    name: str
    files: tuple[SourceFile, ...]
    url: str
    licence: str
    layout: str


FASHION_MNIST = Source(
    name="fashion-mnist",
    files=(
        SourceFile(
            "train-images-idx3-ubyte.gz",
            47_040_016,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        SourceFile(
            "train-labels-idx1-ubyte.gz",
            60_008,
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        SourceFile(
            "t10k-images-idx3-ubyte.gz",
            7_840_016,
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        SourceFile(
            "t10k-labels-idx1-ubyte.gz",
            10_008,
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    url="https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
    licence="MIT, Zalando SE",
    layout="the four idx files as published, gzip",
)

SHAKESPEARE = Source(
    name="shakespeare",
    files=(
        SourceFile(
            "shakespeare_roles.npz",
            1_786_082,
            "5cde2db7b0221081f0cfd3bd653bef6b2ccd405a4289e6dd680676b9154c4107",
        ),
    ),
    url="",
    licence="public domain",
    layout=(
        "NumPy archive: text uint8 [characters], offsets int64 [roles + 1], train_end int64 [roles], "
        "role and play_titles strings, play int64 [roles]"
    ),
)

SOURCES: Mapping[str, Source] = {source.name: source for source in (FASHION_MNIST, SHAKESPEARE)}
"""All of them, by name."""


def folder_of(source: Source, options: Mapping[str, object]) -> Path:
    """Return the folder that the option ``folder`` or the environment names, and where ``source`` lies in it.

    Raises:
        TaskError: neither names one, or the option is not a path.
    """
    named = options.get("folder") or os.environ.get(VARIABLE)
    if not named:
        raise TaskError(
            f"task data {source.name!r}: expected the option folder, or {VARIABLE} in the environment, got neither; "
            f"'fedge data get {source.name} --folder DIR' says how to come by the files"
        )
    if not isinstance(named, str):
        raise TaskError(f"task data {source.name!r}: expected the option folder to be a path, got {named!r}")
    folder = Path(named).expanduser()
    return folder / source.name if (folder / source.name).is_dir() else folder


def is_named_by_environment() -> bool:
    """Say whether a data folder is known without options: all that a server goes by."""
    return bool(os.environ.get(VARIABLE))


def open_path(source: Source, folder: Path, name: str) -> Path:
    """Return the path of the file ``name`` in ``folder``.

    Raises:
        TaskError: there is no such file.
    """
    path = folder / name
    if not path.is_file():
        raise TaskError(
            f"task data {source.name!r}: expected the file {path}, there is none; "
            f"'fedge data get {source.name} --folder DIR' says how to come by it"
        )
    return path
