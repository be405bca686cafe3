"""Clients that leave: the host learns of it at once, and the place is free again.

How long that took is logged, and no test depends on it; to see it: pytest --log-cli-level=info.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiohttp import ClientSession

from sollol_proxy.lab.simhost import SimHost
from tests.chaos.asking import Answer, ask, generate
from tests.chaos.pools import host_spec
from tests.support import PATIENCE_S, RunningProxy, make_config, running_proxy

_log = logging.getLogger(__name__)

ENDLESS = 10_000_000


@asynccontextmanager
async def pool_of_one(**changes: Any) -> AsyncIterator[tuple[SimHost, RunningProxy]]:
    async with (
        SimHost(host_spec("only", **changes)) as host,
        running_proxy(make_config({"url": host.url, "id": "only"})) as proxy,
    ):
        yield host, proxy


async def leave(client: asyncio.Task[Answer]) -> None:
    """The client closes its connection."""
    client.cancel()
    with suppress(asyncio.CancelledError):
        await client


async def leave_and_see(client: asyncio.Task[Answer], host: SimHost) -> None:
    """The client closes its connection; wait until its host has noticed."""
    left_s = time.monotonic()
    await leave(client)
    async with asyncio.timeout(PATIENCE_S):
        await host.until(lambda stats: stats.cancelled == 1 and stats.total_in_flight == 0)
    _log.info("the host was free %.3f s after its client left", time.monotonic() - left_s)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/generate", {}),
        ("/api/generate", {"stream": False}),
        ("/v1/completions", {"stream": True, "max_tokens": ENDLESS}),
    ],
)
async def test_host_stops_when_its_client_leaves_before_the_first_byte(
    path: str, fields: dict[str, Any], session: ClientSession
) -> None:
    async with pool_of_one(prefill_tps=1e-3) as (host, proxy):
        body = generate(ENDLESS, "long to read", **fields)
        client = asyncio.create_task(ask(session, proxy.url, body, path=path))
        await host.until(lambda stats: stats.total_in_flight == 1)
        await leave_and_see(client, host)
        await proxy.until_idle()
        assert host.stats.records_sent == 0


async def test_host_stops_when_its_client_leaves_while_it_streams(session: ClientSession) -> None:
    async with pool_of_one() as (host, proxy):
        client = asyncio.create_task(ask(session, proxy.url, generate(ENDLESS)))
        await host.until(lambda stats: stats.records_sent >= 10)
        await leave_and_see(client, host)
        snapshot = await proxy.until_idle()
        # Leaving is nobody's fault.
        assert [host.failures for host in snapshot.hosts] == [0]


async def test_place_in_the_queue_is_free_when_its_client_leaves(
    session: ClientSession,
) -> None:
    async with SimHost(host_spec("only")) as host:
        config = make_config({"url": host.url, "id": "only"}, queue={"max_waiting": 1})
        async with running_proxy(config) as proxy:
            running = asyncio.create_task(ask(session, proxy.url, generate(ENDLESS)))
            await host.until(lambda stats: stats.total_in_flight == 1)
            waits = asyncio.create_task(ask(session, proxy.url, generate(3, "first in the queue")))
            await proxy.until(lambda snapshot: snapshot.waiting_total == 1)
            assert (await ask(session, proxy.url, generate(3, "one too many"))).status == 503
            await leave(waits)
            await proxy.until(lambda snapshot: snapshot.waiting_total == 0)
            takes_it = asyncio.create_task(ask(session, proxy.url, generate(3, "takes the place")))
            await proxy.until(lambda snapshot: snapshot.waiting_total == 1)
            await leave(running)
            assert (await takes_it).is_whole
            # The one that left the queue never reached the host.
            assert host.stats.requests["/api/generate"] == 2
