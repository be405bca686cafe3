"""Bringing one host up to date: what is planned, and what it does to simulated hosts."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientSession
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.types import HostSpec, HostState, InstalledModel
from sollol_proxy.lab.simhost import SimHost, SimModel, SimSpec
from sollol_proxy.server import sync_plan as planning
from sollol_proxy.server.models_view import pool_models
from sollol_proxy.server.sync_plan import Reason, SyncPlan, sync_plan
from tests.server.pool import FAST, Pool, pool
from tests.server.samples import GB, HEALTHY
from tests.server.samples import pool as pool_of
from tests.support import make_config, running_proxy

A, B = "a" * 64, "b" * 64
SMALL = SimModel("small", size_bytes=GB // 10)
MIDDLE = SimModel("middle", size_bytes=GB // 5)
LARGE = SimModel("large", size_bytes=GB)
OLD_SMALL = replace(SMALL, digest_salt="old", modified_at="2020-01-01T00:00:00Z")

Records = list[dict[str, Any]]


# The plan


def copy(name: str, digest: str = A, day: int = 1, size: int = GB, **more: Any) -> InstalledModel:
    return InstalledModel(name, digest, size_bytes=size, modified_ns=day * 10**18, **more)


def plan(
    own: tuple[InstalledModel, ...],
    other: tuple[InstalledModel, ...],
    source_id: str,
    placed: dict[str, list[str]] | None = None,
    deny: tuple[str, ...] = (),
) -> SyncPlan:
    """For host `a`, beside a host `b`."""
    spec = HostSpec("a", "http://a:11434", deny=deny)
    hosts = (
        replace(HEALTHY, spec=spec, installed=own),
        replace(HEALTHY, spec=HostSpec("b", "http://b:11434"), installed=other),
    )
    models = {name: {"hosts": ids} for name, ids in (placed or {}).items()}
    entries = [{"url": f"http://{one}:11434", "id": one} for one in "ab"]
    config = make_config(*entries, models=models)
    return sync_plan(pool_models(pool_of(*hosts), config), config, spec, source_id)


@pytest.mark.parametrize("source_id", ["b", ""])
@pytest.mark.parametrize(
    ("own", "other", "pulls", "left"),
    [
        pytest.param([], [], [], [], id="nothing anywhere"),
        pytest.param([copy("m:1")], [copy("m:1")], [], [], id="equal"),
        pytest.param([copy("m:1")], [], [], [], id="has more"),
        pytest.param([], [copy("m:1")], [("m:1", Reason.MISSING)], [], id="missing"),
        pytest.param(
            [copy("m:1", A, 1)],
            [copy("m:1", B, 2)],
            [("m:1", Reason.DIFFERS)],
            [],
            id="other is newer",
        ),
        pytest.param([copy("m:1", "")], [copy("m:1", B, 2)], [], [], id="own says no digest"),
        pytest.param([copy("m:1", A)], [copy("m:1", "", 2)], [], [], id="other says no digest"),
        pytest.param([], [copy("m:1", is_remote=True)], [], [("m:1", planning.STUB)], id="stub"),
        pytest.param(
            [],
            [copy("big:1", size=9), copy("tiny:1", size=1), copy("also:1", size=9)],
            [
                ("tiny:1", Reason.MISSING),
                ("also:1", Reason.MISSING),
                ("big:1", Reason.MISSING),
            ],
            [],
            id="small ones first",
        ),
    ],
)
def test_plan_is_what_is_missing_or_older(
    source_id: str,
    own: list[InstalledModel],
    other: list[InstalledModel],
    pulls: list[tuple[str, Reason]],
    left: list[tuple[str, str]],
) -> None:
    made = plan(tuple(own), tuple(other), source_id)
    assert [(pull.model, pull.reason) for pull in made.pulls] == pulls
    assert list(made.left) == left


def test_plan_keeps_an_own_copy_that_is_newer_and_says_so() -> None:
    made = plan((copy("m:1", A, 2),), (copy("m:1", B, 1),), "b")
    assert made == SyncPlan((), (("m:1", planning.OWN_IS_NEWER),))


@pytest.mark.parametrize("source_id", ["b", ""])
@pytest.mark.parametrize(
    ("placed", "deny", "obstacle"),
    [
        ({"m:1": ["b"]}, (), planning.PLACED_ELSEWHERE),
        ({}, ("m:*",), planning.MAY_NOT_SERVE),
    ],
)
def test_plan_leaves_out_what_is_not_meant_for_the_host(
    source_id: str, placed: dict[str, list[str]], deny: tuple[str, ...], obstacle: str
) -> None:
    made = plan((), (copy("m:1"),), source_id, placed, deny)
    assert made == SyncPlan((), (("m:1", obstacle),) if source_id else ())


def test_plan_for_the_pool_has_what_the_configuration_places_though_nobody_has_it() -> None:
    made = plan((), (), "", {"Wanted:7b": ["a"], "llama*": ["a"], "other": ["b"]})
    assert [(pull.model, pull.spelling) for pull in made.pulls] == [("wanted:7b", "wanted:7b")]
    assert plan((), (), "b", {"wanted:7b": ["a"]}).pulls == ()


def test_plan_pulls_a_stub_where_the_configuration_places_it() -> None:
    made = plan((), (copy("m:cloud", is_remote=True),), "", {"m:cloud": ["a"]})
    assert [pull.model for pull in made.pulls] == ["m:cloud"]


def test_plan_spells_a_model_as_the_host_that_has_it() -> None:
    made = plan((), (copy("hf.co/some/body:q4", spelling="hf.co/Some/Body:Q4"),), "b")
    assert [pull.spelling for pull in made.pulls] == ["hf.co/Some/Body:Q4"]


_disks = st.lists(
    st.builds(
        copy,
        st.sampled_from(("m:1", "m:2", "m:3")),
        st.sampled_from(("", A, B)),
        st.integers(0, 2),
        is_remote=st.booleans(),
    ),
    max_size=3,
    unique_by=lambda model: model.name,
).map(tuple)


@settings(max_examples=200)
@given(own=_disks, other=_disks, source_id=st.sampled_from(("", "b")))
def test_plan_never_touches_a_copy_that_is_as_new_and_has_nothing_left_once_carried_out(
    own: tuple[InstalledModel, ...], other: tuple[InstalledModel, ...], source_id: str
) -> None:
    made = plan(own, other, source_id)
    pulled = {pull.model for pull in made.pulls}
    mine, theirs = ({model.name: model for model in disk} for disk in (own, other))
    assert pulled <= theirs.keys()
    for name in pulled & mine.keys():
        assert mine[name].modified_ns <= theirs[name].modified_ns
    assert not pulled & {name for name, _ in made.left}
    after = {**mine, **{name: theirs[name] for name in pulled}}
    assert plan(tuple(after.values()), other, source_id).pulls == ()


# Over hosts


def spec(host_id: str, *models: SimModel, **fields: Any) -> SimSpec:
    """A host whose registry has all models of these tests."""
    given_fields: dict[str, Any] = {
        "registry": (SMALL, MIDDLE, LARGE),
        "pull_bytes_per_s": 50_000_000,
        "time_scale": FAST,
        **fields,
    }
    return SimSpec(host_id, models=models, **given_fields)


async def sync(p: Pool, host_id: str, query: str = "") -> tuple[int, Records]:
    """A sync read to its end: the status, and the records or the one object of a refusal."""
    url = f"{p.proxy.url}/sollol/hosts/{host_id}/sync{query}"
    async with p.client.post(url) as answer:
        text = await answer.text()
        if answer.content_type == "application/x-ndjson":
            return answer.status, [json.loads(line) for line in text.splitlines()]
        return answer.status, [json.loads(text)]


async def on_disk(p: Pool, host_id: str) -> dict[str, str]:
    """Names and digests as the host itself lists them."""
    async with p.client.get(f"{p.hosts[host_id].url}/api/tags") as answer:
        return {entry["name"]: entry["digest"] for entry in (await answer.json())["models"]}


async def test_sync_pulls_one_model_after_the_other_and_sums_up() -> None:
    async with pool(spec("a", SMALL, MIDDLE, LARGE), spec("b", OLD_SMALL)) as p:
        status, records = await sync(p, "b", "?from=a")
        assert status == 200
        assert records[-1] == {
            "status": "success",
            "host": "b",
            "pulled": ["small:latest", "middle:latest", "large:latest"],
            "failed": {},
        }
        order = list(dict.fromkeys(record["model"] for record in records[:-1]))
        assert order == records[-1]["pulled"]
        for name in order:
            told = [record for record in records[:-1] if record["model"] == name]
            assert told[0]["status"] == "pulling manifest"
            assert told[-1]["status"] == "success"
            assert any(record.get("completed") for record in told)
        assert await on_disk(p, "b") == await on_disk(p, "a")
        assert p.hosts["b"].stats.manage.max_pulls == 1
        assert p.hosts["a"].stats.manage.pulls_begun == 0

        status, records = await sync(p, "b", "?from=a")
        assert (status, len(records)) == (200, 1)
        assert (records[0]["status"], records[0]["pulled"]) == ("success", [])
        assert p.hosts["b"].stats.manage.pulls_begun == 3


async def test_sync_without_a_source_goes_by_the_pool_and_the_configuration() -> None:
    models = {"large": {"hosts": ["a"]}, "middle": {"hosts": ["c"]}}
    async with pool(spec("a", LARGE), spec("b", SMALL), spec("c"), models=models) as p:
        _, records = await sync(p, "c")
        assert records[-1]["pulled"] == ["middle:latest", "small:latest"]
        assert (await on_disk(p, "c")).keys() == {"middle:latest", "small:latest"}


async def test_dry_run_tells_what_would_be_pulled_and_pulls_nothing() -> None:
    newer = replace(MIDDLE, digest_salt="mine", modified_at="2031-01-01T00:00:00Z")
    async with pool(spec("a", LARGE, MIDDLE, SMALL), spec("b", OLD_SMALL, newer)) as p:
        status, [body] = await sync(p, "b", "?from=a&dry_run=1")
        assert status == 200
        assert body == {
            "host": "b",
            "from": "a",
            "pull": [
                {"model": "small:latest", "reason": "differs", "size_bytes": SMALL.size_bytes},
                {"model": "large:latest", "reason": "missing", "size_bytes": LARGE.size_bytes},
            ],
            "left": [{"model": "middle:latest", "reason": planning.OWN_IS_NEWER}],
        }
        assert p.hosts["b"].stats.manage.pulls_begun == 0


async def test_sync_goes_on_after_a_model_that_fails() -> None:
    async with pool(spec("a", SMALL, MIDDLE), spec("b", registry=(MIDDLE,))) as p:
        _, records = await sync(p, "b")
        assert records[-1]["status"] == "success"
        assert records[-1]["pulled"] == ["middle:latest"]
        reason = "pull model manifest: file does not exist"
        assert records[-1]["failed"] == {"small:latest": reason}
        assert {"error": reason, "model": "small:latest"} in records


async def test_sync_goes_on_after_a_connection_that_is_cut() -> None:
    async with pool(spec("a", SMALL, MIDDLE), spec("b")) as p:
        p.hosts["b"].fault("cut", path="/api/pull", after_records=1, count=1)
        _, records = await sync(p, "b")
        assert records[-1]["pulled"] == ["middle:latest"]
        assert list(records[-1]["failed"]) == ["small:latest"]


async def test_sync_ends_in_an_error_when_nothing_was_pulled() -> None:
    async with pool(spec("a", SMALL, MIDDLE), spec("b", offline=True, registry=())) as p:
        status, records = await sync(p, "b")
        assert status == 200
        assert "status" not in records[-1]
        assert records[-1]["error"].startswith("nothing was pulled: small:latest: pull model")
        assert (records[-1]["pulled"], len(records[-1]["failed"])) == ([], 2)


async def test_sync_begins_no_further_pull_on_a_host_that_goes_down() -> None:
    retries = {"eject_after": 1, "backoff": "10m", "backoff_max": "10m"}
    async with pool(spec("a", SMALL, MIDDLE, LARGE), spec("b"), retries=retries) as p:
        p.hosts["b"].fault("hang", path="/api/pull", after_records=1)
        url = f"{p.proxy.url}/sollol/hosts/b/sync"
        async with p.client.post(url) as answer:
            await answer.content.readany()
            await p.hosts["b"].stop()
            records = [json.loads(line) for line in (await answer.text()).splitlines()]
        assert list(records[-1]["failed"].values())[1:] == ["host b is not up"] * 2
        assert records[-1]["pulled"] == []


async def test_sync_stops_when_its_client_leaves() -> None:
    async with pool(spec("a", SMALL, LARGE), spec("b", pull_bytes_per_s=1)) as p:
        url = f"{p.proxy.url}/sollol/hosts/b/sync"
        async with p.client.post(url) as answer:
            await answer.content.readany()
        stats = await p.hosts["b"].until(lambda seen: seen.manage.pulls_cancelled == 1)
        await p.proxy.until_idle()
        assert stats.manage.pulls_begun == 1
        assert not p.proxy.services.operations.running


async def test_sync_shares_a_pull_that_a_client_waits_for() -> None:
    """The configuration places it on that host alone, so the client's pull is the same one."""
    models = {"large": {"hosts": ["b"]}}
    slow = spec("b", pull_bytes_per_s=1)
    async with pool(spec("a"), slow, models=models) as p:
        syncing = p.client.post(f"{p.proxy.url}/sollol/hosts/b/sync")
        pulling = p.client.post(f"{p.proxy.url}/api/pull", json={"model": "large"})
        async with syncing as first, pulling as second:
            told = await asyncio.gather(first.content.readline(), second.content.readline())
            assert [json.loads(line)["status"] for line in told] == ["pulling manifest"] * 2
            assert len(p.proxy.services.operations.running) == 1
            assert p.hosts["b"].stats.manage.pulls_begun == 1
        await p.proxy.until_idle()


