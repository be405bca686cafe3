"""A pool of several Ollama versions: every route is answered by a host whose version has it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.server.pool import Pool, pool, sim
from tests.support import RunningProxy, make_config, running_proxy
from tests.wire.owed import RECORDED, TAGS, assert_equal
from tests.wire.recordings import Exchange
from tests.wire.replay import RawAnswer, ReplayHost, raw_request

CHAT = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Asked:
    """A request that some versions do not know."""

    method: str
    path: str
    body: Any = None


RESPONSES = Asked("POST", "/v1/responses", {"model": "llama3", "input": "hi"})
MESSAGES = Asked("POST", "/v1/messages", {"model": "llama3", "max_tokens": 5, "messages": CHAT})
STATUS = Asked("GET", "/api/status")
SEARCH = Asked("POST", "/api/experimental/web_search", {"query": "x"})
FETCH = Asked("POST", "/api/experimental/web_fetch", {"url": "http://x"})
RECOMMENDED = Asked("GET", "/api/experimental/model-recommendations")

LACKS: dict[str, Sequence[Asked]] = {
    "0.12.6": (RESPONSES, MESSAGES, STATUS, SEARCH, FETCH, RECOMMENDED),
    "0.20.0": (RECOMMENDED,),
    "0.33.0": (),
}


@asynccontextmanager
async def mixed_pool(versions: Sequence[str], **sections: Any) -> AsyncIterator[Pool]:
    """A host of each version, in this order, all with one model and an account."""
    specs = [
        sim(
            f"v{version}",
            version=version,
            lacks=tuple(asked.path for asked in LACKS[version]),
            account="somebody",
        )
        for version in versions
    ]
    async with pool(*specs, **sections) as running:
        yield running


async def status_of(running: Pool, asked: Asked) -> tuple[int, str]:
    url = f"{running.proxy.url}{asked.path}"
    async with running.client.request(asked.method, url, json=asked.body) as response:
        return response.status, await response.text()


def times_asked(running: Pool, asked: Asked) -> dict[str, int]:
    """How often each version was asked for the route."""
    return {
        host.spec.version: host.stats.requests.get(asked.path, 0) for host in running.hosts.values()
    }


@pytest.mark.parametrize("order", list(itertools.permutations(LACKS)), ids="-".join)
@pytest.mark.parametrize("asked", LACKS["0.12.6"], ids=lambda asked: asked.path)
async def test_route_is_answered_by_a_version_that_has_it(
    asked: Asked, order: tuple[str, ...]
) -> None:
    lacking = {version for version, routes in LACKS.items() if asked in routes}
    async with mixed_pool(order) as running:
        status, text = await status_of(running, asked)
        assert status == 200, text
        first = times_asked(running, asked)
        assert sum(first[version] for version in set(LACKS) - lacking) == 1
        assert all(first[version] <= 1 for version in lacking)
        for _ in range(4):
            status, text = await status_of(running, asked)
            assert status == 200, text
        again = times_asked(running, asked)
        # Nobody is asked twice for what its version does not have.
        assert all(again[version] <= 1 for version in lacking)
        assert sum(again[version] for version in set(LACKS) - lacking) == 5


@pytest.mark.parametrize("asked", LACKS["0.12.6"], ids=lambda asked: asked.path)
async def test_routes_own_404_comes_through_when_every_version_lacks_it(asked: Asked) -> None:
    specs = [sim(id_, version="0.12.6", lacks=(asked.path,)) for id_ in "abc"]
    async with pool(*specs) as running:
        for _ in range(2):
            assert await status_of(running, asked) == (404, "404 page not found")
        counts = [host.stats.requests.get(asked.path, 0) for host in running.hosts.values()]
        assert sum(counts) == 2


async def test_old_host_serves_the_routes_it_has() -> None:
    async with mixed_pool(list(LACKS), policy="round_robin") as running:
        for asked in (MESSAGES, RESPONSES):
            assert (await status_of(running, asked))[0] == 200
        used = set()
        for _ in LACKS:
            response, _ = await running.generate()
            assert response.status == 200
            used.add(response.headers["X-SOLLOL-Host"])
        assert used == set(running.hosts)


async def test_lowest_version_is_what_clients_hear() -> None:
    async with mixed_pool(["0.33.0", "0.12.6", "0.20.0"]) as running:
        url = f"{running.proxy.url}/api/version"
        async with running.client.get(url) as response:
            assert await response.json() == {"version": "0.12.6"}


# Paths that are in nobody's table


@asynccontextmanager
async def hosts_of(
    versions: Sequence[str], knows: Exchange, knowing: int | None
) -> AsyncIterator[tuple[list[ReplayHost], RunningProxy]]:
    """A host of each version; one of them knows a path, to the others every path is unknown."""
    unknown = replace(RECORDED["unknown-api-route"], body=None)
    junk = replace(RECORDED["unknown-route"], body=None)
    async with AsyncExitStack() as stack:
        hosts = []
        for number, version in enumerate(versions):
            own = (
                knows
                if number == knowing
                else replace(unknown, method=knows.method, path=knows.path)
            )
            host = await stack.enter_async_context(ReplayHost([own, junk]))
            host.version, host.tags = version, TAGS
            hosts.append(host)
        config = make_config(*(host.url for host in hosts))
        yield hosts, await stack.enter_async_context(running_proxy(config))


IMAGES = replace(
    RECORDED["v1-chat-nostream"],
    path="/v1/images/generations",
    body=None,
)
"""A route that versions 0.14.3 to 0.32.5 had, in a form that is enough here."""

WITH_BODY = RECORDED["v1-chat-nostream"].body

VERSIONS = ["0.12.6", "0.20.0", "0.33.0"]


async def ask(proxy: RunningProxy, exchange: Exchange) -> RawAnswer:
    return await raw_request("127.0.0.1", proxy.port, exchange)


def counts(hosts: Sequence[ReplayHost], path: str) -> list[int]:
    return [len(host.seen_at(path)) for host in hosts]


@pytest.mark.parametrize("knowing", range(3))
async def test_unknown_route_is_found_where_only_one_host_has_it(knowing: int) -> None:
    async with hosts_of(VERSIONS, IMAGES, knowing) as (hosts, proxy):
        for _ in range(3):
            assert_equal(await ask(proxy, replace(IMAGES, body=WITH_BODY)), IMAGES)
        asked = counts(hosts, IMAGES.path)
        assert asked[knowing] == 3
        assert all(count <= 3 for count in asked)


@pytest.mark.parametrize("knowing", range(3))
async def test_unknown_route_is_found_after_junk_was_asked_for(knowing: int) -> None:
    """One unknown path says nothing about another."""
    junk = RECORDED["unknown-route"]
    async with hosts_of(VERSIONS, IMAGES, knowing) as (_, proxy):
        assert_equal(await ask(proxy, junk), junk)
        assert_equal(await ask(proxy, replace(IMAGES, body=WITH_BODY)), IMAGES)
        assert_equal(await ask(proxy, junk), junk)


@pytest.mark.parametrize(
    ("versions", "asked"),
    [
        (["0.33.0"] * 3, 1),
        (["0.33.0", "0.33.0", "0.20.0"], 2),
        (["0.20.0", "0.33.0", "0.20.0"], 2),
        (VERSIONS, 3),
        (["0.0.0"] * 3, 3),
    ],
)
async def test_junk_is_asked_of_one_host_of_each_version(versions: list[str], asked: int) -> None:
    junk = RECORDED["unknown-route"]
    async with hosts_of(versions, IMAGES, None) as (hosts, proxy):
        assert_equal(await ask(proxy, junk), junk)
        assert sum(counts(hosts, junk.path)) == asked
        assert max(counts(hosts, junk.path)) == 1
        [record] = proxy.services.journal.latest(1)
        assert (record.status, record.route) == (404, "other")
        for host in proxy.snapshot().hosts:
            assert host.state.is_routable


async def test_405_is_not_asked_of_another_version() -> None:
    wrong = RECORDED["method-405-get-generate"]
    async with hosts_of(VERSIONS, wrong, 0) as (hosts, proxy):
        assert_equal(await ask(proxy, wrong), wrong)
        assert counts(hosts, wrong.path) == [1, 0, 0]


@pytest.mark.parametrize("asked", [SEARCH, STATUS, RECOMMENDED], ids=lambda asked: asked.path)
async def test_configured_identity_is_the_only_one_asked(asked: Asked) -> None:
    """Another host's account would be somebody else's."""
    async with mixed_pool(list(LACKS), identity="v0.12.6") as running:
        assert await status_of(running, asked) == (404, "404 page not found")
        assert times_asked(running, asked) == {"0.12.6": 1, "0.20.0": 0, "0.33.0": 0}
