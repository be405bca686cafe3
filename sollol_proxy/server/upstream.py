"""One attempt at one host, up to the first byte of its body. aiohttp's errors become ours here.

Kept narrow on purpose: `forward` knows only `open_attempt` and `Upstream`, so that what lies
under them can be exchanged for something faster.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from sollol_proxy.core.types import HostSpec
from sollol_proxy.errors import AttemptFailed, Phase, UpstreamBroke

READ_BUFFER_BYTES = 2**16
LARGE_BODY_BYTES = 2**16
MAX_HEADER_BYTES = 2**20
"""Go's own limit on a header block, so what a host may send passes."""

_BROKEN = (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError, EOFError)


@dataclass(frozen=True, slots=True)
class Outbound:
    """A request on its way to some host. target: raw path and query, as the client spelled it.

    body: bytes when it may have to be sent again, an iterator when it is streamed.
    """

    method: str
    target: str
    headers: CIMultiDict[str]
    body: bytes | AsyncIterator[bytes] | None


class Upstream:
    """An answer in progress: its head, its first bytes, and the rest on demand."""

    def __init__(self, host_id: str, response: aiohttp.ClientResponse, first: bytes) -> None:
        self._host_id = host_id
        self._response = response
        self.status = response.status
        self.reason = response.reason or ""
        self.headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in response.raw_headers
        ]
        self.content_type = response.headers.get("Content-Type", "")
        self.first = first

    async def next_chunk(self) -> bytes:
        """The next bytes as they come; empty at a proper end.

        Raises:
            UpstreamBroke: the connection ended before the body did.
        """
        try:
            return await self._response.content.readany()
        except _BROKEN as error:
            raise UpstreamBroke(self._host_id, describe_error(error)) from error

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


def make_session(connect_timeout_s: float) -> aiohttp.ClientSession:
    """A client session fit for streams: no limits, no total timeout, nothing added or decoded."""
    connector = aiohttp.TCPConnector(
        limit=0, limit_per_host=0, keepalive_timeout=60.0, socket_factory=_socket_that_notices
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        read_bufsize=READ_BUFFER_BYTES,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
    )


@asynccontextmanager
async def open_attempt(
    session: aiohttp.ClientSession,
    host: HostSpec,
    outbound: Outbound,
    recallable: Callable[[], AbstractAsyncContextManager[None]],
) -> AsyncIterator[Upstream]:
    """Send the request to a host and wait for its head and first byte.

    recallable: a block around that wait, which may end it with a TimeoutError.

    Leaving the block before the body has ended closes the connection, which is how Ollama learns
    that nobody listens any more.

    Raises:
        AttemptFailed: the connection failed, ended before the first body byte, or was recalled.
    """
    phase = Phase.CONNECT
    response: aiohttp.ClientResponse | None = None
    try:
        try:
            async with recallable():
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
            raise AttemptFailed(host.id, Phase.SILENT, "no connection in time") from error
        except _BROKEN as error:
            phase = Phase.BODY if phase is Phase.BODY else Phase.HEAD
            raise AttemptFailed(host.id, phase, describe_error(error)) from error
        except TimeoutError as error:
            phase = Phase.BODY if phase is Phase.BODY else Phase.HEAD
            raise AttemptFailed(host.id, phase, "taken back: the host fell silent") from error
        yield Upstream(host.id, response, first)
    finally:
        if response is not None:
            response.close()


def _socket_that_notices(info: aiohttp.AddrInfoType) -> socket.socket:
    """A socket whose kernel asks a silent peer whether it is still there.

    A host that loses its power says nothing, and no timeout of ours may tell that from a long
    prefill; the peer's kernel can. After about a minute without an echo the connection breaks.
    """
    made = socket.socket(*info[:3])
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # the names differ by system
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    return made


def _with_length(outbound: Outbound) -> Mapping[str, str]:
    headers = outbound.headers
    if outbound.body is None and outbound.method in ("POST", "PUT", "PATCH"):
        headers = headers.copy()
        headers["Content-Length"] = "0"
    return headers


def _payload(body: bytes | AsyncIterator[bytes] | None) -> Any:
    """The body as aiohttp sends it without holding the event loop: large ones in pieces."""
    if isinstance(body, bytes) and len(body) > LARGE_BODY_BYTES:
        return io.BytesIO(body)
    return body


def describe_error(error: BaseException) -> str:
    """A short reason for logs and the page, in words and without addresses."""
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        # A failed name look-up has a number of its own kind, and its own words.
        if number and not isinstance(error.os_error, socket.gaierror):
            return os.strerror(number)
        return error.os_error.strerror or str(error)
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection ended before the body did"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection ended without an answer"
    return str(error) or type(error).__name__
