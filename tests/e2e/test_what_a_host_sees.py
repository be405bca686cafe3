"""What the client libraries send arrives at a host unchanged; tool calls come back as recorded.

The hosts here answer with recordings of a real Ollama, because no simulated model calls tools.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from httpx import AsyncClient as HttpClient
from ollama import AsyncClient
from openai import AsyncOpenAI

from tests.support import make_config, running_proxy
from tests.wire.recordings import client_entries, end_to_end, entry_exchanges, http_exchanges
from tests.wire.replay import ReplayHost, SeenRequest

MESSAGES: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Name of the city"}},
    "required": ["city"],
}
FUNCTION = {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]


@pytest.fixture
async def host() -> AsyncIterator[ReplayHost]:
    async with ReplayHost() as replay_host:
        replay_host.tags = {"models": [{"name": "tool:latest", "digest": "0" * 64, "size": 1}]}
        yield replay_host


@pytest.fixture
async def proxy_url(host: ReplayHost) -> AsyncIterator[str]:
    async with running_proxy(make_config(host.url)) as proxy:
        yield proxy.url


def record_of(library: str, case: str) -> Any:
    """The exchange that a library's call was recorded as."""
    entry = next(e for e in client_entries("clients.jsonl") if e["id"] == f"{library}/{case}")
    return entry_exchanges(entry)[-1]


def check_equal_but_for_the_way(seen: list[SeenRequest]) -> None:
    """The same request, once to the host itself and once through the proxy."""
    direct, proxied = seen
    assert proxied.body == direct.body
    assert (proxied.method, proxied.path) == (direct.method, direct.path)
    assert end_to_end(proxied.headers) == end_to_end(direct.headers)


async def test_ollama_client_gets_its_tool_call(host: ReplayHost, proxy_url: str) -> None:
    host.respond_with(record_of("ollama-python", "chat-tools"), times=2)
    calls = []
    for url in (host.url, proxy_url):
        async with AsyncClient(url) as client:
            answer = await client.chat("tool", MESSAGES, tools=TOOLS)
        calls.append(list(answer.message.tool_calls or ()))
    check_equal_but_for_the_way(host.seen_at("/api/chat"))
    assert calls[0] == calls[1]
    (call,) = calls[1]
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})


async def test_openai_client_gets_its_tool_call(host: ReplayHost, proxy_url: str) -> None:
    host.respond_with(record_of("openai-python", "chat-tools-stream"), times=2)
    calls = []
    for url in (host.url, proxy_url):
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="tool", messages=MESSAGES, tools=TOOLS, stream=True
            )
            deltas = [chunk.choices[0].delta async for chunk in stream if chunk.choices]
        calls.append([call for delta in deltas for call in delta.tool_calls or ()])
    check_equal_but_for_the_way(host.seen_at("/v1/chat/completions"))
    assert calls[0] == calls[1]
    (call,) = calls[1]
    assert call.function is not None
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city":"Paris"}')


async def test_anthropic_client_gets_its_tool_call(host: ReplayHost, proxy_url: str) -> None:
    host.respond_with(record_of("anthropic-python", "messages-tools"), times=2)
    tools: Any = [{"name": "get_weather", "input_schema": PARAMETERS}]
    blocks = []
    for url in (host.url, proxy_url):
        async with AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as client:
            answer = await client.messages.create(
                model="tool", messages=MESSAGES, tools=tools, max_tokens=64
            )
        blocks.append(answer.content)
    check_equal_but_for_the_way(host.seen_at("/v1/messages"))
    assert blocks[0] == blocks[1]
    (block,) = blocks[1]
    assert block.type == "tool_use"
    assert (block.name, block.input) == ("get_weather", {"city": "Paris"})


async def test_priority_and_routing_headers_stay_here(host: ReplayHost, proxy_url: str) -> None:
    host.respond_with(http_exchanges()["chat-tools-nostream"])
    headers = {"X-SOLLOL-Priority": "8", "X-SOLLOL-Anything": "1", "Authorization": "Bearer k"}
    async with HttpClient() as client:
        answer = await client.post(
            f"{proxy_url}/api/chat?priority=3",
            headers=headers,
            json={"model": "tool", "messages": MESSAGES, "stream": False},
        )
    assert answer.status_code == 200
    assert answer.headers["X-SOLLOL-Priority"] == "8"  # the header counts before the query
    (seen,) = host.seen_at("/api/chat")
    assert [name for name, _ in seen.headers if name.lower().startswith("x-sollol-")] == []
    assert seen.header("Authorization") == "Bearer k"
