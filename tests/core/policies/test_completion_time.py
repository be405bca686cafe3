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
from sollol_proxy.core.policies.completion_time import (
    EQUAL_RATIO,
    MIN_SERVICE_S,
    NAMED_RUNNERS_UP,
    CompletionTime,
    Options,
)
from sollol_proxy.core.predict import alone_times
from sollol_proxy.core.types import Cost, Decision, HostState, Job, JobKind, TaskType
from tests.core.builders import job
from tests.core.planning import NOW, Row, pool_of, rows, speeds, teach, templates

TERMS = ("wait", "load", "prefill", "decode", "eviction")

some = settings(max_examples=100)
pools = st.lists(rows, min_size=1, max_size=5)
waiting_jobs = st.lists(templates, min_size=1, max_size=8).map(
    lambda made: [replace(each, id=f"j{number}") for number, each in enumerate(made)]
)
learnt_lengths = st.sampled_from([(), (10,) * 9, (3000,) * 9, (1, 10_000)])


def planner(memory: Memory, options: Options | None = None) -> CompletionTime:
    policy = CompletionTime(options=options)
    policy.memory = memory
    return policy


def teach_lengths(memory: Memory, lengths: Sequence[int]) -> None:
    for tokens in lengths:
        for model in ("a:1", "b:1", "c:1"):
            memory.lengths.add(TaskType.GENERATION, model, 100, tokens)


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


def only(decisions: Sequence[Decision]) -> Decision:
    [decision] = decisions
    return decision


def terms(cost: Cost) -> dict[str, float]:
    return {term.name: term.value for term in cost.terms}


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
            Counter((same_kind[h.job_id], replace(h, job_id="")) for h in plan.holds),
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
    # Nothing is waited for there but what a load has to wait for.
    assert all(decision.cost.total <= other.cost.total + 1e-9 for other in decision.runners_up)
    [idle_s] = planner(memory).idle_times([asked], free, NOW)
    assert 0 <= idle_s < math.inf


# Ties


@given(
    scatter=st.lists(st.floats(0.96, 1.04), min_size=2, max_size=6),
    rounds=st.integers(3, 12),
    speed=speeds,
)
@settings(max_examples=40)
def test_equal_hosts_share_evenly_though_learnt_speeds_differ(
    scatter: list[float], rounds: int, speed: tuple[float, float]
) -> None:
    memory = Memory()
    prefill, decode = speed
    hosts = pool_of([Row((prefill * each, decode * each)) for each in scatter], memory)
    policy = planner(memory)
    shares: Counter[str] = Counter()
    for number in range(rounds * len(hosts)):
        asked = job(f"j{number}", model="a:1", prompt_tokens_est=100)
        shares[only(policy.plan([asked], hosts, NOW)).host_id] += 1
    assert set(shares.values()) == {rounds}
    assert len(shares) == len(hosts)


@given(
    speed=speeds,
    faster=st.floats(EQUAL_RATIO + 0.01, 20.0),
    others=st.integers(1, 4),
    prompt=st.integers(0, 8000),
)
@some
def test_host_that_is_faster_by_more_than_a_tie_always_gets_the_job(
    speed: tuple[float, float], faster: float, others: int, prompt: int
) -> None:
    memory = Memory()
    best = Row((speed[0] * faster, speed[1] * faster))
    hosts = pool_of([*[Row(speed)] * others, best], memory)
    policy = planner(memory)
    for number in range(6):
        asked = job(f"j{number}", model="a:1", prompt_tokens_est=prompt)
        assert only(policy.plan([asked], hosts, NOW)).host_id == f"h{others}"


@given(prompt=st.integers(200, 8000), share=st.floats(0.05, 1.0), others=st.integers(1, 4))
@some
def test_host_with_more_of_the_prompt_in_its_cache_is_not_given_up_for_a_tie(
    prompt: int, share: float, others: int
) -> None:
    """Though it was used last, and what it saves is far less than what would be a tie."""
    memory = Memory()
    row = Row((5000.0, 2.0))  # so that all are alike in time, whatever is cached
    hosts = pool_of([row] * (1 + others), memory)
    policy = planner(memory)
    for number in range(4):
        asked = job(
            f"j{number}",
            model="a:1",
            prompt_tokens_est=prompt,
            prefix=(1,),
            prefix_tokens=(max(int(prompt * share), 1),),
        )
        memory.affinity.add("h0", asked, answer_tokens=0, context_tokens=10**6)
        decision = only(policy.plan([asked], hosts, NOW))
        assert decision.host_id == "h0"
        best_other_s = min(other.cost.total for other in decision.runners_up)
        assert best_other_s <= decision.cost.total * EQUAL_RATIO


