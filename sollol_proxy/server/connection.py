"""One connection to a host: a request goes out, its answer comes in, then perhaps another.

HOT PATH from `data_received` on: what comes is decoded and handed to whoever follows the answer in
the same call, without a task switch. While nobody follows, up to `READ_AHEAD_BYTES` are kept and
then the host is made to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol as Interface
from typing import cast

from sollol_proxy.server.wire import (
    Body,
    ChunkedBody,
    Head,
    WireError,
    body_of,
    head_end,
    parse_head,
)

READ_AHEAD_BYTES = 2**16
MAX_HEADER_BYTES = 2**20
"""Go's own limit on a header block, so what a host may send passes."""

_NO_ANSWER = "the connection ended without an answer"
_LONG_HEAD = "the answer's head is too long"
_CUT = "the connection ended before the body did"


class Cut(Exception):
    """The exchange cannot go on: the connection has ended, or what came is no answer.

    untouched: not one byte of an answer had come.
    """

    def __init__(self, detail: str, *, untouched: bool = False) -> None:
        super().__init__(detail)
        self.untouched = untouched


class Follower(Interface):
    """Whoever gets a body as it comes. None of these may raise."""

    @property
    def reader(self) -> asyncio.Protocol | None:
        """None, or who gets the connection's bytes in its place; what is not taken is passed on."""

    def take(self, payload: bytes, raw: bytes | None) -> None:
        """Some bytes of the body. raw: the same as whole chunks, where they came so."""

    def end(self, failure: Cut | None) -> None:
        """The body has ended: properly, or by a failure."""


