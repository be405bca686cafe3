"""The page of one request: what was decided, its time, its facts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest
from aiohttp import ClientSession
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.types import (
    Candidate,
    Cost,
    JobKind,
    Observation,
    Outcome,
    RequestRecord,
    Term,
)
from sollol_proxy.server.links import request_href
from sollol_proxy.server.request_page import request_view
from tests.server.samples import DECISION, RECORD, RECORDS, Page, assert_harmless, request_html
from tests.support import make_config, running_proxy

WAITING = replace(
    RECORD,
    decision=None,
    status=0,
    answered_by_host=False,
    queue_s=0.0,
    first_byte_s=None,
    observation=None,
)

PARTIAL = replace(
    RECORD,
    kind=JobKind.MANAGE,
    route="/api/pull",
    path="/api/pull",
    outcome=Outcome.PARTIAL,
    decision=None,
    hosts=("gpu-box", "mac"),
    failures=(("attic", "no space left"),),
    queue_s=0.0,
    observation=None,
)
NOBODY = replace(PARTIAL, hosts=(), failures=(), detail="none of 3 hosts is up")


@settings(max_examples=60)
@given(record=RECORDS, is_running=st.booleans())
def test_request_page_escapes_everything_for_any_record(
    record: RequestRecord, is_running: bool
) -> None:
    view = request_view(record, "1.2.3", is_running=is_running)
    assert_harmless(Page(request_html(view)), scripts=0)


def test_request_page_shows_every_term_of_every_candidate() -> None:
    view = request_view(RECORD, "1.2.3")
    assert view.columns == ("gpu", "load", "success")
    assert [(row.host, row.score, row.is_chosen) for row in view.candidates] == [
        ("gpu-box", "125", True),
        ("attic", "4.9", False),
    ]
    assert [cell.value for cell in view.candidates[1].terms] == ["–", "–", "0.71"]
    page = Page(request_html(view))
    for text in ("21.4 GB free", "load 50 %", "71 % success", "attic failed: connection reset"):
        assert text in page.text


def test_request_page_marks_a_cost_as_such_when_the_policy_has_no_score() -> None:
    decision = replace(DECISION, cost=Cost(2.0), runners_up=(Candidate("attic", Cost(8.0)),))
    view = request_view(replace(RECORD, decision=decision), "1.2.3")
    assert [(row.score, row.share) for row in view.candidates] == [
        ("cost 2", "100.0%"),
        ("cost 8", "25.0%"),
    ]


def seconds(**values: float) -> Cost:
    terms = tuple(Term(name, value, f"{name} it is") for name, value in values.items())
    return Cost(sum(values.values()), terms)


@pytest.mark.parametrize(
    ("other", "chosen", "cells"),
    [
        pytest.param(
            seconds(wait=2.5, decode=0.25),
            "1.237 s",
            ["0.000 s", "0.004 s", "1.233 s"],
            id="short",
        ),
        pytest.param(
            seconds(wait=12.0, decode=0.25), "1.23 s", ["0.00 s", "0.00 s", "1.23 s"], id="long"
        ),
    ],
)
def test_request_page_shows_seconds_that_add_up_to_their_sum(
    other: Cost, chosen: str, cells: list[str]
) -> None:
    decision = replace(
        DECISION,
        cost=seconds(wait=0.0, prefill=0.0036, decode=1.2333),
        runners_up=(Candidate("attic", other),),
        predicted_wait_s=3.0,
        predicted_total_s=1.2369,
    )
    observation = Observation(total_s=1.5, output_tokens=3)
    view = request_view(replace(RECORD, decision=decision, observation=observation), "1.2.3")
    assert view.are_seconds
    assert view.candidates[0].score == chosen
    assert [cell.value for cell in view.candidates[0].terms] == cells
    facts = {fact.label: fact.value for fact in view.facts}
    assert (facts["Predicted wait"], facts["Predicted at the host"]) == ("3.0 s", "1.2 s")
    assert facts["At the host"] == "1.5 s"
    page = Page(request_html(view))
    for text in ("Sum", chosen, "decode it is", *cells):
        assert text in page.text
    assert "Score" not in page.text


@pytest.mark.parametrize(
    ("other", "words"),
    [
        pytest.param(seconds(wait=0.0, decode=1.3), "", id="the smallest is chosen"),
        pytest.param(seconds(wait=0.0, decode=1.15), "take turns", id="within a tenth"),
        pytest.param(seconds(wait=0.0, decode=0.4), "better for all", id="much smaller"),
    ],
)
def test_request_page_says_why_the_smallest_sum_is_not_chosen(other: Cost, words: str) -> None:
    decision = replace(
        DECISION,
        policy="completion_time",
        cost=seconds(wait=0.0, decode=1.2),
        runners_up=(Candidate("attic", other),),
        predicted_total_s=1.2,
    )
    view = request_view(replace(RECORD, decision=decision), "1.2.3")
    assert words in view.despite
    assert bool(words) is bool(view.despite)
    assert view.despite in Page(request_html(view)).text
    other_policy = replace(RECORD, decision=replace(decision, policy="mine"))
    assert request_view(other_policy, "1.2.3").despite == ""


@given(values=st.lists(st.lists(st.floats(0, 500), min_size=1, max_size=5), min_size=1, max_size=4))
def test_sum_on_the_request_page_is_that_of_the_seconds_shown(values: list[list[float]]) -> None:
    costs = [seconds(**{f"t{n}": value for n, value in enumerate(row)}) for row in values]
    others = tuple(Candidate(f"h{n}", cost) for n, cost in enumerate(costs[1:]))
    decision = replace(DECISION, cost=costs[0], runners_up=others, predicted_total_s=1.0)
    for row in request_view(replace(RECORD, decision=decision), "1.2.3").candidates:
        shown = [Decimal(cell.value.removesuffix(" s")) for cell in row.terms if cell.text]
        assert Decimal(row.score.replace(",", "").removesuffix(" s")) == sum(shown)


@pytest.mark.parametrize(
    "cost", [Cost(2.0), Cost(2.0, (Term("gpu", 2.0, ""),), 50.0), Cost(2.0, (Term("x", 1.0, ""),))]
)
def test_request_page_does_not_call_seconds_what_adds_up_to_nothing(cost: Cost) -> None:
    decision = replace(DECISION, cost=cost, runners_up=(), predicted_total_s=2.0)
    assert not request_view(replace(RECORD, decision=decision), "1.2.3").are_seconds


def test_request_page_says_so_when_no_host_was_chosen() -> None:
    record = replace(RECORD, decision=None, outcome=Outcome.EXPIRED_IN_QUEUE, detail="waited 30 s")
    page = Page(request_html(request_view(record, "1.2.3")))
    assert "No host was chosen" in page.text
    assert page.text.count("waited 30 s") == 1


def test_request_page_shows_each_host_of_a_request_to_several() -> None:
    view = request_view(PARTIAL, "1.2.3")
    assert [(part.host, part.is_done) for part in view.parts] == [
        ("attic", False),
        ("gpu-box", True),
        ("mac", True),
    ]
    assert view.lead == "Done on 2 of 3 hosts"
    page = Page(request_html(view))
    for text in ("Partial", "attic", "no space left", "gpu-box", "mac", "the hosts"):
        assert text in page.text
    for text in ("No host was chosen", "Decision", "Priority", "Complexity", "tokens"):
        assert text not in page.text
    assert page.text.count("no space left") == 1
    assert [part.name for part in view.timeline] == ["first", "answer"]


@pytest.mark.parametrize(
    ("record", "is_running", "lead", "text"),
    [
        pytest.param(replace(NOBODY, detail=""), True, "No host yet", "Under way.", id="runs"),
        pytest.param(NOBODY, False, "No host was asked", "none of 3 hosts is up", id="nobody"),
        pytest.param(
            replace(NOBODY, hosts=("a", "b")), False, "Done on all 2 hosts", "done", id="all"
        ),
        pytest.param(replace(NOBODY, hosts=("a",)), False, "Done on 1 host", "done", id="one"),
        pytest.param(
            replace(NOBODY, kind=JobKind.UNLOAD, failures=(("a", "HTTP 500"),)),
            False,
            "Done on 0 of 1 host",
            "HTTP 500",
            id="unload",
        ),
    ],
)
def test_request_page_says_how_far_a_request_to_several_hosts_came(
    record: RequestRecord, is_running: bool, lead: str, text: str
) -> None:
    view = request_view(record, "1.2.3", is_running=is_running)
    assert view.lead == lead
    assert text in Page(request_html(view)).text


def test_request_page_names_the_one_host_that_a_managing_request_was_passed_to() -> None:
    decision = replace(DECISION, policy="pass", runners_up=())
    record = replace(PARTIAL, decision=decision, hosts=(), failures=())
    view = request_view(record, "1.2.3")
    assert view.parts == ()
    assert "gpu-box" in Page(request_html(view)).text


def test_request_page_draws_its_time_from_end_to_end() -> None:
    timeline = request_view(RECORD, "1.2.3").timeline
    assert [(part.text, part.start, part.share) for part in timeline] == [
        ("1.0 s", "0.0%", "25.0%"),
        ("500 ms", "25.0%", "12.5%"),
        ("2.5 s", "37.5%", "62.5%"),
    ]


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        pytest.param(WAITING, ["4.0 s", "0 s", "0 s"], id="waits"),
        pytest.param(replace(RECORD, first_byte_s=None), ["1.0 s", "3.0 s", "0 s"], id="is asked"),
        pytest.param(RECORD, ["1.0 s", "500 ms", "2.5 s"], id="is answered"),
    ],
)
def test_request_page_gives_the_time_so_far_to_the_stretch_a_running_request_is_in(
    record: RequestRecord, texts: list[str]
) -> None:
    timeline = request_view(record, "1.2.3", is_running=True).timeline
    assert [part.text for part in timeline] == texts


@pytest.mark.parametrize(
    ("is_running", "texts"),
    [(True, ("none yet", "–", "–")), (False, ("client left before one", "the proxy", "0 B"))],
)
def test_request_page_tells_no_answer_yet_from_no_answer_at_all(
    is_running: bool, texts: tuple[str, ...]
) -> None:
    view = request_view(WAITING, "1.2.3", is_running=is_running)
    facts = {fact.label: fact.value for fact in view.facts}
    assert (facts["Status"], facts["Answered by"], facts["Body out"]) == texts


def test_request_page_refreshes_only_while_the_request_runs() -> None:
    running = request_view(RECORD, "1.2.3", is_running=True)
    finished = request_view(RECORD, "1.2.3")
    assert running.heading == "Running"
    assert [_refreshes(Page(request_html(view))) for view in (running, finished)] == [True, False]


async def test_request_page_is_served_while_the_request_waits() -> None:
    # Nobody listens there, so the request waits for the host to come back.
    config = make_config("http://127.0.0.1:1", queue={"no_host_wait": "10m"})
    async with running_proxy(config, wait=False) as proxy, ClientSession(proxy.url) as session:
        body = {"model": "qwen3:8b", "prompt": "Why?"}
        asked = asyncio.get_running_loop().create_task(session.post("/api/generate", json=body))
        snapshot = await proxy.until(lambda s: bool(s.waiting))
        path = request_href(snapshot.waiting[0].job.id)
        async with session.get(path, headers={"Accept": "text/html"}) as answer:
            page = Page(await answer.text())
        asked.cancel()
        await asyncio.wait([asked])
        await proxy.until_idle()
    assert answer.status == 200
    assert "Running" in page.text
    assert "Not yet: the request is being read, or waits in the queue." in page.text
    assert _refreshes(page)


def _refreshes(page: Page) -> bool:
    return any(attrs.get("http-equiv") == "refresh" for _, attrs in page.tags)
