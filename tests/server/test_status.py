"""The status page: what it says of a pool, and what the templates make of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, replace

import pytest
from aiohttp import ClientSession
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.policies.base import Hold
from sollol_proxy.core.snapshots import Snapshot, WaitingJob
from sollol_proxy.core.types import (
    HostSpec,
    HostState,
    InstalledModel,
    JobKind,
    Outcome,
    RequestRecord,
    ResidentModel,
)
from sollol_proxy.server import control, status
from sollol_proxy.server.alerts import alerts
from sollol_proxy.server.calibration import CalibrationRow
from sollol_proxy.server.links import LINKS
from sollol_proxy.server.request_row import Tone
from sollol_proxy.server.status_hosts import Bar
from tests.server.samples import (
    BASE,
    EJECTED,
    GB,
    HEALTHY,
    HOSTILE,
    JOB,
    NOW,
    RECORD,
    RECORDS,
    SECTION,
    SNAPSHOTS,
    TEXTS,
    Page,
    assert_harmless,
    numbered,
    pool,
    status_html,
)
from tests.support import make_config, running_proxy

DRAINING = replace(HEALTHY, state=HostState.DRAINING)


def _view(snapshot: Snapshot, records: Sequence[RequestRecord] = ()) -> status.PageView:
    return status.view(snapshot, records, SECTION, NOW, "1.2.3", BASE)


@settings(max_examples=60)
@given(snapshot=SNAPSHOTS, records=st.lists(RECORDS, max_size=3), now=TEXTS | st.just(NOW))
def test_page_shows_every_host_and_escapes_everything_for_any_snapshot(
    snapshot: Snapshot, records: list[RequestRecord], now: str
) -> None:
    view = status.view(snapshot, records, SECTION, now, "1.2.3", BASE)
    shown = [card.id for card in (*view.cards, *view.rows)]
    assert sorted(shown) == sorted(host.spec.id for host in snapshot.hosts)
    assert_harmless(Page(status_html(view)), scripts=1)


def test_page_shows_a_hostile_name_as_text() -> None:
    host = replace(HEALTHY, spec=HostSpec(HOSTILE, HOSTILE), detail=HOSTILE)
    page = Page(status_html(_view(pool(host), [replace(RECORD, model=HOSTILE)])))
    assert page.text.count(HOSTILE) >= 4


@pytest.mark.parametrize("number", [0, 1, 6, 50])
def test_page_loads_nothing_from_elsewhere(number: int) -> None:
    html = status_html(_view(pool(*numbered(number)), [RECORD]))
    linked = [
        attrs[name]
        for _, attrs in Page(html).tags
        for name in ("href", "src", "action", "data", "poster", "srcset")
        if name in attrs
    ]
    assert linked
    assert [link for link in linked if not re.match("/(?!/)|#|data:", link)] == []
    assert "url(" not in html
    assert "@import" not in html


@pytest.mark.parametrize(
    ("number", "cards", "rows"), [(0, 0, 0), (1, 1, 0), (6, 6, 0), (50, 0, 50)]
)
def test_page_turns_healthy_hosts_into_rows_when_there_are_many(
    number: int, cards: int, rows: int
) -> None:
    view = _view(pool(*numbered(number)))
    assert (len(view.cards), len(view.rows)) == (cards, rows)
    page = Page(status_html(view))
    assert page.count("article") == cards
    for host in numbered(number):
        assert host.spec.id in page.text


def test_page_keeps_the_card_of_a_host_in_trouble_when_there_are_many() -> None:
    view = _view(pool(*numbered(30), EJECTED))
    assert [card.id for card in view.cards] == ["attic"]


def test_page_says_how_to_name_a_host_when_the_pool_is_empty() -> None:
    page = Page(status_html(_view(pool())))
    assert "sollol-proxy --host http://" in page.text
    assert "hosts:\n  - http://" in page.text
    assert f"OLLAMA_HOST={BASE}" in page.text


def test_page_refreshes_itself_without_scripts() -> None:
    html = status_html(_view(pool(HEALTHY)))
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in html


def test_page_links_each_request_by_its_quoted_id() -> None:
    page = Page(status_html(_view(pool(HEALTHY), [RECORD])))
    assert "/sollol/requests/r%2F1" in [attrs.get("href") for _, attrs in page.tags]


def test_page_links_lead_to_what_is_served() -> None:
    served = {path for method, path, _ in control.ROUTES if method == "GET"}
    assert set(astuple(LINKS)) <= served


async def test_page_tells_the_address_it_was_reached_by_and_links_without_it() -> None:
    async with running_proxy(make_config()) as proxy, ClientSession() as session:
        headers = {"Host": "localhost:8080", "Accept": "text/html"}
        async with session.get(f"{proxy.url}/sollol/", headers=headers) as answer:
            page = Page(await answer.text())
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert "OLLAMA_HOST=http://localhost:8080" in page.text
    assert LINKS.stats in [attrs.get("href") for _, attrs in page.tags]


def test_row_of_a_request_to_several_hosts_says_which_did_not_do_it() -> None:
    failures = tuple((f"h{number}", "no space left") for number in range(5))
    pull = replace(
        RECORD,
        kind=JobKind.MANAGE,
        route="/api/pull",
        outcome=Outcome.PARTIAL,
        decision=None,
        hosts=("a", "b"),
        failures=failures,
    )
    view = _view(pool(HEALTHY), [pull, replace(pull, hosts=tuple("abcd"), failures=())])
    first, second = view.requests
    assert (first.host, first.about, first.priority) == ("a, b", "POST /api/pull", "–")
    assert (first.tone, first.outcome, first.reason) == (
        Tone.WARN,
        "partial",
        "done on 2 of 7 hosts",
    )
    assert (second.host, second.reason) == ("4 hosts", "done on all 4 hosts")
    page = Page(status_html(view))
    assert page.text.count("no space left") == 3
    for text in ("not on h0: no space left", "and 2 more hosts", "partial"):
        assert text in page.text


def test_host_tells_how_many_models_it_has_and_what_they_take() -> None:
    installed = (InstalledModel("a:1", "x", 2 * GB), InstalledModel("b:1", "y", 3 * GB))
    few = _view(pool(replace(HEALTHY, installed=installed), replace(HEALTHY, installed=())))
    assert [card.installed for card in few.cards] == ["2 · 5 GB", "0"]
    many = _view(pool(*[replace(HEALTHY, installed=installed)] * 9))
    assert Page(status_html(many)).text.count("2 · 5 GB") == 9


def test_page_links_to_the_models_and_from_the_alert_about_them() -> None:
    hosts = [replace(HEALTHY, installed=(InstalledModel("m:1", digest),)) for digest in "ab"]
    page = Page(status_html(_view(pool(*hosts))))
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a" and "href" in attrs]
    assert links.count(LINKS.models) == 3
    assert "different models under one name: m:1" in page.text


@pytest.mark.parametrize(
    ("snapshot", "sentence"),
    [
        (pool(), "No host is named yet."),
        (pool(EJECTED), "No host takes jobs: 1 ejected."),
        (pool(HEALTHY), "The host takes jobs."),
        (pool(*numbered(3)), "All 3 hosts take jobs."),
        (pool(HEALTHY, EJECTED), "1 of 2 hosts takes jobs: 1 ejected."),
        (pool(*numbered(2), DRAINING), "2 of 3 hosts take jobs: 1 draining."),
        (
            replace(pool(HEALTHY, EJECTED), is_draining=True),
            "Finishing 3 jobs in flight, taking nothing new.",
        ),
    ],
)
def test_sentence_says_which_hosts_take_jobs(snapshot: Snapshot, sentence: str) -> None:
    assert _view(snapshot).sentence == sentence


def test_page_says_how_many_jobs_and_alerts_it_leaves_out() -> None:
    waiting = tuple(WaitingJob(JOB, 1.0, "a slot") for _ in range(20))
    snapshot = replace(pool(*[EJECTED] * 30), waiting=waiting, waiting_total=40)
    view = _view(snapshot)
    assert len(view.waiting) + int(view.waiting_more.split()[1]) == 40
    every = len(alerts(snapshot, SECTION, NOW))
    assert len(view.alerts) + int(view.alerts_more.split()[1]) == every


def test_model_lines_cover_what_is_resident_loading_and_running() -> None:
    host = replace(HEALTHY, in_flight_by_model={"llama3.2:3b": 3, "gone:1b": 1})
    (card,) = _view(pool(host)).cards
    assert [(line.name, line.load, line.is_loading) for line in card.models] == [
        ("llama3.2:3b", "3 of 4", False),
        ("qwen3:8b", "0 of 4", True),
        ("gone:1b", "1 of 4", False),
    ]
    assert card.models[0].pips == (True, True, True, False)
    assert card.models[0].memory == "4 GB, 75.0 % GPU"
    assert card.memory == Bar("GPU memory", "3 GB of 24 GB", "12.5%")


def test_model_line_counts_one_slot_for_an_embedder_and_the_exceptions_of_a_host() -> None:
    spec = HostSpec("h", "http://h:1", slots=64, model_slots={"b:1": 2})
    resident = tuple(ResidentModel(name) for name in ("a:1", "b:1", "e:1"))
    installed = (InstalledModel("e:1", capabilities=frozenset({"embedding"})),)
    host = replace(HEALTHY, spec=spec, resident=resident, installed=installed, loading=())
    (card,) = _view(pool(replace(host, in_flight_by_model={}))).cards
    assert [(line.load, len(line.pips)) for line in card.models] == [
        ("0 of 64", 0),
        ("0 of 2", 2),
        ("0 of 1", 1),
    ]


def test_success_tile_leaves_out_what_is_nobodys_fault() -> None:
    outcomes = [Outcome.COMPLETED] * 3 + [Outcome.UPSTREAM_FAILED]
    outcomes += [Outcome.CLIENT_GONE, Outcome.UPSTREAM_REFUSED, Outcome.REJECTED_BAD_REQUEST]
    records = [replace(RECORD, outcome=outcome) for outcome in outcomes]
    tiles = {tile.label: tile for tile in _view(pool(HEALTHY), records).tiles}
    assert (tiles["Success"].value, tiles["Success"].note) == ("75.0 %", "1 failed of 4")
    assert (tiles["Requests"].value, tiles["Tokens out"].value) == ("7", "2,100")


@pytest.mark.parametrize("outcome", Outcome)
def test_success_tile_knows_every_outcome(outcome: Outcome) -> None:
    assert _view(pool(HEALTHY), [replace(RECORD, outcome=outcome)]).tiles


def test_levels_run_from_ten_to_one_and_scale_to_the_fullest() -> None:
    snapshot = replace(pool(HEALTHY), waiting_total=6, waiting_by_priority={8: 2, 1: 4})
    levels = _view(snapshot).levels
    assert [level.label for level in levels] == [str(level) for level in range(10, 0, -1)]
    assert [(level.text, level.share) for level in levels if level.text != "0"] == [
        ("2", "50.0%"),
        ("4", "100.0%"),
    ]


def test_page_tells_how_near_predictions_came_overall_and_by_host() -> None:
    rows = [
        CalibrationRow("gpu-box", 30, 1.08, 1.2, 0.4),
        CalibrationRow("attic", 10, 2.0, 5.2, None),
        CalibrationRow("gone", 5, None, None, 3.0),
    ]
    view = status.view(pool(HEALTHY, EJECTED), (), SECTION, NOW, "1.2.3", BASE, rows)
    tile = view.tiles[-1]
    assert (tile.label, tile.value) == ("Real / predicted", "1.08")
    assert tile.note == "of 40 requests; off by 2.2 s on average"
    assert [card.prediction for card in view.cards] == ["1.08 · ± 1.2 s", "2 · ± 5.2 s"]
    page = Page(status_html(view))
    for text in ("off by 2.2 s on average", "1.08 · ± 1.2 s"):
        assert text in page.text
    assert page.text.count("Real / predicted") == 3


@pytest.mark.parametrize("rows", [(), (CalibrationRow("gpu-box", 5, None, None, 3.0),)])
def test_page_is_silent_about_predictions_when_no_time_was_predicted(
    rows: tuple[CalibrationRow, ...],
) -> None:
    view = status.view(pool(HEALTHY), (), SECTION, NOW, "1.2.3", BASE, rows)
    assert "Real / predicted" not in Page(status_html(view)).text


def test_page_tells_why_a_job_is_held_beside_an_idle_host() -> None:
    hold = Hold(JOB.id, "a", wait_s=2.1, own_s=1.6, idle_host_id="c", idle_s=11.0)
    snapshot = replace(pool(HEALTHY), waiting_total=1, waiting=(WaitingJob(JOB, 3.0, hold.reason),))
    text = "host a frees in 2.1 s and then needs 1.6 s; host c would need 11.0 s"
    assert text in Page(status_html(_view(snapshot))).text
