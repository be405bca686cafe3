"""The proxy as a process of its own, started as an operator starts it."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from tests.support import PATIENCE_S


@dataclass(frozen=True)
class ProxyProcess:
    """`python -m sollol_proxy serve`, listening, with its hosts up."""

    url: str
    port: int
    pid: int

    def resident_bytes(self) -> int:
        """Memory of the process that is in RAM."""
        return self._status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """The most that it has been."""
        return self._status_bytes("VmHWM")

    def _status_bytes(self, key: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(f"{key}:"))
        return int(line.split()[1]) * 1024


@asynccontextmanager
async def spawned_proxy(
    document: Mapping[str, Any], directory: Path, session: ClientSession
) -> AsyncIterator[ProxyProcess]:
    """The proxy of a configuration, for the block; `directory` takes the file."""
    port = free_port()
    file = directory / f"sollol-{port}.yaml"
    listen = {"listen": f"127.0.0.1:{port}"}
    # JSON is YAML.
    file.write_text(json.dumps({"log": {"format": "json"}, **document, **listen}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sollol_proxy", "serve", "--config", str(file)),
        stdin=DEVNULL,
        stderr=PIPE,
    )
    assert process.stderr is not None
    reading: asyncio.Task[None] | None = None
    try:
        await _until_listening(process.stderr)
        reading = asyncio.create_task(_read_on(process.stderr))
        proxy = ProxyProcess(f"http://127.0.0.1:{port}", port, process.pid)
        await _until_up(session, proxy.url, len(document["hosts"]))
        yield proxy
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        if reading is not None:
            await reading


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until_listening(log: asyncio.StreamReader) -> None:
    seen = b""
    async with asyncio.timeout(PATIENCE_S):
        async for line in log:
            seen += line
            if b'"listening"' in line:
                return
    raise AssertionError(f"the proxy ended at its start: {seen.decode()}")


async def _read_on(log: asyncio.StreamReader) -> None:
    """Empty the pipe of the log, or the proxy would wait for it."""
    while await log.read(2**16):
        pass


async def _until_up(session: ClientSession, url: str, hosts: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with session.get(f"{url}/sollol/stats") as response:
                if (await response.json())["hosts"]["routable"] == hosts:
                    return
