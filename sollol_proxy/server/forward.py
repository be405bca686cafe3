"""The path of a request that goes to a host: read, describe, queue, attempt, relay.

The order of the calls is the contract. Until the client's head is written every failure may
become another attempt or an honest status; after it there are only two honest ends: the dialect's
error record on a record boundary, or a closed connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from aiohttp import web

from sollol_proxy.core.types import AttemptResult, Facts, Job, JobKind, Outcome
from sollol_proxy.errors import (
    AttemptFailed,
    BadRequest,
    BodyTooLarge,
    ClientGone,
    UpstreamBroke,
)
from sollol_proxy.ollama import replies
from sollol_proxy.ollama.describe import complexity, describe, requires_gpu
from sollol_proxy.ollama.records import BodyFormat, BodyWatch, Ending, body_format
from sollol_proxy.ollama.routes import Plan, Route
from sollol_proxy.server import headers, judge, relay
from sollol_proxy.server.answers import mark_without_type
from sollol_proxy.server.dispatcher import Lease
from sollol_proxy.server.exchange import EXCHANGE, Exchange
from sollol_proxy.server.passing import BODY_KEPT_BYTES, pass_facts
from sollol_proxy.server.services import SERVICES, Services
from sollol_proxy.server.upstream import Outbound, Upstream, open_attempt

NO_BODY = frozenset({204, 304})


async def handle(request: web.Request, route: Route) -> web.StreamResponse:
    """Answer a request that some host has to answer.

    Raises:
        SollolError: nothing has been sent to the client; `rescue` words the answer.
    """
    services = request.app[SERVICES]
    exchange = Exchange.begin(request, route, services.clock())
    request[EXCHANGE] = exchange
    services.journal.begin(exchange)
    balanced = route.plan is Plan.BALANCE
    query = request.rel_url.raw_query_string
    priority_asked = request.headers.get(headers.PRIORITY)
    if balanced:
        query, in_query = headers.split_query(query)
        priority_asked = priority_asked if priority_asked is not None else in_query
    exchange.priority = _priority(services, route, priority_asked)
    body = await _body(request, services, must_keep=balanced)
    exchange.facts = _facts(request, route, body)
    if exchange.facts.model and not services.dispatcher.lists(exchange.facts.model):
        # Somebody may have pulled it a moment ago on a host itself.
        await services.probes.refresh_inventory()
    job = _make_job(exchange, services)
    target = request.rel_url.raw_path + (f"?{query}" if query else "")
    outbound = Outbound(request.method, target, headers.for_host(request.headers.items()), body)
    return await _attempts(request, exchange, job, outbound)


async def _attempts(
    request: web.Request, exchange: Exchange, job: Job, outbound: Outbound
) -> web.StreamResponse:
    """Attempt after attempt until one answers; each holds a lease of its own."""
    services = request.app[SERVICES]
    while True:
        exchange.start_waiting(services.clock())
        async with services.dispatcher.lease(job) as lease:
            exchange.stop_waiting(services.clock())
            exchange.decision, exchange.attempts = lease.decision, job.attempt
            host = services.hosts[lease.decision.host_id]
            try:
                async with open_attempt(
                    services.session, host, outbound, lease.recallable
                ) as upstream:
                    verdict = await judge.judge(upstream, exchange.route, job)
                    again = _again(services, job, outbound, host.id, verdict)
                    if again is None:
                        return await _answer(request, exchange, job, lease, upstream, verdict)
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

    In this order: nothing to mend; attempts used up; a body that has been streamed cannot be sent
    again; a connection that never was can be tried anywhere, the same host after its restart
    included; what is not inference may have had effects; whatever else failed needs another host,
    but for a connection cut on the only one.
    """
    if not verdict.may_retry or job.attempt >= services.config.retries.attempts:
        return None
    if not (outbound.body is None or isinstance(outbound.body, bytes)):
        return None
    if verdict.result is AttemptResult.UNREACHABLE:
        return replace(job, attempt=job.attempt + 1)
    if job.kind is JobKind.PASS:
        return None
    if services.dispatcher.has_alternative(job, host_id):
        return replace(job, attempt=job.attempt + 1, excluded=job.excluded | {host_id})
    return replace(job, attempt=job.attempt + 1) if verdict.was_cut else None


