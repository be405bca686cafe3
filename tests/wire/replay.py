"""A host that answers as recorded, and a client that asks as recorded. Raw sockets, no pauses."""

from __future__ import annotations

import asyncio
import json
import re
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


Pinned = defaultdict[tuple[str, str], deque[Exchange]]
"""Answers that come next, by method and path."""


class ReplayHost:
    """An Ollama host that knows the recordings it is given and nothing else.

    Where several recordings share a request the first one counts, unless `respond_with` pins
    another. Questions of a proxy's own (its probes, and whether a blob is there) are answered
    from `version`, `tags`, `ps` and `blobs` as long as no recording with their path is pinned.

    pinned: of another host, where the next answer is to come from whichever of both is asked.
    left: paths of the requests whose recorded client left before the end, once it has left here.
    """

    def __init__(self, exchanges: Iterable[Exchange] = (), *, pinned: Pinned | None = None) -> None:
        self.version = "0.33.0"
        self.tags: Document = {"models": []}
        self.ps: Document = {"models": []}
        self.blobs: set[str] = set()
        self.left: asyncio.Queue[str] = asyncio.Queue()
        self.seen: list[SeenRequest] = []
        self.port = 0
        self._exchanges: dict[tuple[str, str], list[Exchange]] = defaultdict(list)
        self.pinned: Pinned = defaultdict(deque) if pinned is None else pinned
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        for exchange in exchanges:
            self._exchanges[exchange.method, exchange.path].append(exchange)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def respond_with(self, exchange: Exchange, *, times: int = 1) -> None:
        """Answer the next request (or the next few) of this method and path as recorded here."""
        self.pinned[exchange.method, exchange.path].extend([exchange] * times)

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
        no_body = not _announces_body(headers)
        if first(headers, "Expect"):
            no_body = self._answers_unread(method, path)
            writer.write(b"" if no_body else b"HTTP/1.1 100 Continue\r\n\r\n")
        body, _ = await _read_body(reader, headers, no_body=no_body)
        request = SeenRequest(method, path, headers, body)
        self.seen.append(request)
        exchange = self._find(request)
        if exchange is None:
            self._write_document(writer, request)
            await writer.drain()
            return True
        if exchange.status is None:
            return False
        if exchange.status == CREATED and path.startswith(_BLOBS):
            self.blobs.add(path.removeprefix(_BLOBS))
        await _write_answer(writer, exchange)
        if exchange.ended == "client-closed":
            await reader.read()
            self.left.put_nowait(request.path)
            return False
        keeps = exchange.ended == "complete" and exchange.framing != "close"
        closes = first(exchange.answer_headers, "Connection") == "close" or version == "HTTP/1.0"
        return keeps and not closes

    def _answers_unread(self, method: str, path: str) -> bool:
        """Whether the answer that is pinned was recorded without the body that was announced."""
        pinned = self.pinned[method, path]
        return bool(pinned) and not pinned[0].body

    def _find(self, request: SeenRequest) -> Exchange | None:
        key = (request.method, request.path)
        if self.pinned[key]:
            return self.pinned[key].popleft()
        if key in _PROBES or (request.method == "HEAD" and request.path.startswith(_BLOBS)):
            return None
        return next(
            (e for e in self._exchanges[key] if e.body is None or _equal(e.body, request.body)),
            None,
        )

    def _write_document(self, writer: asyncio.StreamWriter, request: SeenRequest) -> None:
        if request.method == "HEAD" and request.path.startswith(_BLOBS):
            self._write_blob_head(writer, request.path.removeprefix(_BLOBS))
            return
        status, document = "200 OK", self._document(request)
        if document is None:
            status, document = "501 Not Recorded", {"error": f"no recording for {request}"}
        body = json.dumps(document, separators=(",", ":")).encode()
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + (b"" if request.method == "HEAD" else body))

    def _write_blob_head(self, writer: asyncio.StreamWriter, digest: str) -> None:
        status = "404 Not Found"
        if not _DIGEST.fullmatch(digest):
            status = "400 Bad Request"
        elif digest.replace("-", ":", 1) in self.blobs:
            status = "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())

    def _document(self, request: SeenRequest) -> Document | None:
        documents = {"/api/version": {"version": self.version}, "/api/tags": self.tags}
        documents["/api/ps"] = self.ps
        return documents.get(request.path)


