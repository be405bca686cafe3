"""The way of a request to one host: read, describe, make a job of it; `attempts` does the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from aiohttp import web

from sollol_proxy.core.types import Facts, Job, JobKind
from sollol_proxy.errors import BadRequest
from sollol_proxy.ollama.commands import read_command
from sollol_proxy.ollama.describe import complexity, describe, requires_gpu
from sollol_proxy.ollama.names import display
from sollol_proxy.ollama.rewrite import with_model
from sollol_proxy.ollama.routes import UNKNOWN, Plan, Route
from sollol_proxy.server import attempts, bodies, fanout, headers
from sollol_proxy.server.context import fitted
from sollol_proxy.server.exchange import EXCHANGE, Exchange
from sollol_proxy.server.services import Services
from sollol_proxy.server.upstream import Outbound

BODY_KEPT_BYTES = 2**20
"""Up to here the body of a passed request is read whole; a larger one flows through."""

PUSH = "/api/push"
CASE_SENSITIVE = "/api/embeddings"
"""The one route that compares names by case."""


async def handle(services: Services, request: web.Request, route: Route) -> web.StreamResponse:
    """Answer a request that some host has to answer.

    Raises:
        SollolError: nothing has been sent to the client; `entrance` words the answer.
    """
    exchange = begin(services, request, route)
    if route.plan is not Plan.BALANCE:
        return await _passed(services, request, exchange)
    body = await bodies.keep(request, services.config.limits.body)
    facts = exchange.facts = describe(
        route,
        body,
        content_type=request.headers.get("Content-Type", ""),
        content_encoding=request.headers.get("Content-Encoding", ""),
    )
    if facts.model and not services.dispatcher.lists(facts.model):
        # Somebody may have pulled it a moment ago on a host itself.
        await services.probes.refresh_inventory()
    if facts.kind is JobKind.UNLOAD and len(services.dispatcher.holders(facts.model)) > 1:
        return await _unload(services, exchange, outbound(request, body))
    if facts.is_cloud or (facts.model and services.dispatcher.is_remote(facts.model)):
        only = identity(services, facts.model)
        return await to_one_host(services, request, exchange, outbound(request, body), only=only)
    if route.path == CASE_SENSITIVE:
        body = _mended(services, exchange, body)
    if services.config.models:
        body = _fitted(services, exchange, body)
    job = _make_job(exchange, services)
    return await attempts.carry_out(services, request, exchange, job, outbound(request, body))


def begin(services: Services, request: web.Request, route: Route) -> Exchange:
    """A request has arrived: its record, known to the journal from now on.

    Raises:
        BadRequest: it asks for a priority that there is not.
    """
    exchange = Exchange.begin(services.journal.ids.new(), request, route, services.clock())
    request[EXCHANGE] = exchange
    services.journal.begin(exchange)
    asked = request.headers.get(headers.PRIORITY)
    if asked is None and route.plan is Plan.BALANCE:
        asked = headers.split_query(request.rel_url.raw_query_string)[1]
    exchange.priority = _priority(services, route, asked)
    return exchange


def outbound(request: web.Request, body: bytes | AsyncIterator[bytes] | None) -> Outbound:
    """The request as a host should see it."""
    target, query = request.rel_url.raw_path, request.rel_url.raw_query_string
    if query and request[EXCHANGE].route.plan is Plan.BALANCE:
        query, _ = headers.split_query(query)
    if query:
        target = f"{target}?{query}"
    return Outbound(request.method, target, headers.for_host(request.headers.items()), body)


def identity(services: Services, model: str = "") -> str:
    """The host whose account counts; "" = the first of the pool that is up.

    model: one that has to be there already; another host that has it comes before the configured
    one that does not.
    """
    configured = services.config.identity or ""
    holders = services.dispatcher.holders(model) if model else []
    return configured if configured in holders or not holders else holders[0]


async def to_one_host(
    services: Services,
    request: web.Request,
    exchange: Exchange,
    outbound: Outbound,
    *,
    only: str = "",
) -> web.StreamResponse:
    """Pass a request to one host without waiting for a slot, and its answer back.

    only: that host; "" = the first of the pool that has the model, or is up.
    """
    facts, label = exchange.facts, exchange.route.path
    job = Job(
        id=exchange.id,
        kind=JobKind.PASS,
        model=facts.model,
        priority=exchange.priority,
        arrived_s=exchange.arrived_s,
        stream=facts.stream,
        only=only,
        # One unknown path says nothing about another: what lacks the one may have the other.
        route="" if label == UNKNOWN else label,
    )
    return await attempts.carry_out(services, request, exchange, job, outbound)


async def _passed(
    services: Services, request: web.Request, exchange: Exchange
) -> web.StreamResponse:
    """A route that is one host's business: the identity host's, or any one's."""
    route = exchange.route
    size = request.content_length
    is_large = request.body_exists and not 0 <= (-1 if size is None else size) <= BODY_KEPT_BYTES
    body: bytes | AsyncIterator[bytes] | None = None
    if is_large:
        body = bodies.pieces(request)
    elif request.body_exists:
        body = await bodies.keep(request, BODY_KEPT_BYTES)
    exchange.facts = Facts(kind=JobKind.PASS, body_bytes=size or 0)
    if route.path == PUSH and isinstance(body, bytes):
        command = read_command(route, body)
        exchange.facts = replace(
            exchange.facts,
            model=command.model,
            model_as_written=command.written,
            stream=command.stream,
        )
    is_pinned = route.plan is not Plan.PASS
    only = identity(services, exchange.facts.model) if is_pinned else ""
    return await to_one_host(services, request, exchange, outbound(request, body), only=only)


async def _unload(services: Services, exchange: Exchange, asked: Outbound) -> web.StreamResponse:
    """Unload a model wherever it may be in memory: `/api/ps` may show it under another name."""
    hosts = services.dispatcher.holders(exchange.facts.model)
    exchange.targets = len(hosts)
    answers = await fanout.ask_each(services, exchange, hosts, asked, JobKind.UNLOAD)
    return fanout.respond(exchange, fanout.conclude(exchange, answers, may_be_partial=False))


def _mended(services: Services, exchange: Exchange, body: bytes) -> bytes:
    """The body, with the model's name as hosts spell it where Ollama would not find it else."""
    facts = exchange.facts
    if not facts.model:
        return body
    spelling = services.dispatcher.spelling(facts.model)
    if not spelling or display(facts.model_as_written) == spelling:
        return body
    mended = with_model(body, spelling)
    if mended is None:
        return body
    exchange.rewrote = f"model={spelling}"
    return mended


def _fitted(services: Services, exchange: Exchange, body: bytes) -> bytes:
    """The body, with the context length that the configuration wants for its model."""
    rules = services.config.rules_for(exchange.facts.model)
    facts, rewritten = fitted(rules, exchange.route, exchange.facts, body)
    if rewritten is not body:
        exchange.facts = facts
        before = f"{exchange.rewrote}, " if exchange.rewrote else ""
        exchange.rewrote = f"{before}num_ctx={facts.num_ctx}"
    return rewritten


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
        route=exchange.route.path,
        options_key=facts.options_key,
        num_ctx=facts.num_ctx,
        prefix=facts.prefix,
        prefix_tokens=facts.prefix_tokens,
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
