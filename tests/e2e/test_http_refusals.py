"""Whatever is sent that is not an update is refused with the right status, counted, and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from fedge.frames import Frame, read_frame
from fedge.seeds import words
from schemas.messages import Assignment
from schemas.packing import pack
from schemas.status import Role
from server_app.intake import MAX_HEADER_BYTES, max_body_bytes
from server_app.tables import metadata
from tests.support.http import (
    LAYOUT,
    TASK,
    Device,
    Refused,
    Serving,
    body_of,
    cohort,
    invited,
    plan,
    serving,
    update_path,
)


def corrupted(data: bytes, offset: int) -> bytes:
    """Return ``data`` with one bit flipped."""
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


def reframed(data: bytes, **changes: Any) -> bytes:
    """Return the frame in ``data`` with other fields and a checksum that fits them."""
    frame = read_frame(data)
    fields = {name: getattr(frame, name) for name in Frame.__slots__}
    return Frame(**{**fields, **changes}).to_bytes()


def of(frames: list[bytes], codec: int) -> bytes:
    """Return one frame that ``codec`` made."""
    return next(data for data in frames if read_frame(data).codec == codec)


def not_finite(frames: list[bytes]) -> bytes:
    """Return a float32 frame that holds a NaN."""
    raw = read_frame(of(frames, 0))
    values = np.frombuffer(raw.payload, np.float32).copy()
    values[1] = np.nan
    return Frame(raw.codec, raw.segment, raw.count, raw.bits, values.tobytes()).to_bytes()


def noise(count: int) -> bytes:
    """Return ``count`` bytes of nothing."""
    return words(3, count // 8 + 1).tobytes()[:count]


Make = Callable[[Device, Assignment, list[bytes]], bytes]

BODIES: dict[str, tuple[Make, int, str]] = {
    "no bytes": (lambda d, a, f: b"", 400, "packing"),
    "random bytes": (lambda d, a, f: noise(5000), 400, "packing"),
    "a header over its cap": (
        lambda d, a, f: (MAX_HEADER_BYTES + 1).to_bytes(4, "little") + bytes(9000),
        400,
        "packing",
    ),
    "a truncated header": (lambda d, a, f: body_of(d.header(f), [])[:-3], 400, "packing"),
    "a truncated map": (lambda d, a, f: b"\x06\0\0\0\x01\x83\xa6upda", 400, "packing"),
    "another version": (lambda d, a, f: b"\x02\0\0\0\x09\x80", 400, "packing"),
    "a header with a field missing": (lambda d, a, f: b"\x02\0\0\0\x01\x80", 422, "invalid"),
    "no examples": (lambda d, a, f: b"\x10\0\0\0" + pack(d.header(f)).replace(b"\x0a", b"\0")[:16], 400, "packing"),
    "random bytes after the header": (lambda d, a, f: body_of(d.header(f), [noise(5000)]), 422, "frame"),
    "a wrong checksum": (lambda d, a, f: body_of(d.header(f), [corrupted(f[0], 22)]), 422, "frame"),
    "a corrupt frame header": (lambda d, a, f: body_of(d.header(f), [corrupted(f[0], 9)]), 422, "frame"),
    "half a frame": (lambda d, a, f: body_of(d.header(f), [f[0][:-1]]), 422, "frame"),
    "a segment out of range": (lambda d, a, f: body_of(d.header(f), [reframed(f[0], segment=999)]), 422, "frame"),
    "a wrong count": (lambda d, a, f: body_of(d.header(f), [reframed(f[0], count=7)]), 422, "frame"),
    "more bits than asked for": (lambda d, a, f: body_of(d.header(f), [reframed(of(f, 1), bits=8.0)]), 422, "frame"),
    "the wrong codec": (lambda d, a, f: body_of(d.header(f), [reframed(of(f, 1), codec=0)]), 422, "frame"),
    "a codec that is none": (lambda d, a, f: body_of(d.header(f), [reframed(f[0], codec=77)]), 422, "frame"),
    "a payload of another length": (
        lambda d, a, f: body_of(d.header(f), [reframed(f[0], payload=read_frame(f[0]).payload + b"\0")]),
        422,
        "frame",
    ),
    "a NaN": (lambda d, a, f: body_of(d.header(f), [not_finite(f)]), 422, "payload"),
}


@dataclass
class Snapshot:
    """Everything an upload could change."""

    sums: bytes
    counts: list[int]
    segments: dict[str, tuple[int, ...]]
    rows: list[Any]

    @classmethod
    async def take(cls, server: Serving, ignored: tuple[str, ...] = ("devices",)) -> Snapshot:
        driver = server.service.context.federation.driver
        assert driver is not None and driver.book is not None
        book, rows = driver.book, []
        async with server.service.context.house.store.engine.connect() as connection:
            for table in metadata.sorted_tables:
                if table.name not in ignored:
                    rows += [tuple(row) for row in await connection.execute(sa.select(table))]
        segments = {name: book.ledger.segments(name) for name in book.ledger.deliveries}
        sums = book.sums
        return cls(
            sums.total.tobytes() + sums.weight.tobytes(),
            list(sums.count),
            segments,
            rows,
        )


async def refusal(ask: Awaitable[Any]) -> tuple[int, str]:
    """Return status and reason of a request that is to be refused."""
    with pytest.raises(Refused) as caught:
        await ask
    return caught.value.problem.status, caught.value.problem.reason


async def test_bodies_that_are_no_update_are_refused_counted_and_change_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        await server.start(uplink={"codec": "eden", "bits": 2.0})
        device, (asked, other) = devices[0], await invited(devices)
        await devices[1].upload(other, devices[1].frames(other)[:2])
        before, rejections = await Snapshot.take(server), server.service.context.rejections
        for name, (make, status, reason) in BODIES.items():
            count = rejections.by_reason[reason]
            answer = await refusal(device.put(asked, make(device, asked, device.frames(asked))))
            assert (name, *answer) == (name, status, reason)
            assert rejections.by_reason[reason] == count + 1, name
            assert await Snapshot.take(server) == before, name
        _, shown = await server.ask("GET", f"/v1/devices/{device.id}")
        assert shown["rejected"] == len(BODIES)
        assert shown["last_error"].startswith("payload: ")
        assert (await device.upload(asked)).is_complete


async def test_a_body_over_the_cap_is_refused_declared_or_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        await server.start()
        device, (asked, _) = devices[0], await invited(devices)
        frames = device.frames(asked)
        body = body_of(device.header(frames), frames * 40)
        assert len(body) > max_body_bytes(LAYOUT)

        async def in_pieces() -> Any:
            yield body

        assert await refusal(device.put(asked, body)) == (413, "too_large")
        await device.close()
        device.__post_init__()
        assert await refusal(device.put(asked, in_pieces())) == (413, "too_large")
        assert (await device.upload(asked)).is_complete


async def test_a_body_of_another_kind_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        await server.start()
        device, (asked, _) = devices[0], await invited(devices)
        body = body_of(device.header(device.frames(asked)), [])
        assert await refusal(device.put(asked, body, headers={"Content-Type": "text/plain"})) == (415, "media_type")
        assert await refusal(device.put(asked, body, headers={"Content-Encoding": "gzip"})) == (415, "media_type")


async def test_who_may_not_send_is_told_so_and_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices, server.devices("c") as (stranger,):
        run = await server.start()
        device, (asked, _) = devices[0], await invited(devices)
        before = await Snapshot.take(server)
        body = body_of(device.header(device.frames(asked)), device.frames(asked))
        assert await refusal(stranger.put(asked, body)) == (403, "not_invited")
        assert await refusal(stranger.download(asked)) == (403, "not_invited")
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer " + "x" * 43}, {"Authorization": "Basic abc"}):
            assert await refusal(device.put(asked, body, headers=headers)) == (401, "unauthorized")
        operator = {"Authorization": f"Bearer {server.tokens[Role.OPERATOR]}"}
        assert await refusal(device.put(asked, body, headers=operator)) == (401, "unauthorized")
        for path in (f"/v1/runs/{run}/rounds/9/updates/me", f"/v1/runs/{run}/rounds/x/updates/me"):
            assert await refusal(device.send("PUT", path, data=body)) == (404, "unknown_round")
        unknown = "/v1/runs/none-1/rounds/1/updates/me"
        assert await refusal(device.send("PUT", unknown, data=body)) == (404, "unknown_run")
        assert await Snapshot.take(server) == before


async def test_a_different_frame_or_update_of_a_device_is_a_conflict_and_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        await server.start()
        device, (asked, _) = devices[0], await invited(devices)
        frames = device.frames(asked)
        await device.upload(asked, frames[:3])
        before = await Snapshot.take(server)
        payload = read_frame(frames[0]).payload
        other = reframed(frames[0], payload=payload[:-1] + bytes([payload[-1] ^ 1]))
        assert await refusal(device.upload(asked, [other])) == (409, "conflict")
        another = device.header(frames, update="ab" * 16)
        assert await refusal(device.upload(asked, frames, another)) == (409, "conflict")
        assert await Snapshot.take(server) == before
        with pytest.raises(Refused) as caught:
            await device.upload(asked, [frames[3], other, frames[4]])
        held = sorted(read_frame(data).segment for data in frames[:4])
        assert caught.value.problem.detail.endswith(f"segments accepted so far: {held}")


async def test_a_round_that_is_over_takes_nothing_more(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b", "c") as devices:
        run = await server.start(rounds=1, cohort=cohort(3, least=2))
        asked = await invited(devices)
        for device, one in list(zip(devices, asked, strict=True))[:2]:
            await device.upload(one)
        await server.until_over(run)
        late = devices[2]
        assert await refusal(late.upload(asked[2])) == (410, "round_over")
        assert await refusal(late.download(asked[2])) == (410, "round_over")
        receipt = await late.receipt(asked[2])
        assert (receipt.outcome, receipt.applied) == ("late", ())
        assert await late.receipt(asked[2]) == receipt
        status = await late.update_status(asked[2])
        assert (status.segments, status.is_open) == ((), False)


async def test_a_plan_with_mistakes_names_each_of_them(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        status, body = await server.ask("POST", "/v1/runs", json=plan(round=3, rounds=0))
        assert (status, body["reason"]) == (422, "invalid")
        assert {fault["key"] for fault in body["faults"]} == {"round", "rounds"}
        toml = {
            "data": b'task = "tests.support.tiny_tsk:task"\nrounds = 1',
            "headers": {"Content-Type": "application/toml"},
        }
        status, body = await server.ask("POST", "/v1/runs", **toml)
        assert (status, body["reason"]) == (422, "unknown_name")
        assert TASK in body["detail"]
        status, _ = await server.ask("POST", "/v1/runs", data=b"{", headers={"Content-Type": "application/json"})
        assert status == 422


async def test_tokens_allow_what_their_role_says(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        status, made = await server.ask("POST", "/v1/tokens", json={"role": "viewer", "note": "wall screen"})
        assert status == 201
        viewer = made["token"]
        assert (await server.ask("GET", "/v1/status", viewer))[0] == 200
        assert (await server.ask("POST", "/v1/runs", viewer, json=plan()))[0] == 403
        assert (await server.ask("GET", "/v1/status", server.tokens[Role.ENROLL]))[0] == 403
        assert (await server.ask("GET", "/v1/status", "x" * 43))[0] == 401
        async with server.session.get(server.url + "/v1/status") as answer:
            assert (answer.status, answer.content_type) == (401, "application/problem+json")
        stranger = server.device("s")
        stranger.token = viewer
        assert await refusal(stranger.enroll()) == (403, "forbidden")
        stranger.token = None
        assert await refusal(stranger.enroll()) == (401, "unauthorized")
        await stranger.close()
        database = (tmp_path / "fedge.sqlite").read_bytes() + (tmp_path / "fedge.sqlite-wal").read_bytes()
        assert viewer.encode() not in database


async def test_bytes_that_are_no_http_do_not_disturb_the_others(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.devices("a", "b") as devices:
        await server.start()
        asked = (await invited(devices))[0]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.service.port)
        writer.write(noise(4000) + b"\r\n\r\n")
        await writer.drain()
        assert (await reader.read(12)).startswith(b"HTTP/1.")
        writer.close()
        assert (await devices[0].upload(asked)).is_complete
        assert update_path(asked).endswith("/updates/me")
