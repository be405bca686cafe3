"""HOT PATH: bytes from a host to its client as they come.

No JSON, no logging, no call into the scheduler, and over our own connections no task switch for a
chunk: what arrives from the host is written to the client's transport in the same call, and whole
chunks go as they came. Backpressure works both ways: while the client's buffer is full nothing is
read, so the host's connection fills up and a stream's memory stays bounded by the two buffers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from os import write as write_to_socket

from sollol_proxy.errors import ClientGone
from sollol_proxy.ollama.records import BodyWatch
from sollol_proxy.server.connection import Connection, Cut
from sollol_proxy.server.direct import DirectResponse, Framing
from sollol_proxy.server.direct_attempt import DirectUpstream
from sollol_proxy.server.upstream import Upstream
from sollol_proxy.server.wire import SIZE_LINES


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
    watch.settle()  # what follows is counted more quickly behind a whole record
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

    __slots__ = (
        "_buffered",
        "_connection",
        "_descriptor",
        "_is_closing",
        "_put",
        "_watch",
        "_write",
        "over",
        "pass_chunk",
    )

    def __init__(self, connection: Connection, response: DirectResponse, watch: BodyWatch) -> None:
        self._connection = connection
        self._watch = watch
        self._put = response.put
        transport = response.open_transport()
        self._write = transport.write
        self._buffered = transport.get_write_buffer_size
        self._is_closing = transport.is_closing
        descriptor = response.descriptor()
        self._descriptor = -1 if descriptor is None else descriptor
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        passes = response.framing is Framing.CHUNKS and descriptor is not None
        self.pass_chunk: Callable[[bytes], bool] | None = self._pass_chunk if passes else None

    def _pass_chunk(self, data: bytes) -> bool:
        """See `Follower`. Nearly always one write of the host is one chunk, and comes as one.

        While the client's transport holds nothing back, the chunk goes past it to the socket: an
        event loop that is to write keeps the bytes for the end of its turn, and that alone costs
        an eighth of a record. What the socket does not take, errors included, is the transport's.
        """
        length = len(data)
        line = SIZE_LINES[length] if length < len(SIZE_LINES) else None
        if line is None or not data.startswith(line) or not data.endswith(b"\r\n"):
            return False
        if self._buffered() or self._is_closing():
            self._write(data)
        else:
            try:
                sent = write_to_socket(self._descriptor, data)
            except OSError:  # it would block, or is broken: the transport will find out, too
                sent = 0
            if sent != len(data):
                self._write(data[sent:])
        self._watch.whole_chunk(data, length - len(line) - 2)
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
