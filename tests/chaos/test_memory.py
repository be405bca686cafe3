"""The proxy's memory, measured from outside: a process of its own, and /proc."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from aiohttp import ClientSession

from sollol_proxy.lab.simhost import SimHost, SimModel, SimSpec
from tests.chaos.asking import GENERATE, ask_all, bodies
from tests.chaos.pools import host_spec
from tests.chaos.processes import ProxyProcess, spawned_proxy
from tests.support import PATIENCE_S

MIB = 2**20

SLOW_CLIENTS = 8
WORDY = f"{'h' * 350}/{'n' * 80}/{'m' * 80}:{'t' * 80}"
"""A model's name stands in every record: the longest there may be makes few records weigh much."""
RECORDS_EACH = 150_000
STILL_TURNS = 100
"""Round trips to the proxy without a record from the host, after which a stream stands still."""


@contextmanager
def deaf_client(port: int) -> Iterator[None]:
    """A client that asks for a long stream and never reads."""
    body = json.dumps(
        {"model": WORDY, "prompt": "x", "options": {"num_predict": RECORDS_EACH}}
    ).encode()
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as connection:
        # Before connecting: afterwards the window is agreed upon.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(head.encode() + body)
        yield


async def stands_still(host: SimHost, proxy: ProxyProcess, session: ClientSession) -> int:
    """Wait until the host sends nothing more; the records it has sent.

    Each turn is a round trip through the loops of client, host and proxy, so all three have had
    occasion to move bytes on.
    """
    async with asyncio.timeout(PATIENCE_S):
        await host.until(lambda stats: stats.total_in_flight == SLOW_CLIENTS)
        still_turns, sent = 0, -1
        while still_turns < STILL_TURNS:
            async with session.get(f"{proxy.url}/sollol/live") as response:
                await response.read()
            now_sent = host.stats.records_sent
            still_turns = still_turns + 1 if now_sent == sent > 0 else 0
            sent = now_sent
    return sent


async def test_memory_stays_bounded_when_clients_do_not_read(
    session: ClientSession, tmp_path: Path
) -> None:
    spec = SimSpec(
        id="fast",
        slots=SLOW_CLIENTS,
        alpha=0.0,
        time_scale=1000,
        models=(SimModel(WORDY),),
        resident=(WORDY,),
    )
    async with SimHost(spec) as host:
        document = {"hosts": [{"url": host.url, "slots": SLOW_CLIENTS}]}
        async with spawned_proxy(document, tmp_path, session) as proxy:
            before_bytes = proxy.resident_bytes()
            with ExitStack() as stack:
                for _ in range(SLOW_CLIENTS):
                    stack.enter_context(deaf_client(proxy.port))
                sent = await stands_still(host, proxy, session)
                grown_bytes = proxy.resident_bytes() - before_bytes
                held_back_bytes = (SLOW_CLIENTS * RECORDS_EACH - sent) * len(WORDY)
            assert held_back_bytes > 50 * MIB
            assert grown_bytes < 8 * MIB
            async with asyncio.timeout(PATIENCE_S):
                await host.until(lambda stats: stats.total_in_flight == 0)


async def test_memory_is_flat_when_many_requests_have_passed(
    session: ClientSession, tmp_path: Path
) -> None:
    spec = host_spec("h", slots=16, time_scale=10_000)
    async with (
        SimHost(spec) as host,
        spawned_proxy({"hosts": [{"url": host.url, "slots": 16}]}, tmp_path, session) as proxy,
    ):
        grown_bytes = []
        for _ in range(2):
            before_bytes = proxy.resident_bytes()
            answers = await ask_all(session, proxy.url, bodies(2000, 2), at_once=16)
            assert all(answer.is_whole for answer in answers)
            grown_bytes.append(proxy.resident_bytes() - before_bytes)
        # The first half fills what is bounded: records, histograms, connections.
        assert grown_bytes[1] < 4 * MIB
