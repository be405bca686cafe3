"""HTTP/1.1 answers as bytes: the head, and where a body ends. No sockets here (RFC 9112).

A body decoder is fed bytes however they were split and gives back the payload among them. It
holds nothing but an unfinished line: memory does not grow with the body. What it cannot make sense
of is an error at once, never the end of a body.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import NamedTuple

MAX_LINE_BYTES = 2**14
"""Of a chunk's size with its extensions; Go's reader gives up far earlier."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?")
_OK = b"HTTP/1.1 200 OK"
_FIELD = re.compile(_TOKEN + rb"+:[^\x00-\x08\x0a-\x1f\x7f]*")
_FIELDS = re.compile(rb"(?:" + _FIELD.pattern + rb"\r\n)*")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_FOLD = re.compile(rb"[ \t]*\r\n[ \t]+")
# RFC 9112, 7.1.1, without blanks within an extension, at which strict clients stop.
_EXTENSION = rb";" + _TOKEN + rb"+(?:=(?:" + _TOKEN + rb"+|\"[^\x00-\x08\x0a-\x1f\x7f\"\\]*\"))?"
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:" + _EXTENSION + rb")*")
_LENGTH = re.compile(rb"[0-9]{1,18}")

CHUNK_SIZES = {b"%x" % size: size for size in range(1, 2**12)}
"""The sizes of records as Go writes them: quicker to look up than to read."""
_CHUNK_LINE_BYTES = 5


def _size_lines() -> list[bytes | None]:
    lines: list[bytes | None] = [None] * (max(CHUNK_SIZES.values()) + _CHUNK_LINE_BYTES + 3)
    for digits, size in CHUNK_SIZES.items():
        lines[len(digits) + 2 + size + 2] = digits + b"\r\n"
    return lines


SIZE_LINES = _size_lines()
"""How a chunk begins that has as many bytes as the index, its lines included; None: none has."""


class WireError(Exception):
    """Bytes that are no HTTP/1.1 answer; says what is wrong with them."""


class Head(NamedTuple):
    """The head of an answer.

    fields: names and values as they came, without blanks around the values.
    length: of the body in bytes as announced; None = not announced.
    keeps_alive: the connection may serve another request after this one.
    """

    status: int
    reason: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    length: int | None
    is_chunked: bool
    keeps_alive: bool
    content_type: bytes


def head_end(data: bytes | bytearray, start: int = 0) -> int:
    """Where a head ends, its blank line included; -1 while it has not. start: look from here."""
    found = data.find(b"\r\n\r\n", start)
    if found >= 0:
        return found + 4
    match = _HEAD_END.search(data, start)  # RFC 9112, 2.2: a line may end without its CR
    return match.end() if match else -1


def parse_head(block: bytes) -> Head:
    """The head in `block`, which ends with its blank line.

    Where it is both chunked and has a length, the length is dropped (RFC 9112, 6.3).

    Raises:
        WireError: it is none.
    """
    start, _, lines = block[:-2].partition(b"\r\n")
    if _FIELDS.fullmatch(lines) is None or b"\n" in start:
        start, lines = _unusual(block)
    if start == _OK:
        return _head(200, b"OK", lines, is_11=True)
    status = _STATUS.fullmatch(start)
    if status is None:
        raise WireError("the answer does not begin as HTTP/1 does")
    return _head(int(status[2]), status[3] or b"", lines, is_11=status[1] == b"1")


def _unusual(block: bytes) -> tuple[bytes, bytes]:
    """The first line and the others of a head with bare line feeds or folded lines in it."""
    text = block.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    start, _, lines = text[:-2].partition(b"\r\n")
    lines = _FOLD.sub(b" ", lines)  # RFC 9112, 5.2
    if _FIELDS.fullmatch(lines) is None:
        raise WireError("a header line of the answer is malformed")
    return start, lines


def _head(status: int, reason: bytes, lines: bytes, *, is_11: bool) -> Head:
    """The head with the fields in `lines`, which `_FIELDS` takes."""
    fields: list[tuple[bytes, bytes]] = []
    length: int | None = None
    is_chunked = False
    keeps_alive = is_11
    content_type = b""
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        value = value.strip(b" \t")
        fields.append((name, value))
        lowered = name.lower()
        if lowered == b"content-length":
            if length is not None or _LENGTH.fullmatch(value) is None:
                raise WireError("the answer's Content-Length is not one number")
            length = int(value)
        elif lowered == b"transfer-encoding":
            if is_chunked or value.lower() != b"chunked":
                raise WireError("the answer has a transfer coding other than chunked")
            is_chunked = True
        elif lowered == b"connection":
            options = {option.strip().lower() for option in value.split(b",")}
            keeps_alive = b"close" not in options and (is_11 or b"keep-alive" in options)
        elif lowered == b"content-type":
            content_type = content_type or value
    if is_chunked and length is not None:
        fields = [field for field in fields if field[0].lower() != b"content-length"]
        length, keeps_alive = None, False
    return Head(status, reason, tuple(fields), length, is_chunked, keeps_alive, content_type)


