"""Every recorded exchange through the proxy over one host, next to what Ollama itself answered.

`CASES` says for each recording what the proxy owes; a test fails when one is not listed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import StrEnum
from typing import Any

import pytest

from tests.support import RunningProxy, make_config, running_proxy
from tests.wire.recordings import Exchange, end_to_end, http_exchanges
from tests.wire.replay import RawAnswer, ReplayHost, raw_request


class Owed(StrEnum):
    """What the proxy owes a recorded exchange."""

    EQUAL = "equal"
    """The host's answer comes through: body to the byte, status, reason, end-to-end headers."""
    MERGED = "merged"
    """Answered from what the probes know; over one host that is the host's own document."""
    LOCAL = "local"
    """Answered by the proxy as Ollama would: who may call, preflights."""
    OURS = "ours"
    """A path that is ours and not Ollama's."""
    CUT = "cut"
    """The host cut its stream: the client has to notice."""
    RETRIED = "retried"
    """The host went away before its first byte: tried again, then refused."""
    OMITTED = "omitted"
    """The request cannot be repeated: its body, a model file, was left out or never sent."""


_MERGED_PREFIXES = ("root-", "version-", "tags-", "ps-", "v1-models-")
_ODD: dict[str, Owed] = {
    "v1-models-one-slash": Owed.EQUAL,
    "query-string": Owed.MERGED,
    "http10": Owed.MERGED,
    "http10-keepalive": Owed.MERGED,
    "connection-close": Owed.MERGED,
    "pipeline-1": Owed.MERGED,
    "pipeline-3": Owed.MERGED,
    "slot-wait-3": Owed.MERGED,
    "slot-wait-4": Owed.MERGED,
    "origin-ok": Owed.MERGED,
    "origin-same": Owed.MERGED,
    "host-local-name": Owed.MERGED,
    "options-no-origin": Owed.EQUAL,
    "options-no-origin-name": Owed.LOCAL,
    "options-origin": Owed.LOCAL,
    "options-origin-unknown-path": Owed.LOCAL,
    "options-origin-bad": Owed.LOCAL,
    "origin-bad": Owed.LOCAL,
    "origin-null": Owed.LOCAL,
    "origin-bad-404": Owed.LOCAL,
    "host-foreign": Owed.LOCAL,
    "host-foreign-ip": Owed.LOCAL,
    "no-host": Owed.LOCAL,
    "blob-expect-existing": Owed.OMITTED,
    "metrics-404": Owed.OURS,
    "server-term": Owed.CUT,
    "server-term-before-headers": Owed.RETRIED,
}


def owed(exchange: Exchange) -> Owed:
    if exchange.body is None:
        return Owed.OMITTED
    if exchange.id in _ODD:
        return _ODD[exchange.id]
    if exchange.id.startswith(_MERGED_PREFIXES):
        return Owed.MERGED
    return Owed.EQUAL


CASES = {id_: owed(exchange) for id_, exchange in http_exchanges().items()}


def cases(wanted: Owed) -> list[str]:
    return [id_ for id_, what in CASES.items() if what is wanted]


TAGS = json.loads(http_exchanges()["tags-many"].answer)


@asynccontextmanager
async def through_one_host(**sections: Any) -> AsyncIterator[tuple[ReplayHost, RunningProxy]]:
    async with ReplayHost(http_exchanges().values()) as host:
        host.tags = TAGS
        async with running_proxy(make_config(host.url, **sections)) as proxy:
            yield host, proxy


def own_headers_gone(answer: RawAnswer) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in answer.headers if not pair[0].lower().startswith("x-sollol-"))


def assert_equal(answer: RawAnswer, exchange: Exchange) -> None:
    assert (answer.status, answer.reason) == (exchange.status, exchange.reason)
    assert answer.body == exchange.answer
    assert answer.ended == "complete"
    is_chunked = any(name.lower() == "transfer-encoding" for name, _ in answer.headers)
    with_length = is_chunked == (exchange.framing == "chunked")
    assert end_to_end(own_headers_gone(answer), with_length=with_length) == end_to_end(
        exchange.answer_headers, with_length=with_length
    )


