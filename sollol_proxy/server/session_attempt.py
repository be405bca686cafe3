"""One attempt by way of aiohttp's client: for `https`, where speed is not the question."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from sollol_proxy.core.types import HostSpec
from sollol_proxy.errors import AttemptFailed, Phase, UpstreamBroke
from sollol_proxy.server.connection import MAX_HEADER_BYTES, READ_AHEAD_BYTES
from sollol_proxy.server.connections import IDLE_S, socket_that_notices
from sollol_proxy.server.dispatcher import Lease
from sollol_proxy.server.upstream import (
    NO_CONNECTION,
    TAKEN_BACK,
    WITH_LENGTH,
    Outbound,
    Upstream,
    describe_error,
)

_BROKEN = (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError, EOFError)


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


@asynccontextmanager
async def session_attempt(
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
            raise AttemptFailed(host.id, Phase.SILENT, NO_CONNECTION) from error
        except _BROKEN as error:
            phase = Phase.BODY if phase is Phase.BODY else Phase.HEAD
            raise AttemptFailed(host.id, phase, describe_error(error)) from error
        except TimeoutError as error:
            phase = Phase.BODY if phase is Phase.BODY else Phase.HEAD
            raise AttemptFailed(host.id, phase, TAKEN_BACK) from error
        yield _SessionUpstream(host.id, response, first)
    finally:
        if response is not None:
            response.close()


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


def _with_length(outbound: Outbound) -> CIMultiDict[str]:
    headers = CIMultiDict(outbound.headers)
    if outbound.body is None and outbound.method in WITH_LENGTH:
        headers["Content-Length"] = "0"
    return headers


def _payload(body: bytes | AsyncIterator[bytes] | None) -> Any:
    """The body as aiohttp sends it without holding the event loop: large ones in pieces."""
    if isinstance(body, bytes) and len(body) > READ_AHEAD_BYTES:
        return io.BytesIO(body)
    return body
