"""Corners of HTTP towards clients, byte by byte over raw sockets, compared with what Go does."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from sollol_proxy.core.types import JobKind, Outcome
from sollol_proxy.lab.simhost import SimSpec
from sollol_proxy.ollama.routes import ROUTES, allowed_methods
from sollol_proxy.server.connection import MAX_HEADER_BYTES
from sollol_proxy.server.protocol import MAX_HEADERS
from tests.server.pool import pool, sim
from tests.support import RunningProxy, make_config, running_proxy
from tests.wire.recordings import http_exchanges
from tests.wire.replay import ReplayHost, SeenRequest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BODY = json.dumps({"model": "llama3", "prompt": "hi", "options": {"num_predict": 3}}).encode()
WHOLE = json.dumps({**json.loads(BODY), "stream": False}).encode()
VERSION = b'{"version":"0.33.0"}'

# Go's words, status line and body alike; recorded from Ollama: see `no-host`.
REFUSED = b"HTTP/1.1 %b\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n%b"


def refused(text: bytes) -> bytes:
    return REFUSED % (text, text)


def request(
    target: str,
    body: bytes | None = None,
    *headers: str,
    method: str = "",
    version: str = "1.1",
    framed: bool = True,
) -> bytes:
    """A request with a Host; `framed` = with the length of its body."""
    lines = [f"{method or ('GET' if body is None else 'POST')} {target} HTTP/{version}"]
    lines += ["Host: localhost", *headers]
    if body is not None and framed:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunked(*chunks: bytes, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    sized = b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in chunks)
    return sized + b"0\r\n" + trailers + b"\r\n"


@dataclass(frozen=True)
class Answer:
    version: str
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    async def answer(self, *, head_only: bool = False) -> Answer:
        """The next answer, `100 Continue` included."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        start, *lines = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        version, status = start.split(" ")[:2]
        has_body = not head_only and int(status) >= 200 and int(status) != 204
        body = await self._body(headers) if has_body else b""
        return Answer(version, int(status), headers, body)

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            parts: list[bytes] = []
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                parts.append((await self.reader.readexactly(size + 2))[:-2])
            await self.reader.readuntil(b"\r\n")
            return b"".join(parts)
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        return await self.reader.read()

    async def rest(self) -> bytes:
        """All that comes until the connection ends."""
        return await self.reader.read()

    async def is_open(self) -> bool:
        """Whether another request on it is answered."""
        self.send(request("/api/version"))
        try:
            return (await self.answer()).body == VERSION
        except (asyncio.IncompleteReadError, ConnectionError):
            return False


@asynccontextmanager
async def wire(proxy: RunningProxy) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


class RoomyHost(ReplayHost):
    """A host that takes heads of Go's size."""

    async def __aenter__(self) -> RoomyHost:
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", 0, limit=4 * MAX_HEADER_BYTES
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self


@asynccontextmanager
async def through_roomy_host() -> AsyncIterator[tuple[RoomyHost, RunningProxy]]:
    async with RoomyHost(http_exchanges().values()) as host:
        host.tags = json.loads(http_exchanges()["tags-many"].answer)
        async with running_proxy(make_config(host.url)) as proxy:
            yield host, proxy


def slow(*, prefill_tps: float = 1e6) -> SimSpec:
    return sim("a", time_scale=1.0, decode_tps=5.0, prefill_tps=prefill_tps)


# --- what cannot be parsed --------------------------------------------------------------------


async def test_missing_host_header_is_refused_in_the_recorded_words() -> None:
    recorded = http_exchanges()["no-host"]
    async with pool(sim("a")) as p, wire(p.proxy) as client:
        client.send(b"GET /api/version HTTP/1.1\r\n\r\n")
        text = await client.rest()
    head, _, body = text.partition(b"\r\n\r\n")
    start, *lines = head.decode().split("\r\n")
    assert start == f"{recorded.http_version} {recorded.status} {recorded.reason}"
    assert [tuple(line.split(": ", 1)) for line in lines] == list(recorded.answer_headers)
    assert body == recorded.answer


