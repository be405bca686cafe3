"""Connections to each host: kept while idle, taken last in first out, made where there is none."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from aiohappyeyeballs import AddrInfoType, start_connection
from yarl import URL

from sollol_proxy.server.connection import Connection

IDLE_S = 60.0
"""How long an idle connection is kept. Ollama never closes one; what stands between may."""

NAMES_KEPT_S = 10.0
"""How long the addresses of a name are used; as long as aiohttp's client does."""

HAPPY_EYEBALLS_DELAY_S = 0.25
"""Before the next address is tried beside the first (RFC 8305, 5)."""


class HostConnections:
    """The connections to one host.

    authority: for the Host header. prefix: of every path there.
    connect_timeout_s: for a connection, the look-up of the name included.
    clock: monotonic seconds. idle_s: how long an idle connection is kept.
    """

    def __init__(
        self,
        url: str,
        connect_timeout_s: float,
        clock: Callable[[], float],
        *,
        idle_s: float = IDLE_S,
    ) -> None:
        parts = URL(url)
        self._hostname = parts.raw_host or ""
        self._port = parts.port or 80
        self.authority = parts.host_port_subcomponent or ""
        self.prefix = parts.raw_path.rstrip("/")
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock
        self._idle_s = idle_s
        self._idle: deque[tuple[Connection, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._infos: Sequence[AddrInfoType] = ()
        self._infos_until_s = 0.0
        self._is_closed = False

    def idle(self) -> Connection | None:
        """A connection that is there and free; None where there is none."""
        while self._idle:
            connection, _ = self._idle.pop()
            if connection.is_reusable:
                return connection
            connection.abort()
        return None

    async def new(self) -> Connection:
        """A new connection.

        Raises:
            OSError: there is none to be had; `TimeoutError` where nothing came of it in time.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_timeout_s):
            made = await start_connection(
                await self._addresses(),
                interleave=1,
                happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY_S,
                socket_factory=socket_that_notices,
            )
            try:
                _, connection = await loop.create_connection(Connection, sock=made)
            except BaseException:
                made.close()
                raise
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next exchange, or close it where there can be none."""
        if self._is_closed or not connection.is_reusable:
            connection.abort()
            return
        self._idle.append((connection, self._clock()))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._sweep)

    def close(self) -> None:
        """Close the idle ones now, and others when they are given back."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._idle:
            self._idle.pop()[0].abort()

    def _sweep(self) -> None:
        self._timer = None
        oldest_s = self._clock() - self._idle_s
        while self._idle and (self._idle[0][1] <= oldest_s or not self._idle[0][0].is_reusable):
            self._idle.popleft()[0].abort()
        if self._idle:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._idle[0][1] - oldest_s, self._sweep)

    async def _addresses(self) -> Sequence[AddrInfoType]:
        now = self._clock()
        if self._infos and now < self._infos_until_s:
            return self._infos
        loop = asyncio.get_running_loop()
        is_literal = _is_literal(self._hostname)
        flags = socket.AI_NUMERICHOST if is_literal else socket.AI_ADDRCONFIG
        self._infos = await loop.getaddrinfo(
            self._hostname, self._port, type=socket.SOCK_STREAM, flags=flags
        )
        self._infos_until_s = float("inf") if is_literal else now + NAMES_KEPT_S
        return self._infos


def socket_that_notices(info: AddrInfoType) -> socket.socket:
    """A socket whose kernel asks a silent peer whether it is still there.

    A host that loses its power says nothing, and no timeout of ours may tell that from a long
    prefill; the peer's kernel can. After about a minute without an echo the connection breaks.
    """
    made = socket.socket(*info[:3])
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # the names differ by system
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    return made


def _is_literal(hostname: str) -> bool:
    try:
        ip_address(hostname)
    except ValueError:
        return False
    return True