@pytest.mark.parametrize("id_", cases(Owed.EQUAL))
async def test_answer_of_the_host_comes_through_equal(id_: str) -> None:
    exchange = http_exchanges()[id_]
    async with through_one_host() as (host, proxy):
        host.respond_with(exchange)
        answer = await raw_request("127.0.0.1", proxy.port, exchange)
        assert_equal(answer, exchange)
        [seen] = [
            each
            for each in host.seen
            if (each.path, each.method) == (exchange.path, exchange.method)
        ]
        assert seen.body == exchange.body
        assert seen.method == exchange.method
        names = {name.lower() for name, _ in seen.headers}
        assert "origin" not in names
        assert not any(name.startswith("x-sollol") for name in names)
        assert seen.header("Host") == f"127.0.0.1:{host.port}"
        await proxy.until_idle()


@pytest.mark.parametrize("id_", cases(Owed.MERGED))
async def test_merged_answer_over_one_host_is_the_hosts_own(id_: str) -> None:
    exchange = http_exchanges()[id_]
    async with ReplayHost() as host:
        empty = id_ in ("tags-empty", "tags-empty-head", "v1-models-empty")
        host.tags = {"models": []} if empty else TAGS
        if exchange.raw_path == "/api/ps":
            host.ps = json.loads(exchange.answer)
        async with running_proxy(make_config(host.url)) as proxy:
            header = "foo.local" if id_ == "host-local-name" else None
            if id_ == "origin-same":
                own = ("Origin", f"http://127.0.0.1:{proxy.port}")
                others = tuple(pair for pair in exchange.headers if pair[0] != "Origin")
                exchange = replace(exchange, headers=(*others, own))
            answer = await raw_request("127.0.0.1", proxy.port, exchange, host_header=header)
            if id_ == "v1-models-many":
                # Models of one second have no fixed order, and the two lists were asked apart.
                recorded, got = json.loads(exchange.answer), json.loads(answer.body)
                by_id = {model["id"]: model for model in recorded["data"]}
                assert {model["id"]: model for model in got["data"]} == by_id
                assert len(answer.body) == len(exchange.answer)
                return
            assert_equal(answer, exchange)
            assert exchange.path not in {each.path for each in host.seen if each.method == "HEAD"}


@pytest.mark.parametrize("id_", cases(Owed.LOCAL))
async def test_who_may_call_is_settled_as_ollama_does(id_: str) -> None:
    exchange = http_exchanges()[id_]
    async with through_one_host() as (host, proxy):
        name = f"localhost:{proxy.port}" if id_ == "options-no-origin-name" else None
        answer = await raw_request("127.0.0.1", proxy.port, exchange, host_header=name)
        if id_ == "no-host":
            # aiohttp's parser refuses this before anybody is asked: same status, other words.
            assert (answer.status, answer.ended) == (400, "complete")
            return
        assert_equal(answer, exchange)
        assert exchange.path not in {each.path for each in host.seen if each.method == "OPTIONS"}


async def test_metrics_are_ours() -> None:
    exchange = http_exchanges()["metrics-404"]
    async with through_one_host() as (_, proxy):
        answer = await raw_request("127.0.0.1", proxy.port, exchange)
        assert answer.status == 200
        assert b"sollol_requests_total" in answer.body


async def test_stream_that_the_host_cuts_ends_with_an_error_line() -> None:
    exchange = http_exchanges()["server-term"]
    async with through_one_host() as (host, proxy):
        host.respond_with(exchange)
        answer = await raw_request("127.0.0.1", proxy.port, exchange)
        assert answer.body.startswith(exchange.answer)
        [line] = answer.body[len(exchange.answer) :].splitlines()
        assert "broke off" in json.loads(line)["error"]
        assert answer.ended == "complete"
        [record] = proxy.services.journal.latest(1)
        assert record.outcome == "upstream_broke"


