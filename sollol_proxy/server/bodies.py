"""Request bodies: kept where they may be needed again, streamed where they are too large."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import HttpVersion11, web

from sollol_proxy.errors import BadRequest, BodyTooLarge, ClientGone
from sollol_proxy.server.services import SERVICES


async def keep(request: web.Request, limit_bytes: int) -> bytes:
    """The whole body; empty when there is none.

    Raises:
        BodyTooLarge: it exceeds `limit_bytes`.
        BadRequest: it does not follow its own framing.
        ClientGone: the connection ended within it.
    """
    if not request.body_exists:
        return b""
    if (request.content_length or 0) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    content = request.content
    if content.is_eof() and content.exception() is None:
        # It came with its head, or soon after: nothing to wait for.
        body = content.read_nowait()
        if len(body) > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        return body
    parts: list[bytes] = []
    size = 0
    async for chunk in pieces(request):
        size += len(chunk)
        if size > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        parts.append(chunk)
    return b"".join(parts)


async def pieces(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it comes; what is not taken is not read from the client either.

    Raises:
        BadRequest: it does not follow its own framing.
        ClientGone: the connection ended within it.
    """
    try:
        async for chunk in request.content.iter_any():
            yield chunk
    except (ConnectionResetError, asyncio.IncompleteReadError) as error:
        raise ClientGone from error
    except web.RequestPayloadError as error:
        raise BadRequest("the request body does not follow its own framing") from error


async def expect(request: web.Request) -> None:
    """Answer `Expect: 100-continue`; aiohttp calls this before the handler.

    Every body is asked for at once, but for that of a blob, which the hosts may have already, and
    for one that will be refused for its length.

    Raises:
        HTTPExpectationFailed: something else is expected.
    """
    wanted = request.headers.get("Expect", "")
    if request.version < HttpVersion11:
        return
    if wanted.lower() != "100-continue":
        raise web.HTTPExpectationFailed(text="417 Expectation Failed")
    is_blob = request.method == "POST" and request.path.startswith("/api/blobs/")
    is_too_large = (request.content_length or 0) > request.app[SERVICES].config.limits.body
    if not is_blob and not is_too_large:
        await go_on(request)


def expects_continue(request: web.Request) -> bool:
    """Whether the client waits for a word before it sends the body."""
    return request.version >= HttpVersion11 and "Expect" in request.headers


async def go_on(request: web.Request) -> None:
    """Tell a client that waits for it to send the body."""
    if expects_continue(request):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Bytes of the answer are counted from here: this was not one of them.
        request.writer.output_size = 0