async def test_sync_is_in_nobodys_record_of_requests() -> None:
    async with pool(spec("a", SMALL), spec("b")) as p:
        await sync(p, "b")
        async with p.client.get(f"{p.proxy.url}/sollol/requests") as answer:
            assert (await answer.json())["requests"] == []


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("nobody/sync", 404, "no host 'nobody' in the pool"),
        ("b/sync?from=nobody", 404, "no host 'nobody' in the pool"),
        ("b/sync?from=b", 400, "cannot be compared with itself"),
        ("b/sync?form=a", 400, "no parameter 'form'"),
        ("b/sync?dry_run=perhaps", 400, "dry_run='perhaps'"),
        ("b/sync?from=c", 409, "host c has not answered yet"),
        ("c/sync", 409, "host c is not up"),
        ("a/sync", 409, "host a is not up: it is draining"),
    ],
)
async def test_sync_refuses_what_it_cannot_do_and_pulls_nothing(
    path: str, status: int, words: str
) -> None:
    # Nobody listens at the third one.
    async with SimHost(spec("a", SMALL)) as a, SimHost(spec("b")) as b:
        urls = {"a": a.url, "b": b.url, "c": "http://127.0.0.1:1"}
        config = make_config(*({"id": one, "url": url} for one, url in urls.items()))
        async with running_proxy(config, wait=False) as proxy, ClientSession(proxy.url) as client:
            await proxy.until_up(2)
            await client.post("/sollol/hosts/a/drain")
            async with client.post(f"/sollol/hosts/{path}") as answer:
                assert answer.status == status
                assert words in (await answer.json())["error"]
        assert (a.stats.manage.pulls_begun, b.stats.manage.pulls_begun) == (0, 0)


async def test_host_that_is_down_can_still_be_a_source() -> None:
    retries = {"eject_after": 1}
    async with pool(spec("a", SMALL), spec("b"), retries=retries) as p:
        await p.hosts["a"].stop()
        await p.proxy.until(lambda snapshot: snapshot.hosts[0].state is HostState.EJECTED)
        _, records = await sync(p, "b", "?from=a")
        assert records[-1]["pulled"] == ["small:latest"]
