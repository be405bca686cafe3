"""A host whose answers are scripts over raw sockets, and a client that speaks bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.support import RunningProxy, make_config, running_proxy

PATIENCE_S = 30.0
MODEL = {"name": "m:latest", "model": "m:latest", "digest": "a" * 64, "size": 1}
PROBED = {
    "/api/version": {"version": "0.33.0"},
    "/api/tags": {"models": [MODEL]},
    "/api/ps": {"models": []},
}


@dataclass
class Call:
    """One request on its way through a script. left: set once its connection is over."""

    method: str
    path: str
    head: bytes
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    left: asyncio.Event

    async def send(self, *pieces: bytes) -> None:
        """Write the pieces, each on its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def until_left(self) -> None:
        """Within a script: read until the proxy has closed the connection."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                while await self.reader.read(2**16):
                    pass
            except ConnectionError:
                return


Script = Callable[[Call], Awaitable[None]]


class ScriptedHost:
    """Answers probes; every other request is given to the script. calls: of those requests."""

    def __init__(self, script: Script, *, reads_bodies: bool = True) -> None:
        self._script = script
        self._reads_bodies = reads_bodies
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls: list[Call] = []
        self.connections = 0
        self.url = ""

    async def __aenter__(self) -> ScriptedHost:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=2**22)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        is_counted = False
        left = asyncio.Event()
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                method, path, _ = head.decode("latin-1").split(" ", 2)
                if path in PROBED:
                    writer.write(json_answer(PROBED[path]))
                    continue
                self.connections += not is_counted
                is_counted = True
                body = await _body(reader, head) if self._reads_bodies else b""
                call = Call(method, path, head, body, reader, writer, left)
                self.calls.append(call)
                await self._script(call)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the proxy has left, or the test is over
        finally:
            left.set()
            self._tasks.discard(task)
            writer.close()


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    lines = head.lower().split(b"\r\n")
    if b"transfer-encoding: chunked" in lines:
        return await read_chunks(reader)
    lengths = [line for line in lines if line.startswith(b"content-length: ")]
    return await reader.readexactly(int(lengths[0].partition(b": ")[2])) if lengths else b""


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """The payload of a body in chunks, read to its end."""
    parts: list[bytes] = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


def json_answer(value: object, status: str = "200 OK") -> bytes:
    """A whole answer with a JSON body."""
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


@dataclass
class Wire:
    """A client's connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def ask(
        self, path: str, body: bytes | None = None, *, method: str = "", version: str = "1.1"
    ) -> None:
        """Send a request; with the length of its body."""
        lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/{version}"]
        lines += ["Host: localhost", *([] if body is None else [f"Content-Length: {len(body)}"])]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))

    async def head(self) -> bytes:
        """The head of the next answer."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """All that comes until the connection ends; raises where it is reset."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()


@asynccontextmanager
async def through(
    script: Script, *, reads_bodies: bool = True, probe_s: float = 0.05
) -> AsyncIterator[tuple[ScriptedHost, RunningProxy, Wire]]:
    """A scripted host, a proxy in front, and a client's connection to it.

    probe_s: between two rounds of probes.
    """
    async with ScriptedHost(script, reads_bodies=reads_bodies) as host:
        # The tests count what a host sees: one that misbehaves is to stay in.
        retries = {"eject_after": 1000}
        probes = {"interval": probe_s, "tags_interval": probe_s}
        config = make_config(host.url, retries=retries, probes=probes)
        async with running_proxy(config) as proxy, connected(proxy) as wire:
            yield host, proxy, wire


@asynccontextmanager
async def connected(proxy: RunningProxy) -> AsyncIterator[Wire]:
    """A client's connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, limit=2**22)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
