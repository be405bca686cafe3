"""LangChain's `ChatOllama` and `OllamaEmbeddings`, unchanged, through the proxy."""

from __future__ import annotations

import pytest
from langchain_ollama import ChatOllama, OllamaEmbeddings
from ollama import Client, ResponseError

from tests.e2e.conftest import Pool

QUESTION = "Name a colour."


def chat_at(pool: Pool, model: str | None = None) -> ChatOllama:
    # The library has no close of its own: without keep-alive nothing is left open.
    return ChatOllama(
        base_url=pool.url,
        model=model or pool.chat_model,
        temperature=0,
        num_predict=8,
        client_kwargs={"headers": {"Connection": "close"}},
    )


@pytest.fixture
def expected(pool: Pool) -> str:
    """What a host itself says."""
    messages = [{"role": "user", "content": QUESTION}]
    with Client(pool.hosts[0].url) as host:
        answer = host.chat(pool.chat_model, messages, options={"temperature": 0, "num_predict": 8})
    return answer.message.content or ""


def test_chat_says_what_a_host_says(pool: Pool, expected: str) -> None:
    answer = chat_at(pool).invoke(QUESTION)
    assert answer.content == expected
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 8
    assert answer.response_metadata["done_reason"] == "length"


def test_chat_streams_what_a_host_says(pool: Pool, expected: str) -> None:
    chunks = list(chat_at(pool).stream(QUESTION))
    assert "".join(str(chunk.content) for chunk in chunks) == expected
    assert len(chunks) > 8


async def test_chat_says_the_same_when_it_is_awaited(pool: Pool, expected: str) -> None:
    assert (await chat_at(pool).ainvoke(QUESTION)).content == expected


def test_chat_raises_when_the_model_is_missing(pool: Pool) -> None:
    with pytest.raises(ResponseError, match="model 'nosuch' not found"):
        chat_at(pool, "nosuch").invoke(QUESTION)


def test_embeddings_are_those_of_a_host(pool: Pool) -> None:
    texts = ["kitten", "stock market"]
    model = OllamaEmbeddings(
        base_url=pool.url,
        model=pool.embed_model,
        client_kwargs={"headers": {"Connection": "close"}},
    )
    with Client(pool.hosts[0].url) as host:
        vectors = [list(row) for row in host.embed(pool.embed_model, texts).embeddings]
    assert model.embed_documents(texts) == vectors
    assert model.embed_query("kitten") == pytest.approx(vectors[0], abs=1e-3)