_BLOBS = "/api/blobs/"
_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_PROBES = frozenset({("GET", "/api/version"), ("GET", "/api/tags"), ("GET", "/api/ps")})


RECORDED_HOST = "ollama.test:11434"


class RawClient:
    """One connection to a server, opened anew when the server has closed it.

    opened: how often.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.opened = 0

    async def __aenter__(self) -> RawClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Close the connection, whatever is still to come on it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def ask(self, exchange: Exchange, *, host_header: str | None = None) -> RawAnswer:
        """Send a recorded request byte for byte and read the answer.

        The scrubbed `Host` becomes `host_header`, or the address that is asked; any other one was
        chosen for the recording and stays. A client that left in the recording leaves once it has
        read as much.

        Raises:
            ValueError: the recording left the request's body out.
        """
        if exchange.body is None:
            raise ValueError(f"{exchange.id}: the body was not recorded")
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
            self.opened += 1
        reader, writer = self._streams
        address = host_header or f"{self._host}:{self._port}"
        writer.write(_head_of(exchange, address))
        no_body = exchange.method == "HEAD"
        early = None
        if first(exchange.headers, "Expect"):
            early = await _read_head(reader)
        if early is None or _status(early[0]) < HTTP_OK:
            _write_body(writer, exchange)
            early = None
        if exchange.ended == "client-closed":
            answer = await _read_answer(reader, no_body=no_body, only=len(exchange.answer))
            self.leave()
            return answer
        answer = await _read_answer(reader, no_body=no_body, head=early)
        if answer.ended != "complete" or _closes(answer, exchange):
            self.leave()
        return answer


async def raw_request(
    host: str, port: int, exchange: Exchange, *, host_header: str | None = None
) -> RawAnswer:
    """`RawClient.ask` on a connection of its own."""
    async with RawClient(host, port) as client:
        return await client.ask(exchange, host_header=host_header)


HTTP_OK = 200
CREATED = 201


def _head_of(exchange: Exchange, address: str) -> bytes:
    lines = [f"{exchange.method} {exchange.path} {exchange.http_version}"]
    for name, value in exchange.headers:
        is_scrubbed = name.lower() == "host" and value == RECORDED_HOST
        lines.append(f"{name}: {address if is_scrubbed else value}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _write_body(writer: asyncio.StreamWriter, exchange: Exchange) -> None:
    if exchange.body_chunks:
        for chunk in (*exchange.body_chunks, b""):
            writer.write(_framed(chunk))
    else:
        writer.write(exchange.body or b"")


def _closes(answer: RawAnswer, exchange: Exchange) -> bool:
    return (
        first(answer.headers, "Connection").lower() == "close"
        or exchange.http_version == "HTTP/1.0"
    )


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


async def _read_answer(
    reader: asyncio.StreamReader,
    *,
    no_body: bool,
    head: tuple[str, Headers] | None = None,
    only: int | None = None,
) -> RawAnswer:
    """head: where it was read already. only: so many bytes of a chunked body are enough."""
    while head is None or _status(head[0]) < HTTP_OK:
        try:
            head = await _read_head(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            return RawAnswer(None, "", (), b"", "eof")
    start_line, headers = head
    _, code, reason = start_line.split(" ", 2)
    no_body = no_body or int(code) in (204, 304)
    if only is not None:
        body = await _read_chunked(reader, only)
        return RawAnswer(int(code), reason, headers, body, "client-closed")
    body, is_complete = await _read_body(reader, headers, no_body=no_body)
    return RawAnswer(int(code), reason, headers, body, "complete" if is_complete else "eof")


def _status(start_line: str) -> int:
    return int(start_line.split(" ", 2)[1])


async def _read_chunked(reader: asyncio.StreamReader, enough: int) -> bytes:
    """A chunked body until so many bytes of it are there."""
    body = b""
    while len(body) < enough:
        size = int(await reader.readuntil(b"\r\n"), 16)
        body += (await reader.readexactly(size + 2))[:-2]
    return body


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
