"""What hosts are to each other: older copies, routes that a version lacks, hosts asked by name."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.scheduler import Scheduler
from sollol_proxy.core.types import (
    AttemptResult,
    Decision,
    Effect,
    HostState,
    InstalledModel,
    Job,
    JobKind,
    Recall,
)
from sollol_proxy.ollama.merge import merge_tags
from tests.core.builders import (
    MODEL,
    copy,
    dispatched,
    down,
    holding,
    job,
    reasons,
    refused,
    report,
    scheduler,
    spec,
)

RESPONSES = "/v1/responses"


def drifted(*copies: InstalledModel, keeps_newest: bool = True) -> Scheduler:
    """Hosts a, b, c, … with many slots, one copy each."""
    names = "abcdefgh"[: len(copies)]
    made = scheduler(*(spec(name, slots=99) for name in names), keeps_newest=keeps_newest)
    for name, each in zip(names, copies, strict=True):
        made.report(holding(name, each), 0.0)
    return made


def takers(made: Scheduler, **fields: object) -> set[str]:
    """The hosts that get one of many equal jobs."""
    taken: set[str] = set()
    for number in range(30):
        job_id = f"taker{number}"
        effects = made.submit(job(job_id, **fields), 0.0)
        taken |= set(dispatched(effects).values())
        if job_id in dispatched(effects):
            made.finish(job_id, AttemptResult.CLIENT_GONE, 0.0)
    return taken


# Drift


def test_all_copies_serve_when_drift_is_mixed() -> None:
    made = drifted(copy("old"), copy("new", 2), keeps_newest=False)
    assert takers(made) == {"a", "b"}


def test_only_the_newest_copy_serves_when_told_so() -> None:
    made = drifted(copy("old"), copy("new", 2), copy("new", 1))
    assert takers(made) == {"b", "c"}
    assert takers(made, kind=JobKind.SHOW) == {"b", "c"}


def test_copy_without_a_digest_is_never_left_out_and_leaves_nobody_out() -> None:
    assert takers(drifted(copy(""), copy("new", 2))) == {"a", "b"}
    assert takers(drifted(copy("", 9), copy("new", 2))) == {"a", "b"}


def test_newest_copy_of_a_host_that_is_out_leaves_nobody_out() -> None:
    made = drifted(copy("old"), copy("new", 2))
    made.set_host_draining("b", True, 1.0)
    assert takers(made) == {"a"}
    made.set_host_draining("b", False, 2.0)
    assert takers(made) == {"b"}
    for now in (3.0, 4.0):
        made.report(down("b"), now)
    assert takers(made) == {"a"}


def test_newest_copy_of_a_host_that_may_not_serve_it_leaves_nobody_out() -> None:
    made = scheduler(spec("a"), spec("b", deny=(MODEL,)), keeps_newest=True)
    made.report(holding("a", copy("old")), 0.0)
    made.report(holding("b", copy("new", 2)), 0.0)
    assert takers(made) == {"a"}


def test_drift_ends_when_the_older_host_pulls() -> None:
    made = drifted(copy("old"), copy("new", 2))
    assert takers(made) == {"b"}
    made.report(holding("a", copy("new", 3)), 1.0)
    assert takers(made) == {"a", "b"}


def test_drift_of_one_model_says_nothing_of_another() -> None:
    made = scheduler(spec("a"), spec("b"), keeps_newest=True)
    made.report(holding("a", copy("old"), copy("same", name="x:1")), 0.0)
    made.report(holding("b", copy("new", 2), copy("same", name="x:1")), 0.0)
    assert takers(made, model="x:1") == {"a", "b"}
    assert takers(made) == {"b"}


def test_newest_copy_that_turns_out_to_be_gone_leaves_nobody_out_any_more() -> None:
    made = drifted(copy("old"), copy("new", 2))
    assert dispatched(made.submit(job("1"), 0.0)) == {"1": "b"}
    made.finish("1", AttemptResult.MODEL_MISSING, 0.0)
    assert takers(made) == {"a"}


def test_waiting_job_goes_to_the_older_copy_when_the_newest_leaves() -> None:
    made = scheduler(spec("a"), spec("b"), keeps_newest=True)
    made.report(holding("a", copy("old")), 0.0)
    made.report(holding("b", copy("new", 2)), 0.0)
    made.submit(job("1"), 0.0)
    assert made.submit(job("2"), 0.0) == []
    [waiting] = made.snapshot(0.0).waiting
    assert waiting.reason == "for a slot on b; left out: a (older copy)"
    assert dispatched(made.set_host_draining("b", True, 1.0)) == {"2": "a"}


def test_older_copy_is_no_alternative_while_the_newest_is_up() -> None:
    made = drifted(copy("old"), copy("new", 2))
    assert not made.has_alternative(job("1"), "b")
    again = job("1", excluded=frozenset("b"), attempt=2)
    effects = made.submit(again, 0.0)
    assert refused(effects) == {"1": "no_host"}
    assert reasons(effects)["1"] == (
        "no other host that has this model is up; it failed on b; left out: a (older copy)"
    )


def test_job_of_a_silent_host_is_taken_back_for_an_older_copy() -> None:
    made = drifted(copy("old"), copy("new", 2))
    made.submit(job("1"), 0.0)
    made.report(down("b"), 1.0)
    assert made.report(down("b"), 2.0)[0] == Recall("1")


def test_job_that_names_its_host_or_unloads_is_not_kept_from_an_older_copy() -> None:
    made = drifted(copy("old"), copy("new", 2))
    assert takers(made, only="a") == {"a"}
    assert takers(made, kind=JobKind.UNLOAD) == {"a", "b"}


def test_decision_says_who_was_left_out() -> None:
    made = drifted(copy("old"), copy("new", 2))
    said = reasons(made.submit(job("1"), 0.0))["1"]
    assert said.startswith("b has to load the model, ")
    assert said.endswith("; left out: a (older copy)")


def test_text_names_a_few_of_many_left_out() -> None:
    made = drifted(*(copy(f"old{number}") for number in range(5)), copy("new", 2))
    said = reasons(made.submit(job("1"), 0.0))["1"]
    assert said.endswith("; left out: a (older copy), b (older copy), c (older copy) and 2 more")


@given(
    ages=st.lists(
        st.tuples(st.sampled_from(["d1", "d2", "d3"]), st.integers(0, 2)), min_size=1, max_size=8
    )
)
def test_copy_that_serves_is_the_one_that_the_merged_list_shows(
    ages: list[tuple[str, int]],
) -> None:
    made = drifted(*(copy(digest, age_s * 10**9) for digest, age_s in ages))
    documents = [
        {
            "models": [
                {"name": MODEL, "digest": digest, "modified_at": f"1970-01-01T00:00:0{age_s}Z"}
            ]
        }
        for digest, age_s in ages
    ]
    [listed] = merge_tags(documents)["models"]
    digests = dict(zip("abcdefgh", (digest for digest, _ in ages), strict=False))
    assert {digests[host] for host in takers(made)} == {listed["digest"]}


# Routes that a version lacks


def mixed(*versions: str) -> Scheduler:
    """Hosts a, b, c, … of these versions, with many slots and the model in memory."""
    names = "abcdefgh"[: len(versions)]
    made = scheduler(*(spec(name, slots=99) for name in names), up=False)
    for name, version in zip(names, versions, strict=True):
        comes_up(made, name, version, 0.0)
    return made


def comes_up(made: Scheduler, host: str, version: str, now: float) -> None:
    """A good probe of a host that holds the model."""
    made.report(report(host, version=version, resident=(MODEL,)), now)


def lacks(made: Scheduler, host: str, route: str = RESPONSES) -> None:
    """The host answers that it does not know the route."""
    made.submit(job("asked", route=route, only=host), 0.0)
    made.finish("asked", AttemptResult.ROUTE_MISSING, 0.0)


def test_route_that_one_host_lacks_is_asked_of_no_host_of_its_version() -> None:
    made = mixed("0.12.6", "0.12.6", "0.33.0")
    assert takers(made, route=RESPONSES) == {"a", "b", "c"}
    lacks(made, "a")
    assert takers(made, route=RESPONSES) == {"c"}
    assert takers(made, route="/api/chat") == {"a", "b", "c"}
    assert takers(made) == {"a", "b", "c"}


def test_route_that_all_lack_is_asked_of_any() -> None:
    made = mixed("0.12.6", "0.12.6")
    lacks(made, "a")
    assert takers(made, route=RESPONSES) == {"a", "b"}
    said = reasons(made.submit(job("1", route=RESPONSES), 0.0))["1"]
    assert said.endswith("; no host is known to have /v1/responses")
    assert not made.has_alternative(job("2", route=RESPONSES), "a")
    assert made.has_alternative(job("2"), "a")


def test_what_a_host_says_that_is_out_by_then_and_may_come_back_newer_is_not_kept() -> None:
    made = mixed("", "0.33.0")
    made.submit(job("asked", route=RESPONSES, only="a"), 0.0)
    made.report(down("a"), 1.0)
    made.report(down("a"), 2.0)
    assert "a" not in made.routable()
    made.finish("asked", AttemptResult.ROUTE_MISSING, 0.0)
    comes_up(made, "a", "", 1000.0)
    comes_up(made, "a", "", 1001.0)
    assert takers(made, route=RESPONSES) == {"a", "b"}


def test_route_is_asked_of_a_host_that_lacks_it_when_the_others_do_not_suit() -> None:
    made = scheduler(spec("old"), spec("new"))
    made.report(report("old", version="0.12.6"), 0.0)
    made.report(report("new", "other:1"), 0.0)
    lacks(made, "old")
    assert takers(made, route=RESPONSES) == {"old"}
    made.report(report("new", "other:1", MODEL), 1.0)
    assert takers(made, route=RESPONSES) == {"new"}
    made.set_host_draining("new", True, 2.0)
    assert takers(made, route=RESPONSES) == {"old"}


def test_route_that_one_version_has_says_nothing_of_another_route() -> None:
    made = mixed("0.12.6", "0.33.0")
    for host, route in (("a", RESPONSES), ("a", "/v1/messages"), ("b", "/v1/messages")):
        lacks(made, host, route)
    assert takers(made, route=RESPONSES) == {"b"}
    assert takers(made, route="/v1/messages") == {"a", "b"}
    made.submit(job("1", route="/v1/messages"), 0.0)
    assert sum(host.in_flight for host in made.snapshot(0.0).hosts) == 1


def test_route_missing_counts_against_nobody() -> None:
    made = mixed("0.12.6")
    for _ in range(5):
        lacks(made, "a")
    [host] = made.snapshot(0.0).hosts
    assert (host.state, host.failures, host.success_ratio) == (HostState.HEALTHY, 0, None)
    assert [model.name for model in host.installed] == [MODEL]


def test_retry_goes_to_a_version_that_may_have_the_route() -> None:
    made = mixed("0.12.6", "0.12.6", "0.33.0")
    lacks(made, "a")
    again = job("1", route=RESPONSES, excluded=frozenset("a"), attempt=2)
    effects = made.submit(again, 0.0)
    assert dispatched(effects) == {"1": "c"}
    assert reasons(effects)["1"].endswith("; left out: b (0.12.6 lacks /v1/responses)")


def test_missing_route_is_forgotten_when_the_version_has_left_the_pool() -> None:
    made = mixed("0.12.6", "0.12.6", "0.33.0")
    lacks(made, "a")
    comes_up(made, "a", "0.34.0", 1.0)
    assert takers(made, route=RESPONSES) == {"a", "c"}
    comes_up(made, "b", "0.34.0", 2.0)
    comes_up(made, "b", "0.12.6", 3.0)
    assert takers(made, route=RESPONSES) == {"a", "b", "c"}


def test_missing_route_is_remembered_while_its_host_is_down() -> None:
    made = mixed("0.12.6", "0.33.0")
    lacks(made, "a")
    for now in (1.0, 2.0):
        made.report(down("a"), now)
    comes_up(made, "a", "0.12.6", 60.0)
    assert takers(made, route=RESPONSES) == {"b"}


@pytest.mark.parametrize("version", ["", "0.0.0"])
def test_missing_route_is_the_hosts_own_when_its_version_says_nothing(version: str) -> None:
    made = mixed(version, version, version)
    lacks(made, "a")
    assert takers(made, route=RESPONSES) == {"b", "c"}
    for now in (1.0, 2.0):
        made.report(down("a"), now)
    comes_up(made, "a", version, 60.0)
    assert takers(made, route=RESPONSES) == {"a", "b", "c"}


def test_missing_route_is_forgotten_when_the_version_answers_it_after_all() -> None:
    made = mixed("0.33.0", "0.33.0", "0.34.0")
    lacks(made, "a")
    assert takers(made, route=RESPONSES) == {"c"}
    made.submit(job("1", route=RESPONSES, only="b"), 0.0)
    made.finish("1", AttemptResult.COMPLETED, 0.0)
    assert takers(made, route=RESPONSES) == {"a", "b", "c"}


def test_missing_route_without_a_label_teaches_nothing() -> None:
    made = mixed("0.12.6", "0.33.0")
    lacks(made, "a", route="")
    assert takers(made) == {"a", "b"}


# One host by name


def test_job_for_one_host_waits_for_its_slot_beside_free_ones() -> None:
    made = scheduler(spec("a"), spec("b"))
    assert dispatched(made.submit(job("1", only="b"), 0.0)) == {"1": "b"}
    assert made.submit(job("2", only="b"), 0.0) == []
    [waiting] = made.snapshot(0.0).waiting
    assert waiting.reason == "for a slot on b"
    assert dispatched(made.submit(job("3"), 0.0)) == {"3": "a"}
    assert dispatched(made.finish("1", AttemptResult.COMPLETED, 1.0)) == {"2": "b"}


@pytest.mark.parametrize("kind", [JobKind.PASS, JobKind.MANAGE, JobKind.OTHER, JobKind.UNLOAD])
def test_job_without_a_slot_goes_to_its_host_at_once(kind: JobKind) -> None:
    made = scheduler(spec("a"), spec("b"))
    made.submit(job("busy", only="b"), 0.0)
    for number in range(5):
        effects = made.submit(job(f"{number}", kind=kind, only="b"), 0.0)
        assert dispatched(effects) == {f"{number}": "b"}
    assert made.snapshot(0.0).hosts[1].in_flight == 1


@pytest.mark.parametrize("kind", [JobKind.PASS, JobKind.MANAGE])
def test_passed_job_says_why_it_went_there_and_keeps_off_excluded_hosts(kind: JobKind) -> None:
    made = scheduler(spec("a"), spec("b"), spec("c"))
    effects = made.submit(job("1", kind=kind, only="b"), 0.0)
    assert reasons(effects) == {"1": "asked of this host alone"}
    effects = made.submit(job("2", kind=kind, model="", excluded=frozenset("a"), attempt=2), 0.0)
    assert dispatched(effects) == {"2": "b"}
    assert reasons(effects) == {"2": "first of the pool"}


def test_passed_jobs_for_different_hosts_do_not_stand_in_each_others_way() -> None:
    made = scheduler(spec("a"), spec("b"), up=False)
    for host in "ab":
        assert made.submit(job(host, kind=JobKind.MANAGE, model="", only=host), 0.0) == []
    assert dispatched(made.report(report("b"), 0.5)) == {"b": "b"}
    assert dispatched(made.report(report("a"), 0.5)) == {"a": "a"}


def test_job_for_a_host_without_its_model_is_asked_of_it_all_the_same() -> None:
    made = scheduler(spec("a"), spec("b"))
    made.report(report("b", "other:1"), 0.0)
    made.submit(job("busy", model="other:1", only="b"), 0.0)
    assert dispatched(made.submit(job("1", only="b"), 0.0)) == {"1": "b"}


def out(made: Scheduler, host: str) -> None:
    for now in (1.0, 2.0):
        made.report(down(host), now)


def test_job_for_a_host_that_is_down_waits_for_it_and_names_it() -> None:
    made = scheduler(spec("a"), spec("b"), no_host_wait_s=2.0)
    out(made, "b")
    assert made.submit(job("1", only="b", arrived_s=2.0), 2.0) == []
    [waiting] = made.snapshot(3.0).waiting
    assert waiting.reason == "for host b to come up; refused in 1.0 s"
    effects = made.tick(4.0)
    assert (refused(effects), reasons(effects)) == ({"1": "no_host"}, {"1": "host b is not up"})


@pytest.mark.parametrize(
    ("asked", "outcome", "detail"),
    [
        (job("1", only="x"), "no_host", "host x is not in the pool"),
        (job("1", only="a", kind=JobKind.MANAGE, model=""), "no_host", "host a is draining"),
        (
            job("1", only="b", model="big:70b"),
            "no_model",
            "host b may not serve this model (hosts: models: allow, deny)",
        ),
        (
            job("1", only="b", excluded=frozenset("b"), attempt=2),
            "no_host",
            "host b has failed this request",
        ),
    ],
)
def test_refusal_says_what_is_wrong_with_the_one_host(
    asked: Job, outcome: str, detail: str
) -> None:
    made = scheduler(spec("a"), spec("b", deny=("*:70b",)), no_host_wait_s=0.0)
    made.set_host_draining("a", True, 0.0)
    effects = made.submit(asked, 0.0)
    assert (refused(effects), reasons(effects)) == ({"1": outcome}, {"1": detail})


def test_refusal_of_a_job_without_a_model_speaks_of_none() -> None:
    made = scheduler(spec("a", allow=("x*",)), spec("b", allow=("x*",)))
    asked = job("1", kind=JobKind.PASS, model="", excluded=frozenset("ab"), attempt=2)
    effects = made.submit(asked, 0.0)
    assert refused(effects) == {"1": "no_host"}
    assert reasons(effects) == {"1": "no other host is up; it failed on a, b"}


@pytest.mark.parametrize("kind", list(JobKind))
def test_job_for_one_host_has_no_alternative_and_is_not_taken_back(kind: JobKind) -> None:
    made = scheduler(spec("a"), spec("b"))
    asked = job("1", kind=kind, only="b")
    assert dispatched(made.submit(asked, 0.0)) == {"1": "b"}
    assert not made.has_alternative(asked, "b")
    for now in (1.0, 2.0, 3.0):
        assert Recall("1") not in made.report(down("b"), now)


def test_managing_job_that_fails_counts_against_its_host() -> None:
    made = scheduler(spec("a"))
    made.submit(job("1", kind=JobKind.MANAGE, only="a"), 0.0)
    made.finish("1", AttemptResult.UNREACHABLE, 1.0, detail="refused")
    assert made.snapshot(1.0).hosts[0].state is HostState.EJECTED


# What the pool has


def test_inventory_has_every_host_also_when_it_is_out() -> None:
    made = drifted(copy("old"), copy("new", 2))
    out(made, "b")
    assert made.inventory() == {"a": {MODEL: copy("old")}, "b": {MODEL: copy("new", 2)}}


def test_inventory_that_was_handed_out_does_not_change() -> None:
    made = drifted(copy("old"))
    before = made.inventory()["a"]
    made.submit(job("1"), 0.0)
    made.finish("1", AttemptResult.MODEL_MISSING, 0.0)
    assert before == {MODEL: copy("old")}
    assert made.inventory() == {"a": {}}


@pytest.mark.parametrize(
    ("remote", "is_remote"),
    [((True, True), True), ((True, False), False), ((False, False), False)],
)
def test_model_is_remote_when_no_routable_host_has_it_itself(
    remote: tuple[bool, bool], is_remote: bool
) -> None:
    made = drifted(*(copy("d", is_remote=each) for each in remote))
    assert made.is_remote(MODEL) is is_remote
    assert not made.is_remote("nowhere:1")
    out(made, "b")
    assert made.is_remote(MODEL) is remote[0]


class Raising:
    """A policy that cannot plan."""

    name: ClassVar[str] = "raising"

    def plan(self, waiting: object, hosts: object, now: float) -> list[Decision]:
        raise ZeroDivisionError


def test_snapshot_counts_plans_that_failed() -> None:
    made = scheduler(spec("a"), policy=Raising())
    effects: list[Effect] = made.submit(job("1"), 0.0)
    assert dispatched(effects) == {"1": "a"}
    assert made.snapshot(0.0).plan_faults == made.plan_faults > 0