@given(ratio=st.floats(0.9, 1.1), prompt=st.integers(1, 4000))
@some
def test_host_without_the_model_in_memory_is_never_a_tie(ratio: float, prompt: int) -> None:
    memory = Memory()
    cold, warm = Row((800.0, 30.0 * ratio), resident=(), load_s=3.0), Row((800.0, 30.0))
    hosts = pool_of([cold, warm], memory)
    policy = planner(memory)
    for number in range(4):
        asked = job(f"j{number}", model="a:1", prompt_tokens_est=prompt)
        assert only(policy.plan([asked], hosts, NOW)).host_id == "h1"


# Order of the queue


@some
@given(speed=speeds, sizes=st.lists(st.integers(1, 10**6), min_size=2, max_size=6))
def test_key_shift_puts_short_jobs_first_within_its_bound(
    speed: tuple[float, float], sizes: list[int]
) -> None:
    memory, boost_s = Memory(), Options().boost_s
    hosts = pool_of([Row(speed)], memory)
    policy = planner(memory)
    shifts = []
    for size in sorted(sizes):
        asked = job("j", model="a:1", kind=JobKind.EMBED, prompt_tokens_est=size)
        shifts.append(policy.key_shift(asked, hosts))
        service_s = max(size / speed[0], MIN_SERVICE_S)
        expected_s = boost_s * math.log1p(-math.exp(-service_s / boost_s))
        assert shifts[-1] == pytest.approx(expected_s, rel=1e-6, abs=1e-6)
    assert shifts == sorted(shifts)
    bound_s = boost_s * math.log(-math.expm1(-MIN_SERVICE_S / boost_s))
    assert all(bound_s - 1e-9 <= shift_s <= 0 for shift_s in shifts)


@some
@given(pool=pools, asked=templates, lengths=learnt_lengths)
def test_key_shift_goes_by_the_best_host_and_is_nothing_without_a_boost(
    pool: list[Row], asked: Job, lengths: tuple[int, ...]
) -> None:
    memory = Memory()
    teach_lengths(memory, lengths)
    hosts = pool_of(pool, memory)
    assert planner(memory, Options(boost_s=0.0)).key_shift(asked, hosts) == 0
    shift_s = planner(memory).key_shift(asked, hosts)
    assert math.isfinite(shift_s)
    could = [host for host in hosts if host.is_eligible(asked)]
    if could:
        best = min(alone_times(memory, asked, could), key=lambda entry: entry[0])[1]
        assert shift_s == planner(memory).key_shift(asked, could)
        assert shift_s == pytest.approx(planner(memory).key_shift(asked, [best]))


# Waiting for a better place


@given(
    prompt=st.integers(100, 8000),
    prefill=st.floats(20.0, 2000.0),
    answer=st.integers(10, 400),
    ago_s=st.floats(0.0, 60.0),
)
@settings(max_examples=150)
def test_busy_host_with_the_prompt_in_its_cache_loses_to_an_idle_one_that_is_quicker(
    prompt: int, prefill: float, answer: int, ago_s: float
) -> None:
    """Waiting counts `wait_price` seconds a second, so it loses at the latest when it is slower."""
    memory = Memory()
    teach_lengths(memory, (answer,) * 30)
    busy = Row((prefill, 30.0), running=(("a:1", JobKind.GENERATE, ago_s),))
    hosts = pool_of([busy, Row((prefill, 30.0))], memory)
    asked = job(
        "j",
        model="a:1",
        arrived_s=NOW,
        prompt_tokens_est=prompt,
        prefix=(1,),
        prefix_tokens=(prompt,),
    )
    memory.affinity.add("h0", asked, answer_tokens=answer, context_tokens=10**6)
    plan = planner(memory).plan_all([asked], hosts, NOW)
    if plan.holds:
        [hold] = plan.holds
        assert hold.host_id == "h0"
        assert hold.idle_host_id == "h1"
        assert hold.idle_s is not None
        assert hold.wait_s + hold.own_s < hold.idle_s
        return
    decision = only(list(plan.decisions))
    assert decision.host_id == "h1"
    [other] = decision.runners_up
    wait_s = terms(other.cost)["wait"]
    own_s = other.cost.total - wait_s
    assert Options().wait_price * wait_s + own_s >= decision.cost.total * (1 - 2e-3)


