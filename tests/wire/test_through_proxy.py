"""Every recorded exchange through the proxy over one host, next to what Ollama itself answered.

`CASES` says for each recording what the proxy owes; a test fails when one is not listed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.support import RunningProxy, make_config, running_proxy
from tests.wire.owed import (
    ALREADY_THERE,
    ASKED_ONCE,
    BY_ID,
    CASES,
    RECORDED,
    TAGS,
    TIES,
    Owed,
    as_host_says,
    asked_of,
    assert_equal,
    assert_equal_but_for_ties,
    at_proxy,
    cases,
    marked,
    put_in_place,
    same_request,
    spaced,
)
from tests.wire.recordings import Exchange, http_exchanges
from tests.wire.replay import ReplayHost, SeenRequest, raw_request


@asynccontextmanager
async def through_one_host(**sections: Any) -> AsyncIterator[tuple[ReplayHost, RunningProxy]]:
    async with ReplayHost(RECORDED.values()) as host:
        host.tags = TAGS
        async with running_proxy(make_config(host.url, **sections)) as proxy:
            yield host, proxy


@asynccontextmanager
async def in_its_place(exchange: Exchange) -> AsyncIterator[tuple[ReplayHost, RunningProxy]]:
    """One host that is as it was when the exchange was recorded."""
    async with ReplayHost(RECORDED.values()) as host:
        put_in_place(host, exchange)
        async with running_proxy(make_config(host.url)) as proxy:
            yield host, proxy


def with_a_status(owed: Owed) -> list[str]:
    return [id_ for id_ in cases(owed) if RECORDED[id_].status is not None]


@pytest.mark.parametrize("id_", [*cases(Owed.EQUAL), *with_a_status(Owed.RETRIED)])
async def test_answer_of_the_host_comes_through_equal(id_: str) -> None:
    exchange = RECORDED[id_]
    async with in_its_place(exchange) as (host, proxy):
        host.respond_with(exchange)
        answer = await raw_request("127.0.0.1", proxy.port, exchange)
        assert_equal(answer, exchange)
        [seen] = [
            each
            for each in host.seen
            if (each.path, each.method) == (exchange.path, exchange.method)
        ]
        assert seen.body == exchange.body
        assert_seen_as_from_a_client(seen, host)
        await proxy.until_idle()


@pytest.mark.parametrize("id_", cases(Owed.BROADCAST))
async def test_what_all_hosts_do_is_what_one_does_over_one_host(id_: str) -> None:
    exchange = RECORDED[id_]
    async with in_its_place(exchange) as (host, proxy):
        said = as_host_says(exchange)
        host.respond_with(said)
        answer = await raw_request("127.0.0.1", proxy.port, marked(exchange))
        assert_equal(answer, exchange)
        seen = same_request(host, exchange)
        is_spared = exchange.id in ALREADY_THERE and exchange.method == "POST"
        assert [spaced(each.body) for each in seen] == ([] if is_spared else [spaced(said.body)])
        for each in asked_of(host, exchange):
            assert_seen_as_from_a_client(each, host)
        await proxy.until_idle()


def assert_seen_as_from_a_client(seen: SeenRequest, host: ReplayHost) -> None:
    names = {name.lower() for name, _ in seen.headers}
    assert "origin" not in names
    assert not any(name.startswith("x-sollol") for name in names)
    assert seen.header("Host") == f"127.0.0.1:{host.port}"


@pytest.mark.parametrize("id_", cases(Owed.MERGED))
async def test_merged_answer_over_one_host_is_the_hosts_own(id_: str) -> None:
    exchange = RECORDED[id_]
    async with in_its_place(exchange) as (host, proxy):
        request, how = at_proxy(exchange, proxy)
        answer = await raw_request("127.0.0.1", proxy.port, marked(request), **how)
        if id_ in TIES:
            assert_equal_but_for_ties(answer, exchange)
        else:
            assert_equal(answer, exchange)
        assert not asked_of(host, exchange)


@pytest.mark.parametrize("id_", cases(Owed.LOCAL))
async def test_who_may_call_is_settled_as_ollama_does(id_: str) -> None:
    exchange = RECORDED[id_]
    async with in_its_place(exchange) as (host, proxy):
        request, how = at_proxy(exchange, proxy)
        answer = await raw_request("127.0.0.1", proxy.port, marked(request), **how)
        assert_equal(answer, exchange)
        assert not asked_of(host, exchange)


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
    listed = {id_ for what in Owed for id_ in cases(what)}
    assert listed == set(http_exchanges())
    assert len(cases(Owed.EQUAL)) > 140


def test_every_special_case_is_a_recording() -> None:
    assert set(BY_ID) <= set(http_exchanges())
    assert set(BY_ID) >= ASKED_ONCE | ALREADY_THERE


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
