"""What the `ollama` command and the client libraries were recorded to send, through the proxy.

Each command or call is repeated in order, on the connections it used, over one host and over
three; every answer has to be the recorded one.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from sollol_proxy.core.types import Outcome
from tests.support import RunningProxy, make_config, running_proxy
from tests.wire.owed import as_host_says, assert_equal, assert_equal_but_for_ties, tags_of
from tests.wire.recordings import Exchange, client_entries, entry_exchanges, replayable
from tests.wire.replay import Document, RawClient, ReplayHost

NOTHING_LISTENED = "list-refused"
"""The one command that had nobody to talk to."""


@dataclass(frozen=True)
class Step:
    """One exchange of a command or call. conn: the number of its connection."""

    conn: int
    exchange: Exchange


@dataclass(frozen=True)
class Entry:
    """One command or call."""

    id: str
    steps: tuple[Step, ...]

    @property
    def exchanges(self) -> list[Exchange]:
        return [step.exchange for step in self.steps]


def _read(raw: dict[str, Any]) -> Entry:
    exchanges = [replayable(exchange) for exchange in entry_exchanges(raw)]
    numbers = [int(each["conn"]) for each in raw["exchanges"]]
    return Entry(raw["id"], tuple(map(Step, numbers, exchanges)))


RAW = [*client_entries("cli.jsonl"), *client_entries("clients.jsonl")]
ENTRIES = {f"{number}-{raw['id']}": _read(raw) for number, raw in enumerate(RAW)}
WITH_STEPS = [key for key, entry in ENTRIES.items() if entry.steps]


# What the recorded host had


def document_at(exchanges: Sequence[Exchange], path: str) -> Document | None:
    """The document that was recorded for a path, if one was asked for."""
    found = (each for each in exchanges if each.method == "GET" and each.raw_path == path)
    answered = next((each for each in found if each.status == 200), None)
    return json.loads(answered.answer) if answered else None


def tags_around(exchanges: Sequence[Exchange]) -> Document:
    """What `/api/tags` said, or must have said for the answers to be what they were."""
    tags = document_at(exchanges, "/api/tags")
    if tags is not None:
        return tags
    listed = document_at(exchanges, "/v1/models")
    rows = list(listed["data"]) if listed else []
    rows += [json.loads(each.answer) for each in exchanges if is_v1_model(each)]
    if rows:
        return {"models": [_dated(row["id"], row["created"]) for row in rows]}
    return tags_of(sorted({name for each in exchanges for name in names_in(each)}))


def is_v1_model(exchange: Exchange) -> bool:
    return exchange.path.startswith("/v1/models/") and exchange.status == 200


def _dated(name: str, created: int) -> Document:
    [row] = tags_of([name])["models"]
    return {**row, "modified_at": datetime.fromtimestamp(created, UTC).isoformat()}


MISSING = (403, 404)


def names_in(exchange: Exchange) -> Iterator[str]:
    """Models that must have been there for this answer."""
    try:
        fields = json.loads(exchange.body or b"")
    except ValueError:
        return
    makes = exchange.path in ("/api/create", "/api/pull", "/api/push")
    keys = ("from",) if makes else ("source",) if exchange.path == "/api/copy" else MODEL_KEYS
    if exchange.status not in MISSING:
        yield from (fields[key] for key in keys if fields.get(key))


MODEL_KEYS = ("model", "name")


def blobs_around(exchanges: Sequence[Exchange]) -> set[str]:
    """Digests that were there before: an upload of them was not wanted."""
    prefix = "/api/blobs/"
    posts = [each for each in exchanges if each.path.startswith(prefix)]
    return {each.path.removeprefix(prefix) for each in posts if each.status == 200}


@asynccontextmanager
async def as_recorded(
    entry: Entry, count: int, left: asyncio.Queue[str]
) -> AsyncIterator[tuple[list[ReplayHost], RunningProxy]]:
    """So many hosts that have what the recorded one had, and say what it said.

    What it had in memory lies with the first of them.
    """
    exchanges = entry.exchanges
    async with AsyncExitStack() as stack:
        hosts = []
        for number in range(count):
            host = ReplayHost(as_host_says(each) for each in exchanges)
            host.tags = tags_around(exchanges)
            if number == 0:
                host.ps = document_at(exchanges, "/api/ps") or host.ps
            host.blobs = blobs_around(exchanges)
            host.left = left
            hosts.append(await stack.enter_async_context(host))
        config = make_config(*(host.url for host in hosts))
        yield hosts, await stack.enter_async_context(running_proxy(config))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("key", WITH_STEPS)
async def test_recorded_sequence_comes_out_as_recorded(key: str, count: int) -> None:
    entry = ENTRIES[key]
    left: asyncio.Queue[str] = asyncio.Queue()
    async with as_recorded(entry, count, left) as (_, proxy), AsyncExitStack() as stack:
        clients: dict[int, RawClient] = {}
        for step in entry.steps:
            if step.conn not in clients:
                client = RawClient("127.0.0.1", proxy.port)
                clients[step.conn] = await stack.enter_async_context(client)
            answer = await clients[step.conn].ask(step.exchange)
            if step.exchange.raw_path in ("/api/tags", "/v1/models"):
                assert_equal_but_for_ties(answer, step.exchange)
            else:
                assert_equal(answer, step.exchange)
            if step.exchange.ended == "client-closed":
                async with asyncio.timeout(30):
                    assert await left.get() == step.exchange.path
        assert [client.opened for client in clients.values()] == [1] * len(clients)
        await proxy.until_idle()


@pytest.mark.parametrize("count", [1, 3])
async def test_what_the_hosts_were_asked_together_is_what_was_recorded(count: int) -> None:
    """Whoever is asked, nothing is lost and nothing invented on the way."""
    entry = next(entry for entry in ENTRIES.values() if entry.id == "rm")
    async with as_recorded(entry, count, asyncio.Queue()) as (hosts, proxy):
        async with RawClient("127.0.0.1", proxy.port) as client:
            for exchange in entry.exchanges:
                assert_equal(await client.ask(exchange), exchange)
        seen: dict[str, int] = defaultdict(int)
        for host in hosts:
            for request in host.seen:
                if request.method != "GET":
                    seen[f"{request.method} {request.path}"] += 1
        assert seen == {
            "POST /api/show": 1,
            "POST /api/generate": count,
            "DELETE /api/delete": count,
        }


async def test_stopped_proxy_refuses_connections_as_a_stopped_host_does() -> None:
    async with ReplayHost() as host:
        async with running_proxy(make_config(host.url)) as proxy:
            port = proxy.port
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


def test_every_recorded_command_and_call_is_used() -> None:
    assert [entry.id for entry in ENTRIES.values()] == [raw["id"] for raw in RAW]
    assert {entry.id for entry in ENTRIES.values() if not entry.steps} == {NOTHING_LISTENED}
    assert sum(len(ENTRIES[key].steps) for key in WITH_STEPS) == 112 + 100
    libraries = {raw["library"] for raw in RAW if "library" in raw}
    assert len(libraries) == 5
    ends = {each.ended for entry in ENTRIES.values() for each in entry.exchanges}
    assert ends == {"complete", "client-closed"}
    gone = [e for entry in ENTRIES.values() for e in entry.exchanges if e.ended != "complete"]
    assert len(gone) == 4


@pytest.mark.parametrize("count", [1, 3])
async def test_client_that_left_is_recorded_as_gone(count: int) -> None:
    entry = next(entry for entry in ENTRIES.values() if entry.id == "run-sigint")
    left: asyncio.Queue[str] = asyncio.Queue()
    async with as_recorded(entry, count, left) as (_, proxy):
        async with RawClient("127.0.0.1", proxy.port) as client:
            for exchange in entry.exchanges:
                await client.ask(exchange)
        assert await left.get() == "/api/generate"
        await proxy.until_idle()
        async with asyncio.timeout(30):
            while not proxy.services.journal.latest(1):  # noqa: ASYNC110 - closed a turn later
                await asyncio.sleep(0)
        assert proxy.services.journal.latest(1)[0].outcome is Outcome.CLIENT_GONE
