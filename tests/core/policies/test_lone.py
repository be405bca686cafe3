"""A job that comes while nobody waits goes where a whole plan would send it, and says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.completion_time import CompletionTime
from sollol_proxy.core.policies.scene import Options
from sollol_proxy.core.types import Decision, HostState, Job, JobKind
from tests.core.builders import job
from tests.core.planning import (
    MODELS,
    NOW,
    Row,
    only,
    planner,
    pool_of,
    rows,
    teach_lengths,
    templates,
)

some = settings(max_examples=400)
turns = st.lists(st.integers(0, 5), max_size=5)


def with_turns(memory: Memory, history: Sequence[int], options: Options) -> CompletionTime:
    """A planner that used hosts in this order before."""
    made = planner(memory, options)
    for number in history:
        made._turn += 1
        made._last_turn[f"h{number}"] = made._turn
    return made


def both(
    memory: Memory, asked: Job, hosts: list[HostEntry], history: Sequence[int], options: Options
) -> tuple[Decision | None, Sequence[Decision]]:
    at_once = with_turns(memory, history, options).place_at_once(asked, hosts, NOW)
    planned = with_turns(memory, history, options).plan_all([asked], hosts, NOW)
    return at_once, planned.decisions


def takes_a_plan(host: HostEntry, asked: Job) -> bool:
    """Whether only a plan can tell what the host would do with the job."""
    return host.is_eligible(asked) and (
        bool(host.loading)
        or host.state is HostState.PROBATION
        or (
            asked.kind is JobKind.EMBED
            and host.in_flight >= host.concurrency
            and host.free_slots(asked.model) > 0
        )
    )


@some
@given(
    pool=st.lists(rows, min_size=1, max_size=6),
    asked=templates,
    lengths=st.lists(st.integers(1, 2000), max_size=4),
    cached=st.sets(st.integers(0, 5)),
    history=turns,
)
def test_lone_job_goes_where_a_plan_would_send_it(
    pool: list[Row],
    asked: Job,
    lengths: list[int],
    cached: set[int],
    history: list[int],
) -> None:
    memory = Memory()
    hosts = pool_of(pool, memory)
    teach_lengths(memory, lengths)
    for number in cached & set(range(len(hosts))):
        memory.affinity.add(f"h{number}", asked, answer_tokens=50, context_tokens=8192)
    at_once, planned = both(memory, asked, hosts, history, Options())
    if at_once is not None:
        assert [at_once] == list(planned)
        assert at_once.runners_up == only(planned).runners_up
    elif asked.kind in (JobKind.GENERATE, JobKind.EMBED):
        # Only where a plan would hold it, or start it by what is not looked at here.
        assert not planned or any(takes_a_plan(host, asked) for host in hosts)


equals = st.builds(
    Row,
    speed=st.sampled_from([(800.0, 30.0), (810.0, 30.2), (1600.0, 60.0)]),
    models=st.just(MODELS),
    resident=st.sampled_from([("a:1",), MODELS]),
    slots=st.just(4),
)


@some
@given(
    pool=st.lists(equals, min_size=2, max_size=6),
    model=st.sampled_from(MODELS),
    history=turns,
)
def test_alike_hosts_take_turns_at_once_as_in_a_plan(
    pool: list[Row], model: str, history: list[int]
) -> None:
    memory = Memory()
    hosts = pool_of(pool, memory)
    asked = job("1", model=model, arrived_s=NOW)
    at_once, planned = both(memory, asked, hosts, history, Options())
    assert at_once == only(planned)


@settings(max_examples=50)
@given(pool=st.lists(equals, min_size=5, max_size=12), history=turns, few=st.integers(1, 4))
def test_large_pool_is_chosen_from_as_in_a_plan(
    pool: list[Row], history: list[int], few: int
) -> None:
    memory = Memory()
    hosts = pool_of(pool, memory)
    options = Options(large_pool=4, looked_at_hosts=few)
    at_once, planned = both(memory, job("1", model="a:1", arrived_s=NOW), hosts, history, options)
    assert at_once == only(planned)


@some
@given(pool=st.lists(rows, min_size=1, max_size=4), asked=templates, busy=st.integers(1, 40))
def test_nobody_is_counted_on_a_host_with_room(pool: list[Row], asked: Job, busy: int) -> None:
    """What runs on a host with a free slot is not looked at: it costs the same however many."""
    memory = Memory()
    hosts = pool_of([replace(row, slots=50, running=(), on_trial=False) for row in pool], memory)
    for host in hosts:
        for number in range(busy):
            model = next(iter(host.installed))
            host.begin(job(f"{host.spec.id} {number}", model=model), NOW - 1.0)
        for number in range(busy):
            host.first_byte(f"{host.spec.id} {number}", NOW - 0.5)
    policy = planner(memory)
    decision = policy.place_at_once(asked, hosts, NOW)
    has_room = all(host.free_slots(asked.model) > 0 for host in hosts)
    if decision is not None and has_room and not any(host.needs_load(asked) for host in hosts):
        assert all(running.expected is None for host in hosts for running in host.running)
