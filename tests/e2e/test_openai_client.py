"""The `openai` package, unchanged, through the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import (
    APIError,
    APIStatusError,
    AsyncOpenAI,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
)

from tests.e2e.conftest import ENDLESS_TOKENS, Pool
from tests.e2e.processes import Proxy

QUESTION: Any = [{"role": "user", "content": "Name a colour."}]
PROMPT = "Count to three."
SHORT: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


def openai_at(url: str, **settings: Any) -> OpenAI:
    # Without the library's own retries: what is counted here is what the proxy does.
    return OpenAI(base_url=f"{url}/v1", api_key="ollama", max_retries=0, **settings)


@pytest.fixture
def client(pool: Pool) -> Iterator[OpenAI]:
    with openai_at(pool.url) as opened:
        yield opened


@pytest.fixture
def host(pool: Pool) -> Iterator[OpenAI]:
    """The same library, at one of the hosts itself."""
    with openai_at(pool.hosts[0].url) as opened:
        yield opened


def test_chat_says_what_a_host_says(pool: Pool, client: OpenAI, host: OpenAI) -> None:
    asked = {"model": pool.chat_model, "messages": QUESTION, **SHORT}
    expected = host.chat.completions.create(**asked)
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == expected.choices[0].message.content
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8


def test_chat_streams_what_a_host_says(pool: Pool, client: OpenAI, host: OpenAI) -> None:
    asked = {"model": pool.chat_model, "messages": QUESTION, **SHORT}
    expected = host.chat.completions.create(**asked).choices[0].message.content
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(deltas) == expected
    assert len(deltas) >= 8
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_completions_say_what_a_host_says(pool: Pool, client: OpenAI, host: OpenAI) -> None:
    asked = {"model": pool.chat_model, "prompt": PROMPT, **SHORT}
    expected = host.completions.create(**asked).choices[0].text
    assert client.completions.create(**asked).choices[0].text == expected
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == expected


def test_responses_say_what_a_host_says(pool: Pool, client: OpenAI, host: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": pool.chat_model,
        "input": "Name a colour.",
        "temperature": 0,
        "max_output_tokens": 8,
    }
    expected = host.responses.create(**asked).output_text
    assert expected
    assert client.responses.create(**asked).output_text == expected
    events = list(client.responses.create(**asked, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == expected
    assert [event.type for event in (events[0], events[-1])] == [
        "response.created",
        "response.completed",
    ]


def test_embeddings_are_those_of_a_host(pool: Pool, client: OpenAI, host: OpenAI) -> None:
    asked: dict[str, Any] = {"model": pool.embed_model, "input": ["kitten", "stock market"]}
    encodings: tuple[dict[str, Any], ...] = ({}, {"encoding_format": "float"})
    for encoding in encodings:  # by default the library asks for base64
        answer = client.embeddings.create(**asked, **encoding)
        expected = host.embeddings.create(**asked, **encoding)
        assert [row.embedding for row in answer.data] == [row.embedding for row in expected.data]
        assert [row.index for row in answer.data] == [0, 1]


def test_models_are_listed_and_retrieved(pool: Pool, client: OpenAI, host: OpenAI) -> None:
    assert list(client.models.list()) == list(host.models.list())
    assert client.models.retrieve(pool.chat_model) == host.models.retrieve(pool.chat_model)
    assert {model.id for model in client.models.list()} == {pool.chat_model, pool.embed_model}


@pytest.mark.parametrize("stream", [False, True])
def test_missing_model_is_not_found(stream: bool, client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.chat.completions.create(model="nosuch", messages=QUESTION, stream=stream)
    assert caught.value.body == {
        "message": "model 'nosuch' not found",
        "type": "not_found_error",
        "param": None,
        "code": None,
    }


def test_missing_model_is_not_found_on_every_route(client: OpenAI) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: client.completions.create(model="nosuch", prompt=PROMPT),
        lambda: client.responses.create(model="nosuch", input=PROMPT),
        lambda: client.embeddings.create(model="nosuch", input=PROMPT),
        lambda: client.models.retrieve("nosuch"),
    ]
    for call in calls:
        with pytest.raises(NotFoundError, match=r"nosuch.* not found"):
            call()


def test_priority_is_taken_from_header_or_query(pool: Pool) -> None:
    asked = {"model": pool.chat_model, "messages": QUESTION, **SHORT}
    told: list[dict[str, Any]] = [
        {"default_headers": {"X-SOLLOL-Priority": "9"}},
        {"default_query": {"priority": "9"}},
    ]
    for settings in told:
        with openai_at(pool.url, **settings) as client:
            raw = client.chat.completions.with_raw_response.create(**asked)
            assert raw.headers["X-SOLLOL-Priority"] == "9"
            assert raw.headers["X-SOLLOL-Host"] in {host["id"] for host in pool.proxy.hosts()}
            assert raw.parse().choices[0].message.content


def test_odd_priority_is_a_bad_request(sim_pool: Pool) -> None:
    headers = {"X-SOLLOL-Priority": "urgent"}
    with (
        openai_at(sim_pool.url, default_headers=headers) as client,
        pytest.raises(BadRequestError, match="'urgent' is not a whole number from 1 to 10"),
    ):
        client.chat.completions.create(model=sim_pool.chat_model, messages=QUESTION)


def test_full_queue_is_an_internal_server_error_that_says_when_to_retry(small_pool: Pool) -> None:
    with openai_at(small_pool.url) as client:
        asked = {"model": small_pool.chat_model, "messages": QUESTION}
        held = client.chat.completions.create(**asked, max_tokens=ENDLESS_TOKENS, stream=True)
        next(held)
        with pytest.raises(InternalServerError) as caught:
            client.chat.completions.create(**asked)
        held.close()
    check_unavailable(caught.value, "maximum pending requests exceeded")
    assert caught.value.response.headers["X-SOLLOL-Outcome"] == "rejected_queue_full"
    small_pool.proxy.until_idle()


def test_pool_without_a_host_is_an_internal_server_error(proxy_without_hosts: Proxy) -> None:
    with openai_at(proxy_without_hosts.url) as client:
        calls: list[Callable[[], Any]] = [
            lambda: client.chat.completions.create(model="llama3", messages=QUESTION),
            lambda: client.embeddings.create(model="llama3", input=PROMPT),
            lambda: client.models.list(),
        ]
        for call in calls:
            with pytest.raises(InternalServerError) as caught:
                call()
            check_unavailable(caught.value, "no Ollama host is available")


def check_unavailable(error: APIStatusError, words: str) -> None:
    assert error.status_code == 503
    assert error.type == "api_error"
    assert words in error.message
    assert int(error.response.headers["Retry-After"]) >= 1


def test_stream_that_a_host_cuts_raises_after_what_came(sim_pool: Pool) -> None:
    for host in sim_pool.hosts:
        host.fault("cut", after_records=3, count=1)
    chunks: list[Any] = []
    with openai_at(sim_pool.url) as client:
        stream = client.chat.completions.create(
            model=sim_pool.chat_model, messages=QUESTION, stream=True
        )
        with pytest.raises(APIError, match="broke off"):
            chunks.extend(stream)
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) == 3


def test_closing_a_stream_frees_the_slot(small_pool: Pool) -> None:
    cancelled = small_pool.hosts[0].stats()["cancelled"]
    with openai_at(small_pool.url) as client:
        stream = client.completions.create(
            model=small_pool.chat_model, prompt=PROMPT, max_tokens=ENDLESS_TOKENS, stream=True
        )
        next(stream)
        stream.close()
        small_pool.proxy.until_idle()
        # The only slot there is: nobody may wait for it.
        answer = client.completions.create(model=small_pool.chat_model, prompt=PROMPT, **SHORT)
    assert answer.choices[0].text
    small_pool.hosts[0].until(lambda stats: stats["cancelled"] == cancelled + 1)


async def test_async_client_gets_the_same_answers(pool: Pool, host: OpenAI) -> None:
    asked = {"model": pool.chat_model, "messages": QUESTION, **SHORT}
    expected = host.chat.completions.create(**asked).choices[0].message.content
    async with AsyncOpenAI(base_url=f"{pool.url}/v1", api_key="x", max_retries=0) as client:
        stream = await client.chat.completions.create(**asked, stream=True)
        deltas = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        answers = await asyncio.gather(*(client.chat.completions.create(**asked) for _ in "12"))
    assert "".join(deltas) == expected
    assert [answer.choices[0].message.content for answer in answers] == [expected] * 2
