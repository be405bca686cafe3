from __future__ import annotations

import json
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import JobKind
from sollol_proxy.ollama.describe import describe
from sollol_proxy.ollama.encoding import (
    MAX_DECODED_BYTES,
    MAX_FRAMES,
    MAX_WINDOW_LOG,
    ZSTD_ROUTES,
    decoded,
    from_zstd,
)
from sollol_proxy.ollama.routes import ROUTES, Plan, find

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BALANCED = [route for route in ROUTES if route.plan is Plan.BALANCE]
BODY = json.dumps(
    {
        "model": "Llama3",
        "stream": True,
        "max_tokens": 7,
        "messages": [{"role": "user", "content": "hi " * 400}],
        "input": "hi " * 400,
        "prompt": "hi " * 400,
    }
).encode()
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"


def packed(data: bytes, **options: int) -> bytes:
    named = {getattr(zstd.CompressionParameter, key): value for key, value in options.items()}
    return zstd.compress(data, options=named or None)


def streamed(data: bytes, **options: int) -> bytes:
    """One frame that does not say how long its contents are."""
    named = {getattr(zstd.CompressionParameter, key): value for key, value in options.items()}
    packer = zstd.ZstdCompressor(options=named or None)
    return packer.compress(data) + packer.flush()


# --- which bodies -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(ZSTD_ROUTES))
def test_describe_reads_a_packed_body_as_the_plain_one(path: str) -> None:
    route = find("POST", path)
    body = packed(BODY)
    facts = describe(route, body, content_encoding="zstd")
    plain = describe(route, BODY)
    assert facts.model == "llama3:latest"
    assert facts.body_bytes == len(body)
    assert facts.kind is plain.kind is route.kind
    assert (facts.stream, facts.prompt_tokens_est) == (plain.stream, plain.prompt_tokens_est)
    assert (facts.output_limit_tokens, facts.messages) == (7, plain.messages)


@pytest.mark.parametrize("route", BALANCED, ids=lambda route: route.path)
def test_zstd_is_undone_on_the_routes_where_ollama_undoes_it(route: object) -> None:
    assert isinstance(route, type(ROUTES[0]))
    facts = describe(route, packed(BODY), content_encoding="zstd")
    assert (facts.kind is not JobKind.OTHER) == (route.path in ZSTD_ROUTES)


def test_zstd_routes_are_five_of_the_table() -> None:
    assert len(ZSTD_ROUTES) == 5
    assert {route.path for route in BALANCED} >= ZSTD_ROUTES


@pytest.mark.parametrize("coding", ["gzip", "ZSTD", "zstd, zstd", "gzip, zstd", "deflate", "x"])
def test_describe_leaves_other_codings_to_a_host(coding: str) -> None:
    route = find("POST", "/v1/chat/completions")
    facts = describe(route, packed(BODY), content_encoding=coding)
    assert (facts.kind, facts.model) == (JobKind.OTHER, "")


@pytest.mark.parametrize("coding", ["", "identity", " Identity "])
def test_plain_body_is_its_own_content(coding: str) -> None:
    assert decoded(find("POST", "/api/chat"), BODY, coding) is BODY


# --- frames -----------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=4), st.integers(1, 19), st.booleans())
def test_from_zstd_joins_the_contents_of_all_frames(
    contents: list[bytes], level: int, checked: bool
) -> None:
    frames = [
        packed(part, compression_level=level, checksum_flag=int(checked)) for part in contents
    ]
    assert from_zstd(b"".join(frames)) == b"".join(contents)


@pytest.mark.parametrize(
    "body",
    [
        SKIPPABLE,
        SKIPPABLE + packed(BODY) + SKIPPABLE,
        streamed(BODY),
        streamed(BODY * 400) + packed(BODY * 400),
        packed(bytes(range(256)) * 4096, compression_level=-50),
    ],
    ids=["skippable", "skippable around", "no length", "long ones", "stored"],
)
def test_from_zstd_reads_what_one_call_reads(body: bytes) -> None:
    assert from_zstd(body) == zstd.decompress(body)


@pytest.mark.parametrize("cut", [1, 5, 9, -5, -1])
def test_from_zstd_refuses_what_ends_within_a_frame(cut: int) -> None:
    whole = packed(BODY, checksum_flag=1)
    assert from_zstd(whole[:cut]) is None
    assert from_zstd(whole + whole[:cut]) is None


@pytest.mark.parametrize("rest", [b"\n", b"{}", b"\0" * 8])
def test_from_zstd_refuses_what_is_followed_by_something_else(rest: bytes) -> None:
    assert from_zstd(packed(BODY) + rest) is None


def test_from_zstd_refuses_a_wrong_checksum() -> None:
    whole = packed(BODY, checksum_flag=1)
    assert from_zstd(whole[:-1] + bytes([whole[-1] ^ 1])) is None


@given(st.binary() | st.binary().map(lambda data: packed(BODY)[: len(data)] + data))
def test_from_zstd_never_raises(body: bytes) -> None:
    content = from_zstd(body)
    assert content is None or len(content) <= MAX_DECODED_BYTES


# --- bounds -----------------------------------------------------------------------------------


def test_from_zstd_takes_all_that_ollama_takes_and_no_byte_more() -> None:
    for size, is_taken in ((MAX_DECODED_BYTES, True), (MAX_DECODED_BYTES + 1, False)):
        for body in (streamed(bytes(size)), streamed(bytes(size - 10)) + packed(bytes(10))):
            content = from_zstd(body)
            assert (content == bytes(size)) if is_taken else (content is None)


@pytest.mark.parametrize(("window_log", "is_taken"), [(MAX_WINDOW_LOG, True), (24, False)])
def test_from_zstd_refuses_a_window_that_ollama_has_no_memory_for(
    window_log: int, is_taken: bool
) -> None:
    body = streamed(b'{"a":1}' + bytes(9 * 2**20), window_log=window_log)
    assert (from_zstd(body) is not None) == is_taken


def test_from_zstd_is_not_hurt_by_a_bomb() -> None:
    packer = zstd.ZstdCompressor()
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(500)) + packer.flush()
    assert len(bomb) < 2**16
    tracemalloc.start()
    try:
        assert from_zstd(bomb) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What was decoded up to the bound, and not the 500 MiB that it holds.
    assert peak < 1.5 * MAX_DECODED_BYTES


def test_from_zstd_stops_at_frames_and_bytes_that_hold_nothing() -> None:
    nothing = packed(b"")
    assert from_zstd(nothing * MAX_FRAMES) == b""
    assert from_zstd(nothing * (MAX_FRAMES + 1)) is None
    # A frame's head, a window of 1 KiB, and empty stored blocks without an end.
    assert from_zstd(b"\x28\xb5\x2f\xfd\x00\x00" + bytes(3 * 8 * 2**20)) is None
