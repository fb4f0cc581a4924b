"""Vectors on disk: the state of a run after a round, as one safetensors file.

    runs/<run>/round-<n>.state     params, published float32 [d]; h and back_dual float64 [d] where there are duals
    runs/<run>/round-<n>.journal   ``server_app.journal``
    runs/<run>/round-<n>.split     ``server_app.back_half``
    runs/<run>/down/               ``server_app.download_states``

A file is written beside its name, synced, renamed, and the directory synced: it is whole or it is not there. Functions
wait for the disk: call them off the event loop.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from fedge.algorithms import ServerState
from fedge.errors import LayoutError
from fedge.layout import Layout

_NUMBERED = re.compile(r"round-(\d+)\.(state|journal|split)")


class RunFiles:
    """Where the files of one run lie."""

    def __init__(self, state_dir: Path, run: str) -> None:
        self.directory = state_dir / "runs" / run

    def create(self) -> None:
        """Make the run's directory, durably."""
        self.directory.mkdir(parents=True, exist_ok=True)
        sync_directory(self.directory.parent)
        sync_directory(self.directory.parent.parent)

    def state(self, number: int) -> Path:
        """Return the path of the state after round ``number``; 0 is the initial one."""
        return self.directory / f"round-{number}.state"

    def journal(self, number: int) -> Path:
        """Return the path of the journal of round ``number``."""
        return self.directory / f"round-{number}.journal"

    def split(self, number: int) -> Path:
        """Return the path of the journal of the split steps of round ``number``."""
        return self.directory / f"round-{number}.split"

    @property
    def downloads(self) -> Path:
        """Return the folder of the devices' download states."""
        return self.directory / "down"

    def prune(self, keep: set[int]) -> None:
        """Delete the states of all rounds but ``keep``, every journal, and what a crash left half-written."""
        for path in self.directory.iterdir():
            found = _NUMBERED.fullmatch(path.name)
            is_kept = found is not None and found[2] == "state" and int(found[1]) in keep
            if path.suffix == ".tmp" or (found is not None and not is_kept):
                path.unlink(missing_ok=True)


def write_durably(path: Path, *pieces: bytes | memoryview) -> None:
    """Replace the file at ``path`` by ``pieces``, whole or not at all."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)  # on a full disk it would take what others need
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_state(path: Path, state: ServerState) -> None:
    """Write ``state``, durably."""
    tensors = {"params": np.ascontiguousarray(state.params)}
    if state.published is not state.params:
        tensors["published"] = np.ascontiguousarray(state.published)
    if state.h is not None:
        tensors["h"] = np.ascontiguousarray(state.h)
    if state.back_dual is not None:
        tensors["back_dual"] = np.ascontiguousarray(state.back_dual)
    write_durably(path, save(tensors))


def load_state(path: Path) -> ServerState:
    """Read what ``save_state`` wrote."""
    tensors = load(path.read_bytes())
    params = tensors["params"]
    return ServerState(params, tensors.get("published", params), tensors.get("h"), tensors.get("back_dual"))


def export_model(path: Path, layout: Layout) -> bytes:
    """Return the published model in the state at ``path`` as a safetensors file of the layout's tensors.

    Raises:
        LayoutError: the state is not of this layout.
    """
    published = load_state(path).published
    if published.dtype != np.float32:
        raise LayoutError(f"expected a float32 model, got {published.dtype}")
    tensors = layout.unpack(published)
    return bytes(save({name: np.ascontiguousarray(array) for name, array in tensors.items()}))
