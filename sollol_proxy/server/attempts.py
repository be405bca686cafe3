"""The attempts of a job until one answers, and the way of that answer to the client.

Until the client's head is written every failure may become another attempt or an honest status;
after it there are only two honest ends: the dialect's error record on a record boundary, or a
closed connection.
"""

from __future__ import annotations

from dataclasses import replace

from aiohttp import web

from sollol_proxy.core.types import AttemptResult, Job, JobKind, Outcome
from sollol_proxy.errors import AttemptFailed, ClientGone, UpstreamBroke
from sollol_proxy.ollama import replies
from sollol_proxy.ollama.records import BodyFormat, BodyWatch, Ending, body_format
from sollol_proxy.ollama.routes import Route
from sollol_proxy.server import headers, judge, relay
from sollol_proxy.server.answers import added_headers
from sollol_proxy.server.direct import NO_BODY, DirectResponse, Framing
from sollol_proxy.server.dispatcher import Lease
from sollol_proxy.server.exchange import Exchange
from sollol_proxy.server.services import Services
from sollol_proxy.server.upstream import Outbound, Upstream
from sollol_proxy.server.upstreams import open_attempt


async def carry_out(
    services: Services, request: web.Request, exchange: Exchange, job: Job, outbound: Outbound
) -> web.StreamResponse:
    """Attempt after attempt until one answers; each holds a lease of its own.

    Raises:
        SollolError: nothing has been sent to the client; `entrance` words the answer.
    """
    while True:
        exchange.start_waiting(services.clock())
        async with services.dispatcher.lease(job) as lease:
            exchange.stop_waiting(services.clock())
            exchange.decision, exchange.attempts = lease.decision, job.attempt
            host = services.hosts[lease.decision.host_id]
            try:
                async with open_attempt(services.upstreams, host, outbound, lease) as upstream:
                    verdict = await judge.judge(upstream, exchange.route, job)
                    again = _again(services, job, outbound, host.id, verdict)
                    if again is None:
                        return await _answer(
                            services, request, exchange, job, lease, upstream, verdict
                        )
                    lease.done(verdict.result, detail=verdict.detail)
            except AttemptFailed as failure:
                verdict = judge.of_failure(failure)
                lease.done(verdict.result, detail=failure.detail)
                again = _again(services, job, outbound, host.id, verdict)
                if again is None:
                    exchange.failures.append((host.id, verdict.detail))
                    raise
        exchange.failures.append((host.id, verdict.detail))
        job = again


def _again(
    services: Services, job: Job, outbound: Outbound, host_id: str, verdict: judge.Verdict
) -> Job | None:
    """The job for another attempt, or None when this one's result stands.

    In this order: nothing to mend; a body that has been streamed cannot be sent again; a route
    that the host's version lacks is asked of the other versions, which did nothing so far;
    attempts used up; a connection that never was can be tried anywhere, the same host after its
    restart included; what is not inference may have had effects; whatever else failed needs
    another host, but for a connection cut on the only one.
    """
    if not verdict.may_retry:
        return None
    if not (outbound.body is None or isinstance(outbound.body, bytes)):
        return None
    if verdict.result is AttemptResult.ROUTE_MISSING:
        tried = job.excluded | services.probes.same_version(host_id)
        other = replace(job, attempt=job.attempt + 1, excluded=tried)
        return other if services.dispatcher.has_alternative(other, host_id) else None
    if job.attempt >= services.config.retries.attempts:
        return None
    if verdict.result is AttemptResult.UNREACHABLE:
        return replace(job, attempt=job.attempt + 1)
    if job.kind is JobKind.PASS:
        return None
    if services.dispatcher.has_alternative(job, host_id):
        return replace(job, attempt=job.attempt + 1, excluded=job.excluded | {host_id})
    return replace(job, attempt=job.attempt + 1) if verdict.was_cut else None


