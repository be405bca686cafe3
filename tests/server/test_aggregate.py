"""Merged reads over several hosts, some of them dead or odd."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from tests.server.pool import pool, sim
from tests.support import make_config, running_proxy
from tests.wire.recordings import http_exchanges
from tests.wire.replay import ReplayHost

TAGS = json.loads(http_exchanges()["tags-many"].answer)
DEAD = "http://127.0.0.1:1"


async def ask(url: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    async with aiohttp.ClientSession() as client, client.request(method, url) as response:
        return response.status, dict(response.headers), await response.read()


def model(name: str, digest: str, modified_at: str) -> dict[str, Any]:
    return {"name": name, "model": name, "digest": digest * 64, "size": 1, "details": {},
            "modified_at": modified_at}  # fmt: skip


async def test_lists_are_the_union_of_the_hosts_that_are_up() -> None:
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(ReplayHost()) for _ in range(2)]
        one.tags = {"models": [model("x:latest", "a", "2026-01-02T00:00:00Z")]}
        two.tags = {
            "models": [
                model("y:latest", "b", "2026-01-03T00:00:00Z"),
                model("x:latest", "a", "2026-01-01T00:00:00Z"),
            ]
        }
        two.version = "0.9.1"
        config = make_config(one.url, two.url, DEAD)
        proxy = await stack.enter_async_context(running_proxy(config, wait=False))
        await proxy.until_up(2)
        status, headers, body = await ask(f"{proxy.url}/api/tags")
        assert status == 200
        assert [each["name"] for each in json.loads(body)["models"]] == ["y:latest", "x:latest"]
        assert headers["X-SOLLOL-Hosts"] == "2/3"
        assert json.loads((await ask(f"{proxy.url}/api/version"))[2]) == {"version": "0.9.1"}
        data = json.loads((await ask(f"{proxy.url}/v1/models"))[2])["data"]
        assert [each["id"] for each in data] == ["y:latest", "x:latest"]
        assert (await ask(f"{proxy.url}/v1/models/x"))[0] == 200
        assert (await ask(f"{proxy.url}/v1/models/z"))[0] == 404


async def test_loaded_models_are_added_up_over_hosts() -> None:
    row = {
        "name": "x:latest", "model": "x:latest", "digest": "a" * 64, "size": 10, "size_vram": 4,
        "details": {}, "expires_at": "2026-01-01T00:00:00Z", "context_length": 4096,
    }  # fmt: skip
    async with ReplayHost() as one, ReplayHost() as two:
        one.ps = {"models": [row]}
        two.ps = {"models": [{**row, "expires_at": "2026-01-02T00:00:00Z"}]}
        async with running_proxy(make_config(one.url, two.url)) as proxy:
            [merged] = json.loads((await ask(f"{proxy.url}/api/ps"))[2])["models"]
    assert (merged["size"], merged["size_vram"]) == (20, 8)
    assert merged["expires_at"] == "2026-01-02T00:00:00Z"


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
async def test_head_is_the_get_without_its_body(path: str) -> None:
    async with ReplayHost() as host:
        host.tags = {"models": TAGS["models"][:1]}
        async with running_proxy(make_config(host.url)) as proxy:
            _, get_headers, body = await ask(proxy.url + path)
            status, headers, nothing = await ask(proxy.url + path, "HEAD")
    assert (status, nothing) == (200, b"")
    assert headers["Content-Length"] == get_headers["Content-Length"] == str(len(body))
    assert headers["Content-Type"] == get_headers["Content-Type"]


@pytest.mark.parametrize(
    "path", ["/", "/api/version", "/api/tags", "/api/ps", "/v1/models", "/v1/models/x"]
)
async def test_reads_fail_clearly_when_no_host_is_up(path: str) -> None:
    config = make_config(DEAD, queue={"no_host_wait": 0.05})
    async with running_proxy(config, wait=False) as proxy:
        status, headers, body = await ask(proxy.url + path)
    assert status == 503
    assert "none of 1 hosts is up" in body.decode()
    assert headers["X-SOLLOL-Outcome"] == "no_host"


async def test_reads_of_an_empty_pool_say_so() -> None:
    async with running_proxy(make_config()) as proxy:
        status, _, body = await ask(f"{proxy.url}/api/tags")
    assert (status, "the pool has no hosts" in body.decode()) == (503, True)


async def test_read_just_after_the_start_waits_for_the_first_probes() -> None:
    async with (
        ReplayHost() as host,
        running_proxy(make_config(host.url, queue={"no_host_wait": 20}), wait=False) as proxy,
    ):
        status, _, body = await ask(f"{proxy.url}/")
    assert (status, body) == (200, b"Ollama is running")


async def test_host_that_says_nothing_delays_no_list() -> None:
    """It accepts connections and never answers; the probes' patience is far longer than ours."""
    held: list[asyncio.StreamWriter] = []

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    silent = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with ReplayHost() as host:
        host.tags = TAGS
        config = make_config(host.url, f"http://127.0.0.1:{port}", probes={"timeout": 3600})
        async with running_proxy(config, wait=False) as proxy:
            await proxy.until_up(1)
            async with asyncio.timeout(20):
                status, headers, _ = await ask(f"{proxy.url}/api/tags")
            assert (status, headers["X-SOLLOL-Hosts"]) == (200, "1/2")
    for writer in held:
        writer.close()
    silent.close()
    await silent.wait_closed()


@pytest.mark.parametrize(
    "tags", [{}, {"models": None}, {"models": "x"}, {"models": [{}, 3, None, {"name": 5}]}]
)
async def test_odd_documents_of_a_host_cost_nobody_a_list(tags: dict[str, Any]) -> None:
    async with ReplayHost() as odd, ReplayHost() as good:
        odd.tags, odd.ps = tags, tags
        good.tags = TAGS
        picky = {"url": odd.url, "models": {"deny": ["nothing"]}}
        async with running_proxy(make_config(picky, good.url)) as proxy:
            for path in ("/api/tags", "/api/ps", "/v1/models"):
                assert (await ask(proxy.url + path))[0] == 200
            models = json.loads((await ask(f"{proxy.url}/api/tags"))[2])["models"]
    assert models == TAGS["models"]


async def test_loaded_and_unloaded_model_shows_at_once_between_two_rounds() -> None:
    probes = {"interval": 3600, "tags_interval": 3600}
    async with pool(sim("a", resident=()), probes=probes) as p:

        async def loaded() -> list[str]:
            _, _, body = await ask(f"{p.proxy.url}/api/ps")
            return [each["name"] for each in json.loads(body)["models"]]

        assert await loaded() == []
        await p.generate(prompt="")
        assert await loaded() == ["llama3:latest"]
        await p.generate(prompt="", keep_alive=0)
        assert await loaded() == []