class Connection(asyncio.Protocol):
    """One exchange at a time: `send`, `answer`, then `next_piece` or `follow`, until `has_ended`.

    is_reusable: the last exchange is over in both directions and nothing speaks against another.
    exchanges: how many there were, the current one included.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_failure",
        "_follower",
        "_head",
        "_is_open",
        "_is_reading",
        "_is_sent",
        "_loop",
        "_method",
        "_pieces",
        "_reader",
        "_room",
        "_size",
        "_transport",
        "_waiter",
        "exchanges",
    )

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._is_reading = True
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._reader: asyncio.Protocol | None = None
        self.exchanges = 0
        self._reset("")

    def _reset(self, method: str) -> None:
        self._method = method
        self._buffer = b""
        self._head: Head | None = None
        self._body: Body | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._failure: Cut | None = None
        self._follower: Follower | None = None
        self._is_sent = False

    # --- the exchange ---------------------------------------------------------------------------

    @property
    def is_reusable(self) -> bool:
        """See the class."""
        body, head = self._body, self._head
        return (
            self._is_sent
            and body is not None
            and body.has_ended
            and not body.rest
            and head is not None
            and head.keeps_alive
            and self._failure is None
            and self._transport is not None
            and not self._transport.get_write_buffer_size()
        )

    @property
    def has_ended(self) -> bool:
        """Whether the body of the current answer is complete and has been taken."""
        return self._body is not None and self._body.has_ended and not self._pieces

    def send(self, method: str, head: bytes, body: bytes | None) -> None:
        """Begin an exchange. body: None where pieces follow, which `send_pieces` sends."""
        self._reset(method)
        self.exchanges += 1
        if not self._is_reading:
            self._resume()
        transport = self._transport
        if transport is None or transport.is_closing():
            self._failure = Cut(_NO_ANSWER, untouched=True)
            return
        if body is None:
            transport.write(head)
            return
        self._is_sent = True
        if len(body) < READ_AHEAD_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)

    async def send_pieces(self, pieces: AsyncIterator[bytes], length: int | None) -> None:
        """Send a body as it comes, at the host's pace. length: in bytes; None = in chunks.

        Raises:
            ValueError: the pieces are more or fewer than `length` bytes.
        """
        left = length
        async for piece in pieces:
            if not piece:
                continue
            if left is None:
                self._write(b"%x\r\n%b\r\n" % (len(piece), piece))
            else:
                left -= len(piece)
                if left < 0:
                    raise ValueError("the request body is longer than announced")
                self._write(piece)
            await self._has_room()
        if left:
            raise ValueError("the request body is shorter than announced")
        if left is None:
            self._write(b"0\r\n\r\n")
        self._is_sent = True

    async def answer(self) -> None:
        """Wait for the head and the first bytes of the body, or its end.

        Raises:
            Cut: they will not come.
        """
        while not (self._pieces or self.has_ended):
            if self._failure is not None:
                raise self._failure
            await self._news()

    @property
    def head(self) -> Head:
        """The head of the current answer, once it has come."""
        assert self._head is not None
        return self._head

    @property
    def has_head(self) -> bool:
        """Whether the head of the current answer has come."""
        return self._head is not None

    @property
    def is_between_chunks(self) -> bool:
        """Whether the body comes in chunks, and another one is due."""
        body = self._body
        return isinstance(body, ChunkedBody) and body.is_between and not body.has_ended

    def taken(self) -> bytes:
        """What has come of the body and was not taken yet."""
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        self._size = 0
        return data

    async def next_piece(self) -> bytes:
        """The next bytes of the body; empty at its proper end.

        Raises:
            Cut: the connection ended before the body did.
        """
        while not self._pieces:
            if self.has_ended:
                return b""
            if self._failure is not None:
                raise self._failure
            self._resume()
            await self._news()
        return self.taken()

    def follow(self, follower: Follower) -> None:
        """Give the rest of the body to `follower` as it comes."""
        self._follower = follower
        if self._pieces:
            follower.take(self.taken(), None)
        if self._failure is not None or self.has_ended:
            self._tell_end()
            return
        if follower.reader is not None and self._transport is not None:
            self._reader = follower.reader
            self._transport.set_protocol(follower.reader)
        self._resume()

    def pause(self) -> None:
        """Read no more until `resume`: the host's connection fills up, and the host waits."""
        transport = self._transport
        if self._is_reading and transport is not None and not transport.is_closing():
            self._is_reading = False
            transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self._resume()

    def give_up(self, failure: Cut) -> None:
        """End the exchange from this side; whoever waits for it gets `failure`."""
        self._fail(failure)
        self.abort()

    def abort(self) -> None:
        """Close the connection at once: so the host learns that nobody listens any more."""
        if self._transport is not None:
            self._transport.abort()
        self._is_open = False

    def unfollow(self) -> None:
        """Nobody wants the rest of the body."""
        self._follower = None
        self._read_itself()

    # --- called by the event loop ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()  # a system call each time
        self._is_open = True

    def data_received(self, data: bytes) -> None:
        """Bytes from the host."""
        body = self._body
        if body is None:
            self._take_head(data)
            return
        follower = self._follower
        try:
            payload = body.feed(data)
        except WireError as error:
            self._fail(Cut(str(error)))
            self.abort()
            return
        if payload:
            if follower is not None:
                follower.take(payload, data if body.is_whole else None)
            else:
                self._keep(payload)
        if body.has_ended:
            self._end_of_body()
        elif payload and follower is None:
            self._wake()

    def eof_received(self) -> None:
        """The host will send no more; the transport closes by itself."""
        if self._body is not None and self._failure is None and not self._body.has_ended:
            try:
                self._body.feed_eof()
            except WireError:
                return  # `connection_lost` comes next
            self._end_of_body()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._is_open = False
        self._transport = None
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if self._body is None:
            reason = exc.strerror if isinstance(exc, OSError) else None
            self._fail(Cut(reason or _NO_ANSWER, untouched=not self._buffer))
        elif not self._body.has_ended:
            self._fail(Cut(_CUT))

    def pause_writing(self) -> None:
        """The host takes the request more slowly than it comes."""
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """It has caught up."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    # --- within ---------------------------------------------------------------------------------

    def _take_head(self, data: bytes) -> None:
        if not self._method or self._failure is not None:
            # Between exchanges: an answer that nobody asked for could be taken for the next one.
            self.abort()
            return
        if self._buffer:
            look_from = max(len(self._buffer) - 3, 0)
            data = self._buffer + data
        else:
            look_from = 0
        try:
            while (end := head_end(data, look_from)) >= 0:
                if end > MAX_HEADER_BYTES:
                    raise WireError(_LONG_HEAD)
                head = parse_head(data[:end])
                data, look_from = data[end:], 0
                if head.status >= 200 or head.status == 101:
                    self._begin_body(head, data)
                    return
            if len(data) > MAX_HEADER_BYTES:
                raise WireError(_LONG_HEAD)
        except WireError as error:
            self._fail(Cut(str(error)))
            self.abort()
            return
        self._buffer = data

    def _begin_body(self, head: Head, data: bytes) -> None:
        body = body_of(head, self._method)
        self._head, self._body, self._buffer = head, body, b""
        if data:
            self.data_received(data)
        elif body.has_ended:
            self._end_of_body()

    def _keep(self, payload: bytes) -> None:
        self._pieces.append(payload)
        self._size += len(payload)
        if self._size >= READ_AHEAD_BYTES:
            self.pause()

    def _end_of_body(self) -> None:
        if self._follower is not None:
            self._tell_end()
        else:
            self._wake()

    def _fail(self, failure: Cut) -> None:
        if self._failure is None:
            self._failure = failure
            if self._follower is not None:
                self._tell_end()
            else:
                self._wake()

    def _tell_end(self) -> None:
        follower, self._follower = self._follower, None
        self._read_itself()
        if follower is not None:
            follower.end(None if self.has_ended else self._failure)

    def _read_itself(self) -> None:
        if self._reader is not None:
            self._reader = None
            if self._transport is not None:
                self._transport.set_protocol(self)

    def _resume(self) -> None:
        transport = self._transport
        if not self._is_reading and transport is not None and not transport.is_closing():
            self._is_reading = True
            transport.resume_reading()

    def _write(self, data: bytes) -> None:
        # Once it is lost nobody reads what is written; the exchange has failed already.
        if self._transport is not None:
            self._transport.write(data)

    async def _has_room(self) -> None:
        while self._room is not None and self._is_open:
            await self._room

    def _news(self) -> asyncio.Future[None]:
        """What `_wake` ends; for one who waits at a time."""
        assert self._loop is not None
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
