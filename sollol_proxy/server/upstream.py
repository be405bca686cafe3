"""One attempt at one host, up to the first byte of its body. What goes wrong becomes ours here.

Kept narrow on purpose: others know only `open_attempt` and `Upstream`. Hosts with `http` addresses
are spoken to over `connection`, which a body can flow from without a task switch; those with
`https` over aiohttp's client.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from sollol_proxy.core.types import HostSpec
from sollol_proxy.errors import AttemptFailed, Phase, UpstreamBroke
from sollol_proxy.server.connection import MAX_HEADER_BYTES, READ_AHEAD_BYTES, Connection, Cut
from sollol_proxy.server.connections import IDLE_S, HostConnections, socket_that_notices
from sollol_proxy.server.dispatcher import Lease

_BROKEN = (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError, EOFError)
_TAKEN_BACK = "taken back: the host fell silent"
_NO_CONNECTION = "no connection in time"

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that may be sent again over a fresh connection when an idle one turns out to be gone
(RFC 9110, 9.2.1). What the host may have carried out is not sent twice on this level."""

_WITH_LENGTH = frozenset({"POST", "PUT", "PATCH"})


@dataclass(frozen=True, slots=True)
class Outbound:
    """A request on its way to some host. target: raw path and query, as the client spelled it.

    body: bytes when it may have to be sent again, an iterator when it is streamed; then in chunks
    unless the headers have a Content-Length.
    """

    method: str
    target: str
    headers: CIMultiDict[str]
    body: bytes | AsyncIterator[bytes] | None


class Upstream:
    """An answer in progress: its head, its first bytes, and the rest on demand.

    fields: names and values of the head as they came. length: of the body; None = not announced.
    """

    __slots__ = ("_host_id", "content_type", "fields", "first", "length", "reason", "status")

    def __init__(
        self,
        host_id: str,
        status: int,
        reason: bytes,
        fields: tuple[tuple[bytes, bytes], ...],
        first: bytes,
        *,
        length: int | None,
        content_type: str,
    ) -> None:
        self._host_id = host_id
        self.status = status
        self.reason = reason
        self.fields = fields
        self.first = first
        self.length = length
        self.content_type = content_type

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The head's fields as text."""
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.fields]

    async def next_chunk(self) -> bytes:
        """The next bytes as they come; empty at a proper end.

        Raises:
            UpstreamBroke: the connection ended before the body did.
        """
        raise NotImplementedError

    async def read_small(self, limit_bytes: int) -> bytes:
        """The beginning of the body, `first` included, at most about `limit_bytes`.

        What was read becomes `first`, so that the answer can still be passed on whole.

        Raises:
            UpstreamBroke: see `next_chunk`.
        """
        parts = [self.first]
        size = len(self.first)
        while size < limit_bytes and (chunk := await self.next_chunk()):
            parts.append(chunk)
            size += len(chunk)
        self.first = b"".join(parts)
        return self.first


class DirectUpstream(Upstream):
    """An answer over a connection of our own, which can be followed without asking."""

    __slots__ = ("connection",)

    def __init__(self, host_id: str, connection: Connection) -> None:
        head = connection.head
        super().__init__(
            host_id,
            head.status,
            head.reason,
            head.fields,
            connection.taken(),
            length=head.length,
            content_type=head.content_type.decode("latin-1"),
        )
        self.connection = connection

    async def next_chunk(self) -> bytes:
        """See `Upstream.next_chunk`."""
        try:
            return await self.connection.next_piece()
        except Cut as cut:
            raise self.broke(cut) from cut

    def broke(self, cut: Cut) -> UpstreamBroke:
        """What a body that broke off is to others."""
        return UpstreamBroke(self._host_id, str(cut))


class _SessionUpstream(Upstream):
    """An answer that aiohttp's client reads."""

    __slots__ = ("_response",)

    def __init__(self, host_id: str, response: aiohttp.ClientResponse, first: bytes) -> None:
        super().__init__(
            host_id,
            response.status,
            (response.reason or "").encode("utf-8", "surrogateescape"),
            response.raw_headers,
            first,
            length=response.content_length,
            content_type=response.headers.get("Content-Type", ""),
        )
        self._response = response

    async def next_chunk(self) -> bytes:
        """See `Upstream.next_chunk`."""
        try:
            return await self._response.content.readany()
        except _BROKEN as error:
            raise UpstreamBroke(self._host_id, describe_error(error)) from error


