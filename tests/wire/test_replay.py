from __future__ import annotations

import dataclasses

import pytest

from tests.wire.recordings import Exchange, all_exchanges, end_to_end, http_exchanges, replayable
from tests.wire.replay import RawAnswer, ReplayHost, raw_request

HTTP = http_exchanges()
REPLAYABLE = [replayable(exchange) for exchange in HTTP.values()]


def check_like_the_recording(answer: RawAnswer, exchange: Exchange) -> None:
    assert (answer.status, answer.reason) == (exchange.status, exchange.reason)
    assert answer.body == exchange.answer
    assert answer.ended == exchange.ended
    assert end_to_end(answer.headers) == end_to_end(exchange.answer_headers)


@pytest.mark.parametrize("exchange", REPLAYABLE, ids=lambda exchange: exchange.id)
async def test_replay_host_answers_as_recorded_when_pinned(exchange: Exchange) -> None:
    async with ReplayHost() as host:
        host.respond_with(exchange)
        answer = await raw_request("127.0.0.1", host.port, exchange)
    check_like_the_recording(answer, exchange)
    (request,) = host.seen
    assert (request.method, request.path, request.body) == (
        exchange.method,
        exchange.path,
        exchange.body,
    )


@pytest.mark.parametrize("id_", ["generate-stream", "v1-chat-stream", "show-missing", "slash-get"])
async def test_replay_host_finds_a_recording_by_method_path_and_body(id_: str) -> None:
    async with ReplayHost(HTTP.values()) as host:
        answer = await raw_request("127.0.0.1", host.port, HTTP[id_])
    check_like_the_recording(answer, HTTP[id_])


async def test_replay_host_takes_json_for_equal_when_blanks_and_order_differ() -> None:
    recorded = HTTP["show-verbose"]
    assert recorded.body == b'{"model": "emb", "verbose": true}'
    body = b'{"verbose":true,"model":"emb"}'
    headers = tuple(h for h in recorded.headers if h[0] != "Content-Length")
    asked = dataclasses.replace(
        recorded, body=body, headers=(*headers, ("Content-Length", str(len(body))))
    )
    async with ReplayHost(HTTP.values()) as host:
        answer = await raw_request("127.0.0.1", host.port, asked)
    check_like_the_recording(answer, recorded)


async def test_replay_host_says_501_when_nothing_was_recorded() -> None:
    async with ReplayHost() as host:
        answer = await raw_request("127.0.0.1", host.port, HTTP["generate-stream"])
    assert answer.status == 501


async def test_replay_host_answers_probes_from_its_documents_when_nothing_is_pinned() -> None:
    async with ReplayHost(HTTP.values()) as host:
        host.version = "0.1.0"
        host.tags = {"models": [{"name": "x:latest"}]}
        answers = [
            (await raw_request("127.0.0.1", host.port, HTTP[id_])).body
            for id_ in ("version-get", "tags-many", "ps-empty")
        ]
    assert answers == [
        b'{"version":"0.1.0"}',
        b'{"models":[{"name":"x:latest"}]}',
        b'{"models":[]}',
    ]


async def test_replay_host_pins_answers_in_order_when_pinned_twice() -> None:
    first, second = HTTP["queue-full-3"], HTTP["generate-load"]
    async with ReplayHost() as host:
        host.respond_with(first)
        host.respond_with(second)
        statuses = [
            (await raw_request("127.0.0.1", host.port, HTTP["generate-stream"])).status
            for _ in range(2)
        ]
    assert statuses == [503, 200]


def test_recordings_are_all_there() -> None:
    assert len(HTTP) == 231
    assert len(all_exchanges()) == 231 + 112 + 100
