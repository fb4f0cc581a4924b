"""What a device must not forget: its state, its update, its dual. Every file is whole or not there (``durable``).

    state                        the participant (``fedge.protocol.participant``), packed
    download-RUN-ROUND           the frames of the anchor, so that a restart need not fetch them again
    update-RUN-ROUND             the update waiting for its receipt: header and frames
    dual-RUN-EPOCH-ROUND.f64     FedDyn's u_k after the update of ROUND was settled, float64 [d]; no file: zeros

A dual is never changed in place. Settling writes the next one under a new name, and it counts from the moment the
state names it; until then, settling again starts from the old one and gives the same bytes. ``forget`` deletes what
no state names.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device_app.durable import PLAIN_DISK, Disk
from device_app.errors import SpoolError, StateLost
from fedge.algorithms.base import Algorithm, Dual
from fedge.errors import FedgeError
from fedge.frames import Frame, read_frame
from fedge.layout import Layout
from fedge.protocol.participant import Participant, Pending
from fedge.update import Stream, decode_applied
from schemas.errors import SchemaError
from schemas.ids import RunId
from schemas.messages import Assignment, Receipt, UpdateHeader
from schemas.packing import pack, unpack
from schemas.pipe import pack_parcel, read_parcel

log = logging.getLogger(__name__)

UPDATE_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """An encoded update: its header, and its frames by segment."""

    header: UpdateHeader
    frames: tuple[bytes, ...]


def update_id(frames: Sequence[bytes]) -> str:
    """Return the id of the update that ``frames``, by segment, make up: the same frames, the same id."""
    digest = hashlib.blake2b(digest_size=UPDATE_ID_BYTES)
    for frame in frames:
        digest.update(len(frame).to_bytes(4, "little"))
        digest.update(frame)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Spool:
    """The spool of one device, in ``folder``. All methods block on the disk; all may be repeated."""

    folder: Path
    disk: Disk = PLAIN_DISK

    def open(self) -> Participant:
        """Make the folder if need be, and return the state in it; a lost one is replaced by a new device's.

        A state that cannot be read makes the device refuse rounds until the aggregator starts its dual afresh; it
        does not make it fail.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SpoolError(f"could not make {self.folder}: {error.strerror}") from error
        try:
            return self.state()
        except StateLost as error:
            log.warning("state lost, starting as a new device", extra={"reason": str(error)})
            return Participant()

    def state(self) -> Participant:
        """Return the state, a new device's where there is none.

        Raises:
            StateLost: there is one that cannot be read.
        """
        path = self.folder / "state"
        if not path.exists():
            return Participant()
        try:
            return unpack(Participant, self.disk.read_checked(path))
        except SchemaError as error:
            raise StateLost(f"{path} holds no state of this version: {error}") from error

    def write_state(self, state: Participant) -> None:
        """Keep ``state``."""
        self.disk.write_checked(self.folder / "state", [pack(state)])

    def write_download(self, assignment: Assignment, frames: Sequence[bytes]) -> None:
        """Keep the frames of the anchor of ``assignment``."""
        self._write_parts(self.folder / _download(assignment), b"", frames)

    def read_download(self, assignment: Assignment) -> list[bytes]:
        """Return the frames of the anchor of ``assignment``.

        Raises:
            StateLost: they are not there, or damaged.
        """
        return self._read_parts(self.folder / _download(assignment))[1]

    def write_update(self, assignment: Assignment, update: StoredUpdate) -> None:
        """Keep ``update``, which answers ``assignment``."""
        self._write_parts(self.folder / _update(assignment), pack(update.header), update.frames)

    def read_update(self, pending: Pending) -> StoredUpdate:
        """Return the update that ``pending`` names.

        Raises:
            StateLost: it is not there, damaged, or another.
        """
        path = self.folder / _update(pending.assignment)
        head, frames = self._read_parts(path)
        try:
            header = unpack(UpdateHeader, head)
        except SchemaError as error:
            raise StateLost(f"{path} holds no update: {error}") from error
        if header.update != pending.update:
            raise StateLost(f"expected update {pending.update} in {path}, got {header.update}")
        return StoredUpdate(header, tuple(frames))

    def dual(self, run: RunId, epoch: int, last_applied: int, size: int) -> Dual | None:
        """Return the dual after the update of round ``last_applied``, float64 ``[size]``; None stands for zeros.

        Raises:
            StateLost: it is not there, or damaged.
        """
        if last_applied == 0:
            return None
        path = self.folder / _dual(run, epoch, last_applied)
        data = self.disk.read_checked(path)
        if len(data) != 8 * size:
            raise StateLost(f"expected {size} float64 in {path}, got {len(data)} bytes")
        return np.frombuffer(data, np.float64)

    def settle(
        self,
        state: Participant,
        pending: Pending,
        receipt: Receipt,
        algorithm: Algorithm,
        layout: Layout,
        stream: Stream,
    ) -> None:
        """Write the dual after ``receipt``: the present one, moved by what the applied frames decode to.

        Nothing is written where nothing moves: no frame was applied, or the algorithm keeps no dual.

        Raises:
            StateLost: the present dual or the update is gone.
        """
        mine = pending.assignment
        if not (receipt.applied and algorithm.stateful):
            return
        frames = self.read_update(pending).frames
        try:
            applied = [layout.segments[index] for index in receipt.applied]
            decoded = decode_applied(layout, _by_segment(frames), stream, receipt.applied, algorithm.trust)
        except (FedgeError, IndexError) as error:
            raise StateLost(f"update {pending.update} does not fit its receipt: {error}") from error
        before = self.dual(mine.run, mine.dual_epoch, state.last_applied, layout.size)
        after = algorithm.commit(np.zeros(layout.size) if before is None else before, applied, decoded)
        path = self.folder / _dual(mine.run, mine.dual_epoch, receipt.round)
        self.disk.write_checked(path, [np.ascontiguousarray(after, np.float64).tobytes()])

    def forget(self, state: Participant) -> None:
        """Delete what ``state`` does not name."""
        named = {"state"}
        if state.assignment is not None:
            named |= {_download(state.assignment)}
        if state.pending is not None:
            named |= {_update(state.pending.assignment)}
        if state.run is not None:
            named |= {_dual(state.run, state.dual_epoch, state.last_applied)}
        for path in sorted(self.folder.iterdir()):
            if path.name not in named:
                self.disk.delete(path)

    def _write_parts(self, path: Path, head: bytes, parts: Sequence[bytes]) -> None:
        self.disk.write_checked(path, pack_parcel({"head": head}, parts))

    def _read_parts(self, path: Path) -> tuple[bytes, list[bytes]]:
        parcel = read_parcel(io.BytesIO(self.disk.read_checked(path)).read)
        if parcel is None or not isinstance(parcel[0].get("head"), bytes):
            raise StateLost(f"expected {path} to hold frames")
        return parcel[0]["head"], parcel[1]


def _by_segment(frames: Sequence[bytes]) -> Mapping[int, Frame]:
    return {frame.segment: frame for frame in map(read_frame, frames)}


def _download(assignment: Assignment) -> str:
    return f"download-{assignment.run}-{assignment.round}"


def _update(assignment: Assignment) -> str:
    return f"update-{assignment.run}-{assignment.round}"


def _dual(run: RunId, epoch: int, last_applied: int) -> str:
    return f"dual-{run}-{epoch}-{last_applied}.f64"
