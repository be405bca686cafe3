"""The HTTP side towards clients where aiohttp's is not Ollama's: requests that cannot be parsed.

aiohttp offers no public door to its connection handler. What is leaned on here, and what
`tests/server/test_http_corners.py` notices when it changes: `AppRunner._make_server`,
`Server._kwargs`, and of `RequestHandler` the methods `handle_error` and `finish_response` and
the attributes `_messages`, `_request_count` and `_current_request`. Besides, that a lost connection
comes by `force_close`, which `tests/server/test_valve.py` notices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any
from typing import Protocol as Interface

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpProcessingError, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD

from sollol_proxy.server.connection import MAX_HEADER_BYTES

MAX_HEADERS = 2**14
"""Lines of a head. Go knows no such limit, and aiohttp no other one on the head as a whole."""

_BAD_REQUEST = "400 Bad Request"
_NO_HOST = "400 Bad Request: missing required Host header"
_TOO_LARGE = "431 Request Header Fields Too Large"
"""As Go's server words them: the status line and the body are one text."""

_AIOHTTP_ON_NO_HOST = "Missing 'Host' header in request."


class Runner(web.AppRunner):
    """Runs an application behind `Protocol`."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            **server._kwargs,
        )


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return Protocol(self, loop=asyncio.get_running_loop(), **self._kwargs)


class Valve(Interface):
    """Whoever writes to a client without waiting, and has to know when it is slow."""

    def pause(self) -> None:
        """The client's buffer is full."""

    def resume(self) -> None:
        """There is room again."""

    def close(self) -> None:
        """The client's connection is closed: nothing may be written any more."""


class Protocol(web.RequestHandler):
    """One connection of a client. valve: of the answer that is written right now.

    Refuses in Go's words what aiohttp's parser does not take, without a traceback in the log;
    bounds a head as a whole; tells a handler that waits for a body when that body breaks; and
    closes where closing is the only end that an answer has.
    """

    __slots__ = ("_body", "_head_bytes", "valve")

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._body: StreamReader = EMPTY_PAYLOAD
        self._head_bytes = 0
        self.valve: Valve | None = None

    def pause_writing(self) -> None:
        """The client's buffer is full."""
        super().pause_writing()
        if self.valve is not None:
            self.valve.pause()

    def resume_writing(self) -> None:
        """There is room again."""
        super().resume_writing()
        if self.valve is not None:
            self.valve.resume()

    def force_close(self) -> None:
        """Close the connection; called when it is lost, too."""
        super().force_close()
        if self.valve is not None:
            self.valve.close()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        parsed = self._request_count
        super().data_received(data)
        if self._request_count != parsed:
            self._head_bytes = 0
            self._take_note_of(*self._messages[-1])
        elif self._body.is_eof():
            # Neither a body nor a whole head: the beginning of one.
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES:
                self._refuse_head()

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """The end of an answer."""
        if request.version < HttpVersion11 and resp.content_length is None:
            # Only its end tells an HTTP/1.0 client that a body of unknown length is complete, and
            # aiohttp leaves the connection open where the client asked to keep it.
            resp.force_close()
        return super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what could not be parsed, or could not be handled."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        self.logger.debug("malformed request from %s: %s", request.remote, exc)
        return _Refusal(_words_for(exc))

    def _take_note_of(self, message: object, body: StreamReader) -> None:
        if not isinstance(message, RawRequestMessage) and not self._body.is_eof():
            # aiohttp keeps the error for after the request whose body has broken. That request
            # would wait for the rest of its body until its client leaves.
            self._body.set_exception(web.RequestPayloadError(_BAD_REQUEST))
            self._body.feed_eof()
            self.close()
        self._body = body

    def _refuse_head(self) -> None:
        is_idle = self._current_request is None and not self._messages
        if is_idle and self.transport is not None:
            self.transport.write(_raw(_TOO_LARGE))
        self.force_close()


class _Refusal(web.StreamResponse):
    """A whole answer in Go's framing; the connection ends with it."""

    def __init__(self, text: str) -> None:
        super().__init__(status=int(text[:3]))
        self._text = text
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if request.transport is not None:
            request.transport.write(_raw(self._text))
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


def _words_for(error: HttpProcessingError) -> str:
    if isinstance(error, LineTooLong):
        return _TOO_LARGE
    return _NO_HOST if error.message == _AIOHTTP_ON_NO_HOST else _BAD_REQUEST


def _raw(text: str) -> bytes:
    head = "Content-Type: text/plain; charset=utf-8\r\nConnection: close"
    return f"HTTP/1.1 {text}\r\n{head}\r\n\r\n{text}".encode()