MALFORMED = {
    "no request": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown version": request("/api/version", version="3.0"),
    "unknown method": request("/api/version", method="BREW"),
    "blank in the target": request("/api/ver sion"),
    "byte in the target": request("/api/\xff"),
    "blank in a name": request("/api/version", None, "Bad Name: x"),
    "line without a name": request("/api/version", None, ": x"),
    "zero byte": request("/api/version", None, "X: a\0b"),
    "two hosts": request("/api/version", None, "Host: other"),
    "negative length": request("/api/chat", None, "Content-Length: -1", method="POST"),
    "two lengths": request("/api/chat", b"", "Content-Length: 7"),
    "length and chunks": request("/api/chat", b"", "Transfer-Encoding: chunked"),
    "chunk of a wrong size": request(
        "/api/chat", b"zz\r\n", "Transfer-Encoding: chunked", framed=False
    ),
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_request_is_refused_as_go_does(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool(sim("a")) as p:
        async with wire(p.proxy) as client:
            client.send(sent)
            assert await client.rest() == refused(b"400 Bad Request")
        async with wire(p.proxy) as client:
            assert await client.is_open()
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_malformed_request_is_refused_after_the_answer_that_is_under_way() -> None:
    async with pool(sim("a")) as p, wire(p.proxy) as client:
        client.send(request("/api/generate", BODY))
        await p.hosts["a"].until(lambda stats: stats.requests.get("/api/generate", 0) == 1)
        client.send(b"hello\r\n\r\n")
        answer = await client.answer()
        assert answer.body.endswith(b"}\n")
        assert await client.rest() == refused(b"400 Bad Request")


@pytest.mark.parametrize("path", ["/api/generate", "/v1/messages"])
@pytest.mark.parametrize("broken", [b"zz\r\n", b"3\r\nabcdef\r\n", b"-1\r\n"])
async def test_body_that_breaks_its_framing_is_answered_at_once(path: str, broken: bytes) -> None:
    async with pool(sim("a")) as p, wire(p.proxy) as client:
        client.send(
            request(path, b"", "Transfer-Encoding: chunked", "Expect: 100-continue", framed=False)
        )
        # The error has to come while the request waits for its body, not with its head.
        assert (await client.answer()).status == 100
        client.send(b"5\r\n{    \r\n", broken)
        answer = await client.answer()
        assert answer.status == 400
        assert "framing" in json.dumps(json.loads(answer.body)["error"])
        assert await client.rest() == b""
        [record] = p.proxy.services.journal.latest(1)
        assert record.outcome is Outcome.REJECTED_BAD_REQUEST


# --- long heads -------------------------------------------------------------------------------

ROOM = 2**12
"""Bytes that the rest of a head may take."""


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        ("/api/tags/?a=" + "x" * (MAX_HEADER_BYTES - ROOM), []),
        ("/api/tags/", ["X-Long: " + "x" * (MAX_HEADER_BYTES - ROOM)]),
        ("/api/tags/", [f"X-{n}: {'x' * 90}" for n in range(10_000)]),
    ],
    ids=["target", "field", "fields"],
)
async def test_head_of_nearly_a_mebibyte_reaches_the_host_whole(
    target: str, lines: list[str]
) -> None:
    async with through_roomy_host() as (host, proxy), wire(proxy) as client:
        client.send(request(target, None, *lines))
        # The host knows no such target; that it was asked is the point.
        assert (await client.answer()).status == 501
        [seen] = [each for each in host.seen if each.path == target]
        assert [f"{n}: {v}" for n, v in seen.headers if n.startswith("X-")] == lines
        assert await client.is_open()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /?" + b"x" * (MAX_HEADER_BYTES + 1),
        b"GET / HTTP/1.1\r\nX: " + b"x" * (MAX_HEADER_BYTES + 1),
        b"GET / HTTP/1.1\r\n" + b"X: %b\r\n" % (b"x" * 996) * (MAX_HEADER_BYTES // 1000 + 1000),
    ],
    ids=["target", "field", "fields"],
)
async def test_head_beyond_a_mebibyte_is_refused(sent: bytes) -> None:
    async with pool(sim("a")) as p:
        async with wire(p.proxy) as client:
            client.send(sent)
            try:
                text = await client.rest()
            except ConnectionResetError:
                text = b""  # the kernel's word for bytes that nobody reads any more
            assert text in (b"", refused(b"431 Request Header Fields Too Large"))
        async with wire(p.proxy) as client:
            assert await client.is_open()


async def test_head_is_bounded_behind_a_request_that_runs() -> None:
    async with pool(slow()) as p, wire(p.proxy) as client:
        client.send(request("/api/generate", BODY))
        await client.reader.readuntil(b"\n")
        client.send(b"GET / HTTP/1.1\r\n" + b"X: %b\r\n" % (b"x" * 996) * 3000)
        await p.hosts["a"].until(lambda stats: stats.cancelled == 1)
        await p.proxy.until_idle()


async def test_body_may_be_longer_than_a_head() -> None:
    async with pool(sim("a")) as p, wire(p.proxy) as client:
        long = json.dumps({**json.loads(WHOLE), "prompt": "x" * 3 * MAX_HEADER_BYTES}).encode()
        for _ in range(2):
            client.send(request("/api/generate", long))
            assert (await client.answer()).status == 200


async def test_lines_of_a_head_are_bounded() -> None:
    async with pool(sim("a")) as p, wire(p.proxy) as client:
        client.send(request("/", None, *["X: y"] * (MAX_HEADERS + 1)))
        assert await client.rest() == refused(b"400 Bad Request")


