"""One request at several hosts: a part each, with a lease of its own, and one answer.

A part that fails takes nothing from the others. What the hosts said becomes one answer by rules
that suit operations such as copy and delete: a host that never had the model is no failure as
long as another one had it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from sollol_proxy.core.types import AttemptResult, Job, JobKind, Outcome
from sollol_proxy.errors import AttemptFailed, Phase, Refused, UpstreamBroke
from sollol_proxy.server import headers
from sollol_proxy.server.answers import mark_without_type
from sollol_proxy.server.dispatcher import Lease
from sollol_proxy.server.exchange import Exchange
from sollol_proxy.server.replies import NOT_FOUND, PartReply
from sollol_proxy.server.services import Services
from sollol_proxy.server.upstream import Outbound, Upstream
from sollol_proxy.server.upstreams import open_attempt

REPLY_BYTES = 2**20
"""Read of a host's whole reply; the longest that is known is a few hundred bytes."""


def part_job(exchange: Exchange, host_id: str, kind: JobKind = JobKind.MANAGE) -> Job:
    """The job of one host's part. It takes no slot and no other host may have it."""
    return Job(
        id=f"{exchange.id}@{host_id}",
        kind=kind,
        model=exchange.facts.model if kind is JobKind.UNLOAD else "",
        priority=exchange.priority or 1,
        arrived_s=exchange.arrived_s,
        only=host_id,
    )


@asynccontextmanager
async def open_part(
    services: Services, job: Job, outbound: Outbound
) -> AsyncIterator[tuple[Lease, Upstream]]:
    """Hold a lease on the job's one host and an attempt there.

    Raises:
        Refused: the host is not up.
        AttemptFailed: it gave no answer.
    """
    async with services.dispatcher.lease(job) as lease:
        host = services.hosts[lease.decision.host_id]
        try:
            async with open_attempt(services.upstreams, host, outbound, lease) as upstream:
                yield lease, upstream
        except AttemptFailed as failure:
            unreachable = failure.phase is Phase.CONNECT
            result = AttemptResult.UNREACHABLE if unreachable else AttemptResult.FAILED
            lease.done(result, detail=failure.detail)
            raise
        except UpstreamBroke as broken:
            lease.done(AttemptResult.BROKE, detail=broken.detail)
            raise


@asynccontextmanager
async def unless_silent(
    services: Services, host_id: str, bytes_moved: Callable[[], int]
) -> AsyncIterator[None]:
    """A block that ends when the probes have ejected the host and nothing moves any more.

    A host that hangs keeps its connection open for ever; others must not wait for it. Silence
    alone says nothing: checking a large model's digest takes minutes.

    Raises:
        UpstreamBroke: that happened.
    """
    loop = asyncio.get_running_loop()
    interval_s = services.config.probes.interval
    seen = bytes_moved()
    timer: asyncio.TimerHandle | None = None

    def look() -> None:
        nonlocal seen, timer
        moved = bytes_moved()
        if timer is not None and moved == seen and services.dispatcher.is_ejected(host_id):
            scope.reschedule(loop.time())
            return
        seen = moved
        timer = loop.call_later(interval_s, look)

    try:
        async with asyncio.timeout(None) as scope:
            look()
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise UpstreamBroke(host_id, "it fell silent") from error
    finally:
        if timer is not None:
            timer.cancel()


async def ask_each(
    services: Services,
    exchange: Exchange,
    hosts: Iterable[str],
    outbound: Outbound,
    kind: JobKind = JobKind.MANAGE,
) -> list[PartReply]:
    """The same request to each host at once, and every host's whole reply, in their order."""
    return await asyncio.gather(
        *(_ask(services, part_job(exchange, host_id, kind), outbound) for host_id in hosts)
    )


async def _ask(services: Services, job: Job, outbound: Outbound) -> PartReply:
    try:
        async with (
            unless_silent(services, job.only, lambda: 0),
            open_part(services, job, outbound) as (lease, upstream),
        ):
            body = b"" if outbound.method == "HEAD" else await upstream.read_small(REPLY_BYTES)
            reply = PartReply(job.only, upstream.status, tuple(upstream.headers), body)
            good = AttemptResult.COMPLETED if reply.is_good else AttemptResult.REFUSED
            lease.done(good, detail=reply.reason)
            return reply
    except (Refused, AttemptFailed, UpstreamBroke) as error:
        return PartReply(job.only, failure=why(error))


def why(error: Refused | AttemptFailed | UpstreamBroke) -> str:
    """What kept a host from its part, without its name."""
    return str(error) if isinstance(error, Refused) else error.detail


def conclude(
    exchange: Exchange, replies: Sequence[PartReply], *, may_be_partial: bool
) -> PartReply:
    """The reply that stands for all, and what became of the request.

    may_be_partial: whether one host's success is the request's, whatever the others did. Where it
    is not, a host that failed is what the client has to hear of; a 404 beside a success is none.

    Raises:
        AttemptFailed: no host gave an answer.
    """
    good = [reply for reply in replies if reply.is_good]
    ignored = NOT_FOUND if good and not may_be_partial else None
    bad = [reply for reply in replies if not reply.is_good and reply.status != ignored]
    exchange.hosts += [reply.host_id for reply in good]
    exchange.failures += [(reply.host_id, reply.reason) for reply in bad]
    exchange.attempts = len(replies)
    if good and (may_be_partial or not bad):
        exchange.outcome = Outcome.PARTIAL if bad else Outcome.COMPLETED
        return good[0]
    answered = [reply for reply in bad if reply.status]
    # A plain 404 says least: "not there" is no reason while another host gives one.
    answered.sort(key=lambda reply: reply.status == NOT_FOUND)
    done = f"done on {', '.join(reply.host_id for reply in good)} only" if good else ""
    if not answered:
        first = bad[0]
        detail = f"{first.failure}; {done}" if done else first.failure
        raise AttemptFailed(first.host_id, Phase.HEAD, detail)
    exchange.outcome = Outcome.PARTIAL if good else Outcome.UPSTREAM_REFUSED
    exchange.detail = done or answered[0].reason
    return answered[0]


def respond(exchange: Exchange, reply: PartReply) -> web.StreamResponse:
    """A host's whole reply as the answer to the client."""
    exchange.answered_by_host = True
    exchange.status = reply.status
    exchange.bytes_out = len(reply.body)
    kept = headers.for_client(reply.headers)
    response: web.StreamResponse
    if exchange.method == "HEAD":
        response = web.StreamResponse(status=reply.status, headers=kept)
    else:
        kept.popall("Content-Length", None)
        response = web.Response(status=reply.status, headers=kept, body=reply.body)
    if "Content-Type" not in kept:
        mark_without_type(response)
    response.headers.update(exchange.routing_headers())
    return response
