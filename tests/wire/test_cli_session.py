"""The `ollama` command's own sequences as one session over hosts whose disks change.

The session runs against one host by itself and against the proxy over three; what the user sees
has to be the same, and at its end every host has to have what the one has.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest

from sollol_proxy.lab.simhost import SimHost, SimModel, SimSpec
from tests.server.pool import FAST, pool

GGUF = hashlib.shake_256(b"a model file").digest(300_000)
DIGEST = f"sha256:{hashlib.sha256(GGUF).hexdigest()}"

SPEC = SimSpec(
    id="alone",
    models=(SimModel("emb", size_bytes=50_000_000, capabilities=("embedding",)),),
    registry=(SimModel("llama3", size_bytes=10**9), SimModel("qwen3:4b", size_bytes=10**9)),
    pull_bytes_per_s=10**9,
    keep_alive_s=10**6,
    time_scale=FAST,
)

UNSET: Mapping[str, Any] = {"system": "", "template": "", "options": None}
OF_THE_MOMENT = {"created_at", "modified_at", "expires_at", "completed", "total"} | {
    f"{name}_duration" for name in ("total", "load", "prompt_eval", "eval")
}
"""What differs from run to run, and sums over hosts."""


@dataclass(frozen=True)
class Saw:
    """What a command got for one of its requests."""

    request: str
    status: int
    records: tuple[str, ...]

    @property
    def last(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.records[-1])
        return document


class Command:
    """The `ollama` command's requests, in its order and shape, and what they came to."""

    def __init__(self, client: aiohttp.ClientSession, url: str) -> None:
        self._client = client
        self._url = url
        self.saw: list[Saw] = []

    async def list(self) -> Saw:
        await self._begin()
        return await self._ask("GET", "/api/tags")

    async def ps(self) -> Saw:
        await self._begin()
        return await self._ask("GET", "/api/ps")

    async def show(self, model: str) -> Saw:
        await self._begin()
        return await self._ask("POST", "/api/show", {"model": "", **UNSET, "name": model})

    async def pull(self, model: str) -> Saw:
        await self._begin()
        return await self._pull(model)

    async def run(self, model: str, prompt: str) -> Saw:
        await self._begin()
        shown = await self._show_first(model)
        if shown.status == 404:
            pulled = await self._pull(model)
            if "error" in pulled.last:
                return pulled
            shown = await self._show_first(model)
        if "embedding" in shown.last["capabilities"]:
            embed = {"model": model, "input": prompt, "options": None}
            return await self._ask("POST", "/api/embed", embed)
        generate = {"model": model, "prompt": prompt, "suffix": "", **UNSET, "options": {}}
        return await self._ask("POST", "/api/generate", generate)

    async def cp(self, source: str, destination: str) -> Saw:
        await self._begin()
        return await self._ask("POST", "/api/copy", {"source": source, "destination": destination})

    async def stop(self, model: str) -> Saw:
        await self._begin()
        shown = await self._show_first(model)
        return shown if shown.status == 404 else await self._unload(model)

    async def rm(self, *models: str) -> Saw:
        await self._begin()
        for model in models:
            if (await self._show_first(model)).status == 200:
                await self._unload(model)
            done = await self._ask("DELETE", "/api/delete", {"model": "", "name": model})
        return done

    async def create(self, model: str, **fields: Any) -> Saw:
        await self._begin()
        return await self._ask("POST", "/api/create", {"model": model, **fields, "name": ""})

    async def create_from_file(self, model: str) -> Saw:
        await self._begin()
        url = f"{self._url}/api/blobs/{DIGEST}"
        async with self._client.post(url, data=_in_chunks(GGUF)) as response:
            self.saw.append(Saw("POST blob", response.status, (await response.text(),)))
        body = {"model": model, "files": {"model.gguf": DIGEST}, "name": ""}
        return await self._ask("POST", "/api/create", body)

    async def push(self, model: str) -> Saw:
        await self._begin()
        return await self._ask("POST", "/api/push", _registry_fields(model))

    async def _begin(self) -> None:
        await self._ask("HEAD", "/")

    async def _show_first(self, model: str) -> Saw:
        return await self._ask("POST", "/api/show", {"model": model, **UNSET, "name": ""})

    async def _pull(self, model: str) -> Saw:
        return await self._ask("POST", "/api/pull", _registry_fields(model))

    async def _unload(self, model: str) -> Saw:
        body = {"model": model, "prompt": "", "suffix": "", **UNSET, "keep_alive": "0s"}
        return await self._ask("POST", "/api/generate", body)

    async def _ask(self, method: str, path: str, body: object = None) -> Saw:
        async with self._client.request(
            method, f"{self._url}{path}", json=body, raise_for_status=False
        ) as response:
            records = tuple(_records(await response.text()))
        saw = Saw(f"{method} {path}", response.status, records)
        self.saw.append(saw)
        return saw