# --- versions, pipelines, methods -------------------------------------------------------------


@pytest.mark.parametrize("keep_alive", [False, True])
async def test_stream_for_http_10_is_not_chunked_and_ends_with_the_connection(
    keep_alive: bool,
) -> None:
    lines = ["Connection: keep-alive"] if keep_alive else []
    async with pool(sim("a")) as p, wire(p.proxy) as client:
        client.send(request("/api/generate", BODY, *lines, version="1.0"))
        answer = await client.answer()
        assert (answer.version, answer.status) == ("HTTP/1.0", 200)
        assert not {"transfer-encoding", "content-length"} & answer.headers.keys()
        records = [json.loads(line) for line in answer.body.splitlines()]
        assert [record["done"] for record in records] == [False, False, False, True]


async def test_short_answer_for_http_10_keeps_the_connection_if_asked() -> None:
    async with pool(sim("a")) as p:
        async with wire(p.proxy) as client:
            for _ in range(2):
                client.send(
                    request("/api/generate", WHOLE, "Connection: keep-alive", version="1.0")
                )
                answer = await client.answer()
                assert (answer.version, answer.status) == ("HTTP/1.0", 200)
                assert answer.headers["connection"] == "keep-alive"
        async with wire(p.proxy) as client:
            client.send(b"GET /api/version HTTP/1.0\r\n\r\n")  # needs no Host
            assert (await client.answer()).body == VERSION
            assert await client.rest() == b""


async def test_connection_close_is_honoured() -> None:
    async with pool(sim("a")) as p, wire(p.proxy) as client:
        client.send(request("/api/generate", BODY, "Connection: close"))
        answer = await client.answer()
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""


async def test_pipelined_requests_are_answered_in_order_behind_streams() -> None:
    async with pool(sim("a")) as p, wire(p.proxy) as client:
        client.send(*[request("/api/generate", BODY), request("/api/version")] * 20)
        for _ in range(20):
            assert b'"done":true' in (await client.answer()).body
            assert (await client.answer()).body == VERSION
        await p.proxy.until_idle()


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_pipelined_request_is_answered_behind_one_whose_body_was_refused(
    is_chunked: bool,
) -> None:
    # A body made of requests: none of them may be taken for one.
    body = request("/api/version") * 500
    async with pool(sim("a"), limits={"body": 1000}) as p, wire(p.proxy) as client:
        if is_chunked:
            framed = chunked(*[body[at : at + 700] for at in range(0, len(body), 700)])
            client.send(request("/api/chat", framed, "Transfer-Encoding: chunked", framed=False))
        else:
            client.send(request("/api/chat", body))
        client.send(request("/v1/models/none"))
        assert (await client.answer()).status == 413
        assert (await client.answer()).status == 404
        assert await client.is_open()


async def test_pipelined_request_is_answered_behind_one_that_was_refused_early() -> None:
    async with pool(sim("a")) as p, wire(p.proxy) as client:
        client.send(request("/api/generate?priority=x", BODY), request("/api/version"))
        assert (await client.answer()).status == 400
        assert (await client.answer()).body == VERSION


PATHS = sorted({route.path for route in ROUTES if ":" not in route.path})


@pytest.mark.parametrize("path", PATHS)
async def test_head_is_answered_where_ollama_does_and_refused_elsewhere(path: str) -> None:
    methods = allowed_methods(path)
    recorded = http_exchanges()["method-405-head-ps"]
    allow = ("Allow", ", ".join(methods))
    refusal = replace(recorded, path=path, answer_headers=(allow, *recorded.answer_headers[1:]))
    async with through_roomy_host() as (host, proxy), wire(proxy) as client:
        host.respond_with(refusal)
        client.send(request(path, method="HEAD"))
        head = await client.answer(head_only=True)
        if "HEAD" in methods:
            client.send(request(path))
            whole = await client.answer()
            assert head.status == whole.status == 200
            assert head.headers["content-type"] == whole.headers["content-type"]
            assert "content-length" in head.headers or len(whole.body) > 2048
        else:
            assert (head.status, head.headers["allow"]) == (405, ", ".join(methods))
            assert head.headers["content-length"] == "22"
        assert await client.is_open()


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_wrong_method_is_refused_with_the_right_ones(method: str) -> None:
    async with pool(sim("a")) as p, wire(p.proxy) as client:
        for path in ("/api/chat", "/v1/messages"):
            client.send(request(path, method=method))
            answer = await client.answer()
            assert (answer.status, answer.headers["allow"]) == (405, "POST")
            assert answer.body == b"405 method not allowed"


