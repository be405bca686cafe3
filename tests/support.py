"""A proxy under test: the production runner on a free loopback port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from aiohttp import web

from sollol_proxy.config.schema import Config
from sollol_proxy.core.snapshots import Snapshot
from sollol_proxy.core.types import HostState
from sollol_proxy.server.app import build_app
from sollol_proxy.server.lifecycle import make_runner
from sollol_proxy.server.services import SERVICES, Services

PATIENCE_S = 60.0
"""How long a condition may take to come true before a test gives up; not a measure of speed."""

QUICK_PROBES = {"interval": 0.05, "tags_interval": 0.05, "timeout": 2.0}


@dataclass(frozen=True)
class RunningProxy:
    """A listening proxy."""

    url: str
    port: int
    services: Services

    def snapshot(self) -> Snapshot:
        """The scheduler's state now."""
        return self.services.dispatcher.snapshot()

    async def until(self, holds: Callable[[Snapshot], bool]) -> Snapshot:
        """Wait until the scheduler's state satisfies a condition."""
        async with asyncio.timeout(PATIENCE_S):
            # The scheduler is plain calls without events to wait on, and stays so.
            while not holds(snapshot := self.snapshot()):  # noqa: ASYNC110
                await asyncio.sleep(0)
        return snapshot

    async def until_up(self, count: int | None = None) -> None:
        """Wait until that many hosts (all, if not said) are healthy."""
        wanted = len(self.services.hosts) if count is None else count

        def are_up(snapshot: Snapshot) -> bool:
            healthy = [host for host in snapshot.hosts if host.state is HostState.HEALTHY]
            return len(healthy) >= wanted

        await self.until(are_up)

    async def until_idle(self) -> Snapshot:
        """Wait until nothing waits and nothing is in flight."""
        return await self.until(
            lambda s: s.waiting_total == 0 and not any(host.in_flight for host in s.hosts)
        )


def make_config(*hosts: str | dict[str, Any], **sections: Any) -> Config:
    """A configuration for tests: probes that follow quickly, any Host header accepted."""
    document: dict[str, Any] = {"listen": "127.0.0.1:0", "hosts": list(hosts), **sections}
    document["probes"] = {**QUICK_PROBES, **sections.get("probes", {})}
    return Config.model_validate(document)


@asynccontextmanager
async def running_proxy(
    config: Config, *, seed: int = 0, wait: bool = True
) -> AsyncIterator[RunningProxy]:
    """A proxy for the block; `wait` for all its hosts to be healthy first."""
    app = build_app(config, rng=Random(seed))
    runner = make_runner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    proxy = RunningProxy(f"http://127.0.0.1:{port}", port, app[SERVICES])
    try:
        if wait:
            await proxy.until_up()
        yield proxy
    finally:
        await runner.cleanup()