class Upstreams:
    """The ways to the hosts of a pool. clock: monotonic seconds."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        hosts: Iterable[HostSpec],
        connect_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.session = session
        self._direct = {
            host.id: HostConnections(host.url, connect_timeout_s, clock)
            for host in hosts
            if host.url.startswith("http:")
        }

    def direct(self, host_id: str) -> HostConnections | None:
        """The connections to a host; None = by way of the session."""
        return self._direct.get(host_id)

    async def close(self) -> None:
        """Close the connections that nobody uses, and the session."""
        for connections in self._direct.values():
            connections.close()
        await self.session.close()


def make_session(connect_timeout_s: float) -> aiohttp.ClientSession:
    """A client session fit for streams: no limits, no total timeout, nothing added or decoded."""
    connector = aiohttp.TCPConnector(
        limit=0, limit_per_host=0, keepalive_timeout=IDLE_S, socket_factory=socket_that_notices
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        read_bufsize=READ_AHEAD_BYTES,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
    )


def open_attempt(
    upstreams: Upstreams, host: HostSpec, outbound: Outbound, lease: Lease
) -> AbstractAsyncContextManager[Upstream]:
    """Send the request to a host and wait for its head and first byte.

    Leaving the block before the body has ended closes the connection, which is how Ollama learns
    that nobody listens any more.

    Args:
        upstreams: of the pool.
        host: that is asked.
        outbound: what it is asked.
        lease: on it; the scheduler may take the attempt back until the first byte has come.

    Entering raises:
        AttemptFailed: the connection failed, ended before the first body byte, or was recalled.
        SollolError: what the iterator of the request's body raised.
    """
    connections = upstreams.direct(host.id)
    if connections is None:
        return _by_session(upstreams.session, host, outbound, lease)
    return _Attempt(connections, host.id, outbound, lease)


class _Attempt(AbstractAsyncContextManager[Upstream]):
    """An attempt over a connection of our own."""

    __slots__ = ("_connection", "_connections", "_host_id", "_lease", "_outbound", "_sender")

    def __init__(
        self, connections: HostConnections, host_id: str, outbound: Outbound, lease: Lease
    ) -> None:
        self._connections = connections
        self._host_id = host_id
        self._outbound = outbound
        self._lease = lease
        self._connection: Connection | None = None
        self._sender: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Upstream:
        try:
            connection = self._connections.idle()
            if connection is None:
                return await self._exchange(await self._new())
            try:
                return await self._exchange(connection)
            except Cut as cut:
                if not cut.untouched or self._outbound.method not in _SAFE or self._sender:
                    raise
            return await self._exchange(await self._new())
        except Cut as cut:
            await self._leave()
            self._raise_senders_error()
            has_head = self._connection is not None and self._connection.has_head
            phase = Phase.BODY if has_head else Phase.HEAD
            raise AttemptFailed(self._host_id, phase, str(cut)) from cut
        except BaseException:
            await self._leave()
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave()

    async def _new(self) -> Connection:
        try:
            return await self._connections.new()
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:
                raise AttemptFailed(self._host_id, Phase.SILENT, _NO_CONNECTION) from error
            raise AttemptFailed(self._host_id, Phase.CONNECT, describe_error(error)) from error

    async def _exchange(self, connection: Connection) -> Upstream:
        self._connection = connection
        lease, outbound = self._lease, self._outbound
        head = _request_head(self._connections, outbound)
        if outbound.body is None or isinstance(outbound.body, bytes):
            connection.send(outbound.method, head, outbound.body or b"")
        else:
            connection.send(outbound.method, head, None)
            self._sender = asyncio.get_running_loop().create_task(self._send_pieces(connection))
        lease.on_recall(lambda: connection.give_up(Cut(_TAKEN_BACK)))
        try:
            await connection.answer()
        finally:
            lease.on_recall(None)
        return DirectUpstream(self._host_id, connection)

    async def _send_pieces(self, connection: Connection) -> None:
        outbound = self._outbound
        assert outbound.body is not None
        assert not isinstance(outbound.body, bytes)
        announced = outbound.headers.get("Content-Length")
        try:
            length = None if announced is None else int(announced)
            await connection.send_pieces(outbound.body, length)
        except Exception:
            # Whoever waits for the answer is told, and looks here for the reason.
            connection.give_up(Cut("the request's body broke off"))
            raise

    def _raise_senders_error(self) -> None:
        sender = self._sender
        if sender is not None and sender.done() and not sender.cancelled():
            error = sender.exception()
            if error is not None:
                raise error

    async def _leave(self) -> None:
        connection, sender = self._connection, self._sender
        if connection is None:
            return
        self._connections.give_back(connection)
        if sender is not None:
            sender.cancel()
            await asyncio.wait([sender])
            if not sender.cancelled():
                sender.exception()


@asynccontextmanager
async def _by_session(
    session: aiohttp.ClientSession, host: HostSpec, outbound: Outbound, lease: Lease
) -> AsyncIterator[Upstream]:
    """An attempt over aiohttp's client."""
    phase = Phase.CONNECT
    response: aiohttp.ClientResponse | None = None
    try:
        try:
            async with lease.recallable():
                response = await session.request(
                    outbound.method,
                    URL(host.url + outbound.target, encoded=True),
                    headers=_with_length(outbound),
                    data=_payload(outbound.body),
                    allow_redirects=False,
                )
                phase = Phase.BODY
                first = b"" if outbound.method == "HEAD" else await response.content.readany()
        except aiohttp.ClientConnectorError as error:
            raise AttemptFailed(host.id, Phase.CONNECT, describe_error(error)) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise AttemptFailed(host.id, Phase.SILENT, _NO_CONNECTION) from error
        except _BROKEN as error:
            phase = Phase.BODY if phase is Phase.BODY else Phase.HEAD
            raise AttemptFailed(host.id, phase, describe_error(error)) from error
        except TimeoutError as error:
            phase = Phase.BODY if phase is Phase.BODY else Phase.HEAD
            raise AttemptFailed(host.id, phase, _TAKEN_BACK) from error
        yield _SessionUpstream(host.id, response, first)
    finally:
        if response is not None:
            response.close()


