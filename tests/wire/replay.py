"""A host that answers as recorded, and a client that asks as recorded. Raw sockets, no pauses."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tests.wire.recordings import Exchange, Headers, first

Document = dict[str, Any]


@dataclass(frozen=True)
class SeenRequest:
    """A request as it arrived. path: with query."""

    method: str
    path: str
    headers: Headers
    body: bytes

    def header(self, name: str) -> str:
        return first(self.headers, name)


@dataclass(frozen=True)
class RawAnswer:
    """An answer as it arrived. status: None when the connection ended without one.

    ended: `complete`, or `eof` when the connection ended before the framing said so.
    """

    status: int | None
    reason: str
    headers: Headers
    body: bytes
    ended: str


class ReplayHost:
    """An Ollama host that knows the recordings it is given and nothing else.

    Where several recordings share a request the first one counts, unless `respond_with` pins
    another. Questions of a proxy's probes are answered from `version`, `tags` and `ps` as long as
    no recording with their path is pinned.
    """

    def __init__(self, exchanges: Iterable[Exchange] = ()) -> None:
        self.version = "0.33.0"
        self.tags: Document = {"models": []}
        self.ps: Document = {"models": []}
        self.seen: list[SeenRequest] = []
        self.port = 0
        self._exchanges: dict[tuple[str, str], list[Exchange]] = defaultdict(list)
        self._pinned: dict[tuple[str, str], deque[Exchange]] = defaultdict(deque)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        for exchange in exchanges:
            self._exchanges[exchange.method, exchange.path].append(exchange)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def respond_with(self, exchange: Exchange, *, times: int = 1) -> None:
        """Answer the next request (or the next few) of this method and path as recorded here."""
        self._pinned[exchange.method, exchange.path].extend([exchange] * times)

    def seen_at(self, path: str) -> list[SeenRequest]:
        """The requests that came for a path, in order."""
        return [request for request in self.seen if request.path == path]

    async def __aenter__(self) -> ReplayHost:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            while await self._answer_next(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side left, or the host is being closed
        finally:
            self._connections.discard(connection)
            writer.close()

    async def _answer_next(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; False when the connection is over."""
        start_line, headers = await _read_head(reader)
        method, path, version = start_line.split(" ", 2)
        if first(headers, "Expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body, _ = await _read_body(reader, headers, no_body=not _announces_body(headers))
        request = SeenRequest(method, path, headers, body)
        self.seen.append(request)
        exchange = self._find(request)
        if exchange is None:
            self._write_document(writer, request)
            await writer.drain()
            return True
        if exchange.status is None:
            return False
        await _write_answer(writer, exchange)
        keeps = exchange.ended == "complete" and exchange.framing != "close"
        closes = first(exchange.answer_headers, "Connection") == "close" or version == "HTTP/1.0"
        return keeps and not closes

    def _find(self, request: SeenRequest) -> Exchange | None:
        key = (request.method, request.path)
        if self._pinned[key]:
            return self._pinned[key].popleft()
        if key in _PROBES:
            return None
        return next(
            (e for e in self._exchanges[key] if e.body is None or _equal(e.body, request.body)),
            None,
        )

    def _write_document(self, writer: asyncio.StreamWriter, request: SeenRequest) -> None:
        status, document = "200 OK", self._document(request)
        if document is None:
            status, document = "501 Not Recorded", {"error": f"no recording for {request}"}
        body = json.dumps(document, separators=(",", ":")).encode()
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + (b"" if request.method == "HEAD" else body))

    def _document(self, request: SeenRequest) -> Document | None:
        documents = {"/api/version": {"version": self.version}, "/api/tags": self.tags}
        documents["/api/ps"] = self.ps
        return documents.get(request.path)


_PROBES = frozenset({("GET", "/api/version"), ("GET", "/api/tags"), ("GET", "/api/ps")})


RECORDED_HOST = "ollama.test:11434"


async def raw_request(
    host: str, port: int, exchange: Exchange, *, host_header: str | None = None
) -> RawAnswer:
    """Send a recorded request byte for byte and read the answer.

    The scrubbed `Host` becomes `host_header`, or the address that is asked; any other one was
    chosen for the recording and stays.

    Raises:
        ValueError: the recording left the request's body out.
    """
    if exchange.body is None:
        raise ValueError(f"{exchange.id}: the body was not recorded")
    reader, writer = await asyncio.open_connection(host, port)
    try:
        lines = [f"{exchange.method} {exchange.path} {exchange.http_version}"]
        for name, value in exchange.headers:
            is_scrubbed = name.lower() == "host" and value == RECORDED_HOST
            lines.append(f"{name}: {(host_header or f'{host}:{port}') if is_scrubbed else value}")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if exchange.body_chunks:
            for chunk in (*exchange.body_chunks, b""):
                writer.write(_framed(chunk))
        else:
            writer.write(exchange.body)
        return await _read_answer(reader, no_body=exchange.method == "HEAD")
    finally:
        writer.close()


async def _write_answer(writer: asyncio.StreamWriter, exchange: Exchange) -> None:
    lines = [f"{exchange.http_version} {exchange.status} {exchange.reason}"]
    lines += [f"{name}: {value}" for name, value in exchange.answer_headers]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    is_chunked = exchange.framing == "chunked"
    for chunk in exchange.chunks:
        writer.write(_framed(chunk) if is_chunked else chunk)
        await writer.drain()
    if is_chunked and exchange.ended == "complete":
        writer.write(b"0\r\n\r\n")
    await writer.drain()


def _framed(chunk: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(chunk), chunk)


async def _read_answer(reader: asyncio.StreamReader, *, no_body: bool) -> RawAnswer:
    status = 100
    while status < 200:
        try:
            start_line, headers = await _read_head(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            return RawAnswer(None, "", (), b"", "eof")
        _, code, reason = start_line.split(" ", 2)
        status = int(code)
    body, is_complete = await _read_body(reader, headers, no_body=no_body or status in (204, 304))
    return RawAnswer(status, reason, headers, body, "complete" if is_complete else "eof")


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, Headers]:
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start_line, *lines = text.rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return start_line, tuple((name, value.strip()) for name, _, value in pairs)


def _announces_body(headers: Headers) -> bool:
    return bool(first(headers, "Content-Length") or first(headers, "Transfer-Encoding"))


async def _read_body(
    reader: asyncio.StreamReader, headers: Headers, *, no_body: bool
) -> tuple[bytes, bool]:
    """The body, and whether it is as long as announced."""
    if no_body:
        return b"", True
    pieces: list[bytes] = []
    try:
        if first(headers, "Transfer-Encoding").lower() == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                pieces.append((await reader.readexactly(size + 2))[:-2])
            await reader.readuntil(b"\r\n")
        elif length := first(headers, "Content-Length"):
            pieces.append(await reader.readexactly(int(length)))
        else:
            pieces.append(await reader.read())
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        if isinstance(error, asyncio.IncompleteReadError):
            pieces.append(error.partial)
        return b"".join(pieces), False
    return b"".join(pieces), True


def _equal(recorded: bytes, sent: bytes) -> bool:
    """Whether two bodies are the same, as JSON where both are JSON."""
    if recorded == sent:
        return True
    try:
        return bool(json.loads(recorded) == json.loads(sent))
    except ValueError:
        return False