@pytest.mark.parametrize("id_", ["slash-get", "slash-post", "double-slash-get"])
async def test_redirect_of_a_host_is_for_the_client_to_follow(id_: str) -> None:
    recorded = http_exchanges()[id_]
    async with through_roomy_host() as (host, proxy), wire(proxy) as client:
        body = recorded.body if recorded.method == "POST" else None
        client.send(request(recorded.path, body))
        answer = await client.answer()
        assert answer.status == recorded.status
        assert answer.headers["location"] == recorded.answer_header("Location")
        assert [seen.path for seen in host.seen].count(recorded.path) == 1
        assert await client.is_open()


# --- bodies -----------------------------------------------------------------------------------


async def seen_request(sent: bytes, *, continued: bool = False) -> SeenRequest:
    """What a host sees of a request for a generation that is answered well."""
    recorded = http_exchanges()["generate-nostream"]
    async with through_roomy_host() as (host, proxy), wire(proxy) as client:
        host.respond_with(recorded)
        client.send(sent)
        if continued:
            assert (await client.answer()).status == 100
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, recorded.answer)
        assert await client.is_open()
        [seen] = host.seen_at("/api/generate")
        return seen


DET = b'{"model":"det","prompt":"hi","stream":false}'


async def test_chunked_body_with_extensions_and_trailers_is_read_as_it_is() -> None:
    body = chunked(DET[:7], DET[7:], extension=b';a=1;b="x y"', trailers=b"X-Sum: 1\r\n")
    seen = await seen_request(
        request("/api/generate", body, "Transfer-Encoding: chunked", "Trailer: X-Sum", framed=False)
    )
    assert seen.body == DET
    assert seen.header("Content-Length") == str(len(DET))
    for name in ("Transfer-Encoding", "Trailer", "X-Sum"):
        assert seen.header(name) == ""


async def test_packed_body_is_understood_and_reaches_the_host_as_it_is() -> None:
    recorded = http_exchanges()["v1-chat-nostream"]
    assert recorded.body is not None
    packed = zstd.compress(recorded.body)
    async with through_roomy_host() as (host, proxy), wire(proxy) as client:
        host.respond_with(recorded)
        client.send(request(recorded.path, packed, "Content-Encoding: zstd"))
        assert (await client.answer()).body == recorded.answer
        [seen] = host.seen_at(recorded.path)
        assert (seen.body, seen.header("Content-Encoding")) == (packed, "zstd")
        assert await client.is_open()  # by now the record is written
        [record] = proxy.services.journal.latest(1)
        assert (record.model, record.kind) == ("det:latest", JobKind.GENERATE)
        assert record.body_bytes_in == len(packed)


async def test_client_that_waits_for_100_continue_gets_it() -> None:
    async with through_roomy_host() as (host, proxy), wire(proxy) as client:
        host.respond_with(http_exchanges()["generate-nostream"])
        head = request("/api/generate", DET, "Expect: 100-continue")[: -len(DET)]
        client.send(head)
        assert (await client.answer()).status == 100
        client.send(DET)
        assert (await client.answer()).status == 200
        [seen] = host.seen_at("/api/generate")
        assert (seen.body, seen.header("Expect")) == (DET, "")


async def test_other_expectations_fail() -> None:
    async with pool(sim("a")) as p, wire(p.proxy) as client:
        client.send(request("/api/generate", WHOLE, "Expect: tea"))
        answer = await client.answer()
        assert answer.status == 417
        assert "server" not in answer.headers
        assert await client.is_open()


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_offer_to_upgrade_is_ignored(protocol: str) -> None:
    seen = await seen_request(
        request(
            "/api/generate", DET, "Connection: Upgrade, HTTP2-Settings",
            f"Upgrade: {protocol}", "HTTP2-Settings: AAMAAABk",
        )
    )  # fmt: skip
    assert seen.body == DET
    for name in ("Upgrade", "HTTP2-Settings"):
        assert seen.header(name) == ""


@pytest.mark.parametrize("prefill_tps", [10.0, 1e6], ids=["before an answer", "in a stream"])
async def test_client_that_closes_its_half_counts_as_gone(prefill_tps: float) -> None:
    body = json.dumps({"model": "llama3", "prompt": "word " * 400}).encode()
    async with pool(slow(prefill_tps=prefill_tps)) as p, wire(p.proxy) as client:
        client.send(request("/api/generate", body))
        if prefill_tps > 100:
            await client.reader.readuntil(b"\n")
        else:
            await p.hosts["a"].until(lambda stats: stats.total_in_flight == 1)
        client.writer.write_eof()
        await p.hosts["a"].until(lambda stats: stats.cancelled == 1)
        await p.proxy.until_idle()
        assert not re.search(rb"\r\n0\r\n\r\n$", await client.rest())
        [record] = p.proxy.services.journal.latest(1)
        assert record.outcome is Outcome.CLIENT_GONE
