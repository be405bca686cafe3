"""HOT PATH: bytes from a host to its client as they come.

No JSON, no logging, no call into the scheduler, and over our own connections no task switch for a
chunk: what arrives from the host is written to the client's transport in the same call, and whole
chunks go as they came. Backpressure works both ways: while the client's buffer is full nothing is
read, so the host's connection fills up and a stream's memory stays bounded by the two buffers.
"""

from __future__ import annotations

import asyncio

from sollol_proxy.errors import ClientGone
from sollol_proxy.ollama.records import BodyWatch
from sollol_proxy.server.connection import Connection, Cut
from sollol_proxy.server.direct import DirectResponse
from sollol_proxy.server.upstream import DirectUpstream, Upstream


async def copy(upstream: Upstream, response: DirectResponse, watch: BodyWatch) -> None:
    """Pass the body on until its proper end; the client's end is not written.

    Raises:
        UpstreamBroke: the host's connection ended early.
        ClientGone: the client's connection is closed.
    """
    try:
        if isinstance(upstream, DirectUpstream):
            await _follow(upstream, response, watch)
        else:
            await _read(upstream, response, watch)
    except ConnectionError as error:
        raise ClientGone from error


async def _follow(upstream: DirectUpstream, response: DirectResponse, watch: BodyWatch) -> None:
    first, connection = upstream.first, upstream.connection
    watch.feed(first)
    if connection.has_ended:
        response.hold(first)
        return
    response.put(first)
    pump = _Pump(connection, response, watch)
    client = response.client
    client.valve = pump
    try:
        connection.follow(pump)
        if client.writing_paused:
            pump.pause()
        await pump.over
    except Cut as cut:
        raise upstream.broke(cut) from cut
    finally:
        client.valve = None


async def _read(upstream: Upstream, response: DirectResponse, watch: BodyWatch) -> None:
    chunk = upstream.first
    while chunk:
        watch.feed(chunk)
        await response.write(chunk)
        chunk = await upstream.next_chunk()


class _Pump:
    """Follows a host's body, and is the valve of the client's connection."""

    __slots__ = ("_connection", "_feed", "_put", "over", "pause", "resume")

    def __init__(self, connection: Connection, response: DirectResponse, watch: BodyWatch) -> None:
        self._connection = connection
        self._feed = watch.feed
        self._put = response.put
        self.pause = connection.pause
        self.resume = connection.resume
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, payload: bytes, raw: bytes | None) -> None:
        """See `Follower.take`."""
        self._feed(payload)
        try:
            self._put(payload, raw)
        except ConnectionResetError as error:
            self._connection.abort()
            if not self.over.done():
                self.over.set_exception(error)

    def end(self, failure: Cut | None) -> None:
        """See `Follower.end`."""
        if self.over.done():
            return
        if failure is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(failure)
