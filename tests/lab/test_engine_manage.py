"""The real lab host's disk: aliases, settings, and what an offline host refuses."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession
from ollama import AsyncClient, ResponseError

from sollol_proxy.lab.engine import CHAT_MODEL, EMBEDDING_MODEL
from sollol_proxy.lab.engine_models import MODELS
from tests.wire.recordings import http_exchanges
from tests.wire.replay import raw_request

pytestmark = pytest.mark.real_model

# Many times what the loads take.
PATIENCE_S = 60.0
GREEDY = {"temperature": 0, "num_predict": 8}
QUESTION = [{"role": "user", "content": "Name a colour."}]
AS_RECORDED = [
    "status",
    "me-post",
    "signout-post",
    "user-keys-delete",
    "web-search-off",
    "web-fetch-off",
    "recommendations",
    "generate-cloud-off",
    "v1-chat-cloud-off",
    "pull-offline",
    "pull-offline-nostream",
    "pull-no-model",
    "push-missing",
    "create-neither",
    "create-missing-blob",
    "create-from-unknown",
    "copy-missing",
    "delete-missing",
    "blob-post-mismatch",
]


@pytest.fixture
async def client(engine_url: str) -> AsyncIterator[AsyncClient]:
    """A client; what its test made and loaded is gone afterwards."""
    client = AsyncClient(host=engine_url)
    yield client
    await client.generate(CHAT_MODEL, keep_alive=0)
    await client.embed(EMBEDDING_MODEL, "", keep_alive=0)
    for model in (await client.list()).models:
        if model.model not in (CHAT_MODEL, EMBEDDING_MODEL):
            await client.delete(model.model or "")
    await client._client.aclose()  # the library has no close of its own


@pytest.mark.parametrize("id_", AS_RECORDED)
async def test_engine_answers_as_an_offline_host_was_recorded(engine_url: str, id_: str) -> None:
    exchange = http_exchanges()[id_]
    answer = await raw_request("127.0.0.1", urlsplit(engine_url).port or 0, exchange)
    assert (answer.status, answer.body) == (exchange.status, exchange.answer)


async def test_copy_answers_shares_memory_and_can_be_deleted(client: AsyncClient) -> None:
    await client.generate(CHAT_MODEL, keep_alive=0)
    await client.copy(CHAT_MODEL, "mine")
    answered = await client.generate("mine", "Hi", options=GREEDY)
    assert (answered.model, answered.eval_count) == ("mine", 8)
    await client.generate(CHAT_MODEL, "Hi", options=GREEDY)
    resident = [model.model for model in (await client.ps()).models]
    assert "mine:latest" in resident
    assert CHAT_MODEL not in resident
    await client.delete("mine")
    with pytest.raises(ResponseError, match="'mine' not found"):
        await client.generate("mine", "Hi")


async def test_created_model_has_its_system_prompt_and_parameters(client: AsyncClient) -> None:
    system = "You are a very terse assistant who answers in one word only, without exception."
    await client.create("terse", from_=CHAT_MODEL, system=system, parameters=GREEDY)
    shown = await client.show("terse")
    assert system in (shown.modelfile or "")
    assert (shown.parameters or "").split() == ["num_predict", "8", "temperature", "0"]
    assert shown.details is not None
    assert shown.details.parent_model == CHAT_MODEL
    for ask in (
        lambda model: client.chat(model, QUESTION, options={"num_predict": 8}),
        lambda model: client.generate(model, "Name a colour.", options={"num_predict": 8}),
    ):
        plain, made = await ask(CHAT_MODEL), await ask("terse")
        assert (made.prompt_eval_count or 0) > (plain.prompt_eval_count or 0)
    unlimited = await client.chat("terse", QUESTION)
    assert (unlimited.done_reason, unlimited.eval_count) == ("length", 8)


async def test_pull_of_what_is_there_succeeds(client: AsyncClient) -> None:
    stream = await client.pull(CHAT_MODEL, stream=True)
    records = [record async for record in stream]
    assert [record.status for record in records][-1] == "success"
    (layer,) = [record for record in records if record.digest]
    assert layer.completed == layer.total == MODELS["chat"].file().stat().st_size


async def test_the_models_own_file_makes_an_alias_and_others_are_refused(
    client: AsyncClient, engine_url: str
) -> None:
    digest = f"sha256:{hashlib.sha256(MODELS['embed'].file().read_bytes()).hexdigest()}"
    await client.create("vectors", files={"model.gguf": digest})
    assert (await client.show("vectors")).capabilities == ["embedding"]
    assert len((await client.embed("vectors", "cat")).embeddings[0]) == 384
    other = f"sha256:{hashlib.sha256(b'no model').hexdigest()}"
    async with ClientSession(engine_url) as session:
        async with session.head(f"/api/blobs/{digest}") as answer:
            assert answer.status == 200
        async with session.post(f"/api/blobs/{other}", data=b"no model") as answer:
            assert answer.status in (200, 201)
        fields = {"model": "x", "files": {"x.gguf": other}}
        async with session.post("/api/create", json=fields) as answer:
            lines = [json.loads(line) for line in (await answer.read()).splitlines()]
    assert lines == [
        {"status": "parsing GGUF"},
        {"error": "supplied file was not in GGUF format"},
    ]


async def test_model_can_be_unloaded_as_soon_as_it_is_loaded(client: AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(6):
            await client.embed(EMBEDDING_MODEL, "", keep_alive=0)
            await client.generate(CHAT_MODEL, "", keep_alive=0)
    assert (await client.ps()).models == []