def test_job_waits_for_a_host_that_has_its_prompt_only_while_that_is_quicker() -> None:
    """Reading the prompt takes 40 s, the answer before it 10 s: worth it; with 400 s it is not."""
    for answer_tokens, expected in ((300, "held"), (12_000, "h1")):
        memory = Memory()
        teach_lengths(memory, (30,) * 30)
        hosts = pool_of([Row((100.0, 30.0)), Row((100.0, 30.0))], memory)
        long = job("r", model="a:1", task_type=TaskType.ANALYSIS, prompt_tokens_est=10)
        for _ in range(50):
            memory.lengths.add(TaskType.ANALYSIS, "a:1", 10, answer_tokens)
        hosts[0].begin(long, NOW)
        asked = job(
            "j",
            model="a:1",
            arrived_s=NOW,
            prompt_tokens_est=4000,
            prefix=(1,),
            prefix_tokens=(4000,),
        )
        memory.affinity.add("h0", asked, answer_tokens=0, context_tokens=10**6)
        plan = planner(memory).plan_all([asked], hosts, NOW)
        told = "held" if plan.holds else only(list(plan.decisions)).host_id
        assert told == expected


@given(slow=st.floats(1.2, 50.0), rest_tokens=st.integers(1, 3000), answer=st.integers(20, 2000))
@settings(max_examples=150)
def test_job_is_held_for_a_fast_host_only_if_it_is_expected_to_end_sooner_there(
    slow: float, rest_tokens: int, answer: int
) -> None:
    memory = Memory()
    teach_lengths(memory, (answer,) * 40)
    for _ in range(40):
        memory.lengths.add(TaskType.ANALYSIS, "a:1", 10, rest_tokens)
    hosts = pool_of([Row((900.0, 30.0)), Row((900.0 / slow, 30.0 / slow))], memory)
    hosts[0].begin(job("r", model="a:1", task_type=TaskType.ANALYSIS, prompt_tokens_est=10), NOW)
    asked = job("j", model="a:1", arrived_s=NOW, prompt_tokens_est=100)
    plan = planner(memory).plan_all([asked], hosts, NOW)
    for hold in plan.holds:
        assert hold.idle_s is not None
        assert hold.wait_s + hold.own_s < hold.idle_s
    for decision in plan.decisions:
        assert decision.host_id == "h1"


@given(pool=st.lists(rows, min_size=9, max_size=14), asked=templates, few=st.integers(1, 4))
@settings(max_examples=40)
def test_large_pool_is_planned_over_the_few_that_are_worth_it(
    pool: list[Row], asked: Job, few: int
) -> None:
    memory = Memory()
    hosts = pool_of(pool, memory)
    policy = planner(memory, Options(large_pool=8, looked_at_hosts=few))
    plan = policy.plan_all([asked], hosts, NOW)
    could = [host for host in hosts if host.is_eligible(asked)]
    free = [host for host in could if host.in_flight < host.concurrency]
    assert plan.is_partial is (len(free) > few)
    named = {d.host_id for d in plan.decisions} | {h.host_id for h in plan.holds}
    assert named <= {host.spec.id for host in could}
    assert len(plan.decisions) + len(plan.holds) <= 1
    for decision in plan.decisions:
        assert len(decision.runners_up) < 2 * few
    if any(host.state is HostState.HEALTHY for host in could) and few > 3:
        assert len(plan.decisions) + len(plan.holds) == 1


def test_speed_that_was_never_measured_is_taken_from_hosts_alike() -> None:
    """So a new host gets its share, and is measured."""
    memory = Memory()
    hosts = pool_of([Row((500.0, 20.0)), Row(is_measured=False)], memory)
    policy = planner(memory)
    ids = [only(policy.plan([job(f"j{n}", model="a:1")], hosts, NOW)).host_id for n in range(6)]
    assert sorted(ids) == ["h0"] * 3 + ["h1"] * 3
    teach(memory, "h1", "a:1", (50.0, 2.0))
    assert only(policy.plan([job("j", model="a:1")], hosts, NOW)).host_id == "h0"
