"""What hosts send, byte by byte, and what a client gets of it; hosts that misbehave included."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from itertools import pairwise
from random import Random

import pytest

from sollol_proxy.core.types import Outcome
from sollol_proxy.server.connection import MAX_HEADER_BYTES
from sollol_proxy.server.connections import HostConnections, socket_that_notices
from tests.server.scripted import Call, ScriptedHost, connected, json_answer, read_chunks, through
from tests.support import make_config, running_proxy

BODY = json.dumps({"model": "m", "prompt": "hi"}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
RECORD = b'{"model":"m","response":"a","done":false}\n'
LAST = b'{"model":"m","response":"","done":true,"eval_count":2}\n'
ASK = "/api/generate"


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


STREAM = chunk(RECORD) + chunk(RECORD) + chunk(LAST) + b"0\r\n\r\n"


def fields_of(head: bytes) -> list[bytes]:
    return head.split(b"\r\n")[1:-2]


async def test_chunks_reach_the_client_as_the_host_cut_them() -> None:
    async def script(call: Call) -> None:
        for piece in pieces:
            await call.send(piece)
            await taken.acquire()

    pieces = [CHUNKED + chunk(RECORD), chunk(RECORD), chunk(RECORD) + chunk(LAST), b"0\r\n\r\n"]
    taken = asyncio.Semaphore(0)
    async with through(script) as (_, proxy, client):
        client.ask(ASK, BODY)
        head = await client.head()
        assert b"Transfer-Encoding: chunked" in fields_of(head)
        for piece in (chunk(RECORD), *pieces[1:]):
            assert await client.reader.readexactly(len(piece)) == piece
            taken.release()
        await proxy.until_idle()
        [record] = proxy.services.journal.latest(1)
        assert (record.outcome, record.body_bytes_out) == (
            Outcome.COMPLETED,
            len(RECORD * 3 + LAST),
        )
        client.ask("/api/version")
        assert b"200" in await client.head()


@pytest.mark.parametrize("seed", range(6))
async def test_stream_is_the_same_and_counted_however_its_chunks_come(seed: int) -> None:
    rng = Random(seed)
    texts = [
        b'{"model":"m","response":"%d","done":false}\n' % n * rng.choice((1, 1, 1, 3))
        for n in range(150)
    ]
    framed = b"".join(map(chunk, texts))
    sent = CHUNKED + framed + chunk(LAST) + b"0\r\n\r\n"
    cuts = [len(CHUNKED)]
    for text in texts:  # most chunks come alone, some in two parts, some with others
        cuts.append(cuts[-1] + len(chunk(text)))
    kept = [at for at in cuts if rng.random() < 0.8] + rng.sample(
        range(len(CHUNKED) + 1, len(sent)), 20
    )
    bounds = sorted({0, *kept, len(sent)})
    pieces = [sent[a:b] for a, b in pairwise(bounds)]

    async def script(call: Call) -> None:
        for piece in pieces:
            await call.send(piece)
            await taken.acquire()

    taken = asyncio.Semaphore(0)
    async with through(script) as (_, proxy, client):
        client.ask(ASK, BODY)
        for _ in pieces:
            taken.release()
        assert b"chunked" in await client.head()
        assert await read_chunks(client.reader) == b"".join([*texts, LAST])
        await proxy.until_idle()
        [record] = proxy.services.journal.latest(1)
        assert record.outcome is Outcome.COMPLETED
        assert record.body_bytes_out == sum(map(len, texts)) + len(LAST)
        assert record.observation is not None
        assert record.observation.output_tokens == 2


async def test_answer_that_comes_byte_by_byte_is_the_same() -> None:
    answer = (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        + CHUNKED
        + chunk(RECORD, b";a=b")
        + chunk(LAST)
        + b"0;z\r\nX-Sum: 1\r\n\r\n"
    )

    async def script(call: Call) -> None:
        await call.send(*(answer[i : i + 1] for i in range(len(answer))))

    async with through(script) as (host, _, client):
        for _ in range(2):
            client.ask(ASK, BODY)
            assert (await client.head()).startswith(b"HTTP/1.1 200 OK\r\n")
            assert await read_chunks(client.reader) == RECORD + LAST
        assert host.connections == 1


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_status_without_a_body_has_none_and_the_connection_stays(status: str) -> None:
    async def script(call: Call) -> None:
        await call.send(f"HTTP/1.1 {status}\r\nX-A: b\r\n\r\n".encode())

    async with through(script) as (host, _, client):
        for _ in range(2):
            client.ask("/api/other")
            head = await client.head()
            assert head.startswith(f"HTTP/1.1 {status}\r\n".encode())
            assert b"X-A: b" in fields_of(head)
        assert host.connections == 1


async def test_answer_to_head_keeps_its_length_and_has_no_body() -> None:
    async def script(call: Call) -> None:
        assert call.method == "HEAD"
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")

    async with through(script) as (host, _, client):
        for _ in range(2):
            client.ask("/api/other", method="HEAD")
            assert b"Content-Length: 99" in fields_of(await client.head())
        assert host.connections == 1


async def test_body_that_ends_with_the_connection_is_complete_for_the_client() -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD + b"\r\n", RECORD, LAST)
        call.writer.close()

    async with through(script) as (_, proxy, client):
        client.ask(ASK, BODY)
        await client.head()
        assert await read_chunks(client.reader) == RECORD + LAST
        await proxy.until_idle()
        [record] = proxy.services.journal.latest(1)
        assert record.outcome is Outcome.COMPLETED


async def test_body_whose_connection_is_reset_is_not() -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD + b"\r\n", RECORD)
        raw = call.writer.get_extra_info("socket")
        await taken.wait()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        call.writer.transport.abort()

    taken = asyncio.Event()
    async with through(script) as (_, _, client):
        client.ask(ASK, BODY)
        await client.head()
        assert await client.reader.readexactly(len(chunk(RECORD))) == chunk(RECORD)
        taken.set()
        assert "error" in json.loads(await read_chunks(client.reader))


async def test_length_beside_chunks_does_not_reach_the_client() -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + STREAM)

    async with through(script) as (host, _, client):
        for _ in range(2):
            client.ask(ASK, BODY)
            assert not [f for f in fields_of(await client.head()) if b"ontent-Length" in f]
            assert await read_chunks(client.reader) == RECORD * 2 + LAST
        assert host.connections == 2


async def test_http_10_client_gets_no_chunks() -> None:
    async def script(call: Call) -> None:
        await call.send(CHUNKED, STREAM)

    async with through(script) as (_, _, client):
        client.ask(ASK, BODY, version="1.0")
        assert (await client.head()).startswith(b"HTTP/1.0 200 OK\r\n")
        assert await client.rest() == RECORD * 2 + LAST


async def test_header_values_come_out_byte_by_byte() -> None:
    async def script(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 Fine \xe9\r\nX-Odd: \xe9\xc3\xa9\r\nX-Odd: 2\r\nx-lower: y\r\n"
            b"Connection: x-hop\r\nX-Hop: 1\r\nContent-Length: 2\r\n\r\n{}"
        )

    async with through(script) as (_, _, client):
        client.ask("/api/other")
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 200 Fine \xe9\r\nX-Odd: \xe9\xc3\xa9\r\nX-Odd: 2\r\n")
        assert b"x-lower: y" in fields_of(head)
        assert not [field for field in fields_of(head) if field.lower().startswith(b"x-hop")]


# --- hosts that break off, or lie -----------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        CHUNKED,
        CHUNKED + b"5\r\n",
        HEAD + b"Content-Length: 9\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        CHUNKED + b"0x5\r\nabcde\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (MAX_HEADER_BYTES + 2**17) + b"\r\n\r\n",
    ],
    ids=range(10),
)
async def test_host_without_a_first_byte_is_a_failed_attempt(answer: bytes) -> None:
    async def script(call: Call) -> None:
        await call.send(answer)
        call.writer.close()

    async with through(script) as (_, proxy, client):
        client.ask("/api/other")
        assert (await client.head()).startswith(b"HTTP/1.1 502 ")
        await proxy.until_idle()
        [record] = proxy.services.journal.latest(1)
        assert record.outcome is Outcome.UPSTREAM_FAILED


BREAKS = {
    "cut": b"",
    "cut in a size": b"2",
    "cut behind a size": b"2a\r\n",
    "cut before the last line end": b"0\r\n",
    "no size": b"zz\r\n",
    "an endless size": b"5;" + b"x" * 2**15,
}


@pytest.mark.parametrize("after", BREAKS.values(), ids=BREAKS)
async def test_stream_that_breaks_behind_a_record_ends_in_an_error_record(after: bytes) -> None:
    async def script(call: Call) -> None:
        await call.send(CHUNKED + chunk(RECORD))
        await taken.wait()
        await call.send(after)
        call.writer.close()

    taken = asyncio.Event()
    async with through(script) as (_, proxy, client):
        client.ask(ASK, BODY)
        await client.head()
        await client.reader.readexactly(len(chunk(RECORD)))
        taken.set()
        assert "error" in json.loads(await read_chunks(client.reader))
        await proxy.until_idle()
        [record] = proxy.services.journal.latest(1)
        assert record.outcome is Outcome.UPSTREAM_BROKE


@pytest.mark.parametrize(
    "answer",
    [
        (CHUNKED + chunk(RECORD), b"2a\r\n" + RECORD[:9]),
        (CHUNKED + chunk(RECORD + RECORD[:9]), b""),
        (HEAD + b"Content-Length: 999\r\n\r\n" + RECORD, b""),
    ],
    ids=["within a chunk", "within a record", "before its length"],
)
async def test_stream_that_breaks_within_a_record_is_cut(answer: tuple[bytes, bytes]) -> None:
    async def script(call: Call) -> None:
        await call.send(answer[0])
        await taken.wait()
        await call.send(answer[1])
        call.writer.close()

    taken = asyncio.Event()
    async with through(script) as (_, _, client):
        client.ask(ASK, BODY)
        await client.head()
        await client.reader.readuntil(RECORD)
        taken.set()
        try:
            rest = await client.rest()
        except ConnectionResetError:
            return
        assert not rest.endswith(b"0\r\n\r\n")
        assert b"error" not in rest


async def test_bytes_behind_an_answer_are_never_taken_for_the_next_one() -> None:
    async def script(call: Call) -> None:
        await call.send(json_answer({"n": len(host.calls)}) + json_answer({"n": "stale"}))

    async with through(script) as (host, _, client):
        for number in (1, 2, 3):
            client.ask("/api/other")
            await client.head()
            assert json.loads(await client.reader.readuntil(b"}")) == {"n": number}
        assert host.connections == 3


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("GET", "/api/other", 3, b"200"),
        ("HEAD", "/api/other", 3, b"200"),
        ("DELETE", "/api/other", 2, b"502"),
        ("POST", "/api/other", 2, b"502"),
    ],
)
async def test_only_what_is_safe_is_sent_again_when_an_idle_connection_is_gone(
    method: str, path: str, sent: int, status: bytes
) -> None:
    async def script(call: Call) -> None:
        if len(host.calls) == 2:
            call.writer.close()  # as a host does that ends idle connections, at this very moment
        else:
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with through(script) as (host, _, client):
        client.ask(path, method=method)
        assert b" 200 " in await client.head()
        client.ask(path, method=method)
        assert (await client.head()).split(b" ")[1] == status
        assert len(host.calls) == sent


# --- bodies of requests ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2**10, 2**22])
async def test_host_may_answer_before_it_has_read_the_body(size: int) -> None:
    async def script(call: Call) -> None:
        await call.send(json_answer({"error": "too large"}, "413 Too Large"))
        await told.wait()
        call.writer.close()

    told = asyncio.Event()
    async with through(script, reads_bodies=False) as (_, proxy, client):
        body = BODY[:-1] + b',"x":"' + b"x" * size + b'"}'
        client.ask("/api/other", body, method="POST")
        assert (await client.head()).startswith(b"HTTP/1.1 413 Too Large\r\n")
        assert await client.reader.readuntil(b"}") == b'{"error": "too large"}'
        told.set()
        await proxy.until_idle()


async def test_large_body_of_a_passed_request_flows_in_chunks() -> None:
    async def script(call: Call) -> None:
        await call.send(json_answer({"size": len(call.body)}))

    async with through(script) as (host, _, client):
        client.ask("/api/other", b"x" * 2**22, method="POST")
        await client.head()
        assert json.loads(await client.reader.readuntil(b"}")) == {"size": 2**22}
        assert b"Transfer-Encoding: chunked" in fields_of(host.calls[0].head)


async def test_body_that_breaks_its_framing_while_it_flows_is_the_clients_fault() -> None:
    async def script(call: Call) -> None:
        asked.set()
        await call.until_left()

    asked = asyncio.Event()
    async with through(script, reads_bodies=False) as (_, proxy, client):
        client.writer.write(
            b"POST /api/other HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunk(b"x" * 2**17)
        )
        await asked.wait()
        client.writer.write(b"zz\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 400 ")
        snapshot = await proxy.until_idle()
        assert snapshot.hosts[0].failures == 0


# --- who leaves, and who is slow ------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
async def test_host_learns_at_once_that_the_client_has_left(begun: bool) -> None:
    async def script(call: Call) -> None:
        if begun:
            await call.send(CHUNKED + chunk(RECORD))
        asked.set()
        await call.until_left()
        left.set()

    asked, left = asyncio.Event(), asyncio.Event()
    async with through(script) as (_, proxy, client):
        client.ask(ASK, BODY)
        await asked.wait()
        if begun:
            await client.head()
        client.writer.transport.abort()
        async with asyncio.timeout(30):
            await left.wait()
        await proxy.until_idle()


async def test_client_that_does_not_read_stops_its_host_and_loses_nothing() -> None:
    piece = chunk(RECORD * 50)
    count = 8000

    async def script(call: Call) -> None:
        await call.send(CHUNKED)
        for _ in range(count):
            await call.send(piece)
            sent.append(len(piece))
        await call.send(chunk(LAST) + b"0\r\n\r\n")

    sent: list[int] = []
    async with through(script) as (_, _, client):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.ask(ASK, BODY)
        before = -1
        async with asyncio.timeout(30):
            while before != len(sent) or not sent:
                before = len(sent)
                # A round of the loop for each hop between the host and the client's kernel.
                for _ in range(200):
                    await asyncio.sleep(0)
        assert len(sent) < count
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await client.head()
        assert await read_chunks(client.reader) == RECORD * 50 * count + LAST


# --- the connections themselves -------------------------------------------------------------------


async def test_idle_connections_end_with_their_time_and_with_the_proxy() -> None:
    async def script(call: Call) -> None:
        await call.send(json_answer({}))

    async with ScriptedHost(script) as host:
        loop = asyncio.get_running_loop()
        connections = HostConnections(host.url, 2.0, loop.time, idle_s=0.001)
        made = await connections.new()
        made.send("GET", b"GET /x HTTP/1.1\r\n\r\n", b"")
        await made.answer()
        assert made.taken() == b"{}"
        connections.give_back(made)
        await host.calls[0].left.wait()
        assert connections.idle() is None
        connections.close()


async def test_idle_connection_is_used_again_and_closed_with_the_proxy() -> None:
    async def script(call: Call) -> None:
        await call.send(json_answer({}))

    async with ScriptedHost(script) as host:
        async with running_proxy(make_config(host.url)) as proxy:
            for _ in range(3):
                async with connected(proxy) as client:
                    client.ask("/api/other")
                    await client.head()
                    await client.reader.readexactly(2)
                await proxy.until_idle()
        assert host.connections == 1
        async with asyncio.timeout(30):
            await host.calls[0].left.wait()


async def test_sockets_to_hosts_notice_a_silent_peer() -> None:
    with socket_that_notices((socket.AF_INET, socket.SOCK_STREAM, 0, "", ())) as made:
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no-such-name.invalid:1"])
async def test_connection_that_cannot_be_made_is_an_error_with_words(url: str) -> None:
    connections = HostConnections(url, 5.0, asyncio.get_running_loop().time)
    with pytest.raises(OSError, match=r"."):
        await connections.new()
