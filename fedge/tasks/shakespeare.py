"""Shakespeare: the next character of what a role in the plays says. One device for each role.

An example is 80 characters; its targets are the 80 that follow each of them, so every position is learnt from, not
only the last. A role's text is cut into such windows one after the other; what is left at its end is not used. The
network starts each window without a memory of the one before.

    80 characters → embedding 8 → LSTM 100 → LSTM 100 → linear 76 → 80 x 76 logits        133,084 parameters

Options of ``train_data``:

    folder   where ``shakespeare_roles.npz`` is (``fedge.tasks.sources``; its layout is in ``docs/tasks.md``)
    role     a role's index in the file or its name; ``PLAY: ROLE`` where several plays have a role of that name

Roles of fewer than 2,000 characters are no devices. The first 80 % of a role, in whole speeches, is for training.

Text: the plays of W. Shakespeare, public domain. As a federated task: S. Caldas et al., LEAF: A Benchmark for
Federated Settings, https://arxiv.org/abs/1812.01097, where the target is one character for each 80.
"""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedge import seeds
from fedge.errors import TaskError
from fedge.tasks.base import Dataset
from fedge.tasks.sources import SHAKESPEARE, folder_of, is_named_by_environment, open_path

if TYPE_CHECKING:
    from torch import Tensor, nn

CHARACTERS = "\n !$&',-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz"
WINDOW = 80
MIN_CHARACTERS = 2_000
TEST_WINDOWS = 2_000
"""Tested windows at most, drawn from all roles: 160,000 characters, a deviation of the accuracy of about 0.15 %."""


@dataclass(frozen=True, slots=True, eq=False)
class Roles:
    """The file's content. Role i says ``text[offsets[i]:offsets[i + 1]]`` and trains on what is before ``ends[i]``."""

    text: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    names: tuple[str, ...]
    plays: tuple[str, ...]

    @property
    def playable(self) -> list[int]:
        """The roles that are devices."""
        return np.flatnonzero(np.diff(self.offsets) >= MIN_CHARACTERS).tolist()

    def find(self, role: object) -> int:
        """Return the index of ``role``: an index, a name, or play and name.

        Raises:
            TaskError: there is none, or several, or it says too little.
        """
        if isinstance(role, str) and role.isdecimal():
            role = int(role)
        if isinstance(role, int) and not isinstance(role, bool):
            if role not in range(len(self.names)):
                raise _bad(f"a role of 0..{len(self.names) - 1}", role)
            found = [role]
        else:
            full = [f"{play}: {name}" for play, name in zip(self.plays, self.names, strict=True)]
            found = [i for i, name in enumerate(self.names) if role in (name, full[i])]
            if not found:
                near = difflib.get_close_matches(str(role), [*self.names, *full], n=1)
                raise _bad("a role's index or name" + (f", such as {near[0]!r}" if near else ""), role)
            if len(found) > 1:
                raise _bad(f"one of {', '.join(repr(full[i]) for i in found)}", role)
        length = int(self.offsets[found[0] + 1] - self.offsets[found[0]])
        if length < MIN_CHARACTERS:
            raise _bad(f"a role of at least {MIN_CHARACTERS} characters", f"{self.names[found[0]]} with {length}")
        return found[0]

    def train(self, role: int) -> Dataset:
        """Return the training windows of ``role``."""
        return _windows(_codes(self.text[self.offsets[role] : self.ends[role]]))

    def test(self, role: int) -> Dataset:
        """Return the test windows of ``role``."""
        return _windows(_codes(self.text[self.ends[role] : self.offsets[role + 1]]))