class Body(ABC):
    """Finds the payload and the end of one body.

    has_ended: the body is complete. rest: bytes that came after its end.
    is_whole: what was fed last is made of whole chunks without extensions and without the last
        one, so that it may go as it stands to whoever gets the body in chunks, too.
    """

    __slots__ = ("has_ended", "is_whole", "rest")

    def __init__(self) -> None:
        self.has_ended = False
        self.is_whole = False
        self.rest = b""

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """The payload in the next bytes of the connection.

        Raises:
            WireError: they do not follow the framing.
        """

    def feed_eof(self) -> None:
        """The connection has ended, in good order.

        Raises:
            WireError: the body has not.
        """
        if not self.has_ended:
            raise WireError("the connection ended before the body did")


class NoBody(Body):
    """Of an answer to HEAD, and of a status that has none."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        self.has_ended = True

    def feed(self, data: bytes) -> bytes:
        """Nothing of it belongs to the body."""
        self.rest += data
        return b""


class LengthBody(Body):
    """A body whose length was announced, in bytes."""

    __slots__ = ("_left",)

    def __init__(self, length: int) -> None:
        super().__init__()
        self._left = length
        self.has_ended = not length

    def feed(self, data: bytes) -> bytes:
        """See `Body.feed`."""
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            return data
        self._left = 0
        self.has_ended = True
        self.rest += data[left:]
        return data[:left]


class RestBody(Body):
    """A body that ends with its connection."""

    __slots__ = ()

    def feed(self, data: bytes) -> bytes:
        """See `Body.feed`."""
        return data

    def feed_eof(self) -> None:
        """This is the proper end."""
        self.has_ended = True


class ChunkedBody(Body):
    """A body in chunks. Extensions are dropped, and so are trailers (RFC 9112, 7.1).

    is_between: what comes next is the beginning of a chunk.
    """

    __slots__ = ("_in_trailer", "_left", "_line", "_needs_crlf", "_trailer_bytes", "is_between")

    def __init__(self) -> None:
        super().__init__()
        self.is_between = True
        self._left = 0
        """Bytes that are missing of the current chunk."""
        self._needs_crlf = False
        """The current chunk's bytes are there, the line end behind them is not."""
        self._in_trailer = False
        self._trailer_bytes = 0
        self._line = b""
        """The beginning of a line whose end has not come."""

    def feed(self, data: bytes) -> bytes:
        """See `Body.feed`."""
        if self.has_ended:
            self.rest += data
            return b""
        payload: list[bytes] = []
        only_chunks = self.is_between
        at = _whole_chunks(data, payload) if only_chunks else 0
        while at < len(data) and not self.has_ended:
            if self._left:
                piece = data[at : at + self._left]
                payload.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._needs_crlf = not self._left
                continue
            line, at = self._next_line(data, at)
            if line is None:
                break
            only_chunks = self._take_line(line) and only_chunks
        if self.has_ended:
            self.rest = data[at:]
        self.is_between = not (self._left or self._needs_crlf or self._line or self._in_trailer)
        self.is_whole = only_chunks and self.is_between
        return payload[0] if len(payload) == 1 else b"".join(payload)

    def _next_line(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        """The line that ends in `data`, without its end; None, and the rest kept, if none does."""
        end = data.find(b"\n", at)
        if end < 0:
            self._line += data[at:]
            if len(self._line) > MAX_LINE_BYTES:
                raise WireError("a line within the body's framing is too long")
            return None, len(data)
        line = self._line + data[at : end + 1]
        self._line = b""
        if not line.endswith(b"\r\n") or len(line) > MAX_LINE_BYTES:
            raise WireError("a line within the body's framing is malformed")
        return line[:-2], end + 1

    def _take_line(self, line: bytes) -> bool:
        """Follow a line of the framing; whether it is one that may be passed on."""
        if self._needs_crlf:
            if line:
                raise WireError("a chunk of the body is longer than announced")
            self._needs_crlf = False
            return True
        if self._in_trailer:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_LINE_BYTES:
                raise WireError("the body's trailers are too long")
            if line and _FIELD.fullmatch(line) is None:
                raise WireError("a trailer of the body is malformed")
            self.has_ended = not line
            return False
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise WireError("a chunk of the body has no valid size")
        self._left = int(match[1], 16)
        self._in_trailer = not self._left
        return bool(self._left) and match.end(1) == len(line)


def _whole_chunks(data: bytes, payload: list[bytes]) -> int:
    """Add what whole chunks at the beginning of `data` hold to `payload`; where they end.

    Only chunks as Go writes them: what is less plain is left to who reads line by line.
    """
    at, length = 0, len(data)
    while at < length:
        end = data.find(b"\r\n", at, at + _CHUNK_LINE_BYTES)
        size = CHUNK_SIZES.get(data[at:end]) if end >= 0 else None
        if size is None:
            break
        stop = end + 2 + size
        if data[stop : stop + 2] != b"\r\n":
            break
        payload.append(data[end + 2 : stop])
        at = stop + 2
    return at


def body_of(head: Head, method: str) -> Body:
    """A decoder for the body that follows a head (RFC 9112, 6.3). method: of the request.

    Raises:
        WireError: the answer switches protocols, which nobody asked for.
    """
    if head.status == 101:
        raise WireError("the answer switches protocols")
    if method == "HEAD" or head.status in (204, 304):
        return NoBody()
    if head.is_chunked:
        return ChunkedBody()
    return RestBody() if head.length is None else LengthBody(head.length)
