"""One client of `bench overhead`: as little work a record as Python allows.

No HTTP library: a response is read as far as it takes to know its status, its records and its end.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from time import perf_counter
from typing import cast

from sollol_proxy.lab.bench_bytes import LAST_CHUNK, WORD, Target

_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)
_COMPLETE = re.compile(rb'"done": ?true|data: ?\[DONE\]')


class CallFailed(Exception):
    """A request was not answered as it should."""


class Body(Enum):
    """How a body ends."""

    NONE = "nothing is awaited"
    HEAD = "its head is awaited"
    CHUNKED = "by its last chunk"
    COUNTED = "by its length"


class Caller(asyncio.Protocol):
    """One connection; one request at a time.

    records: that have come since the last `ask`. pieces: in which they came. first_s: when the
    first one came, by `perf_counter`. is_good: whether the last answer had status 200 and, where
    it streamed, its end. is_lost: no request may follow. on_first: called when the first record
    came; None = nobody waits for it. on_end: called when an answer has ended, or its connection.
    """

    __slots__ = (
        "_body", "_last", "_left", "_transport", "first_s", "is_good", "is_lost",
        "on_end", "on_first", "pieces", "records",
    )  # fmt: skip

    def __init__(
        self, on_end: Callable[[Caller], None], on_first: Callable[[], None] | None = None
    ) -> None:
        self.on_end = on_end
        self.on_first = on_first
        self.records = 0
        self.pieces = 0
        self.first_s = 0.0
        self.is_good = False
        self.is_lost = False
        self._body = Body.NONE
        self._left = 0
        self._last = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self.is_lost = True
        if self._body is not Body.NONE:
            self._end(is_good=False)

    @property
    def is_open(self) -> bool:
        """Whether an answer is under way."""
        return self._body is not Body.NONE

    def ask(self, request: bytes) -> None:
        """Send a request."""
        self.records = 0
        self.pieces = 0
        self.is_good = False
        self._last = b""
        if self.is_lost:
            self._end(is_good=False)
            return
        self._body = Body.HEAD
        self._transport.write(request)

    def leave(self) -> None:
        """Close the connection without a word, as a client does that has gone; nobody is told."""
        self._body = Body.NONE
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        if self._body is Body.HEAD:
            data = self._head(data)
            if not data:
                return
        if self._body is Body.CHUNKED:
            self._chunks(data)
        elif self._body is Body.COUNTED:
            self._left -= len(data)
            if self._left <= 0:
                self._end(is_good=self.is_good)

    def _head(self, data: bytes) -> bytes:
        """Read the head; what came behind it, empty while it is not complete."""
        data = self._last + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._last = data
            return b""
        self._last = b""
        self.is_good = data[9:12] == b"200"
        # As everybody spells it who closes; a capital or not in front.
        self.is_lost = data.find(b"onnection: close", 0, end) >= 0
        length = _LENGTH.search(data, 0, end)
        if length is None:
            self._body = Body.CHUNKED
        else:
            self._body, self._left = Body.COUNTED, int(length[1])
            if not self._left:
                self._end(is_good=self.is_good)
        return data[end + 4 :]

    def _chunks(self, data: bytes) -> None:
        if found := data.count(WORD):
            if not self.records:
                self.first_s = perf_counter()
                if self.on_first is not None:
                    self.on_first()
            self.records += found
            self.pieces += 1
        if data.endswith(LAST_CHUNK) or len(data) < len(LAST_CHUNK):
            data = self._last + data
            if data.endswith(LAST_CHUNK):
                is_whole = not self.records or _COMPLETE.search(data) is not None
                self._end(is_good=self.is_good and is_whole)
                return
        self._last = data

    def _end(self, *, is_good: bool) -> None:
        self._body = Body.NONE
        self._last = b""
        self.is_good = is_good
        if self.is_lost:
            self._transport.close()
        self.on_end(self)


@dataclass(slots=True)
class Line:
    """A connection on which one request follows another, each waited for."""

    target: Target
    place: int = 0
    _caller: Caller | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, request: bytes) -> float:
        """The seconds until the first record; returns when the answer has ended.

        Raises:
            CallFailed: there is no good answer.
        """
        loop = asyncio.get_running_loop()
        if self._caller is None or self._caller.is_lost:
            address = self.target.addresses[self.place % len(self.target.addresses)]
            try:
                _, self._caller = await loop.create_connection(
                    lambda: Caller(lambda _: self._ended.set()), *address
                )
            except OSError as error:
                raise CallFailed(f"{address[0]}:{address[1]}: {error}") from None
        self._ended.clear()
        asked_s = perf_counter()  # the loop's clock goes in milliseconds
        self._caller.ask(request)
        await self._ended.wait()
        if not self._caller.is_good:
            raise CallFailed("an answer was not good")
        return self._caller.first_s - asked_s

    def close(self) -> None:
        """Close the connection."""
        if self._caller is not None:
            self._caller.leave()
