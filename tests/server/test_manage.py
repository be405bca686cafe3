"""Pull, create, copy, delete and unload over several simulated hosts, with real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from sollol_proxy.lab.simhost import SimHost, SimModel
from tests.server.pool import Pool, pool, sim
from tests.support import PATIENCE_S

NEW = SimModel("qwen3:8b", size_bytes=500_000_000)
DATA = b"a model file" * 1000
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"

Records = list[dict[str, Any]]


def hosts(names: str = "abc", *models: str, **fields: Any) -> list[Any]:
    """Hosts that can pull `qwen3:8b`."""
    return [sim(name, *models, registry=(NEW,), **fields) for name in names]


async def ask(p: Pool, path: str, *, method: str = "POST", **body: Any) -> tuple[Any, Records]:
    """A request through the proxy, its answer read to the end as records."""
    async with p.client.request(method, f"{p.proxy.url}{path}", json=body) as response:
        text = await response.text()
    return response, [json.loads(line) for line in text.splitlines()]


async def record_of(p: Pool, response: Any) -> dict[str, Any]:
    url = f"{p.proxy.url}/sollol/requests/{response.headers['X-SOLLOL-Request-Id']}"
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with p.client.get(url) as page:
                record: dict[str, Any] = await page.json()
                if record["state"] == "finished":
                    return record


async def names_on(p: Pool, host: SimHost, path: str = "/api/tags") -> list[str]:
    async with p.client.get(host.url + path) as response:
        return [model["name"] for model in (await response.json())["models"]]


async def with_model(p: Pool, name: str) -> list[str]:
    return [host_id for host_id, host in p.hosts.items() if name in await names_on(p, host)]


def assert_never_shrinks(records: Records) -> None:
    seen: dict[str, tuple[int, int]] = {}
    for record in records:
        if digest := record.get("digest"):
            now = (record.get("completed", 0), record["total"])
            before = seen.get(digest, (0, 0))
            assert now[0] >= before[0]
            assert now[1] >= before[1]
            assert now[0] <= now[1]
            seen[digest] = now


# Pull


async def test_pull_reaches_every_host_and_shows_one_progress() -> None:
    async with pool(*hosts()) as p:
        response, records = await ask(p, "/api/pull", model="qwen3:8b")
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/x-ndjson"
        assert records[0] == {"status": "pulling manifest"}
        assert [r for r in records if r.get("status") == "success"] == [records[-1]]
        assert_never_shrinks(records)
        layers = {r["digest"]: r for r in records if "digest" in r}
        async with p.client.post(f"{p.hosts['a'].url}/api/pull", json={"model": "qwen3:8b"}) as one:
            alone = [json.loads(line) for line in (await one.text()).splitlines()]
        for layer in (r for r in alone if "digest" in r):
            assert layers[layer["digest"]]["total"] == 3 * layer["total"]
            assert layers[layer["digest"]]["completed"] == 3 * layer["total"]
        assert await with_model(p, "qwen3:8b") == ["a", "b", "c"]
        record = await record_of(p, response)
        assert (record["outcome"], record["hosts"]) == ("completed", ["a", "b", "c"])


async def test_pulled_model_is_in_the_list_and_answers_at_once() -> None:
    async with pool(*hosts(), probes={"interval": 300.0, "tags_interval": 300.0}) as p:
        await ask(p, "/api/pull", model="qwen3:8b")
        # Without waiting for a round, which would come in five minutes.
        await p.proxy.until(
            lambda s: any(model.name == "qwen3:8b" for h in s.hosts for model in h.installed)
        )
        async with p.client.get(f"{p.proxy.url}/api/tags") as tags:
            names = [model["name"] for model in (await tags.json())["models"]]
        assert "qwen3:8b" in names
        response, _ = await p.generate(model="qwen3:8b")
        assert response.status == 200


async def test_pull_without_stream_answers_once() -> None:
    async with pool(*hosts()) as p:
        response, records = await ask(p, "/api/pull", model="qwen3:8b", stream=False)
        assert records == [{"status": "success"}]
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["X-SOLLOL-Hosts"] == "3/3"
        assert "X-SOLLOL-Failed-Hosts" not in response.headers


async def test_pull_goes_to_the_hosts_that_the_configuration_names() -> None:
    models = {"qwen*": {"hosts": ["a", "c"]}}
    async with pool(*hosts(), models=models) as p:
        response, records = await ask(p, "/api/pull", model="qwen3:8b", stream=False)
        assert records == [{"status": "success"}]
        assert response.headers["X-SOLLOL-Hosts"] == "2/2"
        assert await with_model(p, "qwen3:8b") == ["a", "c"]


async def test_host_that_may_not_serve_a_model_does_not_pull_it() -> None:
    fields = {"models": {"deny": ["qwen*"]}}
    async with pool(*hosts("a"), host_fields=fields) as p:
        response, records = await ask(p, "/api/pull", model="qwen3:8b", stream=False)
        assert response.status == 404
        assert records == [{"error": "model 'qwen3:8b' not found"}]
        assert p.hosts["a"].stats.requests.get("/api/pull", 0) == 0


async def test_named_host_that_is_down_makes_a_pull_partial() -> None:
    models = {"qwen*": {"hosts": ["a", "b"]}}
    async with pool(*hosts(), models=models) as p:
        await p.hosts["b"].stop()
        await p.proxy.until(lambda s: not s.hosts[1].state.is_routable)
        response, records = await ask(p, "/api/pull", model="qwen3:8b", stream=False)
        assert records == [{"status": "success"}]
        assert response.headers["X-SOLLOL-Hosts"] == "1/2"
        assert response.headers["X-SOLLOL-Failed-Hosts"] == "b"
        record = await record_of(p, response)
        assert record["outcome"] == "partial"
        assert record["failed_attempts"] == [{"host": "b", "reason": "is not up"}]


@pytest.mark.parametrize("kind", ["error_record", "cut", "status", "reset_before_head"])
async def test_pull_that_fails_on_one_host_succeeds_and_names_it(kind: str) -> None:
    async with pool(*hosts()) as p:
        p.hosts["b"].fault(kind, path="/api/pull", after_records=3, message="disk full")
        response, records = await ask(p, "/api/pull", model="qwen3:8b")
        assert records[-1] == {"status": "success"}
        assert not any("error" in record for record in records)
        assert_never_shrinks(records)
        record = await record_of(p, response)
        assert (record["outcome"], record["hosts"]) == ("partial", ["a", "c"])
        [failed] = record["failed_attempts"]
        assert failed["host"] == "b"
        if kind in ("error_record", "status"):
            assert "disk full" in failed["reason"]


async def test_pull_without_stream_names_the_host_that_failed_in_a_header() -> None:
    async with pool(*hosts()) as p:
        p.hosts["c"].fault("error_record", path="/api/pull", after_records=2)
        response, records = await ask(p, "/api/pull", model="qwen3:8b", stream=False)
        assert (response.status, records) == (200, [{"status": "success"}])
        assert response.headers["X-SOLLOL-Hosts"] == "2/3"
        assert response.headers["X-SOLLOL-Failed-Hosts"] == "c"


@pytest.mark.parametrize("stream", [True, False])
async def test_pull_of_an_unknown_model_ends_in_ollamas_error(stream: bool) -> None:
    async with pool(*hosts()) as p:
        response, records = await ask(p, "/api/pull", model="nosuch", stream=stream)
        assert records[-1] == {"error": "pull model manifest: file does not exist"}
        assert len([r for r in records if "error" in r]) == 1
        assert response.status == (200 if stream else 500)
        assert (await record_of(p, response))["outcome"] == "upstream_refused"


async def test_pull_is_refused_when_no_host_is_up() -> None:
    async with pool(*hosts("a"), queue={"no_host_wait": 0}) as p:
        await p.hosts["a"].stop()
        await p.proxy.until(lambda s: not s.hosts[0].state.is_routable)
        response, [record] = await ask(p, "/api/pull", model="qwen3:8b")
        assert response.status == 503
        assert "no Ollama host is available" in record["error"]


async def test_two_people_pulling_one_model_share_one_pull() -> None:
    async with pool(*hosts(pull_bytes_per_s=1_000_000)) as p:
        url = f"{p.proxy.url}/api/pull"
        async with p.client.post(url, json={"model": "qwen3:8b"}) as first:
            await first.content.readline()
            async with p.client.post(url, json={"name": "QWEN3:8B", "model": ""}) as second:
                line = json.loads(await second.content.readline())
                assert line == {"status": "pulling manifest"}
            # The second left: the first one's goes on.
            assert json.loads((await first.text()).splitlines()[-1]) == {"status": "success"}
        assert all(host.stats.requests.get("/api/pull", 0) == 1 for host in p.hosts.values())


async def test_pull_without_stream_joins_one_with_stream() -> None:
    async with pool(*hosts(pull_bytes_per_s=1_000_000)) as p:
        url = f"{p.proxy.url}/api/pull"
        async with p.client.post(url, json={"model": "qwen3:8b"}) as first:
            await first.content.readline()
            _, records = await ask(p, "/api/pull", model="qwen3:8b", stream=False)
            assert records == [{"status": "success"}]
            assert json.loads((await first.text()).splitlines()[-1]) == {"status": "success"}
        assert all(host.stats.requests.get("/api/pull", 0) == 1 for host in p.hosts.values())


async def test_pull_ends_on_the_hosts_when_the_last_one_leaves() -> None:
    async with pool(*hosts(pull_bytes_per_s=1000)) as p:
        async with p.client.post(f"{p.proxy.url}/api/pull", json={"model": "qwen3:8b"}) as first:
            await first.content.readline()
            async with asyncio.timeout(PATIENCE_S):  # the first line may be one host's alone
                for host in p.hosts.values():
                    await host.until(lambda stats: stats.manage.pulls == 1)
        async with asyncio.timeout(PATIENCE_S):
            for host in p.hosts.values():
                await host.until(lambda stats: stats.manage.pulls_cancelled == 1)
        await p.proxy.until_idle()
        assert not p.proxy.services.operations.running


async def test_host_that_hangs_in_a_pull_is_left_behind_once_its_probes_fail() -> None:
    quick = {"interval": 0.05, "timeout": 0.1}
    async with pool(*hosts(), probes=quick) as p:
        p.hosts["b"].fault("hang", path="/api/pull", after_records=2)
        url = f"{p.proxy.url}/api/pull"
        async with p.client.post(url, json={"model": "qwen3:8b"}) as response:
            await response.content.readline()
            p.hosts["b"].fault("hang_connect")
            records = [json.loads(line) for line in (await response.text()).splitlines()]
        assert records[-1] == {"status": "success"}
        record = await record_of(p, response)
        assert record["hosts"] == ["a", "c"]
        assert record["failed_attempts"] == [{"host": "b", "reason": "it fell silent"}]


# Copy, delete, unload, load


async def test_copy_and_delete_reach_every_host_that_has_the_model() -> None:
    async with pool(sim("a", "llama3"), sim("b", "llama3", "other"), sim("c", "other")) as p:
        response, records = await ask(p, "/api/copy", source="LLAMA3", destination="mine")
        assert (response.status, records) == (200, [])
        assert response.headers["X-SOLLOL-Hosts"] == "2/2"
        assert await with_model(p, "mine:latest") == ["a", "b"]
        response, records = await ask(p, "/api/delete", method="DELETE", model="", name="mine")
        assert (response.status, records) == (200, [])
        assert await with_model(p, "mine:latest") == []
        assert p.hosts["c"].stats.requests.get("/api/delete", 0) == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "error"),
    [
        ("POST", "/api/copy", {"source": "no", "destination": "x"}, 'model "no" not found'),
        ("DELETE", "/api/delete", {"model": "no"}, "model 'no' not found"),
    ],
)
async def test_model_that_no_host_has_is_one_hosts_404(
    method: str, path: str, body: dict[str, Any], error: str
) -> None:
    async with pool(*hosts()) as p:
        response, records = await ask(p, path, method=method, **body)
        assert (response.status, records) == (404, [{"error": error}])
        assert sum(host.stats.requests.get(path, 0) for host in p.hosts.values()) == 1


async def test_delete_that_fails_on_one_host_says_so() -> None:
    async with pool(*hosts()) as p:
        p.hosts["b"].fault("status", path="/api/delete", status=500, message="read-only disk")
        response, records = await ask(p, "/api/delete", method="DELETE", model="llama3")
        assert (response.status, records) == (500, [{"error": "read-only disk"}])
        assert response.headers["X-SOLLOL-Hosts"] == "2/3"
        assert response.headers["X-SOLLOL-Failed-Hosts"] == "b"
        assert (await record_of(p, response))["outcome"] == "partial"
        assert await with_model(p, "llama3:latest") == ["b"]


async def test_delete_that_loses_a_host_says_where_it_was_done() -> None:
    async with pool(*hosts()) as p:
        p.hosts["b"].fault("reset_before_head", path="/api/delete")
        response, [record] = await ask(p, "/api/delete", method="DELETE", model="llama3")
        assert response.status == 502
        assert "host b failed" in record["error"]
        assert "done on a, c only" in record["error"]


async def test_delete_of_a_model_that_vanished_on_one_host_is_no_failure() -> None:
    async with pool(*hosts()) as p:
        p.hosts["b"].fault(
            "status", path="/api/delete", status=404, message="model 'llama3' not found"
        )
        response, records = await ask(p, "/api/delete", method="DELETE", model="llama3")
        assert (response.status, records) == (200, [])


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_unload_empties_the_memory_of_every_host(path: str) -> None:
    async with pool(*hosts()) as p:
        assert [host.resident for host in p.hosts.values()] == [("llama3:latest",)] * 3
        response, [record] = await ask(p, path, model="llama3", keep_alive="0s")
        assert (record["done"], record["done_reason"]) == (True, "unload")
        assert response.headers["X-SOLLOL-Hosts"] == "3/3"
        assert [host.resident for host in p.hosts.values()] == [()] * 3
        await p.proxy.until(lambda s: not any(host.resident for host in s.hosts))
        async with p.client.get(f"{p.proxy.url}/api/ps") as ps:
            assert await ps.json() == {"models": []}


async def test_load_goes_to_one_host() -> None:
    async with pool(*hosts(resident=())) as p:
        _, [record] = await ask(p, "/api/generate", model="llama3")
        assert record["done_reason"] == "load"
        assert sorted(len(host.resident) for host in p.hosts.values()) == [0, 0, 1]


# Create and blobs


@asynccontextmanager
async def uploaded(p: Pool, **how: Any) -> AsyncIterator[Any]:
    url = f"{p.proxy.url}/api/blobs/{DIGEST}"
    async with p.client.post(url, data=DATA, **how) as response:
        yield response


async def test_blob_is_spread_to_every_host_and_create_runs_on_all() -> None:
    async with pool(*hosts()) as p:
        url = f"{p.proxy.url}/api/blobs/{DIGEST}"
        async with p.client.head(url) as head:
            assert head.status == 404
        async with uploaded(p) as response:
            assert (response.status, await response.read()) == (201, b"")
            assert response.headers["X-SOLLOL-Hosts"] == "3/3"
        async with p.client.head(url) as head:
            assert head.status == 200
        assert all(host.stats.manage.blobs_stored == 1 for host in p.hosts.values())
        _, records = await ask(p, "/api/create", model="mine", files={"m.gguf": DIGEST})
        assert records[-1] == {"status": "success"}
        texts = [record["status"] for record in records]
        assert len(texts) == len(set(texts))
        assert await with_model(p, "mine:latest") == ["a", "b", "c"]


async def test_blob_that_every_host_has_is_answered_without_its_body() -> None:
    async with pool(*hosts()) as p:
        async with uploaded(p):
            pass
        async with uploaded(p) as response:
            assert response.status == 200
        assert all(host.stats.manage.blob_bytes == len(DATA) for host in p.hosts.values())


async def test_blob_goes_only_to_hosts_that_lack_it() -> None:
    async with pool(*hosts()) as p:
        async with p.client.post(f"{p.hosts['b'].url}/api/blobs/{DIGEST}", data=DATA):
            pass
        async with p.client.head(f"{p.proxy.url}/api/blobs/{DIGEST}") as head:
            assert head.status == 404
        async with uploaded(p) as response:
            assert response.status == 201
            assert response.headers["X-SOLLOL-Hosts"] == "3/3"
        assert all(host.stats.manage.blob_bytes == len(DATA) for host in p.hosts.values())


async def test_blob_with_a_wrong_digest_is_refused_in_ollamas_words() -> None:
    async with pool(*hosts()) as p:
        wrong = f"sha256:{'0' * 64}"
        async with p.client.post(f"{p.proxy.url}/api/blobs/{wrong}", data=DATA) as response:
            assert response.status == 400
            error = (await response.json())["error"]
        assert error == f'digest mismatch, expected "{wrong}", got "{DIGEST}"'


async def test_blob_with_a_malformed_digest_is_refused_in_ollamas_words() -> None:
    async with pool(*hosts()) as p:
        async with p.client.post(f"{p.proxy.url}/api/blobs/sha256:xyz", data=DATA) as response:
            assert response.status == 400
            assert await response.json() == {"error": "invalid digest format"}
        async with p.client.head(f"{p.proxy.url}/api/blobs/sha256:xyz") as head:
            assert head.status == 400


async def test_blob_reaches_the_others_when_a_host_breaks_off_within() -> None:
    async with pool(*hosts()) as p:
        p.hosts["b"].fault("cut", path="/api/blobs", method="POST", after_bytes=1000)
        async with uploaded(p) as response:
            assert response.status == 201
            assert response.headers["X-SOLLOL-Failed-Hosts"] == "b"
        assert (await record_of(p, response))["outcome"] == "partial"
        _, records = await ask(p, "/api/create", model="mine", files={"m.gguf": DIGEST})
        assert records[-1] == {"status": "success"}
        assert await with_model(p, "mine:latest") == ["a", "c"]


async def test_blob_does_not_wait_for_a_host_that_hangs_and_leaves_its_probes_unanswered() -> None:
    async with pool(*hosts(), probes={"interval": 0.05, "timeout": 0.1}) as p:
        p.hosts["b"].fault("hang", path="/api/blobs", method="POST", after_bytes=1000)
        gone = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield DATA
            await p.hosts["b"].until(lambda stats: stats.manage.blob_bytes >= 1000)
            p.hosts["b"].fault("hang_connect")
            gone.set()

        async with p.client.post(f"{p.proxy.url}/api/blobs/{DIGEST}", data=body()) as response:
            assert response.status == 201
            assert response.headers["X-SOLLOL-Failed-Hosts"] == "b"
        assert gone.is_set()


async def test_upload_ends_on_the_hosts_when_the_client_leaves() -> None:
    async with pool(*hosts()) as p:
        sent = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield DATA
            sent.set()
            await asyncio.get_running_loop().create_future()

        url = f"{p.proxy.url}/api/blobs/{DIGEST}"
        asking = asyncio.ensure_future(p.client.post(url, data=body()))
        await sent.wait()
        async with asyncio.timeout(PATIENCE_S):
            for host in p.hosts.values():
                await host.until(lambda stats: stats.manage.blob_bytes > 0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await p.proxy.until_idle()
        async with p.client.head(url) as head:
            assert head.status == 404


async def test_create_from_a_model_runs_where_it_is_and_downloads_nowhere() -> None:
    async with pool(sim("a", "base"), sim("b", "base", "x"), sim("c", "x")) as p:
        _, records = await ask(p, "/api/create", model="mine", **{"from": "base"})
        assert records[-1] == {"status": "success"}
        assert await with_model(p, "mine:latest") == ["a", "b"]
        assert p.hosts["c"].stats.requests.get("/api/create", 0) == 0


async def test_create_without_stream_names_the_host_that_failed() -> None:
    async with pool(*hosts()) as p:
        p.hosts["c"].fault("status", path="/api/create", status=500, message="disk full")
        body: dict[str, Any] = {"model": "mine", "from": "llama3", "stream": False}
        response, records = await ask(p, "/api/create", **body)
        assert (response.status, records) == (200, [{"status": "success"}])
        assert response.headers["X-SOLLOL-Failed-Hosts"] == "c"


async def test_create_from_a_blob_that_nobody_has_fails_in_ollamas_words() -> None:
    async with pool(*hosts()) as p:
        _, records = await ask(p, "/api/create", model="mine", files={"m.gguf": DIGEST})
        assert records[0] == {"status": "parsing GGUF"}
        assert "no such file" in records[-1]["error"]
        assert sum(host.stats.requests.get("/api/create", 0) for host in p.hosts.values()) == 1


async def test_create_that_makes_no_sense_goes_to_one_host() -> None:
    async with pool(*hosts()) as p:
        response, [record] = await ask(p, "/api/create", model="mine")
        assert response.status == 400
        assert record == {"error": "neither 'from' or 'files' was specified"}
        response, [record] = await ask(p, "/api/create", **{"model": "bad//name", "from": "x"})
        assert (response.status, record) == (400, {"error": "invalid model name"})


# The identity host


async def test_account_routes_and_cloud_models_go_to_the_identity_host() -> None:
    specs = [sim("a"), sim("b", account="anna"), sim("c")]
    async with pool(*specs, identity="b") as p:
        response, [user] = await ask(p, "/api/me")
        assert user["name"] == "anna"
        assert response.headers["X-SOLLOL-Host"] == "b"
        for path in ("/api/experimental/web_search", "/api/experimental/web_fetch"):
            response, _ = await ask(p, path, query="x", url="http://x")
            assert response.headers["X-SOLLOL-Host"] == "b"
        for path in ("/api/status", "/api/experimental/model-recommendations"):
            response, _ = await ask(p, path, method="GET")
            assert (response.status, response.headers["X-SOLLOL-Host"]) == (200, "b")
        cloud: dict[str, Any] = {"model": "gpt-oss:120b-cloud", "messages": []}
        for path in ("/api/chat", "/v1/chat/completions", "/api/show"):
            response, _ = await ask(p, path, **cloud)
            assert response.headers["X-SOLLOL-Host"] == "b"
        response, _ = await ask(p, "/v1/models/gpt-oss:cloud", method="GET")
        assert response.headers["X-SOLLOL-Host"] == "b"


async def test_account_route_is_refused_while_the_identity_host_is_down() -> None:
    async with pool(*hosts(), identity="b", queue={"no_host_wait": 0}) as p:
        await p.hosts["b"].stop()
        await p.proxy.until(lambda s: not s.hosts[1].state.is_routable)
        response, [record] = await ask(p, "/api/me")
        assert response.status == 503
        assert "b is not up" in record["error"]


async def test_push_goes_to_the_identity_host_or_to_one_that_has_the_model() -> None:
    async with pool(sim("a", "x"), sim("b", "y"), identity="b") as p:
        response, _ = await ask(p, "/api/push", model="y")
        assert response.headers["X-SOLLOL-Host"] == "b"
        response, _ = await ask(p, "/api/push", model="x")
        assert response.headers["X-SOLLOL-Host"] == "a"
        response, _ = await ask(p, "/api/push", model="nowhere")
        assert response.headers["X-SOLLOL-Host"] == "b"


async def test_embeddings_route_finds_a_model_in_any_case() -> None:
    embedder = SimModel("Embedder", capabilities=("embedding",))
    async with pool(sim("a"), replace(sim("b"), models=(embedder,), resident=())) as p:
        response, [record] = await ask(p, "/api/embeddings", model="EMBEDDER", prompt="x")
        assert response.status == 200, record
        assert response.headers["X-SOLLOL-Rewrote"] == "model=Embedder:latest"
        response, _ = await ask(p, "/api/embeddings", model="Embedder", prompt="x")
        assert "X-SOLLOL-Rewrote" not in response.headers


# Raw sockets: Expect, early answers


async def spoken(p: Pool, head: str) -> bytes:
    """Send a head and nothing else; what comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", p.proxy.port)
    try:
        writer.write(head.replace("\n", "\r\n").encode())
        async with asyncio.timeout(PATIENCE_S):
            return await reader.read()
    finally:
        writer.close()