async def _answer(
    request: web.Request,
    exchange: Exchange,
    job: Job,
    lease: Lease,
    upstream: Upstream,
    verdict: judge.Verdict,
) -> web.StreamResponse:
    """Pass the host's answer on, whatever its status."""
    services = request.app[SERVICES]
    exchange.answered_by_host = True
    exchange.status = upstream.status
    exchange.first_byte_s = services.clock() - exchange.arrived_s
    started_s = services.clock()
    if verdict.result is AttemptResult.COMPLETED:
        lease.first_byte()
    fmt = body_format(upstream.content_type)
    watch = BodyWatch(exchange.route, exchange.facts.kind, fmt)
    response = _head(request, exchange, upstream)
    try:
        await response.prepare(request)
        if request.method != "HEAD" and upstream.status not in NO_BODY:
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


def _head(request: web.Request, exchange: Exchange, upstream: Upstream) -> web.StreamResponse:
    response = web.StreamResponse(
        status=upstream.status, reason=upstream.reason, headers=headers.for_client(upstream.headers)
    )
    if not upstream.content_type:
        mark_without_type(response)
    response.headers.update(exchange.routing_headers())
    return response


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
        exchange.observation = replace(
            watch.observation(), first_byte_s=in_host_s, total_s=in_host_s + body_s
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
    response: web.StreamResponse,
    route: Route,
    watch: BodyWatch,
    fmt: BodyFormat,
    message: str,
) -> None:
    """End a stream whose host broke off so that no client takes it for complete."""
    record = replies.error_record(fmt, route.dialect, message)
    try:
        if record is not None and watch.at_record_boundary:
            await response.write(record)
            await response.write_eof()
            return
    except ConnectionResetError as error:
        raise ClientGone from error
    if request.transport is not None:
        request.transport.abort()


async def _body(
    request: web.Request, services: Services, *, must_keep: bool
) -> bytes | AsyncIterator[bytes] | None:
    """The request body: kept for another attempt, or streamed where it is too large for that.

    Raises:
        BodyTooLarge: it has to be kept and exceeds `limits.body`.
    """
    if not request.body_exists:
        return b"" if must_keep else None
    if not must_keep and not 0 <= (request.content_length or -1) <= BODY_KEPT_BYTES:
        return request.content.iter_any()
    limit_bytes = services.config.limits.body
    if (request.content_length or 0) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > limit_bytes:
                raise BodyTooLarge(limit_bytes)
            parts.append(chunk)
    except (ConnectionResetError, asyncio.IncompleteReadError) as error:
        raise ClientGone from error
    except web.RequestPayloadError as error:
        raise BadRequest("the request body does not follow its own framing") from error
    return b"".join(parts)


def _facts(request: web.Request, route: Route, body: bytes | AsyncIterator[bytes] | None) -> Facts:
    if route.plan is Plan.PASS:
        return pass_facts(route, body if isinstance(body, bytes) else b"")
    return describe(
        route,
        body if isinstance(body, bytes) else b"",
        content_type=request.headers.get("Content-Type", ""),
        content_encoding=request.headers.get("Content-Encoding", ""),
    )


def _make_job(exchange: Exchange, services: Services) -> Job:
    facts = exchange.facts
    model_bytes = services.dispatcher.model_bytes(facts.model) if facts.model else 0
    exchange.complexity = complexity(facts, model_bytes)
    deadline = services.config.queue.deadline
    return Job(
        id=exchange.id,
        kind=facts.kind,
        model=facts.model,
        priority=exchange.priority,
        arrived_s=exchange.arrived_s,
        deadline_s=None if deadline is None else exchange.arrived_s + deadline,
        task_type=facts.task_type,
        complexity=exchange.complexity,
        requires_gpu=requires_gpu(facts, exchange.complexity, model_bytes),
        prompt_tokens_est=facts.prompt_tokens_est,
        output_limit_tokens=facts.output_limit_tokens,
        stream=facts.stream,
    )


def _priority(services: Services, route: Route, asked: str | None) -> int:
    """The request's priority, 1 to 10.

    Raises:
        BadRequest: something else was asked for.
    """
    if asked is None:
        queue = services.config.queue
        return queue.route_priorities.get(route.path, queue.default_priority)
    text = asked.strip()
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:4]) <= 10:
        shown = headers.printable(asked[:20])
        raise BadRequest(f"priority {shown!r} is not a whole number from 1 to 10")
    return int(text)
