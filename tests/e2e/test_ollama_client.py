"""The `ollama` package of PyPI, unchanged, through the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from httpx import Response
from ollama import AsyncClient, Client, ProcessResponse, ResponseError

from tests.e2e.conftest import ENDLESS_TOKENS, Pool
from tests.e2e.processes import Proxy, until

SHORT = {"temperature": 0, "num_predict": 8}
QUESTION = [{"role": "user", "content": "Name a colour."}]
PROMPT = "Count to three."


@pytest.fixture
def client(pool: Pool) -> Iterator[Client]:
    with Client(pool.url) as opened:
        yield opened


@pytest.fixture
def host(pool: Pool) -> Iterator[Client]:
    """The same library, at one of the hosts itself."""
    with Client(pool.hosts[0].url) as opened:
        yield opened


def test_chat_says_what_a_host_says(pool: Pool, client: Client, host: Client) -> None:
    expected = host.chat(pool.chat_model, QUESTION, options=SHORT)
    answer = client.chat(pool.chat_model, QUESTION, options=SHORT)
    assert answer.message.content == expected.message.content
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "length", 8)
    assert answer.prompt_eval_count == expected.prompt_eval_count


def test_chat_streams_what_a_host_says(pool: Pool, client: Client, host: Client) -> None:
    expected = host.chat(pool.chat_model, QUESTION, options=SHORT)
    records = list(client.chat(pool.chat_model, QUESTION, options=SHORT, stream=True))
    said = "".join(record.message.content or "" for record in records)
    assert said == expected.message.content
    assert [record.done for record in records] == [False] * 8 + [True]
    assert records[-1].eval_count == 8


def test_generate_says_what_a_host_says(pool: Pool, client: Client, host: Client) -> None:
    expected = host.generate(pool.chat_model, PROMPT, options=SHORT)
    whole = client.generate(pool.chat_model, PROMPT, options=SHORT)
    records = list(client.generate(pool.chat_model, PROMPT, options=SHORT, stream=True))
    assert whole.response == expected.response
    assert "".join(record.response or "" for record in records) == expected.response
    assert whole.context == records[-1].context == expected.context


def test_embed_gives_the_vectors_of_a_host(pool: Pool, client: Client, host: Client) -> None:
    texts = ["kitten", "stock market"]
    answer = client.embed(pool.embed_model, texts)
    assert answer.embeddings == host.embed(pool.embed_model, texts).embeddings
    assert len(answer.embeddings) == 2
    old = client.embeddings(pool.embed_model, "kitten")
    assert old.embedding == host.embeddings(pool.embed_model, "kitten").embedding


def test_list_names_each_model_once(pool: Pool, client: Client, host: Client) -> None:
    models = client.list().models
    assert sorted(model.model or "" for model in models) == sorted(
        [pool.chat_model, pool.embed_model]
    )
    assert models == host.list().models


def test_show_tells_what_a_host_tells(pool: Pool, client: Client, host: Client) -> None:
    assert client.show(pool.chat_model) == host.show(pool.chat_model)
    assert client.show(pool.chat_model).capabilities == ["completion"]
    assert client.show(pool.embed_model).capabilities == ["embedding"]


def test_keep_alive_loads_and_unloads(pool: Pool, client: Client) -> None:
    pool.unload_everywhere()
    assert client.generate(pool.chat_model, keep_alive="10m").done_reason == "load"
    rows = until(client.ps, lambda ps: pool.chat_model in models_of(ps)).models
    (loaded,) = [row for row in rows if row.model == pool.chat_model]
    assert len(loaded.digest or "") == 64
    assert loaded.expires_at is not None
    assert client.generate(pool.chat_model, keep_alive=0).done_reason == "unload"
    until(client.ps, lambda ps: pool.chat_model not in models_of(ps))
    pool.proxy.until_not_resident(pool.chat_model)
    # For the tests that follow: a keep_alive sticks, and 0 would make each of them load again.
    for lab_host in pool.hosts:
        with Client(lab_host.url) as direct:
            direct.generate(pool.chat_model, keep_alive="10m")


def models_of(ps: ProcessResponse) -> list[str | None]:
    return [row.model for row in ps.models]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("chat", {"messages": QUESTION}),
        ("chat", {"messages": QUESTION, "stream": True}),
        ("generate", {"prompt": PROMPT}),
        ("generate", {"prompt": PROMPT, "stream": True}),
        ("generate", {"keep_alive": 0}),
        ("embed", {"input": "kitten"}),
        ("embeddings", {"prompt": "kitten"}),
        ("show", {}),
    ],
)
def test_missing_model_is_refused_in_the_words_of_a_host(
    method: str, arguments: dict[str, Any], client: Client, host: Client
) -> None:
    answers = []
    for asked in (host, client):
        with pytest.raises(ResponseError) as caught:
            # A stream raises when it is read.
            list(getattr(asked, method)(model="Nosuch", **arguments))
        answers.append((caught.value.status_code, caught.value.error))
    assert answers[0] == answers[1]
    assert answers[0][0] == 404


def test_mistakes_of_the_caller_come_back_as_a_host_words_them(
    pool: Pool, client: Client, host: Client
) -> None:
    answers = []
    for asked in (host, client):
        with pytest.raises(ResponseError) as caught:
            asked.generate(pool.embed_model, PROMPT)
        answers.append((caught.value.status_code, caught.value.error))
    assert answers[0] == answers[1] == (400, f'"{pool.embed_model}" does not support generate')


def test_answers_say_how_they_were_routed(pool: Pool) -> None:
    heads: list[Response] = []
    hooks = {"response": [heads.append]}
    with Client(pool.url, headers={"X-SOLLOL-Priority": "9"}, event_hooks=hooks) as client:
        client.chat(pool.chat_model, QUESTION, options=SHORT)
        list(client.chat(pool.chat_model, QUESTION, options=SHORT, stream=True))
        with pytest.raises(ResponseError):
            client.chat("nosuch", QUESTION)
    host_ids = {host["id"] for host in pool.proxy.hosts()}
    for head in heads:
        assert head.headers["X-SOLLOL-Priority"] == "9"
        assert head.headers["X-SOLLOL-Request-Id"]
    for head in heads[:2]:
        assert head.headers["X-SOLLOL-Host"] in host_ids
        assert head.headers["X-SOLLOL-Reason"]
        assert head.headers["X-SOLLOL-Attempts"] == "1"
    assert len(heads) == 3


async def test_async_client_gets_the_same_answers(pool: Pool, host: Client) -> None:
    expected = host.chat(pool.chat_model, QUESTION, options=SHORT).message.content
    async with AsyncClient(pool.url) as client:
        whole = await client.chat(pool.chat_model, QUESTION, options=SHORT)
        stream = await client.chat(pool.chat_model, QUESTION, options=SHORT, stream=True)
        streamed = [record async for record in stream]
        text = await client.generate(pool.chat_model, PROMPT, options=SHORT)
        vectors = await client.embed(pool.embed_model, "kitten")
        listed = await client.list()
        with pytest.raises(ResponseError, match="model 'nosuch' not found"):
            await client.chat("nosuch", QUESTION)
    assert whole.message.content == expected
    assert "".join(record.message.content or "" for record in streamed) == expected
    assert text.response == host.generate(pool.chat_model, PROMPT, options=SHORT).response
    assert vectors.embeddings == host.embed(pool.embed_model, "kitten").embeddings
    assert len(listed.models) == 2


async def test_parallel_requests_use_all_hosts(pool: Pool) -> None:
    before = pool.proxy.completed()
    async with AsyncClient(pool.url) as client:
        answers = await asyncio.gather(
            # So many that no speed measured on a busy machine makes one host do for all.
            *(client.chat(pool.chat_model, QUESTION, options=SHORT) for _ in range(12))
        )
    assert len({answer.message.content for answer in answers}) == 1
    pool.proxy.until_idle()
    after = pool.proxy.completed()
    gained = {host_id: after[host_id] - before[host_id] for host_id in after}
    assert sum(gained.values()) == 12
    assert all(gained.values()), gained


def test_second_request_goes_to_the_other_host_while_the_first_is_streamed(sim_pool: Pool) -> None:
    options = {"num_predict": ENDLESS_TOKENS}
    with Client(sim_pool.url) as first, Client(sim_pool.url) as second:
        stream = first.chat(sim_pool.chat_model, QUESTION, options=options, stream=True)
        next(stream)
        second.chat(sim_pool.chat_model, QUESTION, options=SHORT)
        running = [host for host in sim_pool.proxy.hosts() if host["in_flight"]]
        answered_by = sim_pool.proxy.requests()[0]["decision"]["host"]
        assert [host["id"] for host in running] != [answered_by]
        assert len(running) == 1
        stream.close()


def test_leaving_a_stream_frees_the_slot_and_stops_the_host(sim_pool: Pool) -> None:
    cancelled = [host.stats()["cancelled"] for host in sim_pool.hosts]
    options = {"num_predict": ENDLESS_TOKENS}
    with Client(sim_pool.url) as client:
        stream = client.generate(sim_pool.chat_model, PROMPT, options=options, stream=True)
        next(stream)
        stream.close()
    sim_pool.proxy.until_idle()
    newest = sim_pool.proxy.requests()[0]
    assert newest["outcome"] == "client_gone"
    at = [host["id"] for host in sim_pool.proxy.hosts()].index(newest["decision"]["host"])
    sim_pool.hosts[at].until(lambda stats: stats["cancelled"] == cancelled[at] + 1)


def test_stream_that_a_host_cuts_raises_after_what_came(sim_pool: Pool) -> None:
    for host in sim_pool.hosts:
        host.fault("cut", after_records=3, count=1)
    records: list[Any] = []
    with Client(sim_pool.url) as client:
        stream = client.chat(sim_pool.chat_model, QUESTION, options=SHORT, stream=True)
        with pytest.raises(ResponseError, match="broke off"):
            records.extend(stream)
    assert [bool(record.message.content) for record in records] == [True] * 3


def test_other_host_answers_when_the_first_fails(sim_pool: Pool) -> None:
    sim_pool.unload_everywhere()
    heads: list[Response] = []
    with Client(sim_pool.url, event_hooks={"response": [heads.append]}) as client:
        client.generate(sim_pool.chat_model, keep_alive="10m")
        ids = [host["id"] for host in sim_pool.proxy.hosts()]
        holder = heads[-1].headers["X-SOLLOL-Host"]
        sim_pool.hosts[ids.index(holder)].fault("status", status=503, count=1)
        assert client.chat(sim_pool.chat_model, QUESTION, options=SHORT).done
    assert heads[-1].headers["X-SOLLOL-Attempts"] == "2"
    assert heads[-1].headers["X-SOLLOL-Host"] in set(ids) - {holder}


def test_pool_without_a_host_says_so(proxy_without_hosts: Proxy) -> None:
    with Client(proxy_without_hosts.url) as client:
        for ask in (client.list, lambda: client.generate("llama3", PROMPT)):
            with pytest.raises(ResponseError, match="no Ollama host is available") as caught:
                ask()
            assert caught.value.status_code == 503