@pytest.mark.parametrize("id_", ["v1-chat-stream", "v1-messages-stream", "v1-responses-stream"])
async def test_event_stream_that_the_host_cuts_ends_with_an_error_event(id_: str) -> None:
    whole = http_exchanges()[id_]
    cut = _cut(whole, len(whole.chunks) // 2)
    async with through_one_host() as (host, proxy):
        host.respond_with(cut)
        answer = await raw_request("127.0.0.1", proxy.port, cut)
        assert answer.body.startswith(cut.answer)
        rest = answer.body[len(cut.answer) :].decode()
        data = next(line for line in rest.splitlines() if line.startswith("data: "))
        assert "error" in json.loads(data.removeprefix("data: "))
        assert ("event: error" in rest) == (id_ == "v1-messages-stream")


@pytest.mark.parametrize("id_", ["generate-stream", "v1-chat-stream", "chat-nostream"])
async def test_connection_is_cut_when_the_host_breaks_off_within_a_record(id_: str) -> None:
    whole = http_exchanges()[id_]
    cut = _cut(whole, len(whole.chunks), last=whole.chunks[-1][:-5])
    async with through_one_host() as (host, proxy):
        host.respond_with(cut)
        answer = await raw_request("127.0.0.1", proxy.port, cut)
        assert answer.body == cut.answer
        assert answer.ended == "eof"


async def test_host_that_leaves_before_its_first_byte_is_tried_again_and_then_reported() -> None:
    exchange = http_exchanges()["server-term-before-headers"]
    async with through_one_host(retries={"attempts": 3}) as (host, proxy):
        host.respond_with(exchange, times=3)
        answer = await raw_request("127.0.0.1", proxy.port, exchange)
        assert answer.status == 502
        assert list(json.loads(answer.body)) == ["error"]
        assert len(host.seen_at(exchange.path)) == 3
        await proxy.until_idle()


async def test_host_that_leaves_once_is_tried_again_and_answers() -> None:
    exchange = http_exchanges()["generate-stream"]
    async with through_one_host() as (host, proxy):
        host.respond_with(_leaving(exchange))
        host.respond_with(exchange)
        answer = await raw_request("127.0.0.1", proxy.port, exchange)
        assert_equal(answer, exchange)
        assert dict(answer.headers)["X-SOLLOL-Attempts"] == "2"


_PIPELINED = ["pipeline-1", "pipeline-2", "pipeline-3", "pipeline-4"]


async def test_pipelined_requests_are_answered_in_order() -> None:
    exchanges = [http_exchanges()[id_] for id_ in _PIPELINED]
    async with through_one_host() as (host, proxy):
        for exchange in exchanges[1::2]:
            host.respond_with(exchange)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        for exchange in exchanges:
            head = [f"{exchange.method} {exchange.path} HTTP/1.1", f"Host: 127.0.0.1:{proxy.port}"]
            head += [f"{n}: {v}" for n, v in exchange.headers if n.lower() != "host"]
            writer.write("\r\n".join([*head, "", ""]).encode() + (exchange.body or b""))
        text = b""
        while b"404 page not found" not in text:
            piece = await reader.read(65536)
            assert piece, text
            text += piece
        writer.close()
    positions = [text.index(part) for part in (b'{"version"', b'"done":true', b"404 page")]
    assert positions == sorted(positions)
    assert text.count(b"HTTP/1.1 ") == 4


def test_every_recording_has_its_case() -> None:
    assert set(CASES) == set(http_exchanges())
    assert len(cases(Owed.EQUAL)) > 150
    assert set(cases(Owed.OMITTED)) == {
        "blob-post-model",
        "blob-post-existing-large",
        "blob-expect-existing",
    }


def _cut(exchange: Exchange, chunks: int, *, last: bytes | None = None) -> Exchange:
    """The same exchange, cut by the host after some chunks, or within the last one."""
    kept = list(exchange.chunks[:chunks])
    if last is not None:
        kept[-1] = last
    return _changed(exchange, chunks=tuple(kept), ended="eof")


def _leaving(exchange: Exchange) -> Exchange:
    return _changed(exchange, status=None, chunks=(), ended="eof")


def _changed(exchange: Exchange, **fields: Any) -> Exchange:
    return replace(exchange, **fields)
