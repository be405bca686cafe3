"""Who waits under the planner: real schedulers through long histories, guesses right and wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf, nan
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.holds import MAX_HOLD_S
from sollol_proxy.core.planned import LOOKED_AT, MAX_REASONS, Planned, free_for
from sollol_proxy.core.policies.base import Hold, HostView, Plan, Planner
from sollol_proxy.core.policies.completion_time import MIN_SERVICE_S, CompletionTime
from sollol_proxy.core.policies.scene import Options
from sollol_proxy.core.queue import NO_SHIFT, Queue, Shift, lane_of
from sollol_proxy.core.scheduler import Scheduler, SchedulerRules
from sollol_proxy.core.types import (
    AttemptResult,
    Cost,
    Decision,
    Dispatch,
    Effect,
    Job,
    JobKind,
    Observation,
)
from tests.core.builders import MODEL, dispatched, entry, job, report, scheduler, spec
from tests.core.planning_world import Lies, World

HISTORIES = 40
STEPS = 400
"""Of each case below: 80,000 calls of the scheduler in all."""

LIES = (
    Lies(),
    Lies(length=4.0, speed=2.0, prompt=1.5),
    Lies(length=0.25, speed=0.5, prompt=0.5),
    Lies(length=4.0, speed=0.5, prompt=0.5),
    Lies(length=0.25, speed=2.0, prompt=1.5),
)

T = TypeVar("T")


def relive(seed: int, lies: Lies) -> World:
    world = World(seed, lies)
    world.run(STEPS)
    return world


@pytest.mark.parametrize("lies", LIES, ids=str)
@settings(max_examples=HISTORIES)
@given(seed=st.integers(0, 2**32))
def test_nobody_is_lost_or_waits_beside_a_free_slot_unheld_or_beyond_the_bound(
    lies: Lies, seed: int
) -> None:
    """Whatever lengths, speeds and prompts turn out to be; `World` says what is looked at."""
    relive(seed, lies)


def test_histories_hold_jobs_so_that_they_show_something() -> None:
    worlds = [relive(seed, Lies()) for seed in range(6)]
    assert sum(world.held for world in worlds) > 30
    # Bounds that are put off are rare: some of those that are known.
    known = ((6, LIES[1]), (4, LIES[2]), (5, LIES[4]))
    assert any(relive(seed, lies).put_off for seed, lies in known)
    assert sum(world.arrived for world in worlds) > 600


def test_same_history_gives_the_same_decisions() -> None:
    first, second = (relive(5, Lies(4.0, 0.5, 1.5)) for _ in range(2))
    assert (first.now, first.running, first.ends) == (second.now, second.running, second.ends)


# Who waits does not wait for ever


def busy_pool(
    hosts: Sequence[float], urgent_waiting: int, *, ageing_s: float, service_s: float
) -> float | None:
    """Seconds a priority-1 job waits beside priority-10 ones, of which some wait at any time.

    hosts: how many times slower each is. None = it still waits after two thousand others.
    """
    names = [f"h{number}" for number in range(len(hosts))]
    pool = scheduler(
        *(spec(name) for name in names), policy="completion_time", up=False, ageing_s=ageing_s
    )
    for name in names:
        pool.report(report(name, MODEL, resident=(MODEL,)), 0.0)
    took = {name: service_s * slow for name, slow in zip(names, hosts, strict=True)}
    running: dict[str, tuple[float, str]] = {}
    serial, now = 0, 0.0

    def apply(effects: Sequence[Effect]) -> None:
        for job_id, host_id in dispatched(list(effects)).items():
            running[host_id] = (now + took[host_id], job_id)

    def urgent() -> None:
        nonlocal serial
        serial += 1
        apply(pool.submit(job(f"u{serial}", priority=10, arrived_s=now), now))

    for _ in names:
        urgent()
    low = job("low", priority=1, arrived_s=now)
    apply(pool.submit(low, now))
    for _ in range(urgent_waiting):
        urgent()
    for _ in range(2000):
        host_id = min(running, key=lambda each: running[each])
        end_s, job_id = running.pop(host_id)
        while (timer_s := pool.next_timer_s()) is not None and timer_s < end_s:
            now = max(now, timer_s)
            apply(pool.tick(now))
        now = end_s
        if job_id == "low":
            return now - took[host_id]
        seen = Observation(10, 100, prefill_s=0.001, decode_s=took[host_id])
        apply(pool.finish(job_id, AttemptResult.COMPLETED, now, observation=seen))
        urgent()
    return None


@settings(max_examples=15)
@given(
    urgent_waiting=st.integers(1, 12),
    ageing_s=st.floats(1.0, 60.0),
    service_s=st.floats(0.5, 20.0),
)
def test_lowest_priority_leaves_a_busy_host_within_the_ageing_bound(
    urgent_waiting: int, ageing_s: float, service_s: float
) -> None:
    """Nine levels, what short jobs are put forward by, and those that arrived before that."""
    waited_s = busy_pool([1.0], urgent_waiting, ageing_s=ageing_s, service_s=service_s)
    assert waited_s is not None
    boost_s = -CompletionTime().key_shift(job("j", kind=JobKind.EMBED), [entry(spec("a"))]).across
    assert waited_s <= 9 * ageing_s + boost_s + (urgent_waiting + 2) * service_s


@pytest.mark.parametrize("urgent_waiting", [1, 2, 3, 4, 9, 12, 21])
@pytest.mark.parametrize("hosts", [[1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.5]], ids=str)
def test_first_of_the_queue_is_not_passed_over_for_ever(
    hosts: list[float], urgent_waiting: int
) -> None:
    """Whoever is first sees a slot go to others for no longer than it would need itself.

    With equal hosts and an odd number waiting it is always cheaper for the sum to put the light
    job behind the busy host and to give the free one to an urgent job.
    """
    waited_s = busy_pool(hosts, urgent_waiting, ageing_s=10.0, service_s=10.0)
    assert waited_s is not None
    boost_s = -CompletionTime().key_shift(job("j", kind=JobKind.EMBED), [entry(spec("a"))]).across
    assert waited_s <= 9 * 10.0 + boost_s + (urgent_waiting + 4) * 10.0


# What is told of who waits, and what a planner may do wrong


class Told(Planner):
    """Says what it is told to say, or raises."""

    name = "told"

    def __init__(self, *holds: Hold, decisions: Sequence[Decision] = ()) -> None:
        super().__init__()
        self.holds = holds
        self.decisions = decisions
        self.times: Sequence[float] | None = None
        self.shift = Shift(-2.0, -1.0)
        self.is_broken = False

    def key_shift(self, job: Job, hosts: Sequence[HostView]) -> Shift:
        return self._or_raise(self.shift)

    def plan_all(self, waiting: Sequence[Job], hosts: Sequence[HostView], now: float) -> Plan:
        return self._or_raise(Plan(self.decisions, self.holds))

    def idle_times(
        self, jobs: Sequence[Job], hosts: Sequence[HostView], now: float
    ) -> Sequence[float]:
        return self._or_raise([3.0] * len(jobs) if self.times is None else self.times)

    def place(self, job: Job, hosts: Sequence[HostView], now: float) -> Decision:
        return self._or_raise(Decision(job.id, hosts[0].spec.id, self.name, Cost(1.0), "the first"))

    def _or_raise(self, value: T) -> T:
        if self.is_broken:
            raise ZeroDivisionError("a stranger's bug")
        return value


def hold_of(job_id: str, idle_s: float | None = 4.0) -> Hold:
    return Hold(job_id, "b", 5.0, 2.0, "a" if idle_s is not None else "", idle_s)


def queue_of(*jobs: Job) -> Queue:
    queue = Queue(60.0)
    for each in jobs:
        queue.add(each, 0.0)
    return queue


def test_hold_is_told_with_what_is_left_of_the_wait() -> None:
    waiting = job("j")
    planned = Planned(Told(hold_of("j")), queue_of(waiting))
    assert planned.reason("j", 10.0) == ""
    planned.plan([waiting], [entry(spec("a"))], 10.0)
    assert planned.reason("j", 10.0) == (
        "host b frees in 5.0 s and then needs 2.0 s; host a would need 4.0 s"
    )
    assert planned.reason("j", 12.0).startswith("host b frees in 3.0 s")
    assert planned.reason("j", 99.0).startswith("host b frees in 0.0 s")


def test_first_prediction_of_the_wait_is_kept_until_the_job_has_gone() -> None:
    waiting = job("j", arrived_s=8.0)
    planner = Told(hold_of("j"))
    planned = Planned(planner, queue_of(waiting))
    planned.plan([waiting], [entry(spec("a"))], 10.0)
    planner.holds = (Hold("j", "b", 50.0, 2.0),)
    planned.plan([waiting], [entry(spec("a"))], 11.0)
    assert planned.gone(waiting) == 10.0 - 8.0 + 5.0
    assert planned.gone(waiting) == 0.0
    assert planned.reason("j", 11.0) == ""


@given(idle_s=st.floats(0.0, 1e4), now=st.floats(0.0, 1e4))
def test_hold_lasts_no_longer_than_the_planner_says_the_idle_host_would_need(
    idle_s: float, now: float
) -> None:
    waiting, other, host = job("j"), job("k"), entry(spec("a", slots=3))
    planner = Told(hold_of("j", idle_s))
    planner.times = [idle_s / 2]
    planned = Planned(planner, queue_of(waiting, other))
    plan = planned.plan([waiting], [host], now)
    assert plan is not None
    lane = lane_of(waiting)
    told = {hold.job_id: hold for hold in plan.holds}
    left = planned.hold(lane, [host], told, {"j"}, now)
    assert left == []
    assert planned.holds.bound_s(lane, "j") == now + min(idle_s, MAX_HOLD_S)
    # Nobody looked at the other one: it is asked for by itself.
    assert planned.holds.bound_s(lane, "k") == now + min(idle_s / 2, MAX_HOLD_S)


def test_job_that_was_looked_at_and_not_held_beside_an_idle_host_goes_at_once() -> None:
    waiting, host = job("j"), entry(spec("a"))
    planned = Planned(Told(hold_of("j", None)), queue_of(waiting))
    left = planned.hold(lane_of(waiting), [host], {"j": hold_of("j", None)}, {"j"}, 0.0)
    assert left == [waiting]
    assert planned.holds.lanes() == []


def test_planner_that_raises_is_counted_and_never_asked_to_hold() -> None:
    waiting, host = job("j"), entry(spec("a"))
    planner = Told(hold_of("j"))
    planner.is_broken = True
    planned = Planned(planner, queue_of(waiting))
    assert planned.key_shift(waiting, [host]) == NO_SHIFT
    assert planned.plan([waiting], [host], 0.0) is None
    assert planned.place(waiting, [host], 0.0) is None
    planned.hold(lane_of(waiting), [host], {}, set(), 7.0)
    assert planned.holds.bound_s(lane_of(waiting), "j") == 7.0
    assert planned.faults == 4


@pytest.mark.parametrize("shift", [(nan, 0.0), (0.0, -inf), (1.0,), "ab", 3.0, None])
def test_shift_that_is_none_moves_nobody(shift: Any) -> None:
    waiting, host = job("j"), entry(spec("a"))
    planner = Told()
    planner.shift = shift
    planned = Planned(planner, queue_of())
    assert planned.key_shift(waiting, [host]) == NO_SHIFT
    assert planned.faults == 1


@pytest.mark.parametrize("times", [[], [1.0, 2.0]])
def test_planner_that_miscounts_holds_nobody(times: list[float]) -> None:
    waiting, host = job("j"), entry(spec("a"))
    planner = Told()
    planner.times = times
    planned = Planned(planner, queue_of(waiting))
    planned.hold(lane_of(waiting), [host], {}, set(), 7.0)
    assert planned.holds.due(lane_of(waiting), 7.0) == ["j"]


def test_reasons_are_bounded() -> None:
    jobs = [job(f"j{number}") for number in range(MAX_REASONS + 5)]
    planned = Planned(Told(*(hold_of(each.id) for each in jobs)), queue_of(*jobs))
    planned.plan(jobs, [entry(spec("a"))], 0.0)
    assert sum(bool(planned.reason(each.id, 0.0)) for each in jobs) == MAX_REASONS


@given(slots=st.lists(st.integers(1, 3), min_size=1, max_size=4), running=st.integers(0, 8))
def test_lane_is_open_where_a_host_that_is_not_fully_busy_has_a_slot_for_it(
    slots: list[int], running: int
) -> None:
    hosts = [entry(spec(f"h{n}", slots=each), MODEL, "b:1") for n, each in enumerate(slots)]
    rng = Random(running)
    for number in range(running):
        host = rng.choice(hosts)
        model = rng.choice([MODEL, "b:1"])
        if host.free_slots(model) > 0 and host.in_flight < host.concurrency:
            host.begin(job(f"r{number}", model=model), 0.0)
    waiting, nowhere, show = job("j"), job("n", model="no:1"), job("s", kind=JobKind.SHOW)
    planned = Planned(Told(), queue_of(waiting, nowhere, show))
    free = [
        host for host in hosts if host.in_flight < host.concurrency and host.free_slots(MODEL) > 0
    ]
    assert free_for(waiting, hosts) == free
    assert planned.open_lanes(hosts) == ({lane_of(waiting): free} if free else {})


def test_job_held_to_its_bound_goes_to_the_free_host_and_says_so() -> None:
    made = Told()
    pool = scheduler(spec("a"), spec("b"), policy=made)
    made.holds = (hold_of("j", 4.0),)
    assert pool.submit(job("j"), 0.0) == []
    assert pool.next_timer_s() == 4.0
    assert pool.tick(3.999) == []
    [effect] = pool.tick(4.0)
    assert isinstance(effect, Dispatch)
    assert effect.decision.host_id == "a"
    assert effect.decision.reason.startswith("held no longer; ")
    assert pool.next_timer_s() is None


@pytest.mark.parametrize(
    ("needs_s", "goes_s"), [(3.0, 4.0), (4.0, 4.0), (9.0, 9.0), (1e6, MAX_HOLD_S)]
)
def test_job_at_its_bound_is_held_on_while_all_that_is_free_would_take_longer(
    needs_s: float, goes_s: float
) -> None:
    """Its first bound was that of a host which others got meanwhile."""
    made = Told()
    pool = scheduler(spec("a"), spec("b"), policy=made)
    made.holds, made.times = (hold_of("j", 4.0),), [needs_s]
    assert pool.submit(job("j"), 0.0) == []
    for now in (3.999, 4.0) if goes_s > 4.0 else (3.999,):
        assert pool.tick(now) == []
    assert pool.next_timer_s() == goes_s
    assert pool.tick(goes_s - 1e-3) == []
    assert dispatched(pool.tick(goes_s)) == {"j": "a"}
    assert pool.plan_faults == 0


@pytest.mark.parametrize(("needs_s", "goes_s"), [(0.0, 60.0), (50.0, 110.0), (1e6, 360.0)])
def test_first_that_is_passed_over_waits_for_a_level_and_as_long_as_it_would_need_now(
    needs_s: float, goes_s: float
) -> None:
    first, other, host = job("first"), job("other"), entry(spec("a"))
    planner = Told()
    planned = Planned(planner, queue_of(first, other))
    plan = Plan([Decision(other.id, "a", "told", Cost(1.0), "the other")])
    planner.times = [1.0]
    assert not planned.is_passed_over(first, plan, [host], 0.0)
    planner.times = [needs_s]
    assert not planned.is_passed_over(first, plan, [host], goes_s - 1e-3)
    assert planned.is_passed_over(first, plan, [host], goes_s)
    assert not planned.is_passed_over(first, Plan(), [host], goes_s)
    assert not planned.is_passed_over(first, plan, [], goes_s)


def test_jobs_beyond_those_looked_at_are_held_and_let_go_as_well() -> None:
    made = Told()
    made.holds = tuple(hold_of(f"j{number}", 4.0) for number in range(LOOKED_AT))
    pool: Scheduler = scheduler(spec("a", slots=100), policy=made)
    sent: Counter[float] = Counter()
    for number in range(LOOKED_AT + 3):
        assert pool.submit(job(f"j{number}"), 0.0) == []
    for now in (3.0, 4.0):
        sent[now] = len(dispatched(pool.tick(now)))
    assert sent == {3.0: 3, 4.0: LOOKED_AT}
    assert pool.plan_faults == 0


def test_longest_boost_is_that_of_the_shortest_service() -> None:
    """What the bound on ageing above rests on."""
    policy = CompletionTime()
    assert Options().boost_s > Options().boost_across_s > MIN_SERVICE_S
    shift = policy.key_shift(job("j", kind=JobKind.EMBED), [entry(spec("a"))])
    assert shift == pytest.approx((-2609.9, -267.4), abs=0.1)


@pytest.mark.parametrize(("boost_s", "moves"), [(0.0, False), (5.0, True), (None, True)])
def test_boost_of_the_configuration_outranks_the_planners_own(
    boost_s: float | None, moves: bool
) -> None:
    policy = CompletionTime()
    rules = SchedulerRules(boost_s=boost_s)
    Scheduler([spec("a")], policy, rules, rng=Random(0), now=0.0)
    shift = policy.key_shift(job("j", prompt_tokens_est=1), [entry(spec("a"))])
    assert (shift.within < 0) is moves
    assert (shift.across < 0) is moves
    assert (shift.across > shift.within) is (boost_s is None)
