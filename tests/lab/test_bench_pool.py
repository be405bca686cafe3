"""The hosts of a bench and their control port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession

from sollol_proxy.lab.bench_pool import BenchPool, spawned_pool
from sollol_proxy.lab.bench_wire import is_complete, native, openai
from sollol_proxy.lab.process import ChildFailed
from sollol_proxy.lab.simspec import SimModel, SimSpec
from sollol_proxy.lab.workload import Request

MODEL = SimModel("m:1")
OTHER = SimModel("other:1", size_bytes=1000)
FOREVER = 10**9
"""Tokens that no test waits for."""


def quick(host_id: str, *models: SimModel) -> SimSpec:
    return SimSpec(host_id, decode_tps=1e6, prefill_tps=1e6, models=models, resident=("m:1",))


SPECS = (quick("a", MODEL), quick("b", MODEL, OTHER))


@pytest.fixture
async def pool() -> AsyncIterator[BenchPool]:
    async with BenchPool(SPECS, speed=1.0) as pool:
        yield pool


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


def request_of(number: int = 1, **changes: Any) -> Request:
    fields = {
        "id": f"r{number}",
        "arrived_s": 0.0,
        "model": MODEL,
        "prompt_tokens": 100,
        "output_tokens": 30,
        "prompt_tokens_est": 100,
    }
    return Request(**{**fields, **changes})


async def asked(
    session: ClientSession, url: str, request: Request, shape: Any = native
) -> tuple[int, bytes]:
    path, body = shape(request, [])
    async with session.post(url + path, json=body) as response:
        return response.status, await response.read()


async def control(session: ClientSession, pool: BenchPool, path: str) -> tuple[int, Any]:
    method = "GET" if path in ("/log", "/hosts") else "POST"
    async with session.request(method, pool.control_url + path) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("shape", [native, openai])
@pytest.mark.parametrize("stream", [True, False])
async def test_answer_has_the_length_that_the_mark_tells(
    pool: BenchPool, session: ClientSession, stream: bool, shape: Any
) -> None:
    request = request_of(stream=stream, output_tokens=31)
    status, body = await asked(session, pool.hosts[0].url, request, shape)
    assert status == 200
    assert is_complete(body)
    assert body.count(b" tok") == 31
    if shape is native:
        assert b'"eval_count":31' in body
        assert b'"prompt_eval_count":100' in body


async def test_log_tells_which_host_answered_what_and_what_was_loaded(
    pool: BenchPool, session: ClientSession
) -> None:
    first, second = pool.hosts
    await asked(session, first.url, request_of(1))
    await asked(session, second.url, request_of(2, model=OTHER))
    _, log = await control(session, pool, "/log")
    assert [entry[:2] for entry in log["answered"]] == [["r1", "a"], ["r2", "b"]]
    assert log["loads"] == {"a": 0, "b": 1}


async def test_reset_empties_memory_speed_and_log(pool: BenchPool, session: ClientSession) -> None:
    host = pool.hosts[1]
    await asked(session, host.url, request_of(model=OTHER))
    slow = {"host": "b", "factor": 4.0}
    async with session.post(f"{pool.control_url}/slow", json=slow) as response:
        assert response.status == 200
    assert host.driver.virtual.slowdown == 4.0
    assert set(host.driver.virtual.runners) == {"m:1", "other:1"}
    status, _ = await control(session, pool, "/reset")
    assert status == 200
    assert host.driver.virtual.slowdown == 1.0
    assert set(host.driver.virtual.runners) == {"m:1"}
    _, log = await control(session, pool, "/log")
    assert (log["answered"], log["loads"]) == ([], {"a": 0, "b": 0})
    assert (await asked(session, host.url, request_of(3)))[0] == 200


async def test_reset_is_refused_while_a_request_is_there(
    pool: BenchPool, session: ClientSession
) -> None:
    path, body = native(request_of(output_tokens=FOREVER), [])
    async with session.post(pool.hosts[0].url + path, json=body) as response:
        await response.content.readline()
        status, _ = await control(session, pool, "/reset")
        assert status == 409
        response.close()
    async with asyncio.timeout(30):
        while pool.hosts[0].in_flight:  # noqa: ASYNC110 - the handler's end sets no event
            await asyncio.sleep(0)
    status, _ = await control(session, pool, "/reset")
    assert status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "other:1", "prompt": "[r1 10 10 -1 0]"}, 404),
        ({"model": "m:1", "prompt": "Why is the sky blue?"}, 400),
    ],
)
async def test_what_it_cannot_answer_it_refuses(
    pool: BenchPool, session: ClientSession, body: dict[str, str], status: int
) -> None:
    async with session.post(f"{pool.hosts[0].url}/api/generate", json=body) as response:
        assert response.status == status
        assert set(await response.json()) == {"error"}


async def test_spawned_pool_says_where_its_hosts_are(session: ClientSession) -> None:
    async with spawned_pool(SPECS, speed=20.0) as child:
        async with session.get(f"{child.url}/hosts") as response:
            urls = await response.json()
        assert list(urls) == ["a", "b"]
        async with session.get(f"{urls['b']}/api/tags") as response:
            names = [model["name"] for model in (await response.json())["models"]]
    assert names == ["m:1", "other:1"]


async def test_pool_does_not_start_on_a_port_that_is_taken(pool: BenchPool) -> None:
    port = int(pool.hosts[0].url.rpartition(":")[2])
    with pytest.raises(ChildFailed):
        await spawned_pool(SPECS, speed=1.0, first_port=port).start()
