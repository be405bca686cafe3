"""The other way to a host, aiohttp's client: what a client gets is the same."""

from __future__ import annotations

import asyncio
import json

import pytest

from sollol_proxy.core.types import Outcome
from sollol_proxy.server.upstreams import Upstreams
from tests.server.scripted import Call, json_answer, read_chunks, through

ASK = json.dumps({"model": "m", "prompt": "hi"}).encode()
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nX-Odd: \xe9\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
RECORD = b'{"model":"m","response":"a","done":false}\n'
LAST = b'{"model":"m","response":"","done":true,"eval_count":1}\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture(autouse=True)
def _by_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Upstreams, "direct", lambda *_: None)


async def test_stream_is_passed_on_to_its_end() -> None:
    async def script(call: Call) -> None:
        await call.send(CHUNKED, chunk(RECORD), chunk(LAST), b"0\r\n\r\n")

    async with through(script) as (_, proxy, client):
        for _ in range(2):
            client.ask("/api/generate", ASK)
            assert b"\r\nX-Odd: \xe9\r\n" in await client.head()
            assert await read_chunks(client.reader) == RECORD + LAST
        await proxy.until_idle()
        [record] = proxy.services.journal.latest(1)
        assert record.outcome is Outcome.COMPLETED


async def test_short_answer_keeps_its_length() -> None:
    async def script(call: Call) -> None:
        await call.send(json_answer({"size": len(call.body)}))

    async with through(script) as (_, _, client):
        client.ask("/api/other", b"x" * 2**20, method="POST")
        assert b"\r\nContent-Length: 17\r\n" in await client.head()
        assert json.loads(await client.reader.readexactly(17)) == {"size": 2**20}


async def test_stream_that_breaks_ends_in_an_error_record() -> None:
    async def script(call: Call) -> None:
        await call.send(CHUNKED, chunk(RECORD))
        await taken.wait()
        call.writer.close()

    taken = asyncio.Event()
    async with through(script) as (_, _, client):
        client.ask("/api/generate", ASK)
        await client.head()
        assert await client.reader.readexactly(len(chunk(RECORD))) == chunk(RECORD)
        taken.set()
        assert "error" in json.loads(await read_chunks(client.reader))


async def test_host_without_an_answer_is_a_failed_attempt() -> None:
    async def script(call: Call) -> None:
        call.writer.close()

    async with through(script) as (_, _, client):
        client.ask("/api/other", b"{}")
        assert (await client.head()).startswith(b"HTTP/1.1 502 ")


async def test_host_learns_that_the_client_has_left() -> None:
    async def script(call: Call) -> None:
        asked.set()
        await call.until_left()

    asked = asyncio.Event()
    async with through(script) as (host, proxy, client):
        client.ask("/api/generate", ASK)
        await asked.wait()
        client.writer.transport.abort()
        async with asyncio.timeout(30):
            await host.calls[0].left.wait()
        await proxy.until_idle()
