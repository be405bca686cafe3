"""A simulated host over real sockets: its wire is that of the recorded server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession

from sollol_proxy.lab.simhost import (
    HOST_CLASSES,
    SimHost,
    SimModel,
    SimSpec,
    preset,
    spec_from_json,
)
from tests.wire.recordings import Exchange, http_exchanges

SPEC = SimSpec(
    id="h",
    time_scale=1000,
    keep_alive_s=10**6,  # of the host's time: nothing goes of itself, however busy the machine
    models=(
        SimModel("det"),
        SimModel("other"),
        SimModel("emb", 46_000_000, 0.03, capabilities=("embedding",)),
    ),
    resident=("det",),
)
ENDLESS = {"model": "det", "prompt": "x", "options": {"num_predict": 10_000_000}}


@pytest.fixture
async def host() -> AsyncIterator[SimHost]:
    async with SimHost(SPEC) as started:
        yield started


@pytest.fixture
async def session(host: SimHost) -> AsyncIterator[ClientSession]:
    async with ClientSession(host.url) as opened:
        yield opened


async def replay(session: ClientSession, exchange: Exchange) -> tuple[int, str, bytes]:
    async with session.request(exchange.method, exchange.path, data=exchange.body) as answer:
        return answer.status, answer.headers.get("Content-Type", ""), await answer.read()


def shape(value: Any) -> Any:
    """Keys and kinds of a JSON value; of a list the first entry's."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if type(value) in (int, float) else type(value).__name__


def documents(body: bytes) -> list[Any]:
    """The JSON values of an NDJSON, SSE or JSON body; event names and `[DONE]` as text."""
    found: list[Any] = []
    for line in body.decode().splitlines():
        text = line.removeprefix("data: ")
        if text.startswith("{"):
            found.append(json.loads(text))
        elif text:
            found.append(text)
    return found


STREAMED = [
    "generate-stream",
    "generate-raw",
    "chat-stream",
    "v1-chat-stream",
    "v1-chat-stream-usage",
    "v1-completions-stream",
    "v1-responses-stream",
    "v1-messages-stream",
]
WHOLE = [
    "version-get",
    "root-get",
    "ps-empty",
    "v1-models-one",
    "generate-nostream",
    "generate-load",
    "generate-unload",
    "chat-nostream",
    "chat-load",
    "embed-single",
    "embed-list",
    "embed-dimensions",
    "embed-empty",
    "embed-empty-list",
    "embeddings",
    "embeddings-empty",
    "v1-chat-nostream",
    "v1-completions",
    "v1-responses",
    "v1-messages",
    "v1-embeddings-float",
    "v1-embeddings-base64",
]
REFUSED = [
    "generate-empty-body",
    "generate-missing-model",
    "generate-empty-model",
    "generate-bad-keepalive",
    "generate-on-embedder",
    "chat-no-model",
    "chat-missing-model",
    "chat-embedder",
    "embed-missing-model",
    "embed-bad-input",
    "embeddings-missing",
    "show-missing",
    "show-no-model",
    "v1-chat-empty-body",
    "v1-chat-missing-model",
    "v1-chat-missing-model-stream",
    "v1-completions-missing",
    "v1-embeddings-missing",
    "v1-responses-missing",
    "v1-models-one-missing",
    "unknown-route",
    "unknown-api-route",
    "metrics-404",
    "method-405-get-generate",
]


@pytest.mark.parametrize("id_", STREAMED)
async def test_stream_has_the_recorded_shape(session: ClientSession, id_: str) -> None:
    recorded = http_exchanges()[id_]
    status, content_type, body = await replay(session, recorded)
    assert (status, content_type) == (200, recorded.answer_header("Content-Type"))
    expected, found = documents(recorded.answer), documents(body)
    # The same kinds of records in the same order; how many tokens there are is the model's affair.
    assert distinct(found) == distinct(expected)


def distinct(values: list[Any]) -> list[Any]:
    """Shapes with repetitions taken together; text as it is."""
    shapes: list[Any] = []
    for value in values:
        kind = value if isinstance(value, str) else shape(value)
        if kind not in shapes:
            shapes.append(kind)
    return shapes


