"""Hosts that die, hang, refuse and lie, under many clients at once.

The promise: whoever has received nothing yet gets a whole answer from another host; whoever has
received a part is told that the rest will not come.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession

from sollol_proxy.core.snapshots import Snapshot
from sollol_proxy.core.types import HostState
from sollol_proxy.lab.process import Child
from sollol_proxy.lab.simhost import SimHost, spawned_simhost
from tests.chaos.asking import GENERATE, Answer, ask, ask_all, bodies, get_json
from tests.chaos.pools import host_spec, of_host
from tests.support import PATIENCE_S, RunningProxy, make_config, running_proxy

CLIENTS = 200
TOKENS = 30
LONG_BACKOFF = {"eject_after": 3, "backoff": 60, "backoff_max": 60}
"""Once out, a host gets no trial within a test."""


class Storm:
    """Five hosts in processes of their own, a proxy before them, and many clients at once.

    `doomed` streams for as long as a test takes, so that its death surely cuts streams.
    """

    def __init__(self, children: Mapping[str, Child], proxy: RunningProxy, slots: int) -> None:
        self.children = children
        self.proxy = proxy
        self._streams_wanted = slots // 2
        self._doomed_streams = asyncio.Event()
        self._begun: Counter[str] = Counter()

    def on_first_bytes(self, host_id: str) -> None:
        self._begun[host_id] += 1
        if self._begun["doomed"] >= self._streams_wanted:
            self._doomed_streams.set()

    async def run(self, session: ClientSession) -> list[Answer]:
        """All clients' answers; the failures strike while streams run and jobs wait."""
        clients = [
            asyncio.create_task(
                ask(session, self.proxy.url, body, on_first_bytes=self.on_first_bytes)
            )
            for body in bodies(CLIENTS, TOKENS)
        ]
        async with asyncio.timeout(PATIENCE_S):
            await self._doomed_streams.wait()
        fault = {"kind": "hang_connect"}
        async with session.post(f"{self.children['hung'].url}/sim/fault", json=fault) as response:
            assert response.status == 200
        await self.children["doomed"].kill()
        return await asyncio.gather(*clients)


@asynccontextmanager
async def storm(slots: int) -> AsyncIterator[Storm]:
    specs = [host_spec(name, slots=slots) for name in ("hung", "a", "b", "c")]
    specs.append(host_spec("doomed", slots=slots, decode_tps=0.05, prefill_tps=5000))
    async with AsyncExitStack() as stack:
        children = {
            spec.id: await stack.enter_async_context(spawned_simhost(spec)) for spec in specs
        }
        config = make_config(
            *({"url": child.url, "id": name, "slots": slots} for name, child in children.items()),
            limits={"connect": 2.0},
            probes={"timeout": 1.0},
        )
        proxy = await stack.enter_async_context(running_proxy(config))
        yield Storm(children, proxy, slots)


@pytest.mark.parametrize("slots", [48, 2], ids=["all-stream-at-once", "most-wait"])
async def test_storm_ends_whole_or_honestly_when_a_host_dies_and_another_hangs(
    slots: int, session: ClientSession
) -> None:
    async with storm(slots) as world:
        answers = await world.run(session)
        cut = [answer for answer in answers if answer.is_honest_failure]
        strange = [answer for answer in answers if answer not in cut and not answer.is_whole]
        assert strange == []
        assert {answer.host for answer in cut} == {"doomed"}
        assert len(cut) >= slots // 2
        snapshot = await world.proxy.until_idle()
        assert of_host(snapshot, "doomed").state is HostState.EJECTED
        assert sum(host.completed for host in snapshot.hosts) == CLIENTS - len(cut)
        assert of_host(snapshot, "doomed").failures >= len(cut)
        await check_records(session, world, cut)
        await check_hosts(session, world, snapshot)


async def check_records(session: ClientSession, world: Storm, cut: Sequence[Answer]) -> None:
    """`/sollol/requests` tells what the clients saw."""
    page = await get_json(session, f"{world.proxy.url}/sollol/requests?n=1000")
    outcomes = Counter(row["outcome"] for row in page["requests"] if row["path"] == GENERATE)
    assert outcomes == {"completed": CLIENTS - len(cut), "upstream_broke": len(cut)}