@dataclass(frozen=True, slots=True)
class Shakespeare:
    """Next character; ``train_data`` takes ``{"folder": .., "role": "HAMLET"}``."""

    name: str = "shakespeare"

    def model(self, seed: int) -> nn.Module:
        """Return a recurrent network of two layers."""
        from fedge.tasks.char_lstm import build

        return build(len(CHARACTERS), seed)

    def train_data(self, options: Mapping[str, object]) -> Dataset:
        """Return the windows of one role, ``inputs`` and ``targets`` int64 ``[n, 80]``."""
        if "role" not in options or set(options) - {"role", "folder"}:
            raise _bad("the options role and folder", dict(options))
        roles = _read(folder_of(SHAKESPEARE, options))
        return roles.train(roles.find(options["role"]))

    def sites(self) -> dict[str, dict[str, object]]:
        """Return one device for each role of at least 2,000 characters, ``role-0000`` by its place in the file."""
        folder = folder_of(SHAKESPEARE, {})
        where = str(folder.absolute())
        return {f"role-{role:04d}": {"folder": where, "role": role} for role in _read(folder).playable}

    def test_data(self) -> Dataset | None:
        """Return test windows of all roles, ``TEST_WINDOWS`` at most; None where ``FEDGE_DATA`` is not set."""
        if not is_named_by_environment():
            return None
        roles = _read(folder_of(SHAKESPEARE, {}))
        parts = [roles.test(role) for role in roles.playable]
        inputs, targets = (np.concatenate([getattr(part, name) for part in parts]) for name in ("inputs", "targets"))
        rows = np.sort(seeds.permutation(seeds.derive("shakespeare", "test"), len(inputs))[:TEST_WINDOWS])
        return Dataset(inputs[rows], targets[rows])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of a character, in nats."""
        from torch.nn import functional

        return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the accuracy: the share of characters that were the likeliest."""
        return {"accuracy": float((outputs.argmax(2) == targets).float().mean())}


task = Shakespeare()

_UNKNOWN = 255
_CODE = np.full(256, _UNKNOWN, np.uint8)
_CODE[np.frombuffer(CHARACTERS.encode("ascii"), np.uint8)] = np.arange(len(CHARACTERS))


def _codes(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    codes = _CODE[text]
    if (codes == _UNKNOWN).any():
        strange = "".join(map(chr, np.unique(text[codes == _UNKNOWN])))
        raise _bad(f"text of the {len(CHARACTERS)} characters of the plays", strange)
    return codes.astype(np.int64)


def _windows(codes: npt.NDArray[np.int64]) -> Dataset:
    count = max(len(codes) - 1, 0) // WINDOW
    inputs, targets = (codes[shift : shift + count * WINDOW].reshape(count, WINDOW) for shift in (0, 1))
    return Dataset(inputs, targets)


def _read(folder: Path) -> Roles:
    path = open_path(SHAKESPEARE, folder, SHAKESPEARE.files[0].name)
    try:
        with np.load(path) as archive:
            titles = archive["play_titles"]
            roles = Roles(
                text=archive["text"],
                offsets=archive["offsets"],
                ends=archive["train_end"],
                names=tuple(archive["role"].tolist()),
                plays=tuple(titles[archive["play"]].tolist()),
            )
    except (OSError, KeyError, ValueError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise TaskError(f"{path}: expected a {SHAKESPEARE.layout}: {error}") from error
    lengths = {len(roles.offsets) - 1, len(roles.ends), len(roles.names), len(roles.plays)}
    if len(lengths) != 1 or not _is_cut(roles):
        raise TaskError(f"{path}: expected offsets and train_end that cut {len(roles.text)} characters into roles")
    return roles


def _is_cut(roles: Roles) -> bool:
    """Say whether all text is somebody's, and every training part ends within its role."""
    begins, stops = roles.offsets[:-1], roles.offsets[1:]
    inside = (begins <= roles.ends).all() and (roles.ends <= stops).all()
    return bool(inside) and int(roles.offsets[0]) == 0 and int(roles.offsets[-1]) == len(roles.text)


def _bad(expected: str, got: object) -> TaskError:
    return TaskError(f"task 'shakespeare': expected {expected}, got {got!r}")
