"""Model files on their way in: spread to every host while they arrive.

Nothing is kept: a piece is read from the client once every host has room for it, so the slowest
host sets the pace and an upload of any size costs a few hundred kilobytes. A host that fails or
falls silent is left behind and named; the others go on. Hosts that have the blob already are not
sent it again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

from aiohttp import web

from sollol_proxy.core.types import AttemptResult, Facts, JobKind, Outcome
from sollol_proxy.errors import AttemptFailed, Phase, Refused, UpstreamBroke
from sollol_proxy.ollama.replies import Reply
from sollol_proxy.ollama.routes import Route
from sollol_proxy.server import bodies, fanout, forward, placement
from sollol_proxy.server.answers import to_response
from sollol_proxy.server.exchange import Exchange
from sollol_proxy.server.fanout import REPLY_BYTES
from sollol_proxy.server.placement import Targets
from sollol_proxy.server.replies import NOT_FOUND, PartReply
from sollol_proxy.server.services import SERVICES, Services
from sollol_proxy.server.tasks import TaskSet
from sollol_proxy.server.upstream import Outbound

PATH = "/api/blobs/:digest"

PIECES_AHEAD = 4
"""Pieces (64 to 128 KiB each) that a host may be behind the client."""

UNREAD_BYTES = 2**18
"""Go's server reads up to so much of an unwanted body to keep the connection, else closes it."""

FOUND = 200


class Pipe:
    """One host's share of a body: a short queue with an end, or an early end by the taker."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._has_ended = False
        self.is_closed = False
        self.moved = 0

    async def put(self, piece: bytes) -> None:
        """Wait for room and add a piece; nothing happens once nobody takes any more."""
        while len(self._pieces) >= PIECES_AHEAD and not self.is_closed:
            self._changed.clear()
            await self._changed.wait()
        if not self.is_closed:
            self._pieces.append(piece)
            self._changed.set()

    def end(self) -> None:
        """No more pieces will come."""
        self._has_ended = True
        self._changed.set()

    def close(self) -> None:
        """Nobody takes any more."""
        self.is_closed = True
        self._pieces.clear()
        self._changed.set()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The pieces as they come, until the end."""
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self.moved += len(piece)
                self._changed.set()
                yield piece
            if self._has_ended or self.is_closed:
                return
            self._changed.clear()
            await self._changed.wait()


async def handle(request: web.Request, route: Route) -> web.StreamResponse:
    """HEAD: does every host have the blob. POST: give it to those that do not.

    Raises:
        SollolError: nothing has been sent to the client; `entrance` words the answer.
    """
    services = request.app[SERVICES]
    exchange = forward.begin(services, request, route)
    exchange.facts = Facts(kind=JobKind.MANAGE)
    hosts = await placement.routable(services)
    exchange.targets = len(hosts)
    outbound = forward.outbound(request, None)
    said = await fanout.ask_each(services, exchange, hosts, outbound._replace(method="HEAD"))
    if request.method == "HEAD":
        return _head(exchange, said)
    lacking = [reply for reply in said if reply.status != FOUND]
    if not lacking:
        exchange.hosts = list(hosts)
        return await _unwanted(request, exchange)
    return await _spread(request, exchange, services, said, outbound)


async def narrowed(
    services: Services,
    exchange: Exchange,
    targets: Targets,
    digests: Iterable[str],
    outbound: Outbound,
) -> Targets:
    """The targets that have every blob; where none has, the first one, for its own words."""
    lacks: dict[str, str] = {}
    for digest in dict.fromkeys(digests):
        head = outbound._replace(method="HEAD", target=f"/api/blobs/{digest}", body=None)
        for reply in await fanout.ask_each(services, exchange, targets.hosts, head):
            if reply.status != FOUND:
                lacks.setdefault(reply.host_id, reply.failure or f"lacks the blob {digest[:19]}")
    hosts = tuple(host_id for host_id in targets.hosts if host_id not in lacks)
    if not hosts:
        return Targets(targets.hosts[:1], targets.skipped)
    return Targets(hosts, targets.skipped + tuple(lacks.items()))


