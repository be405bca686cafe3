"""An answer that is written to the client's transport as it stands, past aiohttp's own writer.

aiohttp's server reads the request and runs the handler; it takes any response that can `prepare`
and `write_eof`, and both are public. So are the transport and the protocol of a request; the
protocol is our own subclass, which passes on when the client is slow.
"""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from enum import Enum

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from sollol_proxy.server.protocol import Protocol

LAST_CHUNK = b"0\r\n\r\n"
NO_BODY = frozenset({204, 304})


class Framing(Enum):
    """How the client learns where the body ends."""

    CHUNKS = "chunks"
    LENGTH = "length"
    CLOSE = "close"
    NONE = "none"
    """There is no body."""


class DirectResponse(web.StreamResponse):
    """An answer in progress. What is `put` goes out at once, the head with the first bytes.

    block: the header lines that are known, each with its line end; those that speak of this one
        connection are added here.
    length: of the body in bytes; None = not known.
    """

    def __init__(
        self,
        request: web.Request,
        status: int,
        reason: bytes,
        block: bytes,
        *,
        length: int | None,
        has_date: bool,
    ) -> None:
        super().__init__(status=status)
        client = request.protocol
        assert isinstance(client, Protocol)
        self.client = client
        self._writer = request.writer
        is_11 = request.version >= HttpVersion11
        if request.method == "HEAD" or status in NO_BODY:
            self.framing = Framing.NONE
        elif length is not None:
            self.framing = Framing.LENGTH
        else:
            self.framing = Framing.CHUNKS if is_11 else Framing.CLOSE
        self._is_over = False
        self._stays_open = request.keep_alive and self.framing is not Framing.CLOSE
        version = b"HTTP/1.1" if is_11 else b"HTTP/1.0"
        more = b"Transfer-Encoding: chunked\r\n" if self.framing is Framing.CHUNKS else b""
        if not has_date:
            more += b"Date: %b\r\n" % formatdate(time.time(), usegmt=True).encode()
        if not self._stays_open:
            more += b"Connection: close\r\n" if is_11 else b""
        elif not is_11:
            more += b"Connection: keep-alive\r\n"
        self._unsent = b"%b %d %b\r\n%b%b\r\n" % (version, status, reason, block, more)

    @property
    def keep_alive(self) -> bool:
        """Whether the connection serves another request after this one."""
        return self._stays_open

    @property
    def can_append(self) -> bool:
        """Whether a further record could be written here: nothing has promised another length."""
        return self.framing in (Framing.CHUNKS, Framing.CLOSE)

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """The head goes out with the first bytes: there is nothing to do."""
        return None

    def put(self, payload: bytes, raw: bytes | None = None) -> None:
        """Write some bytes of the body. raw: the same as whole chunks, where they came so.

        Raises:
            ConnectionResetError: the client's connection is closed.
        """
        transport = self.open_transport()
        if payload and self.framing is Framing.CHUNKS:
            payload = raw or b"%x\r\n%b\r\n" % (len(payload), payload)
        if self._unsent:
            payload, self._unsent = self._unsent + payload, b""
        transport.write(payload)

    def open_transport(self) -> asyncio.Transport:
        """The client's transport, for bytes that need no framing once the head is out.

        Raises:
            ConnectionResetError: the client's connection is closed.
        """
        transport = self.client.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client's connection is closed")
        return transport

    def descriptor(self) -> int | None:
        """Of the socket that takes what the transport would send as it is; None: there is none."""
        transport = self.client.transport
        if transport is None or transport.get_extra_info("sslcontext") is not None:
            return None
        sock = transport.get_extra_info("socket")
        return None if sock is None else int(sock.fileno())

    def put_whole(self, payload: bytes) -> None:
        """Write a whole body and its end, so that they and the head are one write.

        Raises:
            ConnectionResetError: the client's connection is closed.
        """
        self._is_over = True
        transport = self.open_transport()
        if self.framing is Framing.CHUNKS:
            chunk = b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
            payload = chunk + LAST_CHUNK
        whole, self._unsent = self._unsent + payload, b""
        transport.write(whole)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write some bytes of the body, at the client's pace.

        Raises:
            ConnectionResetError: the client's connection is closed.
        """
        self.put(bytes(data))
        await self.drained()

    async def drained(self) -> None:
        """Wait while the client is slower than what is written.

        Raises:
            ConnectionError: the client's connection is closed.
        """
        if self.client.writing_paused:
            await self._writer.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """End the body, properly; only the first time counts.

        Raises:
            ConnectionError: the client's connection is closed.
        """
        if not self._is_over:
            self._is_over = True
            last = self._unsent + (LAST_CHUNK if self.framing is Framing.CHUNKS else b"")
            self._unsent = b""
            if last:
                self.open_transport().write(last)
        if self.client.writing_paused:
            await self._writer.drain()
