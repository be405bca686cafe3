"""Framing of answers: any split of the bytes, and aiohttp's own parser as the judge."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpResponseParser
from hypothesis import example, given
from hypothesis import strategies as st

from sollol_proxy.server.wire import (
    MAX_LINE_BYTES,
    SIZE_LINES,
    Body,
    ChunkedBody,
    LengthBody,
    NoBody,
    RestBody,
    WireError,
    body_of,
    head_end,
    parse_head,
)

payloads = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
cuts = st.lists(st.integers(min_value=1, max_value=400), max_size=12)
extensions = st.sampled_from([b"", b";a=b", b" ;q", b"  "])
trailers = st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: b\r\nC: d\r\n"])


def chunked(pieces: list[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    sized = b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in pieces)
    return sized + b"0%b\r\n%b\r\n" % (extension, trailer)


def split(data: bytes, at: list[int]) -> Iterator[bytes]:
    begin = 0
    for end in [*sorted({each for each in at if each < len(data)}), len(data)]:
        yield data[begin:end]
        begin = end


def fed(body: Body, pieces: Iterator[bytes]) -> bytes:
    return b"".join([body.feed(piece) for piece in pieces])


@given(pieces=payloads, at=cuts, extension=extensions, trailer=trailers, rest=st.binary(max_size=9))
def test_chunked_body_is_the_same_however_it_is_split(
    pieces: list[bytes], at: list[int], extension: bytes, trailer: bytes, rest: bytes
) -> None:
    body = ChunkedBody()
    data = chunked(pieces, extension, trailer)
    assert fed(body, split(data, at)) == b"".join(pieces)
    assert body.has_ended
    body.feed(rest)
    assert body.rest == rest
    body.feed_eof()


@given(pieces=payloads, at=cuts, extension=extensions)
def test_what_counts_as_whole_chunks_may_be_passed_on_as_it_stands(
    pieces: list[bytes], at: list[int], extension: bytes
) -> None:
    sender, receiver = ChunkedBody(), ChunkedBody()
    got = b""
    for data in split(chunked(pieces, extension), at):
        payload = sender.feed(data)
        if sender.is_whole:
            assert receiver.feed(data) == payload
        elif payload:
            assert receiver.feed(b"%x\r\n%b\r\n" % (len(payload), payload)) == payload
        assert receiver.is_between
        assert not receiver.has_ended
        got += payload
    assert got == b"".join(pieces)


def test_size_that_is_cut_within_its_line_end_does_not_lead_back_into_what_was_read() -> None:
    body = ChunkedBody()
    # Counted from the end of the data, a chunk of 6 would end where the first one does.
    assert body.feed(b"4\r\nabcd\r\n6\r") == b"abcd"
    assert body.feed(b"\nuvwxyz\r\n0\r\n\r\n") == b"uvwxyz"
    assert body.has_ended


@given(pieces=st.lists(st.sampled_from([b"a", b"ab\r\n", b"\r\n\r\n"]), max_size=9), at=cuts)
def test_line_ends_in_the_payload_are_payload(pieces: list[bytes], at: list[int]) -> None:
    body = ChunkedBody()
    assert fed(body, split(chunked(pieces), at)) == b"".join(pieces)
    assert body.has_ended


@given(size=st.integers(1, 5000), digits=st.sampled_from([b"%x", b"%X", b"0%x"]))
def test_whole_chunk_is_known_by_its_length_and_first_line(size: int, digits: bytes) -> None:
    line = digits % size + b"\r\n"
    chunk = line + b"x" * size + b"\r\n"
    expected = SIZE_LINES[len(chunk)] if len(chunk) < len(SIZE_LINES) else None
    is_plain = line == b"%x\r\n" % size and size < 2**12
    assert (expected == line) == is_plain


@given(pieces=payloads, at=cuts, lost=st.integers(min_value=1))
def test_cut_chunked_body_never_looks_complete(
    pieces: list[bytes], at: list[int], lost: int
) -> None:
    data = chunked(pieces)
    body = ChunkedBody()
    fed(body, split(data[: -(lost % len(data)) or None][: len(data) - 1], at))
    assert not body.has_ended
    with pytest.raises(WireError):
        body.feed_eof()


@given(data=st.binary(min_size=1, max_size=300), at=cuts, length=st.integers(0, 300))
def test_body_of_a_known_length_ends_there(data: bytes, at: list[int], length: int) -> None:
    body = LengthBody(length)
    assert fed(body, split(data, at)) == data[:length]
    assert body.has_ended == (len(data) >= length)
    assert body.rest == data[length:]


@given(data=st.binary(min_size=1, max_size=300), at=cuts)
def test_body_of_an_unknown_length_ends_with_its_connection(data: bytes, at: list[int]) -> None:
    body = RestBody()
    assert fed(body, split(data, at)) == data
    assert not body.has_ended
    body.feed_eof()
    assert body.has_ended


@given(data=st.binary(max_size=200), at=cuts)
def test_any_bytes_are_a_body_or_a_wire_error(data: bytes, at: list[int]) -> None:
    body = ChunkedBody()
    try:
        got = fed(body, split(data, at))
    except WireError:
        return
    assert len(got) <= len(data)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_head_or_a_wire_error(data: bytes) -> None:
    for block in (data, b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n"):
        try:
            head = parse_head(block)
        except WireError:
            continue
        assert 100 <= head.status <= 999
        assert not any(b"\n" in part or b"\r" in part for field in head.fields for part in field)


@pytest.mark.parametrize(
    "data",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"+5\r\nabcde\r\n",
        b"0x5\r\nabcde\r\n",
        b"1_0\r\n" + b"a" * 16 + b"\r\n",
        b" 5\r\nabcde\r\n",
        b"\r\n",
        b"5\nabcde\r\n",
        b"3\r\nabcdef\r\n",
        b"5\r\nabcde5\r\nabcde\r\n",
        b"5;a=\x00b\r\nabcde\r\n",
        b"1" * 17 + b"\r\n",
        b"5;" + b"x" * (MAX_LINE_BYTES + 1),
        b"0\r\n" + b"A: b\r\n" * MAX_LINE_BYTES,
    ],
)
def test_wrong_chunks_are_an_error(data: bytes) -> None:
    with pytest.raises(WireError):
        ChunkedBody().feed(data)


def test_huge_chunk_is_followed_without_being_kept() -> None:
    body = ChunkedBody()
    assert body.feed(b"ffffffffffffffff\r\nabc") == b"abc"
    assert not body.has_ended
    with pytest.raises(WireError):
        body.feed_eof()


# --- heads ------------------------------------------------------------------------------------


def head_of(*lines: bytes) -> Any:
    return parse_head(b"\r\n".join((b"HTTP/1.1 200 OK", *lines)) + b"\r\n\r\n")


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5, 5",),
        (b"Content-Length: -5",),
        (b"Content-Length: +5",),
        (b"Content-Length: 5_0",),
        (b"Content-Length: ",),
        (b"Content-Length: 9999999999999999999",),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"No colon",),
        (b"Blank : before",),
        (b": no name",),
        (b"X: a\x00b",),
        (b"X: a\rb",),
        (b"X\xe9: a",),
    ],
)
def test_wrong_heads_are_an_error(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(WireError):
        head_of(*lines)


@pytest.mark.parametrize(
    "start",
    [b"HTTP/2 200 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 099 No", b"HTTP/1.1  200 OK", b"ICY 200 OK"],
)
def test_wrong_status_lines_are_an_error(start: bytes) -> None:
    with pytest.raises(WireError):
        parse_head(start + b"\r\n\r\n")


def test_length_gives_way_to_chunks_and_the_connection_is_not_used_again() -> None:
    head = head_of(b"Content-Length: 5", b"Transfer-Encoding: Chunked")
    assert (head.length, head.is_chunked, head.keeps_alive) == (None, True, False)
    assert head.fields == ((b"Transfer-Encoding", b"Chunked"),)


def test_folded_lines_become_one_and_bare_line_feeds_are_taken() -> None:
    head = head_of(b"X-Long: a", b"  b", b"\tc", b"Y: z")
    assert head.fields == ((b"X-Long", b"a b c"), (b"Y", b"z"))
    assert parse_head(b"HTTP/1.1 200\nA: b\n\n").fields == ((b"A", b"b"),)


def test_odd_bytes_of_a_value_stay_as_they_are() -> None:
    assert head_of(b"X: \xe9\xc3\xa9 ").fields == ((b"X", b"\xe9\xc3\xa9"),)


@pytest.mark.parametrize(
    ("start", "lines", "keeps_alive"),
    [
        (b"HTTP/1.1 200 OK", (), True),
        (b"HTTP/1.1 200 OK", (b"Connection: x, Close",), False),
        (b"HTTP/1.0 200 OK", (), False),
        (b"HTTP/1.0 200 OK", (b"Connection: Keep-Alive",), True),
    ],
)
def test_head_says_whether_the_connection_stays(
    start: bytes, lines: tuple[bytes, ...], keeps_alive: bool
) -> None:
    head = parse_head(b"\r\n".join((start, *lines)) + b"\r\n\r\n")
    assert head.keeps_alive is keeps_alive


def test_body_follows_from_method_status_and_head() -> None:
    chunks, length, neither = (
        head_of(b"Transfer-Encoding: chunked"),
        head_of(b"Content-Length: 3"),
        head_of(),
    )
    assert isinstance(body_of(chunks, "POST"), ChunkedBody)
    assert isinstance(body_of(length, "POST"), LengthBody)
    assert isinstance(body_of(neither, "POST"), RestBody)
    for head in (chunks, length, neither):
        assert isinstance(body_of(head, "HEAD"), NoBody)
    for status in (204, 304):
        empty = parse_head(b"HTTP/1.1 %d X\r\nContent-Length: 3\r\n\r\n" % status)
        assert isinstance(body_of(empty, "GET"), NoBody)
    with pytest.raises(WireError):
        body_of(parse_head(b"HTTP/1.1 101 X\r\n\r\n"), "GET")


@given(
    fields=st.lists(
        st.tuples(
            st.from_regex(rb"X-[A-Za-z0-9_.!-]{1,8}", fullmatch=True),
            st.from_regex(rb"[!-~]([ -~\x80-\xff]{0,20}[!-~])?", fullmatch=True),
        ),
        max_size=6,
    ),
    pieces=payloads,
    is_chunked=st.booleans(),
    at=cuts,
)
def test_answers_are_read_as_aiohttp_reads_them(
    fields: list[tuple[bytes, bytes]], pieces: list[bytes], is_chunked: bool, at: list[int]
) -> None:
    payload = b"".join(pieces)
    framing = (
        (b"Transfer-Encoding", b"chunked")
        if is_chunked
        else (b"Content-Length", b"%d" % len(payload))
    )
    lines = [b"HTTP/1.1 200 Fine", *(b"%b: %b" % field for field in [*fields, framing])]
    block = b"\r\n".join(lines) + b"\r\n\r\n"
    data = block + (chunked(pieces) if is_chunked else payload)

    async def judged() -> tuple[Any, bytes]:
        loop = asyncio.get_running_loop()
        parser = HttpResponseParser(BaseProtocol(loop), loop, 2**16, response_with_body=True)
        found: list[Any] = []
        for piece in split(data, at):
            found += parser.feed_data(piece)[0]
        [(message, stream)] = found
        return message, await stream.read()

    message, body = asyncio.run(judged())
    end = head_end(data)
    head = parse_head(data[:end])
    assert end == len(block)
    assert (head.status, head.reason.decode()) == (message.code, message.reason)
    assert head.fields == message.raw_headers
    assert head.keeps_alive is not message.should_close
    assert fed(body_of(head, "POST"), split(data[end:], at)) == body == payload


tokens = st.sampled_from(
    [b"0", b"5", b"a", b"abcde", b"\r\n", b"\r\n", b"\n", b";", b";a", b"=", b'"', b" ", b"A: b"]
)


@given(data=st.lists(tokens, max_size=12).map(b"".join))
@example(b"5\r\nabcde\r\n0\r\n\r\n")
@example(b"0\r\n\r\n0")
@example(b"0;\r\n\r\n")
@example(b"0;a=\r\n\r\n")
@example(b'0;a="b c"\r\n\r\n')
@example(b'0;a="\r\n\r\n')
@example(b"0; a\r\n\r\n")
@example(b"0 ;a\r\n\r\n")
def test_chunks_that_aiohttp_refuses_are_never_a_complete_body(data: bytes) -> None:
    block = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def is_refused(body: bytes) -> bool:
        loop = asyncio.get_running_loop()
        parser = HttpResponseParser(BaseProtocol(loop), loop, 2**16, response_with_body=True)
        try:
            [(_, stream)] = parser.feed_data(block + body)[0]
        except HttpProcessingError:
            return True
        return stream.exception() is not None or not stream.is_eof()

    body = ChunkedBody()
    try:
        body.feed(data)
    except WireError:
        return
    if body.has_ended:
        # What comes behind the end is another answer's, which aiohttp would look at as well.
        assert not asyncio.run(is_refused(data[: len(data) - len(body.rest)]))


header_lines = st.lists(
    st.tuples(
        st.sampled_from([b"Content-Type", b"date", b"X-a", b"Set-Cookie", b"vary"]),
        st.lists(st.sampled_from([b" ", b"\t", b"a", b":", b"\xff", b"b c"])).map(b"".join),
    )
)


@given(given=header_lines, start=st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.0 404 Not"]))
def test_fields_of_a_head_are_its_lines_less_the_blanks_around_values(
    given: list[tuple[bytes, bytes]], start: bytes
) -> None:
    lines = b"".join(b"%b:%b\r\n" % field for field in given)
    head = parse_head(b"%b\r\n%b\r\n" % (start, lines))
    assert head.fields == tuple((name, value.strip(b" \t")) for name, value in given)
    assert b"HTTP/1.%d %d %b" % (head.keeps_alive, head.status, head.reason) == start


def test_blanks_of_a_huge_value_are_read_once() -> None:
    blanks = b" " * 2**19
    head = parse_head(b"HTTP/1.1 200 OK\r\nA:%b\r\nB:%bx%b\r\n\r\n" % (blanks, blanks, blanks))
    assert head.fields == ((b"A", b""), (b"B", b"x"))
