"""The hosts behind `bench overhead`: as little work a request and a record as Python allows.

They compute nothing: what goes out was made before, so that the core which they share with the
clients is not the one that is measured. Streams go by a wheel of one-millisecond ticks. While it is
held, streams open and give their first record, and the rest waits for all of them to be open.

As a process: `python -m sollol_proxy.lab.bench_upstream --hosts N`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import cast
from urllib.parse import urlsplit

from sollol_proxy.lab.ask import CHAT, GENERATE, V1_CHAT, AskError
from sollol_proxy.lab.bench_bytes import Flow, answer, fixed_answers, flow_of
from sollol_proxy.lab.process import Child, add_process_arguments, announce_and_wait, spawned
from sollol_proxy.server import lifecycle

HOLD, GO, STATS = "/bench/hold", "/bench/go", "/bench/stats"

TICKS_PER_S = 1000
_TICK_S = 1 / TICKS_PER_S
_TURNS = 1024
"""Ticks of the wheel's round: the longest time between two records."""

_GOLDEN_RATIO = 0.618034
_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)
_STREAMED = tuple(f"POST {path}".encode() for path in (CHAT, GENERATE, V1_CHAT))


class Wheel:
    """Who sends when. open: streams. lateness_s: of the latest tick since the last `go`."""

    def __init__(self) -> None:
        self._turns: list[list[_Host]] = [[] for _ in range(_TURNS)]
        self._loop = asyncio.get_running_loop()
        self._started_s = self._loop.time()
        self._done = 0
        self._joined = 0
        self._is_held = False
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        self.open = 0
        self.lateness_s = 0.0

    def stop(self) -> None:
        """No more ticks."""
        self._timer.cancel()

    def hold(self) -> None:
        """Time stands still for the streams."""
        self._is_held = True

    def go(self) -> None:
        """And goes on, from where it stood."""
        self._is_held = False
        self._started_s = self._loop.time() - self._done * _TICK_S
        self.lateness_s = 0.0

    def join(self, stream: _Host) -> None:
        """Take turns from now on; who joins together does not send together."""
        self._joined += 1
        phase = self._joined * _GOLDEN_RATIO % 1.0
        self._turns[(self._done + 1 + int(phase * stream.every)) % _TURNS].append(stream)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        if self._is_held:
            return
        due = int((self._loop.time() - self._started_s) / _TICK_S)
        self.lateness_s = max(self.lateness_s, (due - self._done - 1) * _TICK_S)
        for tick in range(self._done + 1, due + 1):
            place = tick % _TURNS
            streams, self._turns[place] = self._turns[place], []
            for stream in streams:
                if stream.beat():
                    self._turns[(tick + stream.every) % _TURNS].append(stream)
        self._done = max(self._done, due)


class _Host(asyncio.Protocol):
    """One connection to a host, and the stream on it."""

    __slots__ = ("_buffer", "_fixed", "_flow", "_is_full", "_left", "_transport", "_wheel", "every")

    def __init__(self, wheel: Wheel, fixed: dict[bytes, bytes]) -> None:
        self._wheel = wheel
        self._fixed = fixed
        self._buffer = b""
        self._flow: Flow | None = None
        self._left = 0
        self._is_full = False
        self.every = 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_stream()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        while (head := data.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(data, 0, head)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(data) < end:
                break
            self._answer(data[: data.find(b" HTTP/", 0, head)], data[head + 4 : end])
            data = data[end:]
        self._buffer = data

    def beat(self) -> bool:
        """Send what is due; whether there is another turn."""
        flow = self._flow
        if flow is None:
            return False
        if self._is_full:
            return True  # nobody reads: this turn is lost, not the record
        if self._left:
            self._left -= 1
            self._transport.write(flow.record)
            return True
        self._end_stream()
        self._transport.write(flow.end)
        return False

    def _answer(self, target: bytes, body: bytes) -> None:
        if target in _STREAMED:
            self._stream(target.removeprefix(b"POST ").decode(), body)
        elif (fixed := self._fixed.get(target)) is not None:
            self._transport.write(fixed)
        else:
            self._transport.write(self._control(target.rpartition(b" ")[2].decode("latin-1")))

    def _stream(self, path: str, body: bytes) -> None:
        try:
            flow, records, rate = flow_of(path, body)
        except AskError as error:
            self._transport.write(answer({"error": str(error)}, 400))
            return
        if rate:
            self._transport.write(flow.first)
            self._flow, self._left = flow, records - 1
            self.every = min(_TURNS - 1, max(1, round(TICKS_PER_S / rate)))
            self._wheel.open += 1
            self._wheel.join(self)
        else:
            self._transport.write(flow.first + flow.record * (records - 1) + flow.end)

    def _control(self, path: str) -> bytes:
        wheel = self._wheel
        if path == HOLD:
            wheel.hold()
        elif path == GO:
            wheel.go()
        elif path != STATS:
            return answer({"error": "not found"}, 404)
        return answer({"open": wheel.open, "lateness_s": wheel.lateness_s})

    def _end_stream(self) -> None:
        if self._flow is not None:
            self._flow = None
            self._wheel.open -= 1


class Upstreams:
    """Hosts on ports of 127.0.0.1. `async with`. first_port: and the next ones; 0 = free ones."""

    def __init__(self, hosts: int, first_port: int = 0) -> None:
        self._ports = [first_port + place if first_port else 0 for place in range(hosts)]
        self._stack = AsyncExitStack()
        self.urls: list[str] = []

    async def __aenter__(self) -> Upstreams:
        loop = asyncio.get_running_loop()
        wheel, fixed = Wheel(), fixed_answers()
        async with AsyncExitStack() as stack:
            stack.callback(wheel.stop)
            for port in self._ports:
                server = await loop.create_server(
                    lambda: _Host(wheel, fixed), "127.0.0.1", port, backlog=lifecycle.BACKLOG
                )
                stack.callback(server.close)
                self.urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()


def spawned_upstreams(hosts: int, first_port: int = 0) -> Child:
    """The hosts in a process of their own; `urls_of` reads their addresses."""
    words = ("--hosts", str(hosts), "--first-port", str(first_port))
    return spawned("sollol_proxy.lab.bench_upstream", *words)


def urls_of(child: Child) -> list[str]:
    """The hosts' base addresses."""
    return child.url.split(",")


def addresses_of(urls: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Host names and ports of base addresses."""
    parts = [urlsplit(url) for url in urls]
    return tuple((part.hostname or "127.0.0.1", part.port or 80) for part in parts)


async def _serve(hosts: int, first_port: int, until_eof: bool) -> int:
    try:
        async with Upstreams(hosts, first_port) as upstreams:
            await announce_and_wait(",".join(upstreams.urls), until_eof=until_eof)
    except OSError as error:
        raise SystemExit(f"the hosts cannot listen: {error}") from None
    return 0


def main() -> None:
    """Run the hosts until SIGTERM, SIGINT or the end of standard input."""
    parser = argparse.ArgumentParser(prog="python -m sollol_proxy.lab.bench_upstream")
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--first-port", type=int, default=0, help="of the hosts; 0 = free ones")
    add_process_arguments(parser)
    options = parser.parse_args()
    raise SystemExit(lifecycle.run(_serve(options.hosts, options.first_port, options.until_eof)))


if __name__ == "__main__":
    main()
