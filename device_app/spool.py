"""What a device must not forget: state, update, dual, memory. Every file is whole or not there (``durable``).

    state                        the participant (``fedge.protocol.participant``), packed
    download-RUN-ROUND           the frames of the anchor, so that a restart need not fetch them again
    down-RUN-ID.f32              the download state ID, where there is one: its id and float32 [d]
    anchor-RUN-ID.f32            the params to train from that came with it, where they are others; as above
    split-RUN-ROUND              while the front half is trained: the next step, its params, and the shared state
    update-RUN-ROUND             the update waiting for its receipt: header and frames
    dual-RUN-EPOCH-ROUND.f64     FedDyn's u_k after the update of ROUND was settled, float64 [d]; no file: zeros
    loss-RUN-ROUND.f32           with error feedback: what the codec lost of that update, its id and float32 [d]
    memory-RUN-EPOCH-ROUND.f32   with error feedback: e_k after ROUND was settled, float32 [d]; no file: zeros

Dual and memory are never changed in place. Settling writes the next one under a new name, and it counts from the moment
the state names it; until then, settling again starts from the old one and gives the same bytes. ``forget`` deletes what
no state names. The aggregator relies on the dual, so a dual that is gone is an error; a memory that is gone is a log
line and zeros.
"""

from __future__ import annotations

import hashlib
import io
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device_app.durable import PLAIN_DISK, Disk
from device_app.errors import SpoolError, StateLost
from fedge import feedback
from fedge.algorithms.base import Algorithm, Dual
from fedge.downlink.mcm import Delivered
from fedge.downlink.message import State, StateId
from fedge.errors import FedgeError
from fedge.feedback import Memory
from fedge.layout import Layout, Vector
from fedge.protocol.participant import Held, Participant, Pending
from fedge.update import Stream, by_segment, decode_applied
from schemas.errors import SchemaError
from schemas.ids import RunId
from schemas.messages import Assignment, Receipt, UpdateHeader
from schemas.packing import pack, unpack
from schemas.pipe import pack_parcel, read_parcel

log = logging.getLogger(__name__)

UPDATE_ID_BYTES = 16
_SPLIT_HEAD = struct.Struct("<Id")