async def _answer(
    services: Services,
    request: web.Request,
    exchange: Exchange,
    job: Job,
    lease: Lease,
    upstream: Upstream,
    verdict: judge.Verdict,
) -> web.StreamResponse:
    """Pass the host's answer on, whatever its status."""
    exchange.answered_by_host = True
    exchange.status = upstream.status
    started_s = services.clock()
    exchange.first_byte_s = started_s - exchange.arrived_s
    if verdict.result is AttemptResult.COMPLETED:
        lease.first_byte()
    fmt = body_format(upstream.content_type)
    watch = BodyWatch(exchange.route, exchange.facts.kind, fmt)
    if exchange.facts.stream and verdict.result is AttemptResult.COMPLETED:
        lease.streams(lambda: watch.records_seen)
    response = _head(request, exchange, upstream)
    try:
        if response.framing is not Framing.NONE:
            await relay.copy(upstream, response, watch)
        exchange.bytes_out = watch.bytes_seen
        _conclude(exchange, lease, watch, verdict, services.clock() - started_s)
        # The host is done: the next job need not wait until this client has read everything.
        lease.release()
        await response.write_eof()
    except UpstreamBroke as error:
        lease.done(AttemptResult.BROKE, detail=error.detail)
        exchange.outcome, exchange.detail = Outcome.UPSTREAM_BROKE, str(error)
        await _end_honestly(request, response, exchange.route, watch, fmt, str(error))
        return response
    except ConnectionResetError as error:
        raise ClientGone from error
    finally:
        exchange.bytes_out = watch.bytes_seen
    if job.kind is JobKind.PASS and request.method not in ("GET", "HEAD"):
        # It may have been a pull or a delete: the lists should know at once.
        services.probes.ask_now(lease.decision.host_id, with_tags=True)
    return response


def _head(request: web.Request, exchange: Exchange, upstream: Upstream) -> DirectResponse:
    routing, added = exchange.routing_headers(), added_headers(request)
    fields = upstream.fields
    if upstream.status in NO_BODY:  # RFC 9110, 8.6
        fields = tuple(field for field in fields if field[0].lower() != b"content-length")
    ours = (*routing.items(), *added) if added else routing.items()
    block, has_date = headers.client_block(fields, ours)
    return DirectResponse(
        request,
        upstream.status,
        upstream.reason,
        block,
        length=upstream.length,
        has_date=has_date,
    )


def _conclude(
    exchange: Exchange,
    lease: Lease,
    watch: BodyWatch,
    verdict: judge.Verdict,
    body_s: float,
) -> None:
    """The body has ended as HTTP ends: say what it was worth."""
    if verdict.result is not AttemptResult.COMPLETED:
        failed = verdict.result is AttemptResult.FAILED
        exchange.outcome = Outcome.UPSTREAM_FAILED if failed else Outcome.UPSTREAM_REFUSED
        exchange.detail = verdict.detail
        lease.done(verdict.result, detail=verdict.detail)
        return
    ending = watch.ending()
    if ending is Ending.COMPLETE:
        first_byte_s = exchange.first_byte_s or 0.0
        in_host_s = max(first_byte_s - exchange.queue_s, 0.0)
        exchange.observation = watch.observation(
            first_byte_s=in_host_s,
            total_s=in_host_s + body_s,
            body_s=body_s if exchange.facts.stream else None,
        )
        exchange.outcome = Outcome.COMPLETED
        lease.done(AttemptResult.COMPLETED, exchange.observation)
        return
    exchange.outcome = Outcome.UPSTREAM_BROKE
    exchange.detail = (
        "the host reported an error within its answer"
        if ending is Ending.ERROR_RECORD
        else "the answer ended without its last record"
    )
    # A pull that fails says so in its answer: no fault of the host.
    blamed = AttemptResult.BROKE if exchange.facts.kind.needs_model else AttemptResult.REFUSED
    lease.done(blamed, detail=exchange.detail)


async def _end_honestly(
    request: web.Request,
    response: DirectResponse,
    route: Route,
    watch: BodyWatch,
    fmt: BodyFormat,
    message: str,
) -> None:
    """End a stream whose host broke off so that no client takes it for complete."""
    record = replies.error_record(fmt, route.dialect, message)
    try:
        if record is not None and response.can_append and watch.at_record_boundary:
            await response.write(record)
            await response.write_eof()
            return
    except ConnectionResetError as error:
        raise ClientGone from error
    if request.transport is not None:
        request.transport.abort()
