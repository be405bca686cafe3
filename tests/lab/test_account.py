"""Accounts of simulated hosts, and what needs one: cloud models, stubs, searches."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession
from ollama import AsyncClient, ResponseError

from sollol_proxy.lab.simhost import SimHost, SimModel, SimSpec

STUB = SimModel("big:cloud", size_bytes=384, remote_model="big", remote_host="https://ollama.com")
SPEC = SimSpec(
    id="box",
    models=(
        SimModel("m"),
        SimModel("stub", 384, remote_model="huge:1t", remote_host="https://ollama.com"),
    ),
    registry=(STUB,),
    time_scale=1000,
)
MESSAGES = [{"role": "user", "content": "x"}]
SIGNIN_URL = "https://ollama.com/connect?name=box&key="


@pytest.fixture
async def host() -> AsyncIterator[SimHost]:
    async with SimHost(SPEC) as started:
        yield started


@pytest.fixture
async def session(host: SimHost) -> AsyncIterator[ClientSession]:
    async with ClientSession(host.url) as opened:
        yield opened


async def ask(
    session: ClientSession, method: str, path: str, fields: dict[str, Any] | None = None
) -> tuple[int, Any]:
    async with session.request(method, path, json=fields) as answer:
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        return answer.status, json.loads(await answer.read())


CLOUD_REQUESTS = [
    ("/api/generate", {"model": "gpt:20b-cloud", "prompt": "x"}),
    ("/api/chat", {"model": "gpt:cloud", "messages": MESSAGES}),
    ("/api/show", {"model": "gpt:cloud"}),
    ("/api/embed", {"model": "gpt:cloud", "input": "x"}),
    ("/v1/chat/completions", {"model": "gpt:cloud", "messages": MESSAGES}),
    ("/v1/messages", {"model": "gpt:cloud", "messages": MESSAGES, "max_tokens": 5}),
]


@pytest.mark.parametrize(("path", "fields"), CLOUD_REQUESTS)
async def test_cloud_model_needs_an_account(
    session: ClientSession, path: str, fields: dict[str, Any]
) -> None:
    status, document = await ask(session, "POST", path, fields)
    assert (status, document["error"]) == (401, "unauthorized")
    assert document["signin_url"].startswith(SIGNIN_URL)


@pytest.mark.parametrize(("path", "fields"), CLOUD_REQUESTS)
async def test_cloud_model_is_answered_when_somebody_is_signed_in(
    host: SimHost, session: ClientSession, path: str, fields: dict[str, Any]
) -> None:
    host.account.name = "ada"
    async with session.post(path, json={**fields, "stream": False}) as answer:
        assert answer.status == 200
        document = await answer.json()
    if path != "/api/show":
        assert document["model"] == ("gpt:20b" if "20b" in fields["model"] else "gpt")
    assert (host.resident, host.stats.loads) == ((), 0)


async def test_cloud_answers_take_no_slot(host: SimHost, session: ClientSession) -> None:
    host.account.name = "ada"
    endless = {"prompt": "x", "options": {"num_predict": 10_000_000}}
    local = await session.post("/api/generate", json=endless | {"model": "m"})
    await local.content.readline()
    cloud = await session.post("/api/generate", json=endless | {"model": "gpt:cloud"})
    assert json.loads(await cloud.content.readline())["model"] == "gpt"
    assert host.stats.in_flight == {"m:latest": 1, "gpt:cloud": 1}
    for answer in (local, cloud):
        answer.close()
    await host.until(lambda stats: stats.cancelled == 2)


async def test_cloud_model_of_v1_models_is_refused_in_native_shape(session: ClientSession) -> None:
    status, document = await ask(session, "GET", "/v1/models/gpt:cloud")
    assert (status, document["error"]) == (401, "unauthorized")


async def test_stub_is_listed_shown_and_answered_with_its_remote(host: SimHost) -> None:
    host.account.name = "ada"
    client = AsyncClient(host=host.url)
    try:
        await client.pull("big:cloud")
        async with ClientSession(host.url) as session:
            async with session.get("/api/tags") as answer:
                listed = {each["name"]: each for each in (await answer.json())["models"]}
            fields = {"model": "stub", "prompt": "x", "stream": False}
            _, answered = await ask(session, "POST", "/api/generate", fields)
            _, shown = await ask(session, "POST", "/api/show", {"model": "stub"})
        assert listed["big:cloud"]["remote_model"] == "big"
        for document in (listed["stub:latest"], answered, shown):
            assert (document["remote_model"], document["remote_host"]) == (
                "huge:1t",
                "https://ollama.com",
            )
        assert answered["model"] == "stub"
        with pytest.raises(ResponseError, match="not found"):
            await client.generate("stub:local", "x")
        host.account.name = ""
        with pytest.raises(ResponseError, match="unauthorized") as caught:
            await client.generate("stub", "x")
        assert caught.value.status_code == 401
    finally:
        await client._client.aclose()  # the library has no close of its own


async def test_creation_from_a_cloud_model_makes_a_stub(
    host: SimHost, session: ClientSession
) -> None:
    fields = {"model": "mine", "from": "gpt:20b-cloud", "system": "Be brief.", "stream": False}
    async with session.post("/api/create", json=fields) as answer:
        assert await answer.json() == {"status": "success"}
    assert host.disk.listings["mine:latest"].remote_model == "gpt:20b"


async def test_account_is_told_and_signed_out_once(host: SimHost, session: ClientSession) -> None:
    status, document = await ask(session, "POST", "/api/me")
    assert (status, set(document)) == (401, {"error", "signin_url"})
    host.account.name = "ada"
    status, document = await ask(session, "POST", "/api/me")
    assert (status, document["name"]) == (200, "ada")
    assert await ask(session, "POST", "/api/signout") == (200, None)
    refused = (401, {"error": "you are not currently signed in"})
    assert await ask(session, "POST", "/api/signout") == refused
    assert await ask(session, "DELETE", "/api/user/keys/eA") == refused


async def test_account_of_the_specification_is_signed_in_and_stays_so_over_a_restart() -> None:
    async with SimHost(SimSpec(id="h", account="ada")) as host:
        async with ClientSession(host.url) as session:
            assert (await ask(session, "POST", "/api/me"))[0] == 200
            assert (await ask(session, "POST", "/api/signout"))[0] == 200
        await host.stop()
        await host.start()
        async with ClientSession(host.url) as session:
            assert (await ask(session, "POST", "/api/me"))[0] == 401


async def test_cloud_is_on_unless_the_host_is_offline(session: ClientSession) -> None:
    assert await ask(session, "GET", "/api/status") == (
        200,
        {"cloud": {"disabled": False, "source": "none"}},
    )


@pytest.mark.parametrize(
    ("path", "fields", "key"),
    [
        ("/api/experimental/web_search", {"query": "x"}, "results"),
        ("/api/experimental/web_fetch", {"url": "https://x"}, "content"),
    ],
)
async def test_search_needs_an_account(
    host: SimHost, session: ClientSession, path: str, fields: dict[str, str], key: str
) -> None:
    assert (await ask(session, "POST", path, fields))[0] == 401
    host.account.name = "ada"
    status, document = await ask(session, "POST", path, fields)
    assert status == 200
    assert document[key]


async def test_faults_strike_the_account_routes(host: SimHost, session: ClientSession) -> None:
    host.fault("status", path="/api/me", status=500, message="boom", count=1)
    assert await ask(session, "POST", "/api/me") == (500, {"error": "boom"})
    host.fault("error_record", path="/api/signout", count=1, message="boom")
    assert await ask(session, "POST", "/api/signout") == (500, {"error": "boom"})
    assert (await ask(session, "POST", "/api/me"))[0] == 401
