"""The `anthropic` package, unchanged, through the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic, APIStatusError, AsyncAnthropic, BadRequestError, NotFoundError

from tests.e2e.conftest import ENDLESS_TOKENS, Pool
from tests.e2e.processes import Proxy

MESSAGES: Any = [{"role": "user", "content": "Name a colour."}]
# The library has no parameter of its own for the temperature any more.
SHORT: dict[str, Any] = {
    "messages": MESSAGES,
    "max_tokens": 8,
    "extra_body": {"temperature": 0},
}


def anthropic_at(url: str) -> Anthropic:
    # Without the library's own retries: what is counted here is what the proxy does.
    return Anthropic(base_url=url, api_key="ollama", max_retries=0)


@pytest.fixture
def client(pool: Pool) -> Iterator[Anthropic]:
    with anthropic_at(pool.url) as opened:
        yield opened


@pytest.fixture
def expected(pool: Pool) -> str:
    """What a host itself says."""
    with anthropic_at(pool.hosts[0].url) as host:
        return text_of(host.messages.create(model=pool.chat_model, **SHORT))


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content)


def test_message_says_what_a_host_says(pool: Pool, client: Anthropic, expected: str) -> None:
    message = client.messages.create(model=pool.chat_model, **SHORT)
    assert text_of(message) == expected != ""
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 8)


def test_message_streams_what_a_host_says(pool: Pool, client: Anthropic, expected: str) -> None:
    with client.messages.stream(model=pool.chat_model, **SHORT) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
        assert stream.response.headers["X-SOLLOL-Host"]
    assert "".join(pieces) == expected
    assert len(pieces) >= 8
    assert (text_of(final), final.stop_reason) == (expected, "max_tokens")


async def test_async_client_gets_the_same_answer(pool: Pool, expected: str) -> None:
    async with AsyncAnthropic(base_url=pool.url, api_key="x", max_retries=0) as client:
        async with client.messages.stream(model=pool.chat_model, **SHORT) as stream:
            pieces = [piece async for piece in stream.text_stream]
        whole = await client.messages.create(model=pool.chat_model, **SHORT)
    assert "".join(pieces) == text_of(whole) == expected


@pytest.mark.parametrize("stream", [False, True])
def test_missing_model_is_not_found(stream: bool, client: Anthropic) -> None:
    with pytest.raises(NotFoundError, match="model 'nosuch' not found") as caught:
        client.messages.create(model="nosuch", stream=stream, **SHORT)
    assert caught.value.type == "not_found_error"


def test_mistake_of_the_caller_comes_back_as_a_host_words_it(sim_pool: Pool) -> None:
    with (
        anthropic_at(sim_pool.url) as client,
        pytest.raises(BadRequestError, match="max_tokens is required and must be positive"),
    ):
        client.messages.create(model=sim_pool.chat_model, messages=MESSAGES, max_tokens=0)


def test_full_queue_is_an_overload_that_says_when_to_retry(small_pool: Pool) -> None:
    with anthropic_at(small_pool.url) as client:
        asked = {"model": small_pool.chat_model, "messages": MESSAGES}
        with client.messages.stream(**asked, max_tokens=ENDLESS_TOKENS) as held:
            next(held.text_stream)
            with pytest.raises(APIStatusError) as caught:
                client.messages.create(**asked, max_tokens=8)
    check_overloaded(caught.value, "maximum pending requests exceeded")
    small_pool.proxy.until_idle()


def test_pool_without_a_host_is_an_overload(proxy_without_hosts: Proxy) -> None:
    with anthropic_at(proxy_without_hosts.url) as client, pytest.raises(APIStatusError) as caught:
        client.messages.create(model="llama3", **SHORT)
    check_overloaded(caught.value, "no Ollama host is available")


def check_overloaded(error: APIStatusError, words: str) -> None:
    assert (error.status_code, error.type) == (503, "overloaded_error")
    assert words in error.message
    assert int(error.response.headers["Retry-After"]) >= 1


def test_stream_that_a_host_cuts_raises_after_what_came(sim_pool: Pool) -> None:
    for host in sim_pool.hosts:
        host.fault("cut", after_records=3, count=1)
    pieces: list[str] = []
    with (
        anthropic_at(sim_pool.url) as client,
        client.messages.stream(model=sim_pool.chat_model, **SHORT) as stream,
        pytest.raises(APIStatusError, match="broke off"),
    ):
        pieces.extend(stream.text_stream)
    assert len(pieces) == 3