def _registry_fields(model: str) -> Mapping[str, str]:
    return {"model": "", "username": "", "password": "", "name": model}


async def _in_chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 2**15):
        yield data[start : start + 2**15]


def _records(text: str) -> Iterator[str]:
    """The records of an answer without what is of the moment; a layer's progress once."""
    previous = ""
    for line in text.splitlines():
        try:
            record = json.dumps(_timeless(json.loads(line)), sort_keys=True)
        except ValueError:
            record = line
        if record != previous:
            yield record
        previous = record


def _timeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _timeless(item) for key, item in value.items() if key not in OF_THE_MOMENT}


async def session(command: Command) -> None:
    """A day with the command: what is made of it is looked at in between."""
    await command.list()
    await command.pull("llama3")
    await command.pull("llama3")
    await command.pull("nosuch")
    await command.show("llama3")
    await command.run("llama3", "why is the sky blue?")
    await command.ps()
    await command.cp("llama3", "mine:v1")
    await command.cp("nosuch", "other")
    await command.list()
    await command.run("emb", "hello")
    await command.run("qwen3:4b", "hi")
    await command.run("nosuch", "hi")
    await command.stop("llama3")
    await command.stop("nosuch")
    await command.create_from_file("filed")
    await command.create_from_file("filed-again")
    await command.create("brief", **{"from": "llama3"}, system="Be brief.")
    await command.create("unknown", files={"x.gguf": f"sha256:{'d' * 64}"})
    await command.create("neither")
    await command.run("brief", "hi")
    await command.rm("mine:v1", "qwen3:4b")
    await command.rm("nosuch")
    await command.show("mine:v1")
    await command.push("nosuch")
    await command.push("brief")
    await command.stop("brief")
    await command.ps()
    await command.list()


Disk = dict[str, str]


def disk_of(host: SimHost) -> Disk:
    """Digests by name."""
    return {listing.name: listing.digest for listing in host.disk.listings.values()}


@asynccontextmanager
async def one_host() -> AsyncIterator[tuple[SimHost, Command]]:
    async with SimHost(SPEC) as host, aiohttp.ClientSession() as client:
        yield host, Command(client, host.url)


async def test_session_over_three_hosts_is_what_it_is_with_one() -> None:
    async with one_host() as (alone, command):
        await session(command)
        expected, disk, resident = command.saw, disk_of(alone), alone.resident
    async with pool(*(replace(SPEC, id=id_) for id_ in "abc")) as running:
        through = Command(running.client, running.proxy.url)
        await session(through)
        assert [saw.request for saw in through.saw] == [saw.request for saw in expected]
        for got, wanted in zip(through.saw, expected, strict=True):
            assert got == wanted
        assert len(disk) == 5
        for host in running.hosts.values():
            assert disk_of(host) == disk
        loaded = [name for host in running.hosts.values() for name in host.resident]
        assert loaded == list(resident) == ["emb:latest"]
        await running.proxy.until_idle()


async def test_every_host_takes_part_when_models_come_and_go() -> None:
    async with pool(*(replace(SPEC, id=id_) for id_ in "abc")) as running:
        hosts = list(running.hosts.values())
        command = Command(running.client, running.proxy.url)
        await command.pull("llama3")
        assert all("llama3:latest" in host.disk.listings for host in hosts)
        await command.cp("llama3", "mine:v1")
        assert all("mine:v1" in host.disk.listings for host in hosts)
        await command.create_from_file("filed")
        counts = [host.stats.manage for host in hosts]
        assert [each.blob_bytes for each in counts] == [len(GGUF)] * 3
        await command.create_from_file("filed")
        assert [host.stats.manage.blob_bytes for host in hosts] == [len(GGUF)] * 3
        await command.rm("mine:v1")
        assert not any("mine:v1" in host.disk.listings for host in hosts)
        assert [
            (each.pulls_finished, each.copies, each.creates, each.deletes)
            for each in (host.stats.manage for host in hosts)
        ] == [(1, 1, 2, 1)] * 3