@pytest.mark.parametrize("id_", WHOLE)
async def test_answer_has_the_recorded_shape(session: ClientSession, id_: str) -> None:
    recorded = http_exchanges()[id_]
    status, content_type, body = await replay(session, recorded)
    assert (status, content_type) == (recorded.status, recorded.answer_header("Content-Type"))
    if id_ == "root-get":
        assert body == recorded.answer
    elif id_ != "ps-empty":
        assert shape(json.loads(body)) == shape(json.loads(recorded.answer))


@pytest.mark.parametrize("id_", REFUSED)
async def test_refusal_is_the_recorded_one(session: ClientSession, id_: str) -> None:
    recorded = http_exchanges()[id_]
    status, content_type, body = await replay(session, recorded)
    assert status == recorded.status
    assert (
        content_type.partition(";")[0] == recorded.answer_header("Content-Type").partition(";")[0]
    )
    assert without_request_id(body) == without_request_id(recorded.answer)


def without_request_id(body: bytes) -> Any:
    try:
        document = json.loads(body)
    except ValueError:
        return body
    document.pop("request_id", None)
    return document


@pytest.mark.parametrize("id_", ["tags-many", "ps-loaded"])
async def test_lists_have_the_recorded_entries(session: ClientSession, id_: str) -> None:
    recorded = http_exchanges()[id_]
    _, _, body = await replay(session, recorded)
    expected, found = json.loads(recorded.answer), json.loads(body)
    assert shape(found["models"][0]) == shape(expected["models"][0])


async def test_show_describes_the_model(session: ClientSession) -> None:
    async with session.post("/api/show", json={"name": "DET:latest"}) as answer:
        document = await answer.json()
    assert document["capabilities"] == ["completion"]
    assert document["model_info"]["general.architecture"] == "llama"


async def test_answers_name_no_server(session: ClientSession) -> None:
    for path in ("/", "/api/tags", "/nope"):
        async with session.get(path) as answer:
            assert "Server" not in answer.headers


async def test_head_is_answered_where_ollama_answers_it(session: ClientSession) -> None:
    statuses = {}
    for path in ("/", "/api/version", "/api/tags", "/api/ps"):
        async with session.head(path) as answer:
            statuses[path] = answer.status
    assert statuses == {"/": 200, "/api/version": 200, "/api/tags": 200, "/api/ps": 405}


async def test_bodies_over_2_kib_are_chunked(session: ClientSession) -> None:
    fields = {"model": "det", "prompt": "x", "stream": False, "options": {"num_predict": 900}}
    async with session.post("/api/generate", json=fields) as answer:
        assert "Content-Length" not in answer.headers
        assert (await answer.json())["eval_count"] == 900


@pytest.mark.parametrize("time_scale", [1000, 1e9])
async def test_stream_has_a_record_for_each_token_however_fast(time_scale: float) -> None:
    async with (
        SimHost(SimSpec(id="h", time_scale=time_scale)) as fast,
        ClientSession(fast.url) as session,
    ):
        fields = {"model": "llama3", "prompt": "x", "options": {"num_predict": 300}}
        async with session.post("/api/generate", json=fields) as answer:
            records = documents(await answer.read())
        assert len(records) == 301
        assert records[-1]["eval_count"] == 300
        assert fast.stats.records_sent == 300


async def test_answer_is_the_same_for_the_same_prompt(session: ClientSession) -> None:
    fields = {"model": "det", "prompt": "why?", "stream": False}
    answers = []
    for _ in range(2):
        async with session.post("/api/generate", json=fields) as answer:
            answers.append(await answer.json())
    assert answers[0]["response"] == answers[1]["response"]
    assert 20 <= answers[0]["eval_count"] <= 200


async def test_prompt_tokens_are_counted_when_they_are_cached(session: ClientSession) -> None:
    fields = {"model": "det", "prompt": "x" * 4000, "stream": False}
    answers = []
    for _ in range(2):
        async with session.post("/api/generate", json=fields) as answer:
            answers.append(await answer.json())
    assert [each["prompt_eval_count"] for each in answers] == [1000, 1000]
    assert answers[1]["prompt_eval_duration"] < answers[0]["prompt_eval_duration"] / 100


async def test_durations_are_those_of_the_wall_clock(session: ClientSession) -> None:
    fields = {"model": "det", "prompt": "x", "stream": False, "options": {"num_predict": 100}}
    async with session.post("/api/generate", json=fields) as answer:
        document = await answer.json()
    # 100 tokens at 100 a second, a thousand times faster.
    assert document["eval_duration"] == pytest.approx(1_000_000, rel=1e-6)


