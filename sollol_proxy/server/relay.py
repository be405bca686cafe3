"""HOT PATH: bytes from a host to its client as they come.

No JSON, no logging, no call into the scheduler, and over our own connections no task switch for a
chunk: what arrives from the host is written to the client's transport in the same call, and whole
chunks go as they came. Backpressure works both ways: while the client's buffer is full nothing is
read, so the host's connection fills up and a stream's memory stays bounded by the two buffers.
"""

from __future__ import annotations

import asyncio
from os import write as write_to_socket

from sollol_proxy.errors import ClientGone
from sollol_proxy.ollama.records import BodyWatch
from sollol_proxy.server.connection import Connection, Cut
from sollol_proxy.server.direct import DirectResponse, Framing
from sollol_proxy.server.direct_attempt import DirectUpstream
from sollol_proxy.server.upstream import Upstream
from sollol_proxy.server.wire import SIZE_LINES

SIZES = len(SIZE_LINES)


async def copy(upstream: Upstream, response: DirectResponse, watch: BodyWatch) -> None:
    """Pass the body on until its proper end; the client's end is not written.

    Raises:
        UpstreamBroke: the host's connection ended early.
        ClientGone: the client's connection is closed.
    """
    try:
        if isinstance(upstream, DirectUpstream):
            if upstream.connection.has_ended:
                watch.feed(upstream.first)
                response.put_whole(upstream.first)
                return
            await _follow(upstream, response, watch)
        else:
            await _read(upstream, response, watch)
    except ConnectionError as error:
        raise ClientGone from error


async def _follow(upstream: DirectUpstream, response: DirectResponse, watch: BodyWatch) -> None:
    first, connection = upstream.first, upstream.connection
    watch.feed(first)
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
        pump.tell()
        watch.lagging = None


async def _read(upstream: Upstream, response: DirectResponse, watch: BodyWatch) -> None:
    chunk = upstream.first
    while chunk:
        watch.feed(chunk)
        await response.write(chunk)
        chunk = await upstream.next_chunk()


class _Pump(asyncio.Protocol):
    """Follows a host's body, and is the valve of the client's connection.

    Where the client gets the body in chunks it reads the host's connection itself: nearly always
    one write of the host is one chunk with one record and comes as one. Such a chunk goes out as
    it stands, and what is to be known of it is kept here, so that a record touches one object.
    While the client's transport holds nothing back the chunk goes past it to the socket: an event
    loop that is to write keeps the bytes for the end of its turn. What the socket does not take,
    errors included, is the transport's.
    """

    __slots__ = (
        "_bytes",
        "_connection",
        "_content",
        "_descriptor",
        "_is_behind",
        "_is_between",
        "_newest",
        "_reads",
        "_record_end",
        "_records",
        "_response",
        "_second",
        "_third",
        "_transport",
        "_watch",
        "over",
    )

    def __init__(self, connection: Connection, response: DirectResponse, watch: BodyWatch) -> None:
        self._connection = connection
        self._watch = watch
        self._response = response
        self._transport = response.open_transport()
        descriptor = response.descriptor()
        self._descriptor = -1 if descriptor is None else descriptor
        self._record_end = (watch.separator or b"") + b"\r\n"
        self._content = watch.content
        self._is_behind = True
        """The client's transport may have bytes that have to go first."""
        self._is_between = connection.is_between_chunks and watch.is_between
        """A new chunk and a new record are due."""
        self._bytes = self._records = 0
        self._newest: bytes | None = None
        self._second: bytes | None = None
        self._third: bytes | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        is_framed = response.framing is Framing.CHUNKS and watch.separator is not None
        self._reads = is_framed and descriptor is not None
        if self._reads:
            watch.lagging = self.tell

    @property
    def reader(self) -> asyncio.Protocol | None:
        """See `Follower`."""
        return self if self._reads else None

    # --- the host's connection ------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes from the host."""
        length = len(data)
        line = SIZE_LINES[length] if length < SIZES else None
        if (
            line is None
            or not self._is_between
            or not data.startswith(line)
            or not data.endswith(self._record_end)
        ):
            self._take_slowly(data)
            return
        if self._is_behind and self._still_behind():
            self._transport.write(data)
        else:
            try:
                sent = write_to_socket(self._descriptor, data)
            except OSError:  # it would block, or is broken: the transport will find out, too
                sent = 0
            if sent != length:
                self._is_behind = True
                self._transport.write(data[sent:])
        self._bytes += length - len(line) - 2
        if self._content:
            self._records += data.count(self._content)
        self._third, self._second, self._newest = self._second, self._newest, data

    def _take_slowly(self, data: bytes) -> None:
        self._is_behind = True
        self.tell()
        self._connection.data_received(data)
        self._is_between = self._connection.is_between_chunks and self._watch.is_between

    def _still_behind(self) -> bool:
        self._is_behind = bool(self._transport.get_write_buffer_size())
        return self._is_behind

    def tell(self) -> None:
        """Tell the watch what it has not seen."""
        if self._newest is not None:
            chunks = (self._third, self._second, self._newest)
            self._third = self._second = self._newest = None
            count, records = self._bytes, self._records
            self._bytes = self._records = 0
            self._watch.whole_chunks(chunks, count, records)

    def eof_received(self) -> None:
        """The host will send no more."""
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The host's connection is gone."""
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """The host takes the request more slowly than it comes."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._connection.resume_writing()

    # --- the body -------------------------------------------------------------------------------

    def take(self, payload: bytes, raw: bytes | None) -> None:
        """See `Follower`."""
        self._watch.feed(payload)
        try:
            self._response.put(payload, raw)
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
