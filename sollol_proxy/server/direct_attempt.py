"""One attempt at a host over a connection of our own, up to the first byte of its body."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from sollol_proxy.errors import AttemptFailed, Phase, UpstreamBroke
from sollol_proxy.server.connection import Connection, Cut
from sollol_proxy.server.connections import HostConnections
from sollol_proxy.server.dispatcher import Lease
from sollol_proxy.server.upstream import (
    NO_CONNECTION,
    TAKEN_BACK,
    WITH_LENGTH,
    Outbound,
    Upstream,
    describe_error,
)

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that may be sent again over a fresh connection when an idle one turns out to be gone
(RFC 9110, 9.2.1). What the host may have carried out is not sent twice on this level."""


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


class DirectAttempt(AbstractAsyncContextManager[Upstream]):
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
        if self._sender is not None or self._connection is None:
            await self._leave()
        else:
            self._connections.give_back(self._connection)

    async def _new(self) -> Connection:
        try:
            return await self._connections.new()
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:
                raise AttemptFailed(self._host_id, Phase.SILENT, NO_CONNECTION) from error
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
        lease.on_recall(lambda: connection.give_up(Cut(TAKEN_BACK)))
        try:
            await connection.answer()
        finally:
            lease.on_recall(None)
        return DirectUpstream(self._host_id, connection)

    async def _send_pieces(self, connection: Connection) -> None:
        outbound = self._outbound
        assert outbound.body is not None
        assert not isinstance(outbound.body, bytes)
        try:
            announced = _announced(outbound)
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


def _announced(outbound: Outbound) -> str | None:
    """The length that its headers tell."""
    lengths = (value for name, value in outbound.headers if name.lower() == "content-length")
    return next(lengths, None)


def _request_head(connections: HostConnections, outbound: Outbound) -> bytes:
    headers, body = outbound.headers, outbound.body
    text = (
        f"{outbound.method} {connections.prefix}{outbound.target} HTTP/1.1\r\n"
        f"Host: {connections.authority}\r\n"
    )
    for name, value in headers:
        text += f"{name}: {value}\r\n"
    if isinstance(body, bytes) and (body or outbound.method in WITH_LENGTH):
        text += f"Content-Length: {len(body)}\r\n\r\n"
    elif body is None:
        text += "Content-Length: 0\r\n\r\n" if outbound.method in WITH_LENGTH else "\r\n"
    elif _announced(outbound) is not None:
        text += "\r\n"
    else:
        text += "Transfer-Encoding: chunked\r\n\r\n"
    return text.encode("utf-8", "surrogateescape")