async def test_slot_is_free_when_the_client_leaves_mid_stream(
    host: SimHost, session: ClientSession
) -> None:
    answer = await session.post("/api/generate", json=ENDLESS)
    await answer.content.readline()
    answer.close()
    stats = await host.until(lambda stats: stats.cancelled == 1)
    assert stats.total_in_flight == 0
    async with session.post(
        "/api/generate", json=ENDLESS | {"options": {"num_predict": 2}}
    ) as next_:
        assert (await next_.read()).count(b"\n") == 3


async def test_place_is_free_when_a_waiting_client_leaves(
    host: SimHost, session: ClientSession
) -> None:
    running = await session.post("/api/generate", json=ENDLESS)
    waiting = asyncio.get_running_loop().create_task(session.post("/api/generate", json=ENDLESS))
    await host.until(lambda stats: stats.total_in_flight == 2)
    waiting.cancel()
    stats = await host.until(lambda stats: stats.cancelled == 1)
    assert stats.in_flight == {"det:latest": 1}
    assert stats.max_in_flight == {"det:latest": 2}
    running.close()
    await host.until(lambda stats: stats.cancelled == 2)


async def test_load_is_aborted_when_the_client_that_caused_it_leaves() -> None:
    endless_load = SimSpec(id="h", load_bytes_per_s=1.0)
    async with SimHost(endless_load) as host, ClientSession(host.url) as session:
        fields = {"model": "llama3", "prompt": "x"}
        loading = asyncio.get_running_loop().create_task(session.post("/api/chat", json=fields))
        await host.until(lambda stats: stats.total_in_flight == 1)
        loading.cancel()
        stats = await host.until(lambda stats: stats.aborted_loads == 1)
        assert stats.loads == 0
        assert host.resident == ()


async def test_load_and_unload_change_what_is_resident(
    host: SimHost, session: ClientSession
) -> None:
    async with session.post("/api/generate", json={"model": "other"}) as answer:
        assert (await answer.json())["done_reason"] == "load"
    both = host.resident
    unload = {"model": "det", "messages": [], "keep_alive": 0}
    async with session.post("/api/chat", json=unload) as answer:
        assert (await answer.json())["done_reason"] == "unload"
    assert (both, host.resident) == (("det:latest", "other:latest"), ("other:latest",))


async def test_full_load_queue_is_refused_as_recorded() -> None:
    spec = SimSpec(id="h", load_bytes_per_s=1.0, max_queue=0, models=(SimModel("rep"),))
    recorded = http_exchanges()["queue-full-3"]
    async with SimHost(spec) as host, ClientSession(host.url) as session:
        assert await replay(session, recorded) == (
            503,
            recorded.answer_header("Content-Type"),
            recorded.answer,
        )


async def test_host_keeps_its_counts_when_it_is_started_again(host: SimHost) -> None:
    port = host.port
    async with ClientSession() as session:
        async with session.get(host.url + "/api/version"):
            pass
        await host.stop()
        await host.start(port)
        async with session.get(host.url + "/api/version") as answer:
            assert answer.status == 200
    assert host.stats.requests == {"/api/version": 2}


@pytest.mark.parametrize("name", sorted(HOST_CLASSES))
def test_spec_survives_json(name: str) -> None:
    spec = preset(name, models=(SimModel("a"), SimModel("b", 1, 0.5, ("embedding",))))
    assert spec_from_json(spec.to_json()) == spec


def test_spec_takes_bare_model_names() -> None:
    spec = spec_from_json('{"id": "x", "models": ["a", {"name": "b", "params_b": 1.5}]}')
    assert spec.models == (SimModel("a"), SimModel("b", params_b=1.5))


@pytest.mark.parametrize("text", ["[]", "{}", '{"id":"x","speed":1}', "{"])
def test_spec_is_refused_when_it_makes_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        spec_from_json(text)


def test_host_is_refused_when_a_resident_model_is_not_installed() -> None:
    async def start() -> None:
        await SimHost(SimSpec(id="h", resident=("nosuch",))).start()

    with pytest.raises(ValueError, match="nosuch"):
        asyncio.run(start())
