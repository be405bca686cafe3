"""Small simulated pools in front of which a proxy is tested."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from sollol_proxy.lab.simhost import SimHost, SimModel, SimSpec
from tests.support import RunningProxy, make_config, running_proxy

FAST = 1000.0
"""Time scale at which a simulated answer takes a few milliseconds."""


def sim(host_id: str, *models: str, **fields: Any) -> SimSpec:
    """A fast host with these models in memory (`llama3` if none is named)."""
    names = models or ("llama3",)
    given: dict[str, Any] = {"time_scale": FAST, "resident": names, **fields}
    small = 10**9
    return SimSpec(
        host_id, models=tuple(SimModel(name, size_bytes=small) for name in names), **given
    )


@dataclass(frozen=True)
class Pool:
    """Hosts by id, the proxy in front of them, and a client."""

    hosts: dict[str, SimHost]
    proxy: RunningProxy
    client: aiohttp.ClientSession

    async def generate(self, **fields: Any) -> tuple[aiohttp.ClientResponse, str]:
        """A native generation through the proxy, read to its end."""
        headers = fields.pop("headers", {})
        query = fields.pop("query", "")
        body = {"model": "llama3", "prompt": "hi", "options": {"num_predict": 5}, **fields}
        url = f"{self.proxy.url}/api/generate{query}"
        async with self.client.post(url, json=body, headers=headers) as response:
            return response, await response.text()


@asynccontextmanager
async def pool(
    *specs: SimSpec, host_fields: dict[str, Any] | None = None, **sections: Any
) -> AsyncIterator[Pool]:
    """Simulated hosts and a proxy over them."""
    async with AsyncExitStack() as stack:
        hosts = {spec.id: await stack.enter_async_context(SimHost(spec)) for spec in specs}
        entries = [
            {"url": host.url, "id": host_id, **(host_fields or {})}
            for host_id, host in hosts.items()
        ]
        proxy = await stack.enter_async_context(running_proxy(make_config(*entries, **sections)))
        connector = aiohttp.TCPConnector(limit=0)
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Pool(hosts, proxy, client)
