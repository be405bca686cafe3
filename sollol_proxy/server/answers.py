"""From a `Reply` of `ollama.replies` to aiohttp's response, with no header of aiohttp's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web
from aiohttp.hdrs import ORIGIN

from sollol_proxy.ollama.replies import Reply

_ADDED = web.RequestKey("added_headers", tuple)
_HAS_NO_TYPE = web.ResponseKey("has_no_type", bool)


def to_response(reply: Reply, extra: Mapping[str, str] | None = None) -> web.Response:
    """The reply with extra headers."""
    response = web.Response(status=reply.status, body=reply.body)
    if reply.content_type is None:
        response[_HAS_NO_TYPE] = True
    else:
        response.headers["Content-Type"] = reply.content_type
    for name, value in reply.headers:
        response.headers.add(name, value)
    if extra:
        response.headers.update(extra)
    return response


def to_json(value: Any, *, status: int = 200) -> web.Response:
    """A JSON answer of one of our own paths, indented: people read it with curl."""
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
    return web.Response(
        status=status,
        body=body + b"\n",
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def mark_without_type(response: web.StreamResponse) -> None:
    """The response has no Content-Type, and aiohttp must not invent one."""
    response[_HAS_NO_TYPE] = True


def add_headers(request: web.BaseRequest, headers: tuple[tuple[str, str], ...]) -> None:
    """Headers for whatever answer the request will get, in place of those of the same name.

    Only a request with an `Origin` gets any.
    """
    request[_ADDED] = headers


def added_headers(request: web.BaseRequest) -> tuple[tuple[str, str], ...]:
    """What `add_headers` was told."""
    if ORIGIN not in request.headers:
        return ()  # to look for what is not there costs an exception
    added: tuple[tuple[str, str], ...] = request.get(_ADDED, ())
    return added


async def tidy_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal `on_response_prepare`: what was added, less what aiohttp adds by itself."""
    added = added_headers(request)
    for name, _ in added:
        response.headers.popall(name, None)
    for name, value in added:
        response.headers.add(name, value)
    response.headers.pop("Server", None)
    if response.get(_HAS_NO_TYPE):
        response.headers.pop("Content-Type", None)
