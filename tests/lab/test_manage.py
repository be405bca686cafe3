"""The management routes of a simulated host, next to those of the recorded server."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession
from ollama import AsyncClient, ResponseError

from sollol_proxy.lab.simhost import SimHost, SimModel, SimSpec
from tests.wire.recordings import Exchange, end_to_end, http_exchanges
from tests.wire.replay import raw_request

HTTP = http_exchanges()
MODELS = (SimModel("det"), SimModel("det-copy"), SimModel("emb", capabilities=("embedding",)))
DET_FILE = "sha256:a127c672c6b77ca65f7c02ce5e3da5dcddd34e18ea201e6df55e6b49a8811673"
EMB_FILE = "sha256:ef22e1db1c64cfe0b7de86819612d15dbb914bb544d66624076b164f9ae63ca8"
WORD = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

AS_RECORDED = [
    "status",
    "me-post",
    "signout-post",
    "user-keys-delete",
    "web-search-off",
    "web-search-empty",
    "web-fetch-off",
    "recommendations",
    "blob-head-404",
    "blob-post-201",
    "blob-head-200",
    "blob-post-existing",
    "blob-post-mismatch",
    "blob-post-bad-digest",
    "blob-head-bad-digest",
    "blob-get-405",
    "blob-expect-100",
    "blob-chunked-post",
    "blob-expect-existing",
    "blob-expect-mismatch-name",
    "create-files-stream",
    "create-files-nostream",
    "create-from-stream",
    "create-from-nostream",
    "create-neither",
    "create-bad-name",
    "create-missing-blob",
    "create-from-unknown",
    "generate-cloud-off",
    "generate-local-cloud",
    "v1-chat-cloud-off",
    "copy",
    "copy-missing",
    "copy-empty",
    "delete",
    "delete-missing",
    "delete-no-model",
    "pull-offline",
    "pull-offline-nostream",
    "pull-bad-name",
    "pull-no-model",
    "push-missing",
    "push-no-model",
    "method-405-get-delete",
]
STORED_BEFORE = frozenset({"blob-head-200", "blob-post-existing", "blob-expect-existing"})


@pytest.fixture
async def offline() -> AsyncIterator[SimHost]:
    async with SimHost(SimSpec(id="h", models=MODELS, offline=True, time_scale=1000)) as host:
        for digest in (DET_FILE, EMB_FILE):
            host.disk.add_blob(digest, 272_640)
        yield host


@pytest.mark.parametrize("id_", AS_RECORDED)
async def test_route_answers_as_recorded(offline: SimHost, id_: str) -> None:
    exchange = HTTP[id_]
    if id_ in STORED_BEFORE:
        offline.disk.add_blob(WORD, 4)
    answer = await raw_request("127.0.0.1", offline.port, exchange)
    assert (answer.status, answer.reason) == (exchange.status, exchange.reason)
    assert headers_of(answer.headers) == headers_of(exchange.answer_headers)
    assert framing_of(answer.headers) == framing_of(exchange.answer_headers)
    if "create" in id_:
        assert without_layers(answer.body) == without_layers(exchange.answer)
    else:
        assert answer.body == exchange.answer


def headers_of(headers: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """What a proxy has to pass on, and whether the connection ends."""
    ends = [(name, value) for name, value in headers if (name, value) == ("Connection", "close")]
    return end_to_end(headers) + ends


def framing_of(headers: tuple[tuple[str, str], ...]) -> str:
    return next((value for name, value in headers if name == "Transfer-Encoding"), "")


def without_layers(body: bytes) -> list[str]:
    """The lines; the layers of a model that is not the recorded one without their digests."""
    lines = re.sub(rb"layer sha256:[0-9a-f]{64}", b"layer", body).decode().splitlines()
    # The recorded model had more or fewer layers of its own.
    return [line for line in lines if line != '{"status":"using existing layer"}']


MODEL_ROUTES = ("/api/pull", "/api/push", "/api/create", "/api/delete", "/api/copy")


@pytest.mark.parametrize("path", MODEL_ROUTES)
@pytest.mark.parametrize("body", ["", "[]", "{"])
async def test_body_that_is_no_object_is_refused(offline: SimHost, path: str, body: str) -> None:
    method = "DELETE" if path == "/api/delete" else "POST"
    async with (
        ClientSession(offline.url) as session,
        session.request(method, path, data=body) as answer,
    ):
        assert answer.status == 400
        if not body:
            assert await answer.json() == {"error": "missing request body"}


@pytest.fixture
async def host() -> AsyncIterator[SimHost]:
    async with SimHost(SimSpec(id="h", models=MODELS, time_scale=1000)) as started:
        yield started


@pytest.fixture
async def client(host: SimHost) -> AsyncIterator[AsyncClient]:
    client = AsyncClient(host=host.url)
    yield client
    await client._client.aclose()  # the library has no close of its own


async def names(client: AsyncClient) -> set[str]:
    return {model.model or "" for model in (await client.list()).models}


async def test_copy_is_listed_shown_and_asked_at_once(host: SimHost, client: AsyncClient) -> None:
    await client.copy("det", "Ns/Other:V1")
    listed = {model.model: model for model in (await client.list()).models}
    assert listed["Ns/Other:V1"].digest == listed["det:latest"].digest
    assert (await client.show("ns/other:v1")).capabilities == ["completion"]
    assert (await client.generate("ns/other:v1", "x")).done_reason == "stop"
    assert host.stats.manage.copies == 1


async def test_copy_shares_the_runner_which_keeps_the_name_that_loaded_it(
    host: SimHost, client: AsyncClient
) -> None:
    await client.copy("det", "alias")
    await client.generate("alias", "x")
    await client.generate("det", "x")
    assert host.stats.loads == 1
    assert [model.model for model in (await client.ps()).models] == ["alias:latest"]
    assert host.resident == ("alias:latest",)


async def test_copy_takes_the_spelling_and_place_of_a_model_that_is_there(
    client: AsyncClient,
) -> None:
    await client.copy("det", "DET-COPY")
    listed = {model.model: model for model in (await client.list()).models}
    assert set(listed) == {"det:latest", "det-copy:latest", "emb:latest"}
    assert listed["det-copy:latest"].digest == listed["det:latest"].digest


async def test_deleted_model_is_gone_from_the_disk_but_not_from_memory(
    host: SimHost, client: AsyncClient
) -> None:
    await client.generate("det", "x")
    await client.delete("DET")
    assert await names(client) == {"det-copy:latest", "emb:latest"}
    with pytest.raises(ResponseError, match="'det' not found"):
        await client.generate("det", "x")
    assert [model.model for model in (await client.ps()).models] == ["det:latest"]
    assert host.stats.manage.deletes == 1


async def test_disk_survives_a_restart_and_memory_does_not() -> None:
    spec = SimSpec(
        id="h", models=MODELS, resident=("det", "emb"), time_scale=1000, keep_alive_s=10**6
    )
    async with SimHost(spec) as host:
        port = host.port
        async with (
            ClientSession(host.url) as session,
            session.delete("/api/delete", json={"name": "det"}) as answer,
        ):
            assert answer.status == 200
        await host.stop()
        await host.start(port)
        assert set(host.disk.listings) == {"det-copy:latest", "emb:latest"}
        assert host.resident == ("emb:latest",)


def settings(**changes: Any) -> dict[str, Any]:
    return {"model": "made", "from": "det", "stream": False, **changes}


async def create(session: ClientSession, **changes: Any) -> tuple[int, Any]:
    async with session.post("/api/create", json=settings(**changes)) as answer:
        return answer.status, await answer.json()


async def test_created_model_shows_its_settings_as_recorded(offline: SimHost) -> None:
    for id_ in ("create-files-stream", "create-from-stream"):
        await raw_request("127.0.0.1", offline.port, HTTP[id_])
    recorded = json.loads(HTTP["show"].answer)
    async with (
        ClientSession(offline.url) as session,
        session.post("/api/show", json={"model": "det-sys"}) as answer,
    ):
        shown = await answer.json()
    for key in ("license", "parameters", "template", "system"):
        assert shown[key] == recorded[key], key
    assert shown["details"]["parent_model"] == recorded["details"]["parent_model"]
    blob = re.compile(r"FROM /models/blobs/sha256-[0-9a-f]{64}")
    assert blob.sub("FROM", shown["modelfile"]) == blob.sub("FROM", recorded["modelfile"])


async def test_created_model_has_the_same_digest_on_every_host() -> None:
    digests = set()
    for number in range(2):
        spec = SimSpec(id=f"h{number}", models=MODELS, time_scale=1000)
        async with SimHost(spec) as host, ClientSession(host.url) as session:
            assert (await create(session, system="Be brief."))[0] == 200
            digests.add(host.disk.listings["made:latest"].digest)
            assert host.stats.manage.creates == 1
    assert len(digests) == 1
    assert digests != {SimModel("det").digest}


async def test_created_model_runs_on_the_runner_of_its_source_unless_its_context_differs(
    host: SimHost,
) -> None:
    async with ClientSession(host.url) as session:
        await create(session, system="Be brief.")
        await create(session, model="short", parameters={"num_ctx": 1024})
        for model in ("det", "made", "short"):
            fields = {"model": model, "prompt": "x", "stream": False}
            async with session.post("/api/generate", json=fields) as answer:
                assert (await answer.json())["model"] == model
    assert (host.stats.loads, host.stats.reloads) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"files": {"a.gguf": DET_FILE}}, 400, "'from' and 'files' cannot be used together"),
        ({"from": "./nofile.gguf"}, 400, "invalid model name"),
        ({"from": "", "files": {"/a.gguf": DET_FILE}}, 400, "file path must be relative"),
        ({"from": "", "files": {"a/../../b": DET_FILE}}, 400, "file path must be relative"),
        ({"from": "", "files": {"a.gguf": "sha256:1"}}, 400, "invalid digest format"),
        (
            {"from": "nosuch"},
            500,
            "pull model manifest: file does not exist",
        ),
    ],
)
async def test_creation_is_refused_when_it_makes_no_sense(
    host: SimHost, changes: dict[str, Any], status: int, message: str
) -> None:
    async with ClientSession(host.url) as session:
        assert await create(session, **changes) == (status, {"error": message})


async def test_creation_reports_quantising_like_a_layer(host: SimHost) -> None:
    host.disk.add_blob(DET_FILE, 1000)
    fields = {"model": "q", "files": {"a.gguf": DET_FILE}, "quantize": "q4_K_M"}
    async with (
        ClientSession(host.url) as session,
        session.post("/api/create", json=fields) as answer,
    ):
        records = [json.loads(line) for line in (await answer.read()).splitlines()]
    text = "quantizing F16 model to Q4_K_M"
    steps = [record for record in records if record["status"] == text]
    assert [step.get("completed") for step in steps] == [None, 1000]
    assert {step["total"] for step in steps} == {1000}


@pytest.mark.parametrize("path", ["/api/me", "/api/pull"])
async def test_route_that_the_version_lacks_is_unknown(path: str) -> None:
    spec = SimSpec(id="h", lacks=("/api/me", "/api/pull"))
    async with SimHost(spec) as host, ClientSession(host.url) as session:
        async with session.post(path, json={"model": "x"}) as answer:
            assert (answer.status, answer.headers["Content-Type"]) == (404, "text/plain")
            assert await answer.text() == "404 page not found"
        async with session.get("/api/status") as answer:
            assert answer.status == 200
    assert host.stats.requests[path] == 1


def test_exchanges_named_here_are_recorded() -> None:
    def is_of_management(exchange: Exchange) -> bool:
        return exchange.raw_path.startswith(
            ("/api/blobs", "/api/copy", "/api/create", "/api/delete", "/api/pull", "/api/push")
        )

    # Those whose bodies were left out have tests of their own.
    recorded = {id_ for id_, e in HTTP.items() if is_of_management(e) and e.body is not None}
    assert recorded <= set(AS_RECORDED)
