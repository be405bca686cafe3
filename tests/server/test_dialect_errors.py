"""Every way to fail, on every balanced route: status, shape and ending as its dialect has them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import anthropic
import ollama
import openai
import pytest

from sollol_proxy.core.types import Outcome
from sollol_proxy.ollama.routes import ROUTES, Dialect, Plan, Route
from tests.server.pool import pool, sim
from tests.support import RunningProxy, make_config, running_proxy
from tests.wire.recordings import Exchange, http_exchanges
from tests.wire.replay import RawAnswer, ReplayHost, raw_request

BALANCED = [route for route in ROUTES if route.plan is Plan.BALANCE]
each_route = pytest.mark.parametrize("route", BALANCED, ids=lambda route: route.path)

MODEL = "det"
USER = [{"role": "user", "content": "hi"}]
FIELDS: dict[str, dict[str, Any]] = {
    "/api/generate": {"prompt": "hi"},
    "/api/chat": {"messages": USER},
    "/api/embed": {"input": "hi"},
    "/api/embeddings": {"prompt": "hi"},
    "/api/show": {},
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": USER, "max_tokens": 9},
}
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n'
)


def request_of(route: Route) -> tuple[bytes, dict[str, str]]:
    """A good request: body and headers."""
    if route.path not in FIELDS:
        return FORM % MODEL.encode(), {"Content-Type": "multipart/form-data; boundary=b"}
    body = json.dumps({"model": MODEL, **FIELDS[route.path]}).encode()
    return body, {"Content-Type": "application/json"}


# --- errors of the proxy itself ---------------------------------------------------------------

Failing = AbstractAsyncContextManager[RunningProxy]
SLOW = {"time_scale": 1.0, "decode_tps": 5.0}


@asynccontextmanager
async def nobody_up(_: Route) -> AsyncIterator[RunningProxy]:
    config = make_config("http://127.0.0.1:1", queue={"no_host_wait": 0.05})
    async with running_proxy(config, wait=False) as proxy:
        yield proxy


@asynccontextmanager
async def nobody_free(**queue: Any) -> AsyncIterator[RunningProxy]:
    """The only slot of the only host is taken until the block ends."""
    async with pool(sim("a", MODEL, **SLOW), queue=queue) as p:
        body = {"model": MODEL, "prompt": "hi"}
        async with p.client.post(f"{p.proxy.url}/api/generate", json=body) as running:
            await running.content.readany()
            yield p.proxy


def queue_full(_: Route) -> Failing:
    return nobody_free(max_waiting=0)


def deadline(_: Route) -> Failing:
    return nobody_free(deadline=0.05)


@asynccontextmanager
async def small_limit(_: Route) -> AsyncIterator[RunningProxy]:
    async with pool(sim("a", MODEL), limits={"body": 5}) as p:
        yield p.proxy


@asynccontextmanager
async def draining(_: Route) -> AsyncIterator[RunningProxy]:
    async with pool(sim("a", MODEL)) as p:
        assert await p.proxy.services.dispatcher.drain(1.0)
        yield p.proxy


@asynccontextmanager
async def denied(_: Route) -> AsyncIterator[RunningProxy]:
    deny = {"models": {"deny": [f"{MODEL}*"]}}
    async with pool(sim("a", MODEL, "other"), host_fields=deny) as p:
        yield p.proxy


@asynccontextmanager
async def good_pool(_: Route) -> AsyncIterator[RunningProxy]:
    async with pool(sim("a", MODEL)) as p:
        yield p.proxy


@asynccontextmanager
async def all_leave(route: Route) -> AsyncIterator[RunningProxy]:
    """Two hosts that close the connection instead of answering."""
    leaving = replace(whole_answer(route), status=None, chunks=(), ended="eof")
    async with ReplayHost() as one, ReplayHost() as two:
        for host in (one, two):
            host.tags = TAGS
            host.respond_with(leaving, times=9)
        async with running_proxy(make_config(one.url, two.url)) as proxy:
            yield proxy
        assert len(one.seen_at(route.path)) > 0 < len(two.seen_at(route.path))


@dataclass(frozen=True)
class Failure:
    """words: that the message has to contain. slots_only: for jobs that wait for a slot."""

    made_by: Callable[[Route], Failing]
    status: int
    outcome: Outcome
    words: str
    query: str = ""
    slots_only: bool = False


FAILURES = {
    "no host": Failure(nobody_up, 503, Outcome.NO_HOST, "no Ollama host is available"),
    "queue full": Failure(
        queue_full, 503, Outcome.REJECTED_QUEUE_FULL,
        "server busy, please try again.  maximum pending requests exceeded", slots_only=True,
    ),
    "deadline": Failure(
        deadline, 503, Outcome.EXPIRED_IN_QUEUE, "server busy, please try again", slots_only=True
    ),
    "body too large": Failure(small_limit, 413, Outcome.REJECTED_BAD_REQUEST, "limits.body"),
    "draining": Failure(draining, 503, Outcome.DRAINING, "server busy, please try again"),
    "no model allowed": Failure(denied, 404, Outcome.NO_MODEL, f"model '{MODEL}' not found"),
    "bad priority": Failure(
        good_pool, 400, Outcome.REJECTED_BAD_REQUEST, "priority", query="?priority=11"
    ),
    "all hosts failed": Failure(all_leave, 502, Outcome.UPSTREAM_FAILED, "failed"),
}  # fmt: skip

OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}


def message_of(route: Route, status: int, body: bytes) -> str:
    """The message of an error in one piece, its shape checked."""
    doc = json.loads(body)
    if route.dialect is Dialect.NATIVE:
        assert list(doc) == ["error"]
        assert not body.endswith(b"\n")
        return str(doc["error"])
    assert body.endswith(b"}\n")
    error = doc["error"]
    if route.dialect is Dialect.OPENAI:
        assert list(doc) == ["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert (error["param"], error["code"]) == (None, None)
        assert error["type"] == OPENAI_TYPES.get(status, "api_error")
    else:
        assert list(doc) == ["type", "error", "request_id"]
        assert doc["type"] == "error"
        assert doc["request_id"].startswith("req_")
        assert error["type"] == ANTHROPIC_TYPES.get(status, "api_error")
    return str(error["message"])


FAILING = [
    pytest.param(route, failure, id=f"{route.path}-{name}")
    for route in BALANCED
    for name, failure in FAILURES.items()
    # What takes no slot waits for none.
    if route.kind.takes_slot or not failure.slots_only
]


@pytest.mark.parametrize(("route", "failure"), FAILING)
async def test_error_of_the_proxy_is_worded_in_the_routes_dialect(
    route: Route, failure: Failure
) -> None:
    body, headers = request_of(route)
    async with failure.made_by(route) as proxy, aiohttp.ClientSession() as client:
        url = f"{proxy.url}{route.path}{failure.query}"
        async with client.post(url, data=body, headers=headers) as response:
            text = await response.read()
        assert response.status == failure.status
        assert failure.words in message_of(route, failure.status, text)
        is_native = route.dialect is Dialect.NATIVE
        content_type = "application/json" + "; charset=utf-8" * is_native
        assert response.headers["Content-Type"] == content_type
        assert response.headers["Content-Length"] == str(len(text))
        assert response.headers["X-SOLLOL-Outcome"] == failure.outcome
        assert response.headers["X-SOLLOL-Request-Id"]
        if failure.status == 503:
            assert int(response.headers["Retry-After"]) >= 1
        else:
            assert "Retry-After" not in response.headers
        [record] = [
            each for each in proxy.services.journal.latest(9) if each.status == failure.status
        ]
        assert (record.outcome, record.route) == (failure.outcome, route.path)


# --- hosts that break off within an answer ----------------------------------------------------

HTTP = http_exchanges()
TAGS = json.loads(HTTP["tags-many"].answer)

STREAMS = {
    "/api/generate": "generate-stream",
    "/api/chat": "chat-stream",
    "/v1/chat/completions": "v1-chat-stream",
    "/v1/completions": "v1-completions-stream",
    "/v1/responses": "v1-responses-stream",
    "/v1/messages": "v1-messages-stream",
}
WHOLE = {
    "/api/generate": "generate-nostream",
    "/api/chat": "chat-nostream",
    "/api/embed": "embed-list",
    "/api/embeddings": "embeddings",
    "/api/show": "show",
    "/v1/chat/completions": "v1-chat-nostream",
    "/v1/completions": "v1-completions",
    "/v1/embeddings": "v1-embeddings-float",
    "/v1/responses": "v1-responses",
    "/v1/messages": "v1-messages",
}


def whole_answer(route: Route) -> Exchange:
    """A recorded answer in one piece. There is none of a transcription, which is JSON as well."""
    recorded = HTTP[WHOLE.get(route.path, "chat-nostream")]
    return replace(recorded, method=route.method, path=route.path)


def cut(exchange: Exchange, *chunks: bytes) -> Exchange:
    return replace(exchange, chunks=chunks, ended="eof")


def cut_stream(path: str, *, within: bool) -> Exchange:
    """The recorded stream as its host would leave it in the middle of a record, or between two."""
    recorded = HTTP[STREAMS[path]]
    *kept, last = recorded.chunks[: len(recorded.chunks) // 2 + 1]
    return cut(recorded, *kept, last[:-9] if within else last)


async def answer_through_proxy(answer: Exchange, request: Exchange) -> tuple[RawAnswer, Outcome]:
    """What a client gets whose host answers so, and what the record says."""
    async with ReplayHost() as host:
        host.tags = TAGS
        host.respond_with(answer)
        async with running_proxy(make_config(host.url)) as proxy:
            got = await raw_request("127.0.0.1", proxy.port, request)
            await proxy.until_idle()
            await proxy.until(lambda _: bool(proxy.services.journal.latest(1)))
            [record] = proxy.services.journal.latest(1)
            return got, record.outcome


@pytest.mark.parametrize("path", STREAMS)
async def test_stream_broken_between_records_ends_with_an_error_record(path: str) -> None:
    broken = cut_stream(path, within=False)
    got, outcome = await answer_through_proxy(broken, broken)
    assert (got.status, got.ended) == (200, "complete")
    assert outcome is Outcome.UPSTREAM_BROKE
    assert got.body.startswith(broken.answer)
    last = got.body[len(broken.answer) :].decode()
    if path.startswith("/api/"):
        [line] = last.splitlines()
        assert list(json.loads(line)) == ["error"]
        assert "broke off" in json.loads(line)["error"]
        return
    assert last.endswith("\n\n")
    *names, data = last.removesuffix("\n\n").split("\n")
    assert names == (["event: error"] if path == "/v1/messages" else [])
    doc = json.loads(data.removeprefix("data: "))
    assert "broke off" in doc["error"]["message"]
    assert doc["error"]["type"] == "api_error"
    assert (doc.get("type") == "error") == (path == "/v1/messages")


@pytest.mark.parametrize("path", STREAMS)
async def test_stream_broken_within_a_record_is_cut_off(path: str) -> None:
    broken = cut_stream(path, within=True)
    got, outcome = await answer_through_proxy(broken, broken)
    assert (got.status, got.ended) == (200, "eof")
    assert got.body == broken.answer
    assert outcome is Outcome.UPSTREAM_BROKE


@each_route
async def test_answer_in_one_piece_that_breaks_is_cut_off(route: Route) -> None:
    recorded = whole_answer(route)
    broken = cut(recorded, recorded.answer[: len(recorded.answer) // 2])
    body, headers = request_of(route)
    length = ("Content-Length", str(len(body)))
    asked = replace(broken, body=body, headers=(*headers.items(), length, ("Host", "localhost")))
    got, outcome = await answer_through_proxy(broken, asked)
    assert (got.status, got.ended) == (200, "eof")
    assert got.body == broken.answer
    assert outcome is Outcome.UPSTREAM_BROKE


@each_route
async def test_answer_that_breaks_before_its_first_byte_is_an_error_in_the_dialect(
    route: Route,
) -> None:
    broken = cut(whole_answer(route))
    body, headers = request_of(route)
    async with ReplayHost() as host:
        host.tags = TAGS
        host.respond_with(broken, times=9)
        async with running_proxy(make_config(host.url)) as proxy, aiohttp.ClientSession() as client:
            url = f"{proxy.url}{route.path}"
            async with client.post(url, data=body, headers=headers) as response:
                assert response.status == 502
                message_of(route, 502, await response.read())


# --- what the clients make of it --------------------------------------------------------------


async def _openai_chat(url: str, stream: bool) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        asked: Any = {"model": MODEL, "messages": USER, "stream": stream}
        answer: Any = await client.chat.completions.create(**asked)
        if stream:
            async for _ in answer:
                pass


async def _openai_responses(url: str, stream: bool) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        asked: Any = {"model": MODEL, "input": "hi", "stream": stream}
        answer: Any = await client.responses.create(**asked)
        if stream:
            async for _ in answer:
                pass


async def _anthropic(url: str, stream: bool) -> None:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as client:
        asked: Any = {"model": MODEL, "max_tokens": 9, "messages": USER, "stream": stream}
        answer: Any = await client.messages.create(**asked)
        if stream:
            async for _ in answer:
                pass


async def _ollama(url: str, stream: bool) -> None:
    client = ollama.AsyncClient(host=url)
    try:
        asked: Any = {"model": MODEL, "messages": USER, "stream": stream}
        answer: Any = await client.chat(**asked)
        if stream:
            async for _ in answer:
                pass
    finally:
        await client._client.aclose()  # the package offers no other way


CLIENTS: dict[str, tuple[str, Callable[[str, bool], Awaitable[None]], type[Exception]]] = {
    "openai chat": ("/v1/chat/completions", _openai_chat, openai.APIError),
    "openai responses": ("/v1/responses", _openai_responses, openai.APIError),
    "anthropic messages": ("/v1/messages", _anthropic, anthropic.APIError),
    "ollama chat": ("/api/chat", _ollama, ollama.ResponseError),
}


@pytest.mark.parametrize("how", ["between records", "within a record", "in one piece"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_client_library_raises_when_a_host_breaks_off(client: str, how: str) -> None:
    path, ask, error = CLIENTS[client]
    if how == "in one piece":
        whole = HTTP[WHOLE[path]]
        broken = cut(whole, whole.answer[:-20])
    else:
        broken = cut_stream(path, within=how == "within a record")
    async with ReplayHost() as host:
        host.tags = TAGS
        host.respond_with(broken)
        async with running_proxy(make_config(host.url)) as proxy:
            if how == "between records":
                with pytest.raises(error, match="broke off"):
                    await ask(proxy.url, True)
            else:
                # The transport's error, which some of the libraries pass on as it is.
                with pytest.raises(Exception, match=r"incomplete|peer closed|Connection error"):
                    await ask(proxy.url, how != "in one piece")


@pytest.mark.parametrize("client", CLIENTS)
async def test_client_library_is_content_when_the_host_does_not_break_off(client: str) -> None:
    path, ask, _ = CLIENTS[client]
    for stream in (True, False):
        async with ReplayHost() as host:
            host.tags = TAGS
            host.respond_with(HTTP[(STREAMS if stream else WHOLE)[path]])
            async with running_proxy(make_config(host.url)) as proxy:
                await ask(proxy.url, stream)
