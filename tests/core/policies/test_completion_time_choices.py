"""Which host `completion_time` chooses: ties, caches, when to wait; and the order it asks for."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.completion_time import MIN_SERVICE_S
from sollol_proxy.core.policies.scene import EQUAL_RATIO, Options
from sollol_proxy.core.types import HostState, Job, JobKind, TaskType
from tests.core.builders import job
from tests.core.planning import (
    NOW,
    Row,
    only,
    planner,
    pool_of,
    rows,
    speeds,
    teach,
    teach_lengths,
    templates,
    terms,
)

some = settings(max_examples=100)
pools = st.lists(rows, min_size=1, max_size=5)
learnt_lengths = st.sampled_from([(), (10,) * 9, (3000,) * 9, (1, 10_000)])


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
    memory, boosts_s = Memory(), (Options().boost_s, Options().boost_across_s)
    hosts = pool_of([Row(speed)], memory)
    policy = planner(memory)
    shifts = []
    for size in sorted(sizes):
        asked = job("j", model="a:1", kind=JobKind.EMBED, prompt_tokens_est=size)
        shifts.append(policy.key_shift(asked, hosts))
        service_s = max(size / speed[0], MIN_SERVICE_S)
        expected_s = [boost_s * math.log1p(-math.exp(-service_s / boost_s)) for boost_s in boosts_s]
        assert shifts[-1] == pytest.approx(expected_s, rel=1e-6, abs=1e-6)
    assert shifts == sorted(shifts)
    for each, boost_s in enumerate(boosts_s):
        bound_s = boost_s * math.log(-math.expm1(-MIN_SERVICE_S / boost_s))
        assert all(bound_s - 1e-9 <= shift[each] <= 0 for shift in shifts)


@some
@given(pool=pools, asked=templates, lengths=learnt_lengths)
def test_key_shift_goes_by_the_best_host_and_is_nothing_without_a_boost(
    pool: list[Row], asked: Job, lengths: tuple[int, ...]
) -> None:
    memory = Memory()
    teach_lengths(memory, lengths)
    hosts = pool_of(pool, memory)
    assert planner(memory, Options(boost_s=0.0)).key_shift(asked, hosts) == (0, 0)
    shift = planner(memory).key_shift(asked, hosts)
    assert all(math.isfinite(each_s) for each_s in shift)
    could = [host for host in hosts if host.is_eligible(asked)]
    if could:
        assert shift == planner(memory).key_shift(asked, could)
        shifts = [planner(memory).key_shift(asked, [host]) for host in could]
        assert shift == pytest.approx(min(shifts))


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
    """Waiting counts for more than it takes, so it loses at the latest when it is slower."""
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
    # Two jobs, one of them in flight, for two hosts: waiting counts in full.
    assert Options().full_wait_price * wait_s + own_s >= decision.cost.total * (1 - 2e-3)


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
    # Where fewer go than were looked at, those left out would not help either.
    assert plan.is_partial is (len(free) > few and len(plan.decisions) >= few)
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