async def test_existing_blob_is_answered_instead_of_the_100_that_the_client_waits_for() -> None:
    async with pool(*hosts()) as p:
        async with uploaded(p):
            pass
        answer = await spoken(
            p,
            f"POST /api/blobs/{DIGEST} HTTP/1.1\nHost: localhost\nContent-Length: 9\n"
            "Expect: 100-continue\n\n",
        )
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"100 Continue" not in answer
        assert b"\r\nConnection: close\r\n" in answer


async def test_new_blob_gets_its_100_and_then_its_201() -> None:
    async with pool(*hosts()) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.proxy.port)
        writer.write(
            f"POST /api/blobs/{DIGEST} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Length: {len(DATA)}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(DATA)
            answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 201 Created\r\n")
        assert all(host.stats.manage.blobs_stored == 1 for host in p.hosts.values())


async def test_body_that_is_too_large_is_refused_before_it_is_asked_for() -> None:
    async with pool(*hosts(), limits={"body": 1000}) as p:
        answer = await spoken(
            p,
            "POST /api/generate HTTP/1.1\nHost: localhost\nContent-Length: 2000\n"
            "Connection: close\nExpect: 100-continue\n\n",
        )
        assert answer.startswith(b"HTTP/1.1 413 ")


async def test_unload_of_an_embedding_model_empties_every_memory() -> None:
    embedder = SimModel("embedder", capabilities=("embedding",))
    specs = [replace(sim(name), models=(embedder,), resident=("embedder",)) for name in "ab"]
    async with pool(*specs) as p:
        response, [record] = await ask(
            p, "/api/generate", model="embedder", prompt="", keep_alive="0s"
        )
        assert (response.status, record["done_reason"]) == (200, "unload")
        assert [host.resident for host in p.hosts.values()] == [(), ()]