async def check_hosts(session: ClientSession, world: Storm, snapshot: Snapshot) -> None:
    """The hosts that are left have counted what the proxy has."""
    for name in ("a", "b", "c"):
        stats = await get_json(session, f"{world.children[name].url}/sim/stats")
        host = of_host(snapshot, name)
        assert (host.state, host.failures) == (HostState.HEALTHY, 0)
        assert stats["in_flight"] == {}
        assert stats["requests"][GENERATE] == host.completed


@asynccontextmanager
async def faulty_pool(
    kind: str, *, sections: Mapping[str, Any] | None = None, **details: Any
) -> AsyncIterator[tuple[SimHost, RunningProxy]]:
    """A host with a fault beside two good ones, one slot each, and a proxy before them."""
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(SimHost(host_spec(name))) for name in ("bad", "a", "b")
        ]
        hosts[0].fault(kind, **details)
        config = make_config(
            *({"url": host.url, "id": host.spec.id} for host in hosts),
            retries=LONG_BACKOFF,
            **(sections or {}),
        )
        yield hosts[0], await stack.enter_async_context(running_proxy(config))


BEFORE_FIRST_BYTE = {
    "503": ("status", {"status": 503}, True),
    "503-not-streamed": ("status", {"status": 503}, False),
    "500": ("status", {"status": 500, "message": "llama runner process has terminated"}, True),
    "cut-before-head": ("reset_before_head", {}, True),
    "cut-before-head-not-streamed": ("reset_before_head", {}, False),
    "cut-behind-head": ("cut", {"after_records": 0}, True),
}


@pytest.mark.parametrize(
    ("kind", "details", "stream"), BEFORE_FIRST_BYTE.values(), ids=BEFORE_FIRST_BYTE
)
async def test_bad_host_fails_no_request_when_it_fails_before_its_first_byte(
    kind: str, details: Mapping[str, Any], stream: bool, session: ClientSession
) -> None:
    async with faulty_pool(kind, **details) as (bad, proxy):
        answers = await ask_all(session, proxy.url, bodies(CLIENTS, 3, stream=stream), at_once=20)
        assert [answer for answer in answers if not answer.is_whole] == []
        assert bad.stats.requests[GENERATE] == LONG_BACKOFF["eject_after"]
        assert of_host(proxy.snapshot(), "bad").state is HostState.EJECTED


async def test_lying_host_fails_no_request_when_it_lacks_a_model_it_lists(
    session: ClientSession,
) -> None:
    probes = {"probes": {"tags_interval": 60}}
    async with faulty_pool("missing_model", sections=probes) as (bad, proxy):
        answers = await ask_all(session, proxy.url, bodies(CLIENTS, 3), at_once=20)
        assert [answer for answer in answers if not answer.is_whole] == []
        assert bad.stats.requests[GENERATE] == 1
        lying = of_host(proxy.snapshot(), "bad")
        assert (lying.state, lying.failures) == (HostState.HEALTHY, 0)


@pytest.mark.parametrize(
    ("kind", "last_key"), [("cut", "error"), ("error_record", "error"), ("no_done", "response")]
)
async def test_bad_host_is_ejected_when_its_streams_break_off(
    kind: str, last_key: str, session: ClientSession
) -> None:
    async with faulty_pool(kind, after_records=2) as (bad, proxy):
        answers = await ask_all(session, proxy.url, bodies(CLIENTS, 5), at_once=20)
        broken = [answer for answer in answers if not answer.is_whole]
        assert len(broken) == LONG_BACKOFF["eject_after"] == bad.stats.requests[GENERATE]
        for answer in broken:
            assert answer.host == "bad"
            # The two records that came, then what the host, or in its place the proxy, says.
            assert [record["done"] for record in answer.records[:2]] == [False, False]
            assert len(answer.records) == (2 if kind == "no_done" else 3)
            assert last_key in answer.records[-1]
            assert not answer.was_cut
        assert of_host(proxy.snapshot(), "bad").state is HostState.EJECTED
        page = await get_json(session, f"{proxy.url}/sollol/requests?n=1000")
        outcomes = Counter(row["outcome"] for row in page["requests"])
        assert outcomes["upstream_broke"] == len(broken)