def _request_head(connections: HostConnections, outbound: Outbound) -> bytes:
    headers, body = outbound.headers, outbound.body
    text = f"{outbound.method} {connections.prefix}{outbound.target} HTTP/1.1\r\n"
    text += f"Host: {connections.authority}\r\n"
    for name, value in headers.items():
        text += f"{name}: {value}\r\n"
    if isinstance(body, bytes) and (body or outbound.method in _WITH_LENGTH):
        text += f"Content-Length: {len(body)}\r\n\r\n"
    elif body is None:
        text += "Content-Length: 0\r\n\r\n" if outbound.method in _WITH_LENGTH else "\r\n"
    elif "Content-Length" in headers:
        text += "\r\n"
    else:
        text += "Transfer-Encoding: chunked\r\n\r\n"
    return text.encode("utf-8", "surrogateescape")


def _with_length(outbound: Outbound) -> CIMultiDict[str]:
    headers = outbound.headers
    if outbound.body is None and outbound.method in _WITH_LENGTH:
        headers = headers.copy()
        headers["Content-Length"] = "0"
    return headers


def _payload(body: bytes | AsyncIterator[bytes] | None) -> Any:
    """The body as aiohttp sends it without holding the event loop: large ones in pieces."""
    if isinstance(body, bytes) and len(body) > READ_AHEAD_BYTES:
        return io.BytesIO(body)
    return body


def describe_error(error: BaseException) -> str:
    """A short reason for logs and the page, in words and without addresses."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return describe_error(error.os_error)
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection ended before the body did"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection ended without an answer"
    if isinstance(error, OSError) and not isinstance(error, aiohttp.ClientError):
        # A failed name look-up has a number of its own kind, and its own words.
        if error.errno and not isinstance(error, socket.gaierror):
            return os.strerror(error.errno)
        return error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__
