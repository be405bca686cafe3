"""Pull, create, copy and delete: carried out by every host concerned, answered once.

    pull      the hosts that are to hold the model; one merged progress, shared by all who ask
    create    those of them that have what it is made from, model or blobs
    copy      every host that has the source
    delete    every host that has the model

A request that Ollama would refuse as it stands goes to one host, for its own words.
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from multidict import CIMultiDict

from sollol_proxy.core.types import Facts, JobKind, Outcome
from sollol_proxy.errors import AttemptFailed, ClientGone, Phase
from sollol_proxy.ollama import replies
from sollol_proxy.ollama.commands import Command, read_command, streaming_body
from sollol_proxy.ollama.merge import encode
from sollol_proxy.ollama.routes import Route
from sollol_proxy.server import blobs, bodies, fanout, forward, headers, placement
from sollol_proxy.server.answers import to_response
from sollol_proxy.server.exchange import Exchange
from sollol_proxy.server.operations import GAP_S, Operation, Watcher, pull_key
from sollol_proxy.server.placement import Targets
from sollol_proxy.server.services import SERVICES, Services
from sollol_proxy.server.spread import Broadcast
from sollol_proxy.server.upstream import Outbound

PULL = "/api/pull"
CREATE = "/api/create"
COPY = "/api/copy"


async def handle(request: web.Request, route: Route) -> web.StreamResponse:
    """Answer a request that several hosts carry out.

    Raises:
        SollolError: nothing has been sent to the client; `entrance` words the answer.
    """
    if route.path == blobs.PATH:
        return await blobs.handle(request, route)
    services = request.app[SERVICES]
    exchange = forward.begin(services, request, route)
    body = await bodies.keep(request, services.config.limits.body)
    command = read_command(route, body)
    exchange.facts = Facts(
        kind=JobKind.MANAGE,
        model=command.model,
        model_as_written=command.written,
        stream=command.stream,
        body_bytes=len(body),
    )
    outbound = forward.outbound(request, body)
    if not command.is_valid:
        return await forward.to_one_host(services, request, exchange, outbound)
    if command.is_cloud and route.path == CREATE:
        return await forward.to_one_host(
            services, request, exchange, outbound, only=forward.identity(services)
        )
    if route.path == PULL:
        return await _pull(request, exchange, command, outbound, body)
    if route.path == CREATE:
        return await _create(request, exchange, command, outbound)
    subject = command.source if route.path == COPY else command.model
    targets = await placement.having(services, subject)
    return await _at_once(exchange, services, targets, outbound, may_be_partial=False)


async def _pull(
    request: web.Request, exchange: Exchange, command: Command, outbound: Outbound, body: bytes
) -> web.StreamResponse:
    """A pull, or a view of the one that runs already. Towards the hosts it is always a stream."""
    services = request.app[SERVICES]
    targets = await placement.for_model(services, command.model)
    if not command.stream:
        outbound = outbound._replace(body=streaming_body(body))
    key = pull_key(command.model, targets.hosts, insecure=command.insecure)

    def make() -> Operation:
        jobs = [fanout.part_job(exchange, host_id) for host_id in targets.hosts]
        return Broadcast(services, jobs, outbound)

    async with services.operations.joined(key, make) as (operation, watcher):
        return await _report(request, exchange, operation, watcher, targets)


async def _create(
    request: web.Request, exchange: Exchange, command: Command, outbound: Outbound
) -> web.StreamResponse:
    services = request.app[SERVICES]
    targets = await placement.for_create(services, command)
    if command.digests:
        targets = await blobs.narrowed(services, exchange, targets, command.digests, outbound)
    if not command.stream:
        return await _at_once(exchange, services, targets, outbound, may_be_partial=True)

    def make() -> Operation:
        jobs = [fanout.part_job(exchange, host_id) for host_id in targets.hosts]
        return Broadcast(services, jobs, outbound)

    async with services.operations.joined(f"create {exchange.id}", make) as (operation, watcher):
        return await _report(request, exchange, operation, watcher, targets)


async def _at_once(
    exchange: Exchange,
    services: Services,
    targets: Targets,
    outbound: Outbound,
    *,
    may_be_partial: bool,
) -> web.StreamResponse:
    """Ask every target and answer with one reply for all."""
    exchange.targets = len(targets.hosts) + len(targets.skipped)
    answers = await fanout.ask_each(services, exchange, targets.hosts, outbound)
    for answer in answers:
        if answer.is_good:
            services.probes.ask_now(answer.host_id, with_tags=True)
    reply = fanout.conclude(exchange, answers, may_be_partial=may_be_partial)
    _note_skipped(exchange, targets)
    return fanout.respond(exchange, reply)


async def _report(
    request: web.Request,
    exchange: Exchange,
    operation: Operation,
    watcher: Watcher,
    targets: Targets,
) -> web.StreamResponse:
    """Tell the client how the operation goes, record by record or once at its end."""
    exchange.targets = len(targets.hosts) + len(targets.skipped)
    exchange.attempts = len(operation.hosts)
    if exchange.facts.stream:
        lines = await watcher.next_lines()
        if operation.head is not None or not operation.progress.is_over:
            return await _stream(request, exchange, operation, watcher, targets, lines)
    else:
        while await watcher.next_lines():
            pass
    _conclude(exchange, operation, targets)
    progress = operation.progress
    if progress.succeeded:
        exchange.answered_by_host, exchange.status = True, 200
        done = replies.Reply(200, encode({"status": "success"}), replies.JSON)
        return to_response(done, exchange.routing_headers())
    if operation.refusals:
        return fanout.respond(exchange, operation.refusals[0])
    if operation.head is None:
        host_id, reason = next(iter(progress.failures.items()))
        raise AttemptFailed(host_id, Phase.HEAD, reason)
    exchange.status = 500
    error = progress.error_line.rstrip(b"\n")
    return to_response(replies.Reply(500, error, replies.JSON), exchange.routing_headers())


async def _stream(
    request: web.Request,
    exchange: Exchange,
    operation: Operation,
    watcher: Watcher,
    targets: Targets,
    lines: bytes,
) -> web.StreamResponse:
    services = request.app[SERVICES]
    exchange.answered_by_host, exchange.status = True, 200
    exchange.first_byte_s = services.clock() - exchange.arrived_s
    kept = headers.for_client(operation.head) if operation.head else CIMultiDict[str]()
    kept.popall("Content-Length", None)
    response = web.StreamResponse(status=200, headers=kept)
    response.headers.setdefault("Content-Type", "application/x-ndjson")
    response.headers.update(exchange.routing_headers())
    try:
        await response.prepare(request)
        while lines:
            await response.write(lines)
            exchange.bytes_out += len(lines)
            exchange.hosts = list(operation.progress.succeeded)
            if len(operation.hosts) > 1:
                await asyncio.sleep(GAP_S)
            lines = await watcher.next_lines()
        _conclude(exchange, operation, targets)
        await response.write_eof()
    except ConnectionResetError as error:
        raise ClientGone from error
    return response


def _conclude(exchange: Exchange, operation: Operation, targets: Targets) -> None:
    """The operation is over: what it came to, host by host."""
    progress = operation.progress
    exchange.hosts = list(progress.succeeded)
    exchange.failures += progress.failures.items()
    if progress.succeeded:
        exchange.outcome = Outcome.PARTIAL if progress.failures else Outcome.COMPLETED
    else:
        exchange.outcome = Outcome.UPSTREAM_REFUSED
        exchange.detail = next(iter(progress.failures.values()), "")
    _note_skipped(exchange, targets)


def _note_skipped(exchange: Exchange, targets: Targets) -> None:
    exchange.failures += targets.skipped
    exchange.skipped = [host_id for host_id, _ in targets.skipped]
    if targets.skipped and exchange.outcome is Outcome.COMPLETED:
        exchange.outcome = Outcome.PARTIAL
