"""The answers of the real lab host: the engine's text in Ollama's records."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import replace

from aiohttp import ClientConnectionError, ClientSession, web

from sollol_proxy.lab.ask import EMBEDDING_PATHS, Ask, AskError
from sollol_proxy.lab.engine_text import Piece, pieces, raise_for_engine_error
from sollol_proxy.lab.replies import json_reply
from sollol_proxy.lab.shapes import BROKEN, NativeShape, Result, encode_line
from sollol_proxy.lab.shapes_v1 import shape_for
from sollol_proxy.lab.vectors import embedding_body


class Clock:
    """The two durations that the engine does not know."""

    def __init__(self, began_s: float, load_s: float) -> None:
        self._began_s = began_s
        self._load_s = load_s

    def complete(self, result: Result) -> Result:
        """The result with the total until now and the time until a runner was ready."""
        return replace(result, load_s=self._load_s, total_s=time.monotonic() - self._began_s)


def loaded_reply(ask: Ask) -> web.Response:
    """The answer to a request without a prompt: the model is in memory."""
    if ask.path in EMBEDDING_PATHS:
        return json_reply(embedding_body(ask, [], Result("load")))
    shape = shape_for(ask)
    return json_reply(shape.whole("", Result("load")), shape.json_type)


async def answer_text(
    request: web.Request, ask: Ask, session: ClientSession, clock: Clock
) -> web.StreamResponse:
    """A native answer, streamed or whole.

    Until the first piece an error has a status of its own; later it is a record.
    """
    shape = NativeShape(ask)
    async with aclosing(pieces(session, ask)) as answer:
        if not ask.stream:
            return _answer_whole([piece async for piece in answer], shape, clock)
        first = await anext(answer, None)
        response = web.StreamResponse(headers={"Content-Type": shape.content_type})
        await response.prepare(request)
        if first is not None:
            await _write(response, shape, first, clock)
        try:
            async for piece in answer:
                await _write(response, shape, piece, clock)
        except AskError as error:
            await response.write(encode_line({"error": error.message}))
        except ClientConnectionError:
            await response.write(encode_line({"error": BROKEN}))
        await response.write_eof()
        return response


async def _write(
    response: web.StreamResponse, shape: NativeShape, piece: Piece, clock: Clock
) -> None:
    if piece.text:
        await response.write(shape.token(piece.text))
    if piece.result is not None:
        for record in shape.end(clock.complete(piece.result)):
            await response.write(record)


def _answer_whole(answer_pieces: list[Piece], shape: NativeShape, clock: Clock) -> web.Response:
    text = "".join(piece.text for piece in answer_pieces)
    result = answer_pieces[-1].result if answer_pieces else None
    return json_reply(shape.whole(text, clock.complete(result) if result else None))


async def pass_on(request: web.Request, ask: Ask, session: ClientSession) -> web.StreamResponse:
    """The engine's own answer to the same body, as it comes."""
    async with session.post(ask.path, json=ask.body) as upstream:
        await raise_for_engine_error(upstream)
        headers = {"Content-Type": upstream.headers.get("Content-Type", "application/json")}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        async for chunk in upstream.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response
