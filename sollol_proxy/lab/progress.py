"""Answers that report their progress: pull, push and create, streamed or not.

A piece of work says one record after the other. A streamed answer gets its status line with the
first record, so that errors before it have a status of their own and later ones are records.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from sollol_proxy.lab.ask import AskError
from sollol_proxy.lab.faults import Fault, FaultKind, FaultStruck, close, crash, cut, hang
from sollol_proxy.lab.replies import json_reply
from sollol_proxy.lab.shapes import encode, encode_line

Record = Mapping[str, Any]
Say = Callable[[Record], Awaitable[None]]
Work = Callable[[Say], Awaitable[None]]

# What is written on the way to a stream has no charset, errors included.
_JSON_TYPE = "application/json"
_BROKEN_OFF = "max retries exceeded: unexpected EOF"


def status(text: str) -> dict[str, Any]:
    """A record that says only what goes on."""
    return {"status": text}


def layer_status(verb: str, digest: str, total: int, completed: int) -> dict[str, Any]:
    """A record of a layer on its way; Ollama leaves zeros out."""
    _, _, hexadecimal = digest.rpartition(":")
    record = {"status": f"{verb} {hexadecimal[:12]}", "digest": digest, "total": total}
    return record | ({"completed": completed} if completed else {})


async def answer(
    request: web.Request, work: Work, *, stream: bool, fault: Fault | None
) -> web.StreamResponse:
    """Do the work and answer with what it says: all of it, or without `stream` the last record.

    An AskError of the work is the end of the answer.
    """
    telling = _Telling(request, stream=stream, fault=fault)
    try:
        await work(telling.say)
    except AskError as error:
        return await telling.fail(error)
    except FaultStruck:
        return await telling.end()
    return await telling.end()


class _Telling:
    def __init__(self, request: web.Request, *, stream: bool, fault: Fault | None) -> None:
        self._request = request
        self._stream = stream
        self._fault = fault
        self._said = 0
        self._last: Record = {}
        self._response: web.StreamResponse | None = None

    async def say(self, record: Record) -> None:
        """Take the next record of the work."""
        if self._fault is not None and self._said >= self._fault.after_records:
            await self._strike(self._fault)
        self._said += 1
        self._last = record
        if self._stream:
            await (await self._begun()).write(encode_line(record))

    async def fail(self, error: AskError) -> web.StreamResponse:
        """The answer ends with an error."""
        body = {"error": error.message, **error.extra}
        if self._response is not None:
            await self._response.write(encode_line(body))
            return await self.end()
        # A stream that never began keeps its framing, not its type.
        response = json_reply(encode(body), _JSON_TYPE, error.status)
        if self._stream:
            response.enable_chunked_encoding()
        return response

    async def end(self) -> web.StreamResponse:
        """The answer ends with what was said."""
        if not self._stream:
            return json_reply(encode(self._last), _JSON_TYPE)
        response = await self._begun()
        await response.write_eof()
        return response

    async def _begun(self) -> web.StreamResponse:
        if self._response is None:
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(self._request)
            self._response = response
        return self._response

    async def _strike(self, fault: Fault) -> None:
        if fault.kind is FaultKind.HANG:
            await hang()
        if fault.kind is FaultKind.CRASH:
            crash()
        if fault.kind is FaultKind.ERROR_RECORD:
            raise AskError(500, fault.message or _BROKEN_OFF)
        if fault.kind is FaultKind.NO_DONE:
            raise FaultStruck
        if fault.kind is FaultKind.CUT:
            end_connection = close if self._stream and self._said else cut
            end_connection(self._request)
            raise FaultStruck
