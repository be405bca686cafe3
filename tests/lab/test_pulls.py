"""Pulls and pushes of a simulated host: progress, sharing, leaving, resuming, failing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import groupby, pairwise
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ClientSession, ServerDisconnectedError
from ollama import AsyncClient, ResponseError

from sollol_proxy.lab.simhost import SimHost, SimModel, SimSpec, spawned_simhost
from tests.wire.recordings import http_exchanges
from tests.wire.replay import raw_request

NEW = SimModel("new", size_bytes=1_000_000_000)
Record = dict[str, Any]


def spec(**changes: Any) -> SimSpec:
    fields: dict[str, Any] = {
        "models": (SimModel("m"),),
        "registry": (NEW, SimModel("m")),
        # 0.02 s on the wall for the new model.
        "pull_bytes_per_s": 50_000_000,
        "time_scale": 1000,
    }
    return SimSpec(id="h", **(fields | changes))


@pytest.fixture
async def host() -> AsyncIterator[SimHost]:
    async with SimHost(spec()) as started:
        yield started


@pytest.fixture
async def session(host: SimHost) -> AsyncIterator[ClientSession]:
    async with ClientSession(host.url) as opened:
        yield opened


async def records_of(session: ClientSession, path: str, model: str) -> list[Record]:
    async with session.post(path, json={"model": model}) as answer:
        assert (answer.status, answer.content_type) == (200, "application/x-ndjson")
        return [json.loads(line) for line in (await answer.read()).splitlines()]


def statuses(records: list[Record]) -> list[str]:
    """The texts, repetitions taken together."""
    return [text for text, _ in groupby(record["status"] for record in records)]


async def test_pull_tells_each_layer_and_ends_in_success(
    host: SimHost, session: ClientSession
) -> None:
    records = await records_of(session, "/api/pull", "new")
    layers: dict[str, list[Record]] = {}
    for record in records:
        if "digest" in record:
            layers.setdefault(record["digest"], []).append(record)
    hexadecimals = [digest.removeprefix("sha256:") for digest in layers]
    assert statuses(records) == [
        "pulling manifest",
        *(f"pulling {text[:12]}" for text in hexadecimals),
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    assert all(len(text) == 64 for text in hexadecimals)
    for steps in layers.values():
        assert len({step["total"] for step in steps}) == 1
        completed = [step.get("completed", 0) for step in steps]
        assert all(left <= right for left, right in pairwise(completed))
        assert (steps[0].get("completed"), completed[-1]) == (None, steps[0]["total"])
    assert sum(steps[0]["total"] for steps in layers.values()) == NEW.size_bytes
    assert (host.stats.manage.pulls_begun, host.stats.manage.pulls_finished) == (1, 1)


async def test_pulled_model_answers_at_once(host: SimHost, session: ClientSession) -> None:
    await records_of(session, "/api/pull", "NEW")
    async with session.post("/api/generate", json={"model": "new", "prompt": "x"}) as answer:
        assert answer.status == 200
    async with session.get("/api/tags") as answer:
        newest = (await answer.json())["models"][0]
    assert (newest["name"], newest["digest"]) == ("new:latest", NEW.digest)
    assert host.resident == ("new:latest",)


async def test_pull_without_stream_answers_its_last_record(session: ClientSession) -> None:
    async with session.post("/api/pull", json={"model": "new", "stream": False}) as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        assert await answer.read() == b'{"status":"success"}'


async def test_pull_of_what_is_there_tells_each_layer_once(session: ClientSession) -> None:
    records = [each for each in await records_of(session, "/api/pull", "m") if "digest" in each]
    assert len({record["digest"] for record in records}) == len(records) == 3
    assert all(record["completed"] == record["total"] for record in records)


@pytest.mark.parametrize("stream", [True, False])
async def test_pull_of_what_the_registry_lacks_fails_in_ollamas_words(
    host: SimHost, session: ClientSession, stream: bool
) -> None:
    fields = {"model": "nosuch", "stream": stream}
    async with session.post("/api/pull", json=fields) as answer:
        assert answer.status == (200 if stream else 500)
        last = (await answer.read()).splitlines()[-1]
    assert json.loads(last) == {"error": "pull model manifest: file does not exist"}
    assert host.stats.manage.pulls_failed == 1


async def test_deleted_model_can_be_pulled_only_from_the_registry(session: ClientSession) -> None:
    other = spec(models=(SimModel("m"), SimModel("local")))
    async with SimHost(other) as host, ClientSession(host.url) as session_:
        assert (await records_of(session_, "/api/pull", "local"))[-1] == {"status": "success"}
        for name in ("m", "local"):
            async with session_.delete("/api/delete", json={"model": name}):
                pass
        assert (await records_of(session_, "/api/pull", "m"))[-1] == {"status": "success"}
        assert "error" in (await records_of(session_, "/api/pull", "local"))[-1]


async def test_newer_model_takes_the_place_of_the_old_one_and_of_its_runner() -> None:
    newer = SimModel("m", digest_salt="2")
    async with (
        SimHost(spec(registry=(newer,), resident=("m",))) as host,
        ClientSession(host.url) as session,
    ):
        before = set(host.disk.blobs)
        records = await records_of(session, "/api/pull", "m")
        assert statuses(records)[-2:] == ["removing unused layers", "success"]
        assert host.disk.listings["m:latest"].digest == newer.digest != SimModel("m").digest
        assert not before & set(host.disk.blobs)
        async with session.get("/api/ps") as answer:
            assert (await answer.json())["models"][0]["digest"] == SimModel("m").digest
        async with session.post("/api/generate", json={"model": "m"}) as answer:
            assert answer.status == 200
        assert host.stats.loads == 1


async def test_pulls_of_one_model_share_its_download() -> None:
    async with (
        SimHost(spec(pull_bytes_per_s=50_000, time_scale=1)) as host,
        ClientSession(host.url) as session,
    ):
        fields = {"model": "new"}
        answers = [await session.post("/api/pull", json=fields) for _ in range(2)]
        await host.until(lambda stats: stats.manage.max_pulls == 2)
        for answer in answers:
            await answer.content.readuntil(b'"completed":')
        answers[0].close()
        await host.until(lambda stats: stats.manage.pulls_cancelled == 1)
        assert host.disk.partial == {}
        answers[1].close()
        await host.until(lambda stats: stats.manage.pulls_cancelled == 2)
        assert [0 < size < NEW.size_bytes for size in host.disk.partial.values()] == [True]
        assert host.stats.manage.pulls == 0


async def test_next_pull_goes_on_where_the_last_one_was_left(
    host: SimHost, session: ClientSession
) -> None:
    first = await session.post("/api/pull", json={"model": "new"})
    await first.content.readuntil(b'"completed":')
    first.close()
    stats = await host.until(lambda stats: stats.manage.pulls == 0)
    if stats.manage.pulls_cancelled:
        (there,) = host.disk.partial.values()
        records = await records_of(session, "/api/pull", "new")
        assert next(each for each in records if "digest" in each)["completed"] >= there
    assert NEW.key in host.disk.listings


async def test_layers_have_the_same_digests_on_every_host() -> None:
    seen = []
    for number in range(2):
        async with (
            SimHost(spec(models=(SimModel(f"other{number}"),))) as host,
            ClientSession(host.url) as session,
        ):
            records = await records_of(session, "/api/pull", "new")
            seen.append({record["digest"] for record in records if "digest" in record})
    assert seen[0] == seen[1]


async def test_creation_pulls_a_source_that_is_not_there(
    host: SimHost, session: ClientSession
) -> None:
    fields = {"model": "made", "from": "new", "system": "Be brief."}
    async with session.post("/api/create", json=fields) as answer:
        records = [json.loads(line) for line in (await answer.read()).splitlines()]
    assert records[0] == {"status": "pulling manifest"}
    # The pull within says so too: a creation is over with the last record only.
    assert [record["status"] for record in records].count("success") == 2
    assert {"new:latest", "made:latest"} <= set(host.disk.listings)
    assert host.disk.listings["made:latest"].parent == "new:latest"


FAULTS_MIDWAY = [
    ("/api/pull", {"model": "new"}),
    ("/api/push", {"model": "m"}),
    ("/api/create", {"model": "x", "from": "m"}),
]


@pytest.fixture
async def signed_in() -> AsyncIterator[tuple[SimHost, ClientSession]]:
    async with (
        SimHost(spec(account="ada")) as host,
        ClientSession(host.url) as session,
    ):
        yield host, session


Signed = tuple[SimHost, ClientSession]


@pytest.mark.parametrize(("path", "fields"), FAULTS_MIDWAY)
async def test_progress_fails_midway_with_an_error_line(
    signed_in: Signed, path: str, fields: Record
) -> None:
    host, session = signed_in
    host.fault("error_record", path=path, after_records=2, count=1, message="boom")
    async with session.post(path, json=fields) as answer:
        lines = (await answer.read()).splitlines()
    assert (len(lines), lines[-1]) == (3, b'{"error":"boom"}')
    async with session.post(path, json=fields) as answer:
        assert (await answer.read()).splitlines()[-1] == b'{"status":"success"}'


@pytest.mark.parametrize(("path", "fields"), FAULTS_MIDWAY)
async def test_progress_is_cut_midway(signed_in: Signed, path: str, fields: Record) -> None:
    host, session = signed_in
    host.fault("cut", path=path, after_records=2, count=1)
    async with session.post(path, json=fields) as answer:
        assert answer.status == 200
        with pytest.raises(ClientPayloadError):
            await answer.read()


@pytest.mark.parametrize(("path", "fields"), FAULTS_MIDWAY)
async def test_progress_ends_cleanly_without_success(
    signed_in: Signed, path: str, fields: Record
) -> None:
    host, session = signed_in
    host.fault("no_done", path=path, after_records=2, count=1)
    async with session.post(path, json=fields) as answer:
        lines = (await answer.read()).splitlines()
    assert len(lines) == 2
    assert b"success" not in lines[-1]


@pytest.mark.parametrize(("path", "fields"), FAULTS_MIDWAY)
async def test_progress_stops_and_goes_no_further(
    signed_in: Signed, path: str, fields: Record
) -> None:
    host, session = signed_in
    host.fault("hang", path=path, after_records=1, count=1)
    answer = await session.post(path, json=fields)
    assert json.loads(await answer.content.readline())["status"]
    rest = asyncio.get_running_loop().create_task(answer.content.readline())
    async with session.get("/api/version") as other:
        assert other.status == 200
    assert not rest.done()
    rest.cancel()
    answer.close()
    if path == "/api/pull":
        await host.until(lambda stats: stats.manage.pulls_cancelled == 1)


@pytest.mark.parametrize(("path", "fields"), FAULTS_MIDWAY)
async def test_request_is_refused_or_cut_before_any_record(
    signed_in: Signed, path: str, fields: Record
) -> None:
    host, session = signed_in
    host.fault("status", path=path, status=507, message="no space left on device", count=1)
    async with session.post(path, json=fields) as answer:
        assert (answer.status, await answer.json()) == (507, {"error": "no space left on device"})
    host.fault("reset_before_head", path=path, count=1)
    with pytest.raises((ServerDisconnectedError, ConnectionResetError)):
        await session.post(path, json=fields)
    host.fault("cut", path=path, count=1)
    with pytest.raises((ServerDisconnectedError, ConnectionResetError)):
        await session.post(path, json={**fields, "stream": False})


async def test_faults_of_one_route_leave_the_others_alone(
    host: SimHost, session: ClientSession
) -> None:
    host.fault("status", path="/api/pull")
    host.fault("status", path="/api/blobs", method="POST")
    async with session.post("/api/generate", json={"model": "m", "prompt": "x"}) as answer:
        assert answer.status == 200
    async with session.head("/api/blobs/sha256:" + "0" * 64) as answer:
        assert answer.status == 404


@pytest.mark.parametrize(("id_", "copies", "deletes"), [("copy", 1, 0), ("delete", 0, 1)])
async def test_cut_of_a_change_leaves_the_client_without_its_answer(
    id_: str, copies: int, deletes: int
) -> None:
    exchange = http_exchanges()[id_]
    async with SimHost(spec(models=(SimModel("det"), SimModel("det-copy")))) as host:
        host.fault("cut", path=exchange.path, count=1)
        answer = await raw_request("127.0.0.1", host.port, exchange)
        assert answer.status is None
        assert (host.stats.manage.copies, host.stats.manage.deletes) == (copies, deletes)


async def test_push_tells_each_layer_when_somebody_is_signed_in(signed_in: Signed) -> None:
    host, session = signed_in
    records = await records_of(session, "/api/push", "m")
    hexadecimals = [
        layer.digest.removeprefix("sha256:") for layer in host.disk.listings["m:latest"].layers
    ]
    assert statuses(records) == [
        "retrieving manifest",
        *(f"pushing {text[:12]}" for text in hexadecimals),
        "pushing manifest",
        "success",
    ]
    assert host.stats.manage.pushes == 1


async def test_push_is_denied_when_nobody_is_signed_in(session: ClientSession) -> None:
    assert "denied" in (await records_of(session, "/api/push", "m"))[-1]["error"]


async def test_client_library_pulls_and_is_told_of_failure(host: SimHost) -> None:
    client = AsyncClient(host=host.url)
    try:
        stream = await client.pull("new", stream=True)
        assert [record.status async for record in stream][-1] == "success"
        assert (await client.pull("new")).status == "success"
        with pytest.raises(ResponseError, match="file does not exist"):
            await client.pull("nosuch")
    finally:
        await client._client.aclose()  # the library has no close of its own


async def test_child_pulls_counts_and_fails_on_command() -> None:
    async with spawned_simhost(spec()) as child, ClientSession(child.url) as session:
        fault = {"kind": "cut", "path": "/api/pull", "after_records": 1, "count": 1}
        async with session.post("/sim/fault", json=fault) as answer:
            assert answer.status == 200
        async with session.post("/api/pull", json={"model": "new"}) as answer:
            with pytest.raises(ClientPayloadError):
                await answer.read()
        assert (await records_of(session, "/api/pull", "new"))[-1] == {"status": "success"}
        async with session.get("/sim/stats") as answer:
            counts = (await answer.json())["manage"]
        assert (counts["pulls_begun"], counts["pulls_failed"]) == (2, 1)
        fault = {"kind": "crash", "path": "/api/pull", "after_records": 1}
        async with session.post("/sim/fault", json=fault):
            pass
        async with session.post("/api/pull", json={"model": "new"}) as answer:
            with pytest.raises(ClientPayloadError):
                await answer.read()
        assert await child.wait() == 1
