"""aiohttp responses that look like Ollama's: few headers, its error texts, its framing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from sollol_proxy.lab.ask import AskError
from sollol_proxy.lab.shapes import JSON_TYPE, encode, error_body, error_type

# Go's server announces the length of bodies that fit its buffer and chunks the others.
_LARGEST_ANNOUNCED_BYTES = 2048


def json_reply(body: bytes, content_type: str = JSON_TYPE, status: int = 200) -> web.Response:
    """A whole JSON body."""
    response = web.Response(status=status, body=body, headers={"Content-Type": content_type})
    if len(body) > _LARGEST_ANNOUNCED_BYTES:
        response.enable_chunked_encoding()
    return response


def error_reply(path: str, status: int, message: str) -> web.Response:
    """An error in the dialect of the path."""
    return json_reply(error_body(path, status, message), error_type(path), status)


def refusal(path: str, error: AskError) -> web.Response:
    """The error in the dialect of the path, or in the one it insists on."""
    if error.is_native or not path.startswith("/v1/"):
        return json_reply(encode({"error": error.message, **error.extra}), status=error.status)
    return error_reply(path, error.status, error.message)


@web.middleware
async def ask_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Middleware: refusals of handlers as Ollama words them."""
    try:
        return await handler(request)
    except AskError as error:
        return refusal(request.path, error)


def plain_reply(status: int, text: str) -> web.Response:
    """A text of Go's router."""
    return web.Response(status=status, body=text.encode(), headers={"Content-Type": "text/plain"})


@web.middleware
async def go_router_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Middleware: unknown paths and wrong methods as Ollama's router answers them."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return plain_reply(404, "404 page not found")
    except web.HTTPMethodNotAllowed as error:
        response = plain_reply(405, "405 method not allowed")
        response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response


async def drop_server_header(request: web.Request, response: web.StreamResponse) -> None:
    """`on_response_prepare` signal: Ollama does not name its server."""
    response.headers.pop("Server", None)