@dataclass(frozen=True, slots=True)
class SplitStep:
    """Where a front half is: ``step`` comes next, from ``params``, float32, with the ``shared`` state.

    ``ends_at``: seconds since 1970 when its round has no more time for steps.
    """

    step: int
    params: bytes
    shared: bytes
    ends_at: float


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

    def write_download_state(self, held: Held, delivered: Delivered) -> None:
        """Keep the state ``held`` names, and what to train from."""
        vectors = {_down(held): delivered.state.vector}
        vectors |= {_anchor(held): delivered.anchor} if held.has_anchor else {}
        for name, vector in vectors.items():
            numbers = np.ascontiguousarray(vector, np.float32).data.cast("B")
            self.disk.write_checked(self.folder / name, [bytes.fromhex(held.state), numbers])

    def download_state(self, held: Held, size: int) -> State:
        """Return the state that ``held`` names, over ``[size]``.

        Raises:
            StateLost: it is not there, or damaged.
        """
        return State(StateId(held.state), self._read_vector(_down(held), held, size))

    def anchor(self, held: Held, size: int) -> Vector:
        """Return what to train from, float32 ``[size]``.

        Raises:
            StateLost: it is not there, or damaged.
        """
        return self._read_vector(_anchor(held) if held.has_anchor else _down(held), held, size)

    def _read_vector(self, name: str, held: Held, size: int) -> Vector:
        data, head = self.disk.read_checked(self.folder / name), bytes.fromhex(held.state)
        if data[: len(head)] != head or len(data) != len(head) + 4 * size:
            raise StateLost(f"expected {size} float32 of state {held.state} in {name}, got {len(data)} bytes")
        return np.frombuffer(data, np.float32, -1, len(head))

    def write_split(self, assignment: Assignment, kept: SplitStep) -> None:
        """Keep where the steps of ``assignment`` are."""
        head = _SPLIT_HEAD.pack(kept.step, kept.ends_at)
        self._write_parts(self.folder / _split(assignment), head, [kept.params, kept.shared])

    def read_split(self, assignment: Assignment, size: int) -> SplitStep | None:
        """Return where the steps of ``assignment`` are, params float32 ``[size]``; None where nothing was kept."""
        path = self.folder / _split(assignment)
        if not path.exists():
            return None
        try:
            head, parts = self._read_parts(path)
        except StateLost as error:
            log.warning("split steps lost, beginning again", extra={"reason": str(error)})
            return None
        if len(head) != _SPLIT_HEAD.size or len(parts) != 2 or len(parts[0]) != 4 * size:
            return None
        step, ends_at = _SPLIT_HEAD.unpack(head)
        return SplitStep(step, parts[0], parts[1], ends_at)

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

    def memory(self, run: RunId, epoch: int, last_applied: int, size: int) -> Memory | None:
        """Return error feedback's memory after round ``last_applied``, float32 ``[size]``; None stands for zeros."""
        if last_applied <= 0:
            return None
        try:
            data = self.disk.read_checked(self.folder / _memory(run, epoch, last_applied))
        except StateLost as error:
            log.warning("memory lost, starting with zeros", extra={"run": run, "reason": str(error)})
            return None
        return np.frombuffer(data, np.float32) if len(data) == 4 * size else None

    def write_loss(self, assignment: Assignment, update: str, loss: Memory) -> None:
        """Keep what the codec lost of ``update``, which answers ``assignment``: float32 ``[d]``."""
        path = self.folder / _loss(assignment)
        self.disk.write_checked(path, [bytes.fromhex(update), np.ascontiguousarray(loss, np.float32).tobytes()])

    def _read_loss(self, pending: Pending, size: int) -> Memory | None:
        try:
            data = self.disk.read_checked(self.folder / _loss(pending.assignment))
        except StateLost as error:
            log.warning("loss of an update gone, memory starts afresh", extra={"reason": str(error)})
            return None
        is_of_it = data[:UPDATE_ID_BYTES] == bytes.fromhex(pending.update)
        is_whole = len(data) == UPDATE_ID_BYTES + 4 * size
        return np.frombuffer(data, np.float32, -1, UPDATE_ID_BYTES) if is_of_it and is_whole else None

    def settle(
        self,
        state: Participant,
        pending: Pending,
        receipt: Receipt,
        algorithm: Algorithm,
        layout: Layout,
        stream: Stream,
    ) -> None:
        """Write dual and memory after ``receipt``: the present ones, moved by what was applied.

        Nothing is written where nothing moves: no frame was applied, or the run has neither of them.

        Raises:
            StateLost: the present dual or the update is gone.
        """
        if receipt.applied and algorithm.stateful:
            self._settle_dual(state, pending, receipt, algorithm, layout, stream)
        if receipt.applied and pending.assignment.uplink.has_memory:
            self._settle_memory(state, pending, receipt, layout)

    def _settle_memory(self, state: Participant, pending: Pending, receipt: Receipt, layout: Layout) -> None:
        mine = pending.assignment
        loss = self._read_loss(pending, layout.size)
        if loss is None or not all(0 <= index < len(layout.segments) for index in receipt.applied):
            return
        before = self.memory(mine.run, mine.dual_epoch, state.last_applied, layout.size)
        after = feedback.commit(before, [layout.segments[index] for index in receipt.applied], loss)
        path = self.folder / _memory(mine.run, mine.dual_epoch, receipt.round)
        self.disk.write_checked(path, [after.tobytes()])

    def _settle_dual(
        self,
        state: Participant,
        pending: Pending,
        receipt: Receipt,
        algorithm: Algorithm,
        layout: Layout,
        stream: Stream,
    ) -> None:
        mine = pending.assignment
        frames = self.read_update(pending).frames
        try:
            applied = [layout.segments[index] for index in receipt.applied]
            decoded = decode_applied(layout, by_segment(frames), stream, receipt.applied, algorithm.trust)
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
            named |= {_download(state.assignment), _split(state.assignment)}
        if state.held is not None:
            named |= {_down(state.held), _anchor(state.held)}
        if state.pending is not None:
            named |= {_update(state.pending.assignment), _loss(state.pending.assignment)}
        if state.run is not None:
            kept = (state.run, state.dual_epoch, state.last_applied)
            named |= {_dual(*kept), _memory(*kept)}
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


def _download(assignment: Assignment) -> str:
    return f"download-{assignment.run}-{assignment.round}"


def _down(held: Held) -> str:
    return f"down-{held.run}-{held.state}.f32"


def _anchor(held: Held) -> str:
    return f"anchor-{held.run}-{held.state}.f32"


def _split(assignment: Assignment) -> str:
    return f"split-{assignment.run}-{assignment.round}"


def _update(assignment: Assignment) -> str:
    return f"update-{assignment.run}-{assignment.round}"


def _dual(run: RunId, epoch: int, last_applied: int) -> str:
    return f"dual-{run}-{epoch}-{last_applied}.f64"


def _loss(assignment: Assignment) -> str:
    return f"loss-{assignment.run}-{assignment.round}.f32"


def _memory(run: RunId, epoch: int, last_applied: int) -> str:
    return f"memory-{run}-{epoch}-{last_applied}.f32"
