"""The pool's models: who has which copy, who lacks one; as JSON and as a page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.config.schema import Config
from sollol_proxy.core.snapshots import HostSnapshot
from sollol_proxy.core.types import HostSpec, HostState, InstalledModel, ResidentModel
from sollol_proxy.lab.simhost import SimModel, SimSpec
from sollol_proxy.ollama.merge import merge_tags
from sollol_proxy.server import views
from sollol_proxy.server.figures import instant_iso
from sollol_proxy.server.links import LINKS
from sollol_proxy.server.models_page import Mark, models_page
from sollol_proxy.server.models_view import PoolModels, pool_models
from tests.server.pool import FAST
from tests.server.pool import pool as running_pool
from tests.server.samples import (
    BASE,
    GB,
    HEALTHY,
    HOSTILE,
    NOW,
    Page,
    assert_harmless,
    models_html,
    pool,
)
from tests.support import make_config

A, B = "a" * 64, "b" * 64
LONG = "hf.co/somebody/a-model-whose-name-goes-on-and-on-abliterated-gguf:iq4_xs"


def copy(name: str, digest: str = A, day: int = 1, **fields: Any) -> InstalledModel:
    return InstalledModel(name, digest, size_bytes=GB, modified_ns=day * 10**18, **fields)


def host(
    host_id: str, *models: InstalledModel, state: HostState = HostState.HEALTHY, **fields: Any
) -> HostSnapshot:
    spec = HostSpec(host_id, f"http://{host_id}:11434", **fields)
    return replace(
        HEALTHY,
        spec=spec,
        state=state,
        installed=models,
        resident=(),
        loading=(),
        in_flight_by_model={},
    )


def config_of(*host_ids: str, **models: list[str]) -> Config:
    entries = [{"url": f"http://{host_id}:11434", "id": host_id} for host_id in host_ids]
    placed = {name.replace("_", ":"): {"hosts": hosts} for name, hosts in models.items()}
    return make_config(*entries, models=placed)


def seen(*hosts: HostSnapshot, config: Config | None = None) -> PoolModels:
    return pool_models(pool(*hosts), config or make_config())


def missing(found: PoolModels) -> dict[str, tuple[str, ...]]:
    return {model.name: model.missing_on for model in found.models}


UNKNOWN = replace(host("c", state=HostState.UNKNOWN), version="")

_copies = st.builds(
    copy,
    st.sampled_from(("llama3:latest", "qwen3:8b", LONG, HOSTILE)),
    st.sampled_from(("", A, B, "c" * 64)),
    st.integers(0, 3),
    is_remote=st.booleans(),
)


@st.composite
def pools(draw: st.DrawFn) -> list[HostSnapshot]:
    hosts = []
    for number in range(draw(st.integers(0, 5))):
        copies = draw(st.lists(_copies, max_size=4, unique_by=lambda model: model.name))
        state = draw(st.sampled_from(HostState))
        version = draw(st.sampled_from(("", "0.33.0")))
        deny = draw(st.sampled_from(((), ("qwen*",))))
        hosts.append(replace(host(f"h{number}", *copies, state=state, deny=deny), version=version))
    return hosts


@settings(max_examples=150)
@given(hosts=pools())
def test_every_copy_is_listed_once_and_every_lack_from_both_sides(
    hosts: list[HostSnapshot],
) -> None:
    found = seen(*hosts)
    has = {(model.name, one.spec.id) for one in hosts for model in one.installed}
    listed = [(model.name, one.host.spec.id) for model in found.models for one in model.copies]
    assert sorted(listed) == sorted(has)
    lacks = {(name, one.host.spec.id) for one in found.hosts for name in one.lacks}
    assert lacks == {(model.name, one) for model in found.models for one in model.missing_on}
    assert not lacks & has
    denied = {one.spec.id for one in hosts if one.spec.deny}
    assert not {one for name, one in lacks if name.startswith("qwen")} & denied
    for model in found.models:
        assert model.has_drift == (len({one.model.digest for one in model.copies} - {""}) > 1)


@settings(max_examples=150)
@given(hosts=pools())
def test_newest_copy_is_the_one_that_the_merged_list_shows(hosts: list[HostSnapshot]) -> None:
    """Of hosts that are up, and of copies that say which they are."""
    documents = [
        {
            "models": [
                {
                    "name": model.name,
                    "digest": model.digest,
                    "modified_at": instant_iso(model.modified_ns),
                }
                for model in one.installed
                if model.digest and one.spec.may_serve(model.name)
            ]
        }
        for one in hosts
        if one.state.is_routable
    ]
    shown = {entry["name"]: entry["digest"] for entry in merge_tags(documents)["models"]}
    for model in seen(*hosts).models:
        if model.name in shown:
            assert model.newest is not None
            assert model.newest.digest == shown[model.name]


@settings(max_examples=60)
@given(hosts=pools(), base=st.text(max_size=20) | st.just(HOSTILE))
def test_page_and_json_hold_for_any_pool(hosts: list[HostSnapshot], base: str) -> None:
    found = seen(*hosts)
    view = models_page(found, NOW, "1.2.3", base)
    assert all(len(row.cells) == len(hosts) for row in view.rows)
    assert_harmless(Page(models_html(view)), scripts=0)
    body = json.loads(json.dumps(views.models_json(found)))
    assert [entry["copies"] for entry in body["models"]] == [
        len(entry["hosts"]) for entry in body["models"]
    ]


@pytest.mark.parametrize(
    ("hosts", "config", "expected"),
    [
        pytest.param(
            (host("a", copy("m:1")), host("b")), config_of("a", "b"), {"m:1": ("b",)}, id="lacks"
        ),
        pytest.param(
            (host("a", copy("m:1")), host("b", deny=("m:*",))),
            config_of("a", "b"),
            {"m:1": ()},
            id="denied",
        ),
        pytest.param(
            (host("a", copy("m:1")), host("b"), host("c")),
            config_of("a", "b", "c", m_1=["a", "c"]),
            {"m:1": ("c",)},
            id="placed",
        ),
        pytest.param(
            (host("a"), host("b")),
            config_of("a", "b", m_1=["b"]),
            {"m:1": ("b",)},
            id="placed and nowhere yet",
        ),
        pytest.param(
            (host("a", copy("m:1", is_remote=True)), host("b")),
            config_of("a", "b"),
            {"m:1": ()},
            id="stub",
        ),
        pytest.param(
            (host("a", copy("m:1", is_remote=True)), host("b")),
            config_of("a", "b", m_1=["a", "b"]),
            {"m:1": ("b",)},
            id="stub that is placed",
        ),
        pytest.param(
            (host("a", copy("m:1")), UNKNOWN), config_of("a", "c"), {"m:1": ()}, id="unknown host"
        ),
        pytest.param(
            (host("a", copy("m:1")), host("b", state=HostState.EJECTED)),
            config_of("a", "b"),
            {"m:1": ("b",)},
            id="host that is down",
        ),
    ],
)
def test_model_is_missing_where_it_should_be_and_is_not(
    hosts: tuple[HostSnapshot, ...], config: Config, expected: dict[str, tuple[str, ...]]
) -> None:
    assert missing(seen(*hosts, config=config)) == expected


@pytest.mark.parametrize(
    ("hosts", "newest"),
    [
        pytest.param((host("a", copy("m:1")), host("b", copy("m:1"))), "ab", id="equal"),
        pytest.param((host("a", copy("m:1", A, 1)), host("b", copy("m:1", B, 2))), "b", id="later"),
        pytest.param(
            (host("a", copy("m:1", A, 1)), host("b", copy("m:1", B, 1))), "b", id="same instant"
        ),
        pytest.param(
            (
                host("a", copy("m:1", A, 1)),
                host("b", copy("m:1", B, 2), state=HostState.EJECTED),
            ),
            "a",
            id="the later one is down",
        ),
        pytest.param(
            (host("a", copy("m:1", A, 1)), host("b", copy("m:1", "", 2))), "ab", id="no digest"
        ),
    ],
)
def test_newest_copy_is_marked(hosts: tuple[HostSnapshot, ...], newest: str) -> None:
    [model] = seen(*hosts).models
    assert "".join(one.host.spec.id for one in model.copies if one.is_newest) == newest


def test_disk_counts_several_names_of_one_model_once() -> None:
    found = seen(host("a", copy("m:1", A), copy("m:2", A), copy("m:3", B)))
    body = views.models_json(found)
    assert body["hosts"][0]["disk_bytes"] == 2 * GB
    assert (body["hosts"][0]["models"], len(body["models"])) == (3, 3)


def test_json_says_null_of_a_host_that_has_not_answered() -> None:
    body = views.models_json(seen(UNKNOWN))
    assert body["hosts"] == [
        {
            "id": "c",
            "state": "unknown",
            "models": None,
            "disk_bytes": None,
            "lacks": [],
            "differs": [],
        }
    ]


def test_page_marks_each_cell_by_what_the_host_has() -> None:
    busy = replace(
        host("a", copy("m:1", B, 2), copy("s:1", is_remote=True)),
        resident=(ResidentModel("m:1", size_bytes=2 * GB, size_vram_bytes=2 * GB),),
        in_flight_by_model={"m:1": 3},
    )
    hosts = (busy, host("b", copy("m:1", A, 1)), host("d"), host("e", deny=("*",)), UNKNOWN)
    view = models_page(seen(*hosts), NOW, "1.2.3", BASE)
    cells = {row.name: [cell.mark for cell in row.cells] for row in view.rows}
    assert cells == {
        "m:1": [Mark.LOADED, Mark.DIFFERS, Mark.LACKS, Mark.NONE, Mark.UNKNOWN],
        "s:1": [Mark.STUB, Mark.NONE, Mark.NONE, Mark.NONE, Mark.UNKNOWN],
    }
    assert view.rows[0].cells[0].text == "in memory, 2 GB, 3 in flight"
    assert view.rows[0].copies == "2 of 3"
    assert [(row.model, row.is_newest, row.hosts) for row in view.drifts] == [
        ("m:1", True, "a"),
        ("", False, "b"),
    ]
    page = Page(models_html(view))
    for text in ("another model under this name", "Lacks m:1", "Has another m:1 than the newest"):
        assert text in page.text


def test_page_gives_the_sync_command_of_hosts_that_are_up_and_need_one() -> None:
    hosts = (
        host("a", copy("m:1")),
        host("it's/b?"),
        host("c", state=HostState.EJECTED),
        host("d", state=HostState.DRAINING),
    )
    commands = [row.command for row in models_page(seen(*hosts), NOW, "1.2.3", BASE).hosts]
    assert commands == ["", f"curl -N -X POST '{BASE}/sollol/hosts/it%27s%2Fb%3F/sync'", "", ""]


def test_command_stays_one_word_whatever_the_address() -> None:
    view = models_page(seen(host("a", copy("m:1")), host("b")), NOW, "1.2.3", "http://x';boom")
    assert view.hosts[1].command == ("curl -N -X POST 'http://x'\\'';boom/sollol/hosts/b/sync'")


def test_page_of_fifty_hosts_and_long_names_shows_them_all() -> None:
    names = [f"{LONG}-{number}" for number in range(20)]
    hosts = [host(f"host-{number}", *map(copy, names)) for number in range(50)]
    view = models_page(seen(*hosts), NOW, "1.2.3", BASE)
    page = Page(models_html(view))
    assert not view.is_upright
    assert page.count("td") >= 20 * 50
    assert all(one.spec.id in page.text for one in hosts)
    assert all(name in page.text for name in names)


def test_page_shows_a_hostile_name_as_text_and_loads_nothing_from_elsewhere() -> None:
    html = models_html(models_page(seen(host("a", copy(HOSTILE)), host("b")), NOW, "1", BASE))
    page = Page(html)
    assert HOSTILE in page.text
    linked = [attrs[name] for _, attrs in page.tags for name in ("href", "src") if name in attrs]
    assert [link for link in linked if not re.match("/(?!/)|#|data:", link)] == []


def test_page_of_a_pool_without_models_says_how_to_get_one() -> None:
    assert "ollama pull" in Page(models_html(models_page(seen(host("a")), NOW, "1", BASE))).text


def test_header_cells_of_the_page_say_what_they_head() -> None:
    hosts = (host("a", copy("m:1", A)), host("b", copy("m:1", B)))
    page = Page(models_html(models_page(seen(*hosts), NOW, "1", BASE)))
    headers = [attrs for tag, attrs in page.tags if tag == "th"]
    assert headers
    assert all(attrs.get("scope") in ("col", "row", "rowgroup") for attrs in headers)
    assert page.count("caption") == page.count("table")


def test_page_says_how_to_try_the_command_only_where_there_is_one() -> None:
    alike = (host("a", copy("m:1", A)), host("b", copy("m:1", A)))
    differing = (host("a", copy("m:1", A)), host("b"))
    hints = [
        "dry_run" in models_html(models_page(seen(*hosts), NOW, "1", BASE))
        for hosts in (alike, differing)
    ]
    assert hints == [False, True]


async def test_models_are_served_as_json_and_as_a_page() -> None:
    shared = SimModel("llama3", size_bytes=GB)
    other = replace(shared, digest_salt="other", modified_at="2020-01-01T00:00:00Z")
    specs = (
        SimSpec("a", models=(shared, SimModel("qwen3")), resident=("llama3",), time_scale=FAST),
        SimSpec("b", models=(other,), time_scale=FAST),
    )
    async with running_pool(*specs) as p:
        async with p.client.get(p.proxy.url + LINKS.models) as answer:
            assert answer.content_type == "application/json"
            body = await answer.json()
        headers = {"Accept": "text/html,*/*"}
        async with p.client.get(p.proxy.url + LINKS.models, headers=headers) as answer:
            assert (answer.status, answer.content_type) == (200, "text/html")
            page = Page(await answer.text())
    llama, qwen = body["models"]
    assert (llama["name"], llama["drift"], llama["digests"]) == ("llama3:latest", True, 2)
    assert (llama["copies"], llama["disk_bytes"]) == (2, 2 * GB)
    assert [(entry["host"], entry["is_newest"]) for entry in llama["hosts"]] == [
        ("a", True),
        ("b", False),
    ]
    assert llama["hosts"][0]["resident"]["size_bytes"] > 0
    assert llama["hosts"][1]["resident"] is None
    assert llama["hosts"][1]["modified_at"] == "2020-01-01T00:00:00Z"
    assert (qwen["missing_on"], qwen["drift"]) == (["b"], False)
    assert [entry["lacks"] for entry in body["hosts"]] == [[], ["qwen3:latest"]]
    assert "/sollol/hosts/b/sync" in page.text
