"""What a device asks of the aggregator, as typed calls over a ``Link``.

enroll   POST /v1/enroll                          introduce() -> the device's id
work     GET  /v1/work?wait=S[&run=R&round=N]     poll() -> an assignment, a receipt, or nothing
model    GET  /v1/runs/R/download?round=N          download() -> frames, or messages for a download state
              [&state=ID[&checksum=SUM]]
update   PUT  /v1/runs/R/rounds/N/updates/me      upload() -> which segments are durable
         GET  same                                update_status() -> the same answer

upload body: u32 length, little-endian | UpdateHeader | frames in the order given
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from device_app.errors import Declined
from device_app.transport import STALL_SECONDS, Answer, Body, Link
from schemas.errors import SchemaError
from schemas.ids import RunId
from schemas.messages import Enroll, Enrolled, UpdateHeader, UpdateStatus, Work
from schemas.packing import M, pack, unpack

MAX_MESSAGE_BYTES = 1 << 20
NO_CONTENT = 204
PIECE_BYTES = 16_384
"""An upload leaves in pieces of this size: small enough to notice a dead link soon."""


@dataclass(frozen=True, slots=True)
class Client:
    """The aggregator, seen by one device."""

    link: Link

    async def introduce(self, message: Enroll) -> Enrolled:
        """Enrol, or refresh what the aggregator knows about this device; safe to repeat."""
        async with self.link.request("POST", "v1/enroll", body=body_of([pack(message)])) as answer:
            return await _message(Enrolled, answer)

    async def poll(self, wait_seconds: float, pending: tuple[RunId, int] | None) -> Work:
        """Ask for work and, where ``pending`` names the run and round of an update, for its receipt."""
        query = {"wait": f"{wait_seconds:g}"}
        if pending is not None:
            query |= {"run": pending[0], "round": str(pending[1])}
        patience = STALL_SECONDS / 2 + wait_seconds
        async with self.link.request("GET", "v1/work", query, patience_seconds=patience) as answer:
            return Work() if answer.status == NO_CONTENT else await _message(Work, answer)

    async def download(
        self, run: RunId, round_number: int, max_bytes: int, state: str | None = None, numbers: str | None = None
    ) -> bytes:
        """Return what the model that this device starts from is made of: frames or messages (``fedge.downlink``).

        ``state`` is the name of the download state that the device has, ``numbers`` the checksum of its vector.

        Raises:
            Unreachable: it is cut off, or more than ``max_bytes``.
        """
        query = {"round": str(round_number)}
        query |= {} if state is None else {"state": state}
        query |= {} if numbers is None else {"checksum": numbers}
        async with self.link.request("GET", f"v1/runs/{run}/download", query) as answer:
            return await answer.read(max_bytes)

    async def upload(
        self, run: RunId, round_number: int, header: UpdateHeader, frames: Sequence[bytes]
    ) -> UpdateStatus:
        """Send ``frames`` in the order given; returns which segments the aggregator holds durably."""
        head = pack(header)
        body = body_of([len(head).to_bytes(4, "little"), head, *frames])
        async with self.link.request("PUT", _update_path(run, round_number), body=body) as answer:
            return await _message(UpdateStatus, answer)

    async def update_status(self, run: RunId, round_number: int) -> UpdateStatus:
        """Return which segments of this device's update arrived, and whether the round still takes more."""
        async with self.link.request("GET", _update_path(run, round_number)) as answer:
            return await _message(UpdateStatus, answer)


def _update_path(run: RunId, round_number: int) -> str:
    return f"v1/runs/{run}/rounds/{round_number}/updates/me"


def body_of(parts: Sequence[bytes]) -> Body:
    """Return ``parts`` as the body of a request."""
    return Body(sum(map(len, parts)), lambda: _pieces(parts))


async def _pieces(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    """Yield ``parts``, small ones joined, so that a message does not cost a packet for each frame."""
    held = bytearray()
    for part in parts:
        held += part
        while len(held) >= PIECE_BYTES:
            yield bytes(held[:PIECE_BYTES])
            del held[:PIECE_BYTES]
    if held:
        yield bytes(held)


async def _message(model: type[M], answer: Answer) -> M:
    data = await answer.read(MAX_MESSAGE_BYTES)
    try:
        return unpack(model, data)
    except SchemaError as error:
        raise Declined(f"an answer that is no {model.__name__}: {error}", "bad_answer") from error
