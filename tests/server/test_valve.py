"""What the relay leans on in aiohttp's server: these fail when aiohttp changes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from sollol_proxy.server.protocol import Protocol


class Recorder:
    """A valve that tells what it was told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[str] = asyncio.Queue()

    def pause(self) -> None:
        self.told.put_nowait("pause")

    def resume(self) -> None:
        self.told.put_nowait("resume")

    def close(self) -> None:
        self.told.put_nowait("close")


class Own(web.StreamResponse):
    """A whole answer that goes past aiohttp's writer."""

    def __init__(self, answer: bytes, *, stays_open: bool) -> None:
        super().__init__()
        self._answer = answer
        self._stays_open = stays_open
        self._transport: asyncio.Transport | None = None

    @property
    def keep_alive(self) -> bool:
        return self._stays_open

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        self._transport = request.transport
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        assert self._transport is not None
        self._transport.write(self._answer)


@asynccontextmanager
async def client_of(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    loop = asyncio.get_running_loop()
    server = web.Server(handler, handler_cancellation=True, access_log=None)
    listening = await loop.create_server(lambda: Protocol(server, loop=loop), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname()[:2])
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    try:
        yield reader, writer
    finally:
        writer.close()
        listening.close()
        await server.shutdown(1.0)


async def test_valve_hears_of_a_slow_client_and_of_one_that_is_gone() -> None:
    valve = Recorder()
    block = b"x" * 2**22

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request.protocol, Protocol)
        assert request.transport is not None
        request.protocol.valve = valve
        request.transport.write(block)
        assert request.protocol.writing_paused
        await asyncio.Event().wait()
        raise AssertionError

    async with client_of(handler) as (reader, writer), asyncio.timeout(30):
        assert await valve.told.get() == "pause"
        await reader.readexactly(len(block))
        assert await valve.told.get() == "resume"
        writer.transport.abort()
        assert await valve.told.get() == "close"


async def test_server_takes_a_response_that_writes_by_itself_and_asks_it_about_the_end() -> None:
    asked: list[str] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        answer = b"HTTP/1.1 204 Own\r\n\r\n"
        return Own(answer, stays_open=len(asked) == 1)

    async with client_of(handler) as (reader, writer), asyncio.timeout(30):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 204 Own\r\n\r\n"
        writer.write(b"GET /again HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.read() == b"HTTP/1.1 204 Own\r\n\r\n"
    assert asked == ["/", "/again"]
