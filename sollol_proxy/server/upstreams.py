"""The ways to the hosts, and attempts at them. What goes wrong there becomes an error of ours.

Hosts with `http` addresses are spoken to over connections of our own, which a body can flow from
without a task switch; those with `https` over aiohttp's client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager

import aiohttp

from sollol_proxy.core.types import HostSpec
from sollol_proxy.server.connections import HostConnections
from sollol_proxy.server.direct_attempt import DirectAttempt
from sollol_proxy.server.dispatcher import Lease
from sollol_proxy.server.session_attempt import session_attempt
from sollol_proxy.server.upstream import Outbound, Upstream


class Upstreams:
    """The ways to the hosts of a pool. clock: monotonic seconds."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        hosts: Iterable[HostSpec],
        connect_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.session = session
        self._direct = {
            host.id: HostConnections(host.url, connect_timeout_s, clock)
            for host in hosts
            if host.url.startswith("http:")
        }

    def direct(self, host_id: str) -> HostConnections | None:
        """The connections to a host; None = by way of the session."""
        return self._direct.get(host_id)

    async def close(self) -> None:
        """Close the connections that nobody uses, and the session."""
        for connections in self._direct.values():
            connections.close()
        await self.session.close()


def open_attempt(
    upstreams: Upstreams, host: HostSpec, outbound: Outbound, lease: Lease
) -> AbstractAsyncContextManager[Upstream]:
    """Send the request to a host and wait for its head and first byte.

    Leaving the block before the body has ended closes the connection, which is how Ollama learns
    that nobody listens any more.

    Args:
        upstreams: of the pool.
        host: that is asked.
        outbound: what it is asked.
        lease: on it; the scheduler may take the attempt back until the first byte has come.

    Entering raises:
        AttemptFailed: the connection failed, ended before the first body byte, or was recalled.
        SollolError: what the iterator of the request's body raised.
    """
    connections = upstreams.direct(host.id)
    if connections is None:
        return session_attempt(upstreams.session, host, outbound, lease)
    return DirectAttempt(connections, host.id, outbound, lease)
