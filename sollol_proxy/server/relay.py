"""HOT PATH: bytes from a host to its client as they come.

No JSON, no logging, no call into the scheduler, and over our own connections no task switch for a
chunk: what arrives from the host is written to the client's transport in the same call, and whole
chunks go as they came. Backpressure works both ways: while the client's buffer is full nothing is
read, so the host's connection fills up and a stream's memory stays bounded by the two buffers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sollol_proxy.errors import ClientGone
from sollol_proxy.ollama.records import UNREAD_CHUNKS, BodyWatch
from sollol_proxy.server.connection import Connection, Cut
from sollol_proxy.server.direct import DirectResponse, Framing
from sollol_proxy.server.direct_attempt import DirectUpstream
from sollol_proxy.server.upstream import Upstream
from sollol_proxy.server.wire import CHUNK_SIZES


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
        response.put_whole(first)
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
        connection.unfollow()
        client.valve = None


async def _read(upstream: Upstream, response: DirectResponse, watch: BodyWatch) -> None:
    chunk = upstream.first
    while chunk:
        watch.feed(chunk)
        await response.write(chunk)
        chunk = await upstream.next_chunk()


class _Pump:
    """Follows a host's body, and is the valve of the client's connection."""

    __slots__ = ("_connection", "_put", "_unread", "_watch", "_write", "over", "pass_chunk")

    def __init__(self, connection: Connection, response: DirectResponse, watch: BodyWatch) -> None:
        self._connection = connection
        self._watch = watch
        self._put = response.put
        self._write = response.raw_write
        self._unread = watch.unread
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        is_chunked = response.framing is Framing.CHUNKS
        self.pass_chunk: Callable[[bytes], bool] | None = self._pass_chunk if is_chunked else None

    def _pass_chunk(self, data: bytes) -> bool:
        """See `Follower`. Nearly always one write of the host is one chunk, and comes as one."""
        end = data.find(b"\r\n")
        size = CHUNK_SIZES.get(data[:end])
        if size is None or data[end + 2 + size :] != b"\r\n":
            return False
        self._write(data)
        unread = self._unread
        unread.append(data[end + 2 : -2])
        if len(unread) >= UNREAD_CHUNKS:
            self._watch.settle()
        return True

    def take(self, payload: bytes, raw: bytes | None) -> None:
        """See `Follower`."""
        self._watch.feed(payload)
        try:
            self._put(payload, raw)
        except ConnectionResetError:
            self.close()

    def end(self, failure: Cut | None) -> None:
        """See `Follower`."""
        if self.over.done():
            return
        if failure is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(failure)

    def pause(self) -> None:
        """See `Valve`."""
        self._connection.pause()

    def resume(self) -> None:
        """See `Valve`."""
        self._connection.resume()

    def close(self) -> None:
        """See `Valve`."""
        self._connection.unfollow()
        self._connection.abort()
        if not self.over.done():
            self.over.set_exception(ConnectionResetError("the client's connection is closed"))