async def test_stop_unloads_wherever_the_model_is_in_memory() -> None:
    spec = replace(SPEC, models=SPEC.registry, resident=("llama3", "qwen3:4b"))
    async with pool(*(replace(spec, id=id_) for id_ in "abc")) as running:
        command = Command(running.client, running.proxy.url)
        await command.stop("llama3")
        assert [host.resident for host in running.hosts.values()] == [("qwen3:4b",)] * 3
        loaded = (await command.ps()).last["models"]
        assert [row["name"] for row in loaded] == ["qwen3:4b"]


async def test_list_follows_at_once_whatever_a_command_changed() -> None:
    async with pool(
        *(replace(SPEC, id=id_) for id_ in "abc"), probes={"interval": 60, "tags_interval": 60}
    ) as running:
        command = Command(running.client, running.proxy.url)

        async def listed() -> set[str]:
            return {row["name"] for row in (await command.list()).last["models"]}

        assert await listed() == {"emb:latest"}
        await command.pull("llama3")
        assert await listed() == {"emb:latest", "llama3:latest"}
        await command.cp("llama3", "mine")
        assert "mine:latest" in await listed()
        await command.create("brief", **{"from": "mine"}, system="Be brief.")
        assert "brief:latest" in await listed()
        await command.create_from_file("filed")
        assert "filed:latest" in await listed()
        await command.rm("mine", "filed")
        assert await listed() == {"emb:latest", "llama3:latest", "brief:latest"}
        await command.run("brief", "hi")
        assert [row["name"] for row in (await command.ps()).last["models"]] == ["brief:latest"]
        await command.stop("brief")
        assert (await command.ps()).last["models"] == []


async def test_stop_waits_for_no_slot_when_the_model_is_busy() -> None:
    spec = replace(SPEC, models=SPEC.registry, resident=("llama3",), time_scale=1.0, decode_tps=1.0)
    async with pool(*(replace(spec, id=id_) for id_ in "abc")) as running:
        command = Command(running.client, running.proxy.url)
        body = {"model": "llama3", "prompt": "hi", "options": {"num_predict": 1_000_000}}
        url = f"{running.proxy.url}/api/generate"
        async with AsyncExitStack() as stack:
            for _ in running.hosts:
                busy = await stack.enter_async_context(running.client.post(url, json=body))
                await busy.content.readline()
            assert (await command.stop("llama3")).last["done_reason"] == "unload"
            assert [host.stats.total_in_flight for host in running.hosts.values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("framing", "piece"),
    [
        (f"Content-Length: {len(GGUF)}", GGUF[:100_000]),
        ("Transfer-Encoding: chunked", b"186A0\r\n" + GGUF[:100_000] + b"\r\n"),
    ],
)
async def test_upload_that_breaks_off_leaves_no_file_behind(framing: str, piece: bytes) -> None:
    async with pool(*(replace(SPEC, id=id_) for id_ in "abc")) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.proxy.port)
        head = f"POST /api/blobs/{DIGEST} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"
        writer.write(head.encode() + piece)
        for host in running.hosts.values():
            await host.until(lambda stats: stats.manage.blob_bytes > 0)
        writer.close()
        await running.proxy.until_idle()
        async with running.client.head(f"{running.proxy.url}/api/blobs/{DIGEST}") as response:
            assert response.status == 404
        assert [host.stats.manage.blobs_stored for host in running.hosts.values()] == [0, 0, 0]
        # The whole file is taken afterwards.
        command = Command(running.client, running.proxy.url)
        assert (await command.create_from_file("filed")).status == 200
        assert [host.stats.manage.blobs_stored for host in running.hosts.values()] == [1, 1, 1]
