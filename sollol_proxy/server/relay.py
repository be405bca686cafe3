"""HOT PATH: bytes from a host to its client as they come.

No JSON, no logging, no task or timer for a chunk, no call into the scheduler. Backpressure works
both ways: `write` waits while the client's buffer is full, and while it waits nothing is read, so
the host's connection fills up and a stream's memory stays bounded by the two buffers.
"""

from __future__ import annotations

from aiohttp import web

from sollol_proxy.errors import ClientGone
from sollol_proxy.ollama.records import BodyWatch
from sollol_proxy.server.upstream import Upstream


async def copy(upstream: Upstream, response: web.StreamResponse, watch: BodyWatch) -> None:
    """Pass the body on until its proper end; the client's end is not written.

    Raises:
        UpstreamBroke: the host's connection ended early.
        ClientGone: the client's connection is closed.
    """
    chunk = upstream.first
    try:
        while chunk:
            watch.feed(chunk)
            await response.write(chunk)
            chunk = await upstream.next_chunk()
    except ConnectionResetError as error:
        raise ClientGone from error
