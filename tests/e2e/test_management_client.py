"""The `ollama` package manages the models of three hosts through the proxy as if they were one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ollama import AsyncClient, Client, ProgressResponse, ResponseError

from sollol_proxy.lab.simhost import SimModel, SimSpec
from tests.e2e.conftest import TIME_SCALE, Pool
from tests.e2e.processes import LabHost, lab_hosts, serving

COUNT = 3
BASE = SimModel("base:latest", size_bytes=10**9)
REGISTRY = (
    *(
        SimModel(f"pulled-{name}:latest", size_bytes=10**9)
        for name in ("sync", "async", "whole", "partly", "left")
    ),
    # Long enough on its way for a second client to come while it is.
    SimModel("pulled-twice:latest", size_bytes=10**10),
)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Three simulated hosts with one model, and a registry that they can pull from."""
    arguments = []
    for host_id in "abc":
        spec = SimSpec(
            host_id, models=(BASE,), registry=REGISTRY, time_scale=TIME_SCALE, version="0.33.0"
        )
        arguments.append(["--spec", spec.to_json()])
    with (
        lab_hosts("sollol_proxy.lab.simhost", arguments) as hosts,
        serving(tmp_path_factory.mktemp("three"), [host.url for host in hosts]) as proxy,
    ):
        proxy.until_up()
        yield Pool(proxy, hosts, BASE.name, BASE.name)


@pytest.fixture
def client(three: Pool) -> Iterator[Client]:
    three.proxy.until_up()
    with Client(three.url) as opened:
        yield opened
    for host in three.hosts:
        host.clear()


@pytest.fixture
def host(three: Pool) -> Iterator[Client]:
    """The same library, at one of the hosts itself."""
    with Client(three.hosts[0].url) as opened:
        yield opened


def digests(three: Pool, model: str) -> list[str]:
    """The digest that each host lists for a model; hosts without it left out."""
    found = []
    for lab_host in three.hosts:
        with Client(lab_host.url) as direct:
            found += [row.digest or "" for row in direct.list().models if row.model == model]
    return found


def is_everywhere(three: Pool, model: str) -> bool:
    found = digests(three, model)
    return len(found) == COUNT and len(set(found)) == 1


def assert_grows(records: Iterable[ProgressResponse], hosts: int = COUNT) -> None:
    """One operation's progress: bars that only grow to what all hosts need, `success` once."""
    records = list(records)
    bars: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for record in records:
        if record.digest:
            bars[record.digest].append((record.completed or 0, record.total or 0))
    for steps in bars.values():
        assert steps == sorted(steps)
        assert all(completed <= total for completed, total in steps)
        assert len({total for _, total in steps}) == 1
        assert steps[-1][0] == steps[-1][1]
    assert sum(steps[-1][1] for steps in bars.values()) == hosts * BASE.size_bytes
    assert max(len(steps) for steps in bars.values()) > 2
    statuses = [record.status for record in records if not record.digest]
    assert statuses == [
        "pulling manifest", "verifying sha256 digest", "writing manifest", "success"
    ]  # fmt: skip


def test_pull_shows_bars_that_only_grow(three: Pool, client: Client) -> None:
    assert_grows(client.pull("pulled-sync", stream=True))
    assert is_everywhere(three, "pulled-sync:latest")
    rows = [row for row in client.list().models if row.model == "pulled-sync:latest"]
    assert len(rows) == 1


async def test_pull_shows_bars_that_only_grow_to_an_async_client(three: Pool) -> None:
    async with AsyncClient(three.url) as client:
        assert_grows([record async for record in await client.pull("pulled-async", stream=True)])
    assert is_everywhere(three, "pulled-async:latest")


def test_pull_answers_once_when_not_streamed(three: Pool, client: Client) -> None:
    assert client.pull("pulled-whole").status == "success"
    assert is_everywhere(three, "pulled-whole:latest")
    # A second one finds everything there.
    assert client.pull("pulled-whole").status == "success"


async def test_two_clients_share_a_pull(three: Pool) -> None:
    before = [lab_host.stats()["manage"]["pulls_begun"] for lab_host in three.hosts]
    async with AsyncClient(three.url) as first, AsyncClient(three.url) as second:
        early = await first.pull("pulled-twice", stream=True)
        async for record in early:
            if record.digest:
                break
        late = [record async for record in await second.pull("pulled-twice", stream=True)]
        rest = [record async for record in early]
    assert late[-1].status == rest[-1].status == "success"
    assert late[0].status == "pulling manifest"
    after = [lab_host.stats()["manage"]["pulls_begun"] for lab_host in three.hosts]
    assert after == [count + 1 for count in before]


def until_pulls_cancelled(lab_host: LabHost, count: int) -> None:
    lab_host.until(lambda stats: stats["manage"]["pulls_cancelled"] == count)


async def test_pull_is_cancelled_on_every_host_when_its_client_leaves(three: Pool) -> None:
    before = [lab_host.stats()["manage"]["pulls_cancelled"] for lab_host in three.hosts]
    for lab_host in three.hosts:
        # Progress stops, so that the pull cannot be over before the client leaves.
        lab_host.fault("hang", path="/api/pull", after_records=2, count=1)
    async with AsyncClient(three.url) as client:
        async for record in await client.pull("pulled-left", stream=True):
            if record.digest:
                break
    for lab_host, count in zip(three.hosts, before, strict=True):
        until_pulls_cancelled(lab_host, count + 1)
        lab_host.clear()
    three.proxy.until_up()
    async with AsyncClient(three.url) as client:
        assert (await client.pull("pulled-left")).status == "success"
    assert is_everywhere(three, "pulled-left:latest")


