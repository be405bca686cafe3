"""From a configuration to a listening process and back: listen, signals, drain, exit code."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import structlog
from aiohttp import web

from sollol_proxy import __version__, logs
from sollol_proxy.config.schema import Config, split_listen
from sollol_proxy.errors import ConfigError, ConfigProblem
from sollol_proxy.server.app import build_app
from sollol_proxy.server.connection import MAX_HEADER_BYTES
from sollol_proxy.server.protocol import MAX_HEADERS, Runner
from sollol_proxy.server.services import SERVICES

try:
    import uvloop
except ImportError:  # Windows, PyPy
    _run: Callable[[Coroutine[Any, Any, int]], int] = asyncio.run
else:
    _run = uvloop.run

KEEP_ALIVE_S = 3600.0
"""Ollama keeps idle connections for ever; an hour is longer than any client library does."""

BACKLOG = 4096

COLLECT_AFTER = 5000
"""Containers made, less those gone, between two looks for garbage; Python's own is 700.

A request leaves some 30 objects in cycles whenever it ends, so rarer looks find as much. While
3,000 streams open, the longest look took 16 ms instead of 190, which every stream waits for, and
all together 1.8 % of the CPU time instead of 5. With 20,000 the longest took 48.
"""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run a process's main work in an event loop of its own; the exit code it ends with.

    It is the process that belongs to the work: what it collects garbage by is set here.
    """
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    return _run(work)


async def serve(config: Config, *, ready: Callable[[str], None] | None = None) -> int:
    """Listen until SIGTERM or SIGINT, then drain; the process's exit code.

    ready: called once with the base URL when connections are accepted.

    Raises:
        ConfigError: the policy cannot be loaded, or a host is the proxy itself.
    """
    logs.configure(config.log)
    address, port = split_listen(config.listen)
    _refuse_loops(config, address, port)
    app = build_app(config)
    try:
        # Before anything else starts: a port that is taken is the commonest first mistake.
        sockets = _bind(address, port)
    except OSError as error:
        sys.stderr.write(f"sollol-proxy: {await _why_not(error, address, port)}\n")
        return 1
    url = f"http://{_shown(address, sockets[0].getsockname()[1])}"
    runner = make_runner(app)
    with _stop_signals() as stopped:
        try:
            await runner.setup()
            for bound in sockets:
                await web.SockSite(runner, bound, backlog=BACKLOG).start()
            structlog.get_logger("sollol").info(
                "listening",
                url=url,
                version=__version__,
                policy=config.policy,
                hosts=[host.id for host in config.hosts],
            )
            # What is there by now stays for good: no collection needs to look at it again. To
            # look once more before takes 40 ms and finds nothing worth them.
            gc.freeze()
            if ready is not None:
                ready(url)
            await stopped.wait()
            return await _drain(app, runner, config.limits.drain)
        finally:
            await runner.cleanup()
            for bound in sockets:
                bound.close()


def make_runner(app: web.Application) -> web.AppRunner:
    """The runner as production uses it.

    `handler_cancellation` is off in aiohttp by default, and without it a client that leaves
    during a long prefill would be noticed only at its host's first byte. Bodies are not decoded:
    what a client has compressed is for the host to read or to refuse, as Ollama does.
    """
    return Runner(
        app,
        handler_cancellation=True,
        handle_signals=False,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=KEEP_ALIVE_S,
        shutdown_timeout=1.0,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADERS,
    )


def _bind(address: str, port: int) -> list[socket.socket]:
    """A listening socket for each address that the name stands for.

    Raises:
        OSError: the name is unknown, or an address is taken or not this machine's.
    """
    infos = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, place in dict.fromkeys(infos):
            sockets.append(socket.create_server(place[:2], family=family, backlog=BACKLOG))
    except OSError:
        for bound in sockets:
            bound.close()
        raise
    return sockets


async def _why_not(error: OSError, address: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return await _why_taken(address, port)
    return f"cannot listen on {_shown(address, port)}: {error.strerror or error}"


async def _why_taken(address: str, port: int) -> str:
    shown = _shown(address, port)
    other = _shown(address, port + 1 if port < 65535 else port - 1)
    if await _is_ollama(address, port):
        return (
            f"{shown} is taken by an Ollama of this machine: start that one with "
            f"OLLAMA_HOST={other} and name it with --host http://{other}, "
            f"or give the proxy another port with --listen"
        )
    return f"{shown} is taken by another program; give the proxy another port with --listen"


async def _is_ollama(address: str, port: int) -> bool:
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    timeout = aiohttp.ClientTimeout(total=1.0)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://{_shown(near, port)}/") as response,
        ):
            return b"Ollama is running" in await response.content.read(100)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


@contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
    """An event for SIGTERM and SIGINT, from before the first connection is accepted.

    The second signal has its usual effect: it ends a drain that takes too long.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def stop() -> None:
        stopped.set()
        restore()

    def restore() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        yield stopped
    finally:
        restore()


async def _drain(app: web.Application, runner: web.AppRunner, limit_s: float) -> int:
    """Not ready any more, no new connections; running answers may end."""
    log = structlog.get_logger("sollol")
    log.info("draining", limit_s=limit_s)
    for site in list(runner.sites):
        await site.stop()
    is_done = await app[SERVICES].dispatcher.drain(limit_s)
    if not is_done:
        log.warning("answers were cut: the drain limit is over (limits.drain)", limit_s=limit_s)
    return 0


def _refuse_loops(config: Config, address: str, port: int) -> None:
    """A host that is this very proxy would answer itself for ever.

    Raises:
        ConfigError: one of the hosts is.
    """
    own = {"127.0.0.1", "localhost", "::1", socket.gethostname().lower()}
    if address not in ("0.0.0.0", "::"):
        own = own | {address} if address in own else {address}
    for index, host in enumerate(config.hosts):
        parts = urlsplit(host.url)
        if port and parts.port == port and (parts.hostname or "") in own:
            message = f"{host.url} is the address the proxy itself listens on"
            raise ConfigError(
                [ConfigProblem("configuration", None, f"hosts[{index}].url", message)]
            )


def _shown(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
