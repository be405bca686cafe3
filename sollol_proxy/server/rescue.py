"""What every request passes through: who may call, and what becomes of exceptions.

This is the only place that maps our errors to statuses and texts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog
from aiohttp import HttpVersion11, web

from sollol_proxy.core.types import Outcome
from sollol_proxy.errors import (
    AttemptFailed,
    BadRequest,
    BodyTooLarge,
    ClientGone,
    Draining,
    Expired,
    NoHost,
    NoModel,
    QueueFull,
    Refused,
    SollolError,
)
from sollol_proxy.ollama import access, replies
from sollol_proxy.ollama.replies import Reply
from sollol_proxy.ollama.routes import Route, allowed_methods, find
from sollol_proxy.server import headers
from sollol_proxy.server.answers import add_headers, to_response
from sollol_proxy.server.exchange import EXCHANGE, Exchange
from sollol_proxy.server.services import SERVICES, Services

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger("sollol")


@dataclass(frozen=True, slots=True)
class Rule:
    """What an error means to a client. text: `{}` is the error's own message."""

    status: int
    outcome: Outcome
    text: str = "{}"


RULES: Mapping[type[SollolError], Rule] = {
    BadRequest: Rule(400, Outcome.REJECTED_BAD_REQUEST),
    BodyTooLarge: Rule(413, Outcome.REJECTED_BAD_REQUEST),
    QueueFull: Rule(503, Outcome.REJECTED_QUEUE_FULL, replies.QUEUE_FULL),
    Expired: Rule(503, Outcome.EXPIRED_IN_QUEUE, "server busy, please try again: {}"),
    NoHost: Rule(503, Outcome.NO_HOST, "no Ollama host is available: {}"),
    NoModel: Rule(404, Outcome.NO_MODEL),
    Draining: Rule(503, Outcome.DRAINING, "server busy, please try again: {}"),
    AttemptFailed: Rule(502, Outcome.UPSTREAM_FAILED),
}

_UNEXPECTED = Rule(500, Outcome.UPSTREAM_FAILED, "internal error of the proxy; see its log")


def entrance(handler: Handler) -> Handler:
    """The handler behind Ollama's Host and Origin rules, and before a safety net.

    What it raises becomes an answer in the caller's dialect, and the request's record is closed.
    Once a head has been sent nothing can be mended: the connection is cut instead, so that no
    client takes a broken answer for a whole one.

    A plain function around each handler, because aiohttp wraps a middleware anew for each request.
    """

    async def enter(request: web.Request) -> web.StreamResponse:
        services = request.app[SERVICES]
        if (refusal := _refusal(request, services)) is not None:
            return refusal
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except ClientGone:
            return _nobody_listens(request)
        except SollolError as error:
            return _answer(request, services, error)
        except Exception:  # noqa: BLE001 - the one place that turns a fault of ours into a 500
            _log.exception("unexpected error", path=request.path, request=_request_id(request))
            return _answer(request, services, None)
        finally:
            exchange = request.get(EXCHANGE)
            if exchange is not None:
                # After whoever got the slot that has just come back: a log line can wait, a host
                # not.
                asyncio.get_running_loop().call_soon(services.journal.close, exchange)

    return enter


def _refusal(request: web.Request, services: Services) -> web.StreamResponse | None:
    host, origin = request.headers.get("Host"), request.headers.get("Origin")
    if access.is_plainly_welcome(
        services.access, method=request.method, host_header=host, origin=origin
    ):
        return None
    verdict = access.judge(
        services.access,
        method=request.method,
        host_header=host,
        origin=origin,
        http_version_11=request.version >= HttpVersion11,
        allow_methods=allowed_methods(request.rel_url.raw_path),
    )
    if verdict.reply is not None:
        return to_response(verdict.reply)
    if verdict.headers:
        add_headers(request, verdict.headers)
    return None


def _answer(
    request: web.Request, services: Services, error: SollolError | None
) -> web.StreamResponse:
    rule = _UNEXPECTED if error is None else RULES.get(type(error), _UNEXPECTED)
    exchange: Exchange | None = request.get(EXCHANGE)
    if exchange is not None:
        exchange.stop_waiting(services.clock())
        exchange.outcome, exchange.detail = rule.outcome, str(error or "internal error")
        if exchange.answered_by_host and request.transport is not None:
            request.transport.abort()
            return _nobody_listens(request)
        exchange.status = rule.status
    route = find(request.method, request.rel_url.raw_path) if exchange is None else exchange.route
    reply = _reply(route, rule, error, exchange)
    extra = {"X-SOLLOL-Outcome": rule.outcome.value}
    if exchange is not None:
        extra.update(exchange.routing_headers())
    if isinstance(error, Refused) and rule.status == 503:
        extra["Retry-After"] = str(math.ceil(error.retry_after_s))
    return to_response(reply, extra)


def _reply(route: Route, rule: Rule, error: SollolError | None, exchange: Exchange | None) -> Reply:
    if rule.outcome is Outcome.NO_MODEL and exchange is not None:
        written = exchange.facts.model_as_written
        return replies.error_reply(route.dialect, rule.status, f"model '{written}' not found")
    return replies.error_reply(route.dialect, rule.status, rule.text.format(error))


def _nobody_listens(request: web.Request) -> web.StreamResponse:
    """A response for a closed connection: aiohttp wants one, nobody will see it."""
    response = web.Response(status=499)
    response.force_close()
    return response


def _request_id(request: web.Request) -> str | None:
    exchange = request.get(EXCHANGE)
    return None if exchange is None else headers.printable(exchange.id)