def test_pull_succeeds_when_one_host_fails_and_says_which(three: Pool, client: Client) -> None:
    three.hosts[1].fault("error_record", path="/api/pull", after_records=3, count=1)
    records = list(client.pull("pulled-partly", stream=True))
    assert [record.status for record in records].count("success") == 1
    assert records[-1].status == "success"
    assert len(digests(three, "pulled-partly:latest")) == COUNT - 1
    latest = three.proxy.requests()[0]
    assert (latest["route"], latest["outcome"]) == ("/api/pull", "partial")
    # Once more brings the one that failed up to date.
    assert client.pull("pulled-partly").status == "success"
    assert is_everywhere(three, "pulled-partly:latest")


@pytest.mark.parametrize("stream", [False, True])
def test_pull_of_what_nobody_offers_fails_in_the_words_of_a_host(
    stream: bool, client: Any, host: Any
) -> None:
    answers = []
    for asked in (host, client):
        with pytest.raises(ResponseError) as caught:
            list(asked.pull("nosuch", stream=stream))
        answers.append((caught.value.status_code, caught.value.error))
    assert answers[0] == answers[1]
    assert answers[0][1] == "pull model manifest: file does not exist"


@pytest.mark.parametrize("stream", [False, True])
def test_push_fails_in_the_words_of_a_host(stream: bool, client: Any, host: Any) -> None:
    answers = []
    for asked in (host, client):
        with pytest.raises(ResponseError) as caught:
            list(asked.push("base", stream=stream))
        answers.append((caught.value.status_code, caught.value.error))
    assert answers[0] == answers[1]


def test_copy_and_delete_reach_every_host(three: Pool, client: Client) -> None:
    assert client.copy("base", "alias").status == "success"
    assert digests(three, "alias:latest") == digests(three, "base:latest")
    assert "alias:latest" in [row.model for row in client.list().models]
    assert client.delete("alias").status == "success"
    assert digests(three, "alias:latest") == []
    assert "alias:latest" not in [row.model for row in client.list().models]


async def test_copy_and_delete_reach_every_host_from_an_async_client(three: Pool) -> None:
    async with AsyncClient(three.url) as client:
        assert (await client.copy("base", "async-alias")).status == "success"
        assert is_everywhere(three, "async-alias:latest")
        assert (await client.delete("async-alias")).status == "success"
        assert digests(three, "async-alias:latest") == []


@pytest.mark.parametrize(
    ("method", "arguments"), [("copy", ("nosuch", "other")), ("delete", ("nosuch",))]
)
def test_missing_model_is_refused_in_the_words_of_a_host(
    method: str, arguments: tuple[str, ...], client: Client, host: Client
) -> None:
    answers = []
    for asked in (host, client):
        # The library hides the answer of a delete: only its status is left.
        try:
            response = getattr(asked, method)(*arguments)
            answers.append((200, response.status))
        except ResponseError as error:
            answers.append((error.status_code, error.error))
    assert answers[0] == answers[1] != (200, "success")


@pytest.mark.parametrize("stream", [False, True])
def test_create_makes_the_model_on_every_host(three: Pool, client: Any, stream: bool) -> None:
    name = f"brief-{stream}".lower()
    made = client.create(name, from_="base", system="Be brief.", stream=stream)
    last = list(made)[-1] if stream else made
    assert last.status == "success"
    assert is_everywhere(three, f"{name}:latest")
    assert client.show(name).modelfile
    assert client.generate(name, "hi", options={"num_predict": 3}).eval_count == 3


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A file that no host has yet, of more pieces than fit into one read."""
    path = tmp_path / "model.gguf"
    path.write_bytes(str(tmp_path).encode() + bytes(700_000))
    return path


def test_uploaded_file_becomes_a_model_on_every_host(
    three: Pool, client: Client, model_file: Path
) -> None:
    digest = client.create_blob(model_file)
    assert digest == client.create_blob(model_file)
    assert client.create("filed", files={"model.gguf": digest}).status == "success"
    assert is_everywhere(three, "filed:latest")
    assert client.generate("filed", "hi", options={"num_predict": 3}).eval_count == 3


async def test_uploaded_file_becomes_a_model_on_every_host_for_an_async_client(
    three: Pool, model_file: Path
) -> None:
    async with AsyncClient(three.url) as client:
        digest = await client.create_blob(model_file)
        assert digest == await client.create_blob(model_file)
        made = await client.create("async-filed", files={"model.gguf": digest}, stream=True)
        statuses = [record.status async for record in made]
    assert statuses[-1] == "success"
    assert statuses.count("success") == 1
    assert is_everywhere(three, "async-filed:latest")


def test_file_that_one_host_has_is_sent_to_the_others(
    three: Pool, client: Client, host: Client, model_file: Path
) -> None:
    digest = host.create_blob(model_file)
    before = [lab_host.stats()["manage"]["blob_bytes"] for lab_host in three.hosts]
    assert client.create_blob(model_file) == digest
    after = [lab_host.stats()["manage"]["blob_bytes"] for lab_host in three.hosts]
    size = model_file.stat().st_size
    assert [b - a for a, b in zip(before, after, strict=True)] == [0, size, size]


def test_creation_from_a_file_that_nobody_has_fails_in_the_words_of_a_host(
    client: Client, host: Client
) -> None:
    answers = []
    for asked in (host, client):
        with pytest.raises(ResponseError) as caught:
            asked.create("nothing", files={"x.gguf": f"sha256:{'d' * 64}"})
        answers.append((caught.value.status_code, caught.value.error))
    assert answers[0] == answers[1]