def _head(exchange: Exchange, said: list[PartReply]) -> web.StreamResponse:
    """200 when all that answer have it: whoever creates from it will be all of them."""
    exchange.attempts = len(said)
    exchange.hosts = [reply.host_id for reply in said if reply.status == FOUND]
    exchange.failures = [(r.host_id, r.failure) for r in said if r.failure]
    answered = [reply for reply in said if reply.status]
    if not answered:
        raise AttemptFailed(said[0].host_id, Phase.HEAD, said[0].failure)
    worst = max(answered, key=lambda reply: reply.status)
    exchange.outcome = Outcome.COMPLETED
    return fanout.respond(exchange, worst)


async def _unwanted(request: web.Request, exchange: Exchange) -> web.Response:
    """Every host has it: 200 at once, and the body stays where it is."""
    exchange.outcome, exchange.status = Outcome.COMPLETED, FOUND
    response = to_response(Reply(FOUND), exchange.routing_headers())
    if request.body_exists and not await _has_swallowed(request):
        response.force_close()
    return response


async def _has_swallowed(request: web.Request) -> bool:
    """Read an unwanted body for the sake of the connection; False for one that is not worth it."""
    if bodies.expects_continue(request) or (request.content_length or 0) > UNREAD_BYTES:
        return False
    received = 0
    async for piece in bodies.pieces(request):
        received += len(piece)
        if received > UNREAD_BYTES:
            return False
    return True


async def _spread(
    request: web.Request,
    exchange: Exchange,
    services: Services,
    said: list[PartReply],
    outbound: Outbound,
) -> web.StreamResponse:
    """Send the body to every host that lacks it, at the pace of the slowest."""
    have = [reply for reply in said if reply.status == FOUND]
    lacking = [reply.host_id for reply in said if reply.status == NOT_FOUND]
    if not lacking:
        # Nobody knows such a digest: one host says so in its own words.
        lacking = [next(reply.host_id for reply in said if reply.status != FOUND)]
    await bodies.go_on(request)
    if request.content_length is not None:
        length = ("Content-Length", str(request.content_length))
        outbound = outbound._replace(headers=[*outbound.headers, length])
    pipes = {host_id: Pipe() for host_id in lacking}
    sent: list[PartReply] = []
    parts = TaskSet()
    tasks = [
        parts.spawn(_send(services, exchange, host_id, pipe, outbound, sent), name="blob part")
        for host_id, pipe in pipes.items()
    ]
    received = 0
    try:
        async for piece in bodies.pieces(request):
            received += len(piece)
            for pipe in pipes.values():
                await pipe.put(piece)
            if all(pipe.is_closed for pipe in pipes.values()):
                break
        for pipe in pipes.values():
            pipe.end()
        await asyncio.gather(*tasks)
    finally:
        exchange.facts = replace(exchange.facts, body_bytes=received)
        # A client that leaves in the middle must not leave half a blob that looks whole.
        await parts.cancel()
    failed = [reply for reply in said if reply.failure and reply.host_id not in lacking]
    sent.sort(key=lambda reply: lacking.index(reply.host_id))
    reply = fanout.conclude(exchange, [*sent, *have, *failed], may_be_partial=True)
    response = fanout.respond(exchange, reply)
    if not request.content.at_eof():
        response.force_close()
    return response


async def _send(
    services: Services,
    exchange: Exchange,
    host_id: str,
    pipe: Pipe,
    outbound: Outbound,
    sent: list[PartReply],
) -> None:
    """One host's part: its share of the body, and what it says to it, into `sent`."""
    streamed = outbound._replace(body=pipe.pieces())
    try:
        async with (
            fanout.unless_silent(services, host_id, lambda: pipe.moved),
            fanout.open_part(services, fanout.part_job(exchange, host_id), streamed) as opened,
        ):
            lease, upstream = opened
            body = await upstream.read_small(REPLY_BYTES)
            reply = PartReply(host_id, upstream.status, tuple(upstream.headers), body)
            good = AttemptResult.COMPLETED if reply.is_good else AttemptResult.REFUSED
            lease.done(good, detail=reply.reason)
            sent.append(reply)
    except (Refused, AttemptFailed, UpstreamBroke) as error:
        sent.append(PartReply(host_id, failure=fanout.why(error)))
    finally:
        pipe.close()
