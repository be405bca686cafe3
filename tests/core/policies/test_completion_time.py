"""What `completion_time` promises of its plans, whatever the pool, the jobs and what was learnt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.base import Plan
from sollol_proxy.core.policies.completion_time import NAMED_RUNNERS_UP, CompletionTime
from sollol_proxy.core.types import HostState, Job, JobKind, ResidentModel
from tests.core.builders import MODEL, entry, job, spec
from tests.core.planning import (
    NOW,
    Row,
    planner,
    pool_of,
    rows,
    teach_lengths,
    templates,
    terms,
)

TERMS = ("wait", "load", "prefill", "decode", "blocking", "eviction")

some = settings(max_examples=100)
pools = st.lists(rows, min_size=1, max_size=5)
waiting_jobs = st.lists(templates, min_size=1, max_size=8).map(
    lambda made: [replace(each, id=f"j{number}") for number, each in enumerate(made)]
)
learnt_lengths = st.sampled_from([(), (10,) * 9, (3000,) * 9, (1, 10_000)])


def plan_of(
    pool: list[Row], jobs: Sequence[Job], lengths: Sequence[int] = ()
) -> tuple[Plan, list[HostEntry]]:
    memory = Memory()
    teach_lengths(memory, lengths)
    hosts = pool_of(pool, memory)
    for host in hosts[::2]:
        for each in jobs[::2]:
            memory.affinity.add(host.spec.id, each, answer_tokens=20, context_tokens=8192)
    return planner(memory).plan_all(jobs, hosts, NOW), hosts


@some
@given(pool=pools, jobs=waiting_jobs, lengths=learnt_lengths)
def test_every_cost_is_finite_and_the_sum_of_its_named_terms(
    pool: list[Row], jobs: list[Job], lengths: tuple[int, ...]
) -> None:
    plan, _ = plan_of(pool, jobs, lengths)
    for decision in plan.decisions:
        assert len(decision.runners_up) <= NAMED_RUNNERS_UP
        assert decision.host_id not in [other.host_id for other in decision.runners_up]
        totals = [other.cost.total for other in decision.runners_up]
        assert totals == sorted(totals)
        assert decision.reason.startswith(f"host {decision.host_id}: ")
        for cost in (decision.cost, *(other.cost for other in decision.runners_up)):
            named = terms(cost)
            assert tuple(named) == TERMS
            assert all(math.isfinite(value) and value >= 0 for value in named.values())
            assert cost.total == pytest.approx(sum(named.values()))
            assert all(term.text for term in cost.terms)
        named = terms(decision.cost)
        assert named["wait"] == 0
        assert decision.predicted_total_s == pytest.approx(
            named["load"] + named["prefill"] + named["decode"]
        )


@some
@given(pool=pools, jobs=waiting_jobs, lengths=learnt_lengths)
def test_plan_never_overruns_a_slot_nor_names_a_host_that_may_not_take_the_job(
    pool: list[Row], jobs: list[Job], lengths: tuple[int, ...]
) -> None:
    plan, hosts = plan_of(pool, jobs, lengths)
    by_host, by_job = {host.spec.id: host for host in hosts}, {each.id: each for each in jobs}
    assert len({decision.job_id for decision in plan.decisions}) == len(plan.decisions)
    for decision in plan.decisions:
        host, asked = by_host[decision.host_id], by_job[decision.job_id]
        assert host.is_eligible(asked)
        assert asked.model in host.installed
        assert host.free_slots(asked.model) > 0
        # Beside a fully busy host nothing begins but what is short for certain.
        assert host.in_flight < host.concurrency or asked.kind is JobKind.EMBED
        host.begin(asked, NOW)
        assert host.in_flight <= host.concurrency + 1


@some
@given(pool=pools, jobs=waiting_jobs, lengths=learnt_lengths)
def test_each_job_that_some_host_could_take_is_decided_or_held_and_never_both(
    pool: list[Row], jobs: list[Job], lengths: tuple[int, ...]
) -> None:
    plan, hosts = plan_of(pool, jobs, lengths)
    decided = {decision.job_id for decision in plan.decisions}
    held = {hold.job_id for hold in plan.holds}
    assert len(held) == len(plan.holds)
    assert not decided & held
    for asked in jobs:
        could = [host for host in hosts if host.is_eligible(asked)]
        # A host on trial takes one job at a time, so who comes second there has no place yet.
        if any(host.state is HostState.HEALTHY for host in could):
            assert asked.id in decided | held
        if not could:
            assert asked.id not in decided | held


@some
@given(pool=pools, jobs=waiting_jobs, lengths=learnt_lengths)
def test_hold_says_where_and_when_and_what_the_best_idle_host_would_need(
    pool: list[Row], jobs: list[Job], lengths: tuple[int, ...]
) -> None:
    plan, hosts = plan_of(pool, jobs, lengths)
    by_host, by_job = {host.spec.id: host for host in hosts}, {each.id: each for each in jobs}
    for hold in plan.holds:
        asked = by_job[hold.job_id]
        assert by_host[hold.host_id].is_eligible(asked)
        assert hold.host_id in hold.reason
        assert 0 <= hold.wait_s < math.inf
        assert 0 <= hold.own_s < math.inf
        assert (hold.idle_s is None) is (hold.idle_host_id == "")
        if hold.idle_s is not None:
            idle = by_host[hold.idle_host_id]
            assert hold.idle_host_id in hold.reason
            assert 0 <= hold.idle_s < math.inf
            assert idle.is_eligible(asked)
            assert idle.free_slots(asked.model) > 0
            assert idle.in_flight < idle.concurrency


@some
@given(pool=pools, jobs=waiting_jobs, data=st.data())
def test_order_in_which_the_hosts_are_shown_changes_nothing(
    pool: list[Row], jobs: list[Job], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(pool))))
    plans = []
    for shown in (range(len(pool)), order):
        memory = Memory()
        hosts = pool_of(pool, memory)
        plans.append(planner(memory).plan_all(jobs, [hosts[index] for index in shown], NOW))
    assert plans[0] == plans[1]


@some
@given(
    kinds=st.lists(templates, min_size=1, max_size=3),
    pool=pools,
    picks=st.lists(st.integers(0, 2), min_size=2, max_size=8),
)
def test_of_jobs_that_are_alike_the_plan_says_only_that_one_goes_before_the_other(
    kinds: list[Job], pool: list[Row], picks: list[int]
) -> None:
    jobs = [replace(kinds[pick % len(kinds)], id=f"j{number}") for number, pick in enumerate(picks)]
    # The same jobs, of each kind the last first.
    same_kind = {each.id: replace(each, id="") for each in jobs}
    left = {kind: [e for e in jobs if same_kind[e.id] == kind] for kind in same_kind.values()}
    swapped = [left[same_kind[each.id]].pop() for each in jobs]

    def told(order: list[Job]) -> tuple[Counter, Counter]:
        plan, _ = plan_of(pool, order)
        return (
            Counter((same_kind[d.job_id], d.host_id, d.cost) for d in plan.decisions),
            Counter((same_kind[h.job_id], h._replace(job_id="")) for h in plan.holds),
        )

    assert told(jobs) == told(swapped)


@some
@given(pool=pools, asked=templates)
def test_place_takes_the_cheapest_of_the_hosts_it_is_given(pool: list[Row], asked: Job) -> None:
    memory = Memory()
    hosts = pool_of(pool, memory)
    free = [
        host
        for host in hosts
        if host.is_eligible(asked)
        and host.free_slots(asked.model) > 0
        and host.in_flight < host.concurrency
    ]
    assume(free)
    decision = planner(memory).place(asked, free, NOW)
    assert decision.job_id == asked.id
    assert decision.host_id in [host.spec.id for host in free]
    assert all(decision.cost.total <= other.cost.total + 1e-9 for other in decision.runners_up)
    # Nothing is waited for there but what a load has to wait for, and that is told.
    named = terms(decision.cost)
    if named["load"] == 0:
        assert named["wait"] == 0
    assert decision.predicted_total_s == pytest.approx(
        named["wait"] + named["load"] + named["prefill"] + named["decode"]
    )
    [idle_s] = planner(memory).idle_times([asked], free, NOW)
    assert 0 <= idle_s < math.inf


def test_host_that_the_same_plan_gives_to_another_job_is_busy_in_the_explanation() -> None:
    hosts = [entry(spec("a")), entry(spec("b"))]
    for host in hosts:
        host.resident[MODEL] = ResidentModel(MODEL)
    plan = CompletionTime().plan_all([job("1"), job("2")], hosts, 0.0)
    assert {decision.host_id for decision in plan.decisions} == {"a", "b"}
    for decision in plan.decisions:
        [other] = decision.runners_up
        waits = {term.name: term.value for term in other.cost.terms}["wait"]
        assert waits > 0
        assert other.cost.total > decision.cost.total
