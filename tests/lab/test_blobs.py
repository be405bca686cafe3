"""Uploads to a simulated host."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientConnectionError, ClientSession

from sollol_proxy.lab.simhost import SimHost, SimSpec

MIB = 2**20
PIECE = b"x" * MIB
SMALL = b"x" * 1000
LARGE = b"x" * (256 * 1024 + 1)


@pytest.fixture
async def host() -> AsyncIterator[SimHost]:
    async with SimHost(SimSpec(id="h")) as started:
        yield started


@pytest.fixture
async def session(host: SimHost) -> AsyncIterator[ClientSession]:
    async with ClientSession(host.url) as opened:
        yield opened


def path_of(data: bytes) -> str:
    return f"/api/blobs/sha256:{hashlib.sha256(data).hexdigest()}"


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield PIECE


async def test_large_upload_costs_no_memory(host: SimHost, session: ClientSession) -> None:
    count = 64
    sha256 = hashlib.sha256()
    for _ in range(count):
        sha256.update(PIECE)
    tracemalloc.start()
    try:
        path = f"/api/blobs/sha256:{sha256.hexdigest()}"
        async with session.post(path, data=pieces(count)) as answer:
            assert (answer.status, await answer.read()) == (201, b"")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * MIB
    assert host.disk.blobs[f"sha256:{sha256.hexdigest()}"] == count * MIB
    assert (host.stats.manage.blobs_stored, host.stats.manage.blob_bytes) == (1, count * MIB)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize(("data", "closes"), [(SMALL, False), (LARGE, True)])
async def test_upload_of_what_is_there_is_answered_early(
    host: SimHost, data: bytes, closes: bool, chunked: bool
) -> None:
    """The last byte of the body is never sent: the answer does not wait for it where it closes."""
    digest = path_of(data).rpartition("/")[2]
    host.disk.add_blob(digest, len(data))
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    try:
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(data)}"
        writer.write(f"POST {path_of(data)} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
        if chunked:
            writer.write(b"%x\r\n%b\r\n" % (len(data), data) + (b"" if closes else b"0\r\n\r\n"))
        elif not closes:
            writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 200 OK\r\n")
        assert ("Connection: close" in head) is closes
        if closes:
            assert await reader.read() == b""
        else:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    finally:
        writer.close()
    assert host.stats.manage.blob_bytes == 0


async def test_upload_that_waits_for_leave_gets_the_answer_instead_when_it_is_there(
    host: SimHost,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
    host.disk.add_blob(path_of(SMALL).rpartition("/")[2], len(SMALL))
    head = f"POST {path_of(SMALL)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(SMALL)}\r\n"
    try:
        writer.write(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.read() == b""
    finally:
        writer.close()


async def test_upload_under_a_wrong_name_is_kept_under_the_right_one(
    host: SimHost, session: ClientSession
) -> None:
    async with session.post(path_of(SMALL), data=b"other") as answer:
        assert answer.status == 400
    async with session.head(path_of(b"other")) as answer:
        assert answer.status == 200
    async with session.head(path_of(SMALL)) as answer:
        assert answer.status == 404
    assert host.stats.manage.blobs_stored == 1


async def test_upload_whose_client_leaves_is_not_kept(host: SimHost) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", host.port)
    head = f"POST {path_of(SMALL)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(SMALL)}\r\n\r\n"
    before = dict(host.disk.blobs)
    writer.write(head.encode() + SMALL[:10])
    await host.until(lambda stats: stats.manage.blob_bytes == 10)
    writer.close()
    await writer.wait_closed()
    async with ClientSession(host.url) as session, session.head(path_of(SMALL[:10])) as answer:
        assert answer.status == 404
    assert dict(host.disk.blobs) == before


async def test_upload_is_cut_midway(host: SimHost, session: ClientSession) -> None:
    host.fault("cut", path="/api/blobs", after_bytes=MIB, count=1)
    with pytest.raises(ClientConnectionError):
        await session.post(path_of(PIECE), data=pieces(64))
    assert MIB <= host.stats.manage.blob_bytes < 64 * MIB
    assert host.stats.manage.blobs_stored == 0


async def test_upload_is_read_no_further_when_the_host_hangs(
    host: SimHost, session: ClientSession
) -> None:
    host.fault("hang", path="/api/blobs", after_bytes=MIB, count=1)
    sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(256):
            sent += MIB
            yield PIECE

    upload = asyncio.get_running_loop().create_task(session.post(path_of(PIECE), data=counted()))
    await host.until(lambda stats: stats.manage.blob_bytes >= MIB)
    async with session.get("/api/version") as answer:
        assert answer.status == 200
    assert not upload.done()
    upload.cancel()
    assert sent < 256 * MIB


@pytest.mark.parametrize(("kind", "status"), [("status", 507), ("error_record", 500)])
async def test_upload_is_refused_before_or_after_its_body(
    host: SimHost, session: ClientSession, kind: str, status: int
) -> None:
    host.fault(kind, path="/api/blobs", status=507, message="no space left on device", count=1)
    async with session.post(path_of(SMALL), data=SMALL) as answer:
        assert (answer.status, await answer.json()) == (
            status,
            {"error": "no space left on device"},
        )
    assert host.stats.manage.blob_bytes == (0 if kind == "status" else len(SMALL))
    assert host.stats.manage.blobs_stored == 0
