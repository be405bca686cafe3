"""The real lab host, asked by the real client library."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession
from ollama import AsyncClient, ResponseError

from sollol_proxy.lab.engine import CHAT_MODEL, EMBEDDING_MODEL

pytestmark = pytest.mark.real_model

# Far less than four full contexts take on one thread.
PATIENCE_S = 40.0
GREEDY = {"temperature": 0, "num_predict": 12}
QUESTION = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture
async def client(engine_url: str) -> AsyncIterator[AsyncClient]:
    client = AsyncClient(host=engine_url)
    yield client
    await client._client.aclose()  # the library has no close of its own


@pytest.fixture
async def session(engine_url: str) -> AsyncIterator[ClientSession]:
    async with ClientSession(engine_url) as opened:
        yield opened


async def test_chat_streams_a_record_a_token_and_ends_with_figures(client: AsyncClient) -> None:
    stream = await client.chat(CHAT_MODEL, QUESTION, stream=True, options=GREEDY)
    records = [record async for record in stream]
    last = records[-1]
    assert (last.done, last.done_reason) == (True, "length")
    assert [record.done for record in records[:-1]] == [False] * 12
    assert all(record.message.content for record in records[:-1])
    assert last.eval_count == 12
    assert (last.prompt_eval_count or 0) > 10
    assert (last.total_duration or 0) >= (last.eval_duration or 0) > 0
    assert (last.load_duration or 0) > 0


async def test_chat_says_the_same_when_it_is_not_streamed(client: AsyncClient) -> None:
    stream = await client.chat(CHAT_MODEL, QUESTION, stream=True, options=GREEDY)
    streamed = "".join([record.message.content or "" async for record in stream])
    whole = await client.chat(CHAT_MODEL, QUESTION, options=GREEDY)
    assert whole.message.content == streamed


async def test_cached_prompt_counts_as_read(client: AsyncClient) -> None:
    first = await client.generate(CHAT_MODEL, "Count to three.", options=GREEDY)
    again = await client.generate(CHAT_MODEL, "Count to three.", options=GREEDY)
    assert again.prompt_eval_count == first.prompt_eval_count


async def test_generate_continues_from_its_context(client: AsyncClient) -> None:
    first = await client.generate(CHAT_MODEL, "My name is Ada.", options=GREEDY)
    assert len(first.context or ()) == (first.prompt_eval_count or 0) + (first.eval_count or 0)
    second = await client.generate(
        CHAT_MODEL, "And now?", context=list(first.context or ()), options=GREEDY
    )
    assert (second.prompt_eval_count or 0) > (first.prompt_eval_count or 0)
    assert list(second.context or ())[: len(first.context or ())] == list(first.context or ())


async def test_raw_generate_has_no_template_and_no_context(client: AsyncClient) -> None:
    answer = await client.generate(CHAT_MODEL, "one two three", raw=True, options=GREEDY)
    assert answer.context is None
    assert (answer.prompt_eval_count or 0) <= 4


async def test_answer_follows_a_json_schema(client: AsyncClient) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    options = {"temperature": 0, "num_predict": 60}
    chat = await client.chat(CHAT_MODEL, QUESTION, format=schema, options=options)
    assert set(json.loads(chat.message.content or "")) == {"colour"}
    text = await client.generate(CHAT_MODEL, "A colour.", format=schema, options=options)
    assert set(json.loads(text.response or "")) == {"colour"}


async def test_vectors_are_near_for_near_words(client: AsyncClient) -> None:
    answer = await client.embed("all-minilm", ["cat", "kitten", "stock market"])
    cat, kitten, stock = answer.embeddings
    assert [round(math.hypot(*vector), 4) for vector in answer.embeddings] == [1, 1, 1]
    assert cosine(cat, kitten) > 0.6 > 0.3 > cosine(cat, stock)
    assert (answer.prompt_eval_count or 0) >= 9
    single = await client.embeddings("all-minilm", "cat")
    assert cosine(cat, single.embedding) > 0.999
    short = await client.embed("all-minilm", "cat", dimensions=8)
    assert len(short.embeddings[0]) == 8


def cosine(left: Any, right: Any) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


async def test_long_inputs_are_cut_unless_forbidden(client: AsyncClient) -> None:
    answer = await client.embed(EMBEDDING_MODEL, "kitten " * 700)
    assert answer.prompt_eval_count == 512
    with pytest.raises(ResponseError, match="exceeds the context length") as caught:
        await client.embed(EMBEDDING_MODEL, "kitten " * 700, truncate=False)
    assert caught.value.status_code == 400


async def test_models_are_listed_shown_loaded_and_unloaded(client: AsyncClient) -> None:
    listed = {model.model: model for model in (await client.list()).models}
    assert set(listed) == {CHAT_MODEL, EMBEDDING_MODEL}
    assert all(len(model.digest or "") == 64 for model in listed.values())
    shown = await client.show("SmolLM2:135m")
    assert shown.capabilities == ["completion"]
    await client.generate(CHAT_MODEL, keep_alive=-1)
    resident = {model.model: model for model in (await client.ps()).models}
    assert resident[CHAT_MODEL].context_length == 2048
    gone = await client.generate(CHAT_MODEL, keep_alive=0)
    assert gone.done_reason == "unload"
    assert CHAT_MODEL not in {model.model for model in (await client.ps()).models}
    back = await client.generate(CHAT_MODEL, "Hi", options={"num_predict": 1})
    assert back.eval_count == 1
    assert (back.load_duration or 0) > 10_000_000


@pytest.mark.parametrize(
    ("path", "fields", "status", "message"),
    [
        ("/api/generate", {"model": "nosuch"}, 404, "model 'nosuch' not found"),
        (
            "/api/embed",
            {"model": "nosuch", "input": "x"},
            404,
            'model "nosuch" not found, try pulling it first',
        ),
        (
            "/api/chat",
            {"model": "all-minilm", "messages": QUESTION},
            400,
            '"all-minilm" does not support chat',
        ),
        (
            "/api/chat",
            {"model": CHAT_MODEL, "messages": QUESTION, "think": True},
            400,
            f'"{CHAT_MODEL}" does not support thinking',
        ),
        (
            "/api/chat",
            {"model": CHAT_MODEL, "messages": QUESTION, "tools": [{}]},
            400,
            f"registry.ollama.ai/library/{CHAT_MODEL} does not support tools",
        ),
        (
            "/api/generate",
            {"model": CHAT_MODEL, "prompt": "x", "format": "xml"},
            500,
            'invalid format: "\\"xml\\""; expected "json" or a valid JSON Schema object',
        ),
    ],
)
async def test_requests_are_refused_in_ollamas_words(
    session: ClientSession, path: str, fields: dict[str, Any], status: int, message: str
) -> None:
    async with session.post(path, json=fields) as answer:
        assert (answer.status, await answer.json()) == (status, {"error": message})


async def test_prompt_that_does_not_fit_is_400(client: AsyncClient) -> None:
    with pytest.raises(ResponseError, match="exceeds the available context size") as caught:
        await client.chat(CHAT_MODEL, [{"role": "user", "content": "word " * 4000}])
    assert caught.value.status_code == 400


V1_STREAMS = [
    ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 4}, b"data: [DONE]"),
    ("/v1/completions", {"prompt": "one two", "max_tokens": 4}, b"data: [DONE]"),
    ("/v1/messages", {"messages": QUESTION, "max_tokens": 4}, b'{"type":"message_stop"}'),
    ("/v1/responses", {"input": "one", "max_output_tokens": 4}, b"event: response.completed"),
]


@pytest.mark.parametrize(("path", "fields", "mark"), V1_STREAMS)
async def test_v1_routes_stream_to_their_terminator(
    session: ClientSession, path: str, fields: dict[str, Any], mark: bytes
) -> None:
    fields = fields | {"model": CHAT_MODEL, "stream": True}
    async with session.post(path, json=fields) as answer:
        body = await answer.read()
        assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert mark in body
    assert body.endswith(b"\n\n")


@pytest.mark.parametrize(("path", "fields", "_mark"), V1_STREAMS)
async def test_v1_routes_answer_whole_and_echo_the_model(
    session: ClientSession, path: str, fields: dict[str, Any], _mark: bytes
) -> None:
    async with session.post(path, json=fields | {"model": CHAT_MODEL}) as answer:
        document = await answer.json()
    assert (answer.status, document["model"]) == (200, CHAT_MODEL)


async def test_v1_embeddings_have_the_shape_of_ollamas(session: ClientSession) -> None:
    fields = {"model": "all-minilm", "input": ["a", "b"]}
    async with session.post("/v1/embeddings", json=fields) as answer:
        document = await answer.json()
    assert [row["index"] for row in document["data"]] == [0, 1]
    assert document["model"] == "all-minilm"


async def test_generation_stops_when_its_client_leaves(
    session: ClientSession, client: AsyncClient
) -> None:
    # Fills the context, some 2,000 tokens, unless it is stopped.
    fields = {
        "model": CHAT_MODEL,
        "prompt": "one two three",
        "raw": True,
        "format": {"type": "array", "items": {"type": "integer"}, "minItems": 10_000},
    }
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(4):
            answer = await session.post("/api/generate", json=fields)
            await answer.content.readline()
            answer.close()
        after = await client.generate(CHAT_MODEL, "Hi", options={"num_predict": 1})
    assert after.eval_count == 1


async def test_model_stays_in_memory_again_after_it_was_unloaded(client: AsyncClient) -> None:
    await client.generate(CHAT_MODEL, "", keep_alive=0)
    assert CHAT_MODEL not in {model.model for model in (await client.ps()).models}
    await client.generate(CHAT_MODEL, "Hi", options=GREEDY)
    assert CHAT_MODEL in {model.model for model in (await client.ps()).models}
