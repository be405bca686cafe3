"""The scheduler under random histories, with a sane policy and with a hostile one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sollol_proxy.core.holds import MAX_HOLD_S
from sollol_proxy.core.planned import free_for
from sollol_proxy.core.policies import POLICIES
from sollol_proxy.core.policies.base import HostView, Policy
from sollol_proxy.core.queue import lane_of
from sollol_proxy.core.scheduler import Scheduler, SchedulerRules
from sollol_proxy.core.snapshots import HostSnapshot
from sollol_proxy.core.types import (
    AttemptResult,
    Cost,
    Decision,
    Dispatch,
    HostState,
    Job,
    JobKind,
    Observation,
    Refuse,
)
from tests.core.builders import copy, down, job, report, spec

MODELS = ("a:1", "b:1", "c:1", "d:1")
MAX_WAITING = 6
NO_HOST_WAIT_S = 2.0
ROUTES = ("/api/chat", "/v1/responses")
VERSIONS = ("0.12.6", "0.33.0", "0.0.0", "")
DIGESTS = ("", "d1", "d2")
SPECS = (
    spec("one"),
    spec("two", slots=3, max_models=2),
    spec("three", slots=2, max_models=1, deny=("d:*",)),
    spec("four", model_slots={"a:1": 4}),
)


class Hostile:
    """Names random hosts for random jobs, twice over, or raises, or plans nothing."""

    name: ClassVar[str] = "hostile"

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def plan(self, waiting: Sequence[Job], hosts: Sequence[HostView], now: float) -> list[Decision]:
        mood = self._rng.random()
        if mood < 0.2:
            raise ZeroDivisionError("a stranger's bug")
        if mood < 0.4:
            return []
        names = [*(host.id for host in SPECS), "nobody"]
        ids = [*(job.id for job in waiting), "no such job"]
        plan: list[Any] = [
            Decision(self._rng.choice(ids), self._rng.choice(names), self.name, Cost(0.0), "?")
            for _ in range(8)
        ]
        return [*plan, None]


class SchedulerMachine(RuleBasedStateMachine):
    """Arrivals, ends, departures, retries, probes and time, in any order."""

    policies: ClassVar[tuple[str, ...]] = tuple(POLICIES)

    def policy(self, seed: int) -> Policy:
        return POLICIES[self.policies[seed % len(self.policies)]](Random(seed))

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.now = 0.0
        self.waiting: dict[str, Job] = {}
        self.running: dict[str, tuple[Job, str]] = {}
        self.gone: set[str] = set()
        self.serial = 0
        self.lacking: set[tuple[str, str]] = set()
        self.keeps_newest = seed % 2 == 1
        rules = SchedulerRules(
            max_waiting=MAX_WAITING, no_host_wait_s=NO_HOST_WAIT_S, keeps_newest=self.keeps_newest
        )
        self.scheduler = Scheduler(SPECS, self.policy(seed), rules, rng=Random(seed), now=self.now)

    def apply(self, effects: Sequence[object]) -> None:
        for effect in effects:
            if isinstance(effect, Dispatch):
                job_id = effect.decision.job_id
                assert job_id in self.waiting, "a job left twice"
                self.check_room(self.waiting[job_id], effect.decision.host_id)
                self.running[job_id] = (self.waiting.pop(job_id), effect.decision.host_id)
            elif isinstance(effect, Refuse):
                assert self.waiting.pop(effect.job_id, None) is not None, "a job left twice"
                self.gone.add(effect.job_id)

    def check_room(self, new: Job, host_id: str) -> None:
        """The host has room for the job's model in memory: names of one file are one model."""
        host = next(host for host in self.looked_at() if host.spec.id == host_id)
        files = {model.name: model.digest or model.name for model in host.installed}
        running = {
            files.get(ran.model, ran.model)
            for ran, on in self.running.values()
            if on == host_id and ran.model in host.in_flight_by_model
        }
        is_new = files.get(new.model, new.model) not in running
        if new.model in host.in_flight_by_model and is_new:
            assert len(running) < host.spec.max_models

    @rule(
        model=st.sampled_from((*MODELS, "nowhere:1")),
        kind=st.sampled_from(list(JobKind)),
        priority=st.integers(1, 10),
        deadline_s=st.none() | st.floats(0, 5),
        only=st.sampled_from(("", "", "", *(host.id for host in SPECS), "stranger")),
        route=st.sampled_from(("", *ROUTES)),
    )
    def arrive(
        self,
        model: str,
        kind: JobKind,
        priority: int,
        deadline_s: float | None,
        only: str,
        route: str,
    ) -> None:
        self.serial += 1
        new = job(
            f"j{self.serial}",
            model=model,
            kind=kind,
            priority=priority,
            arrived_s=self.now,
            deadline_s=None if deadline_s is None else self.now + deadline_s,
            only=only,
            route=route,
        )
        self.waiting[new.id] = new
        self.apply(self.scheduler.submit(new, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), result=st.sampled_from(list(AttemptResult)), retries=st.booleans())
    def end(self, data: st.DataObject, result: AttemptResult, retries: bool) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.running)))
        ended, host_id = self.running.pop(job_id)
        self.learn(host_id, ended.route, result)
        observation = Observation(prompt_tokens=100, prefill_s=0.1, total_s=1.0)
        self.apply(
            self.scheduler.finish(job_id, result, self.now, observation=observation, detail="x")
        )
        if retries and ended.attempt < 3:
            again = job(
                job_id,
                model=ended.model,
                kind=ended.kind,
                priority=ended.priority,
                arrived_s=ended.arrived_s,
                only=ended.only,
                route=ended.route,
                excluded=ended.excluded | {host_id},
                attempt=ended.attempt + 1,
            )
            self.waiting[job_id] = again
            self.apply(self.scheduler.submit(again, self.now))
        else:
            self.gone.add(job_id)

    @rule(host=st.sampled_from(SPECS), route=st.sampled_from(ROUTES))
    def lacks_a_route(self, host: Any, route: str) -> None:
        self.arrive("", JobKind.OTHER, 10, None, host.id, route)
        job_id = f"j{self.serial}"
        if job_id in self.running:
            self.running.pop(job_id)
            self.gone.add(job_id)
            self.learn(host.id, route, AttemptResult.ROUTE_MISSING)
            self.apply(self.scheduler.finish(job_id, AttemptResult.ROUTE_MISSING, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def first_byte(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.running)))
        self.apply(self.scheduler.first_byte(job_id, self.now))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[job_id]
        self.gone.add(job_id)
        self.apply(self.scheduler.withdraw(job_id, self.now))

    @rule(
        host=st.sampled_from(SPECS),
        models=st.dictionaries(
            st.sampled_from(MODELS),
            st.tuples(st.sampled_from(DIGESTS), st.integers(0, 2), st.booleans()),
            min_size=1,
        ),
        resident=st.sets(st.sampled_from(MODELS)),
        version=st.sampled_from(VERSIONS),
    )
    def probe_up(
        self,
        host: Any,
        models: dict[str, tuple[str, int, bool]],
        resident: set[str],
        version: str,
    ) -> None:
        in_memory = tuple(sorted(resident & models.keys()))
        copies = {
            name: copy(digest, modified_ns, name, is_remote=is_remote)
            for name, (digest, modified_ns, is_remote) in models.items()
        }
        probed = report(host.id, *copies, resident=in_memory, version=version)
        self.apply(self.scheduler.report(replace(probed, installed=copies), self.now))

    @rule(host=st.sampled_from(SPECS))
    def probe_down(self, host: Any) -> None:
        self.apply(self.scheduler.report(down(host.id), self.now))

    @rule(host=st.sampled_from(SPECS), is_draining=st.booleans())
    def drain(self, host: Any, is_draining: bool) -> None:
        self.apply(self.scheduler.set_host_draining(host.id, is_draining, self.now))

    @rule(elapsed_s=st.floats(0, 3))
    def time_passes(self, elapsed_s: float) -> None:
        """Every timer rings in time, as the dispatcher sees to it."""
        until = self.now + elapsed_s
        for _ in range(100):
            at_s = self.scheduler.next_timer_s()
            if at_s is None or at_s > until:
                break
            self.now = max(self.now, at_s)
            self.apply(self.scheduler.tick(self.now))
        else:
            raise AssertionError("the timer rings for ever")
        self.now = until

    @invariant()
    def agree(self) -> None:
        """The scheduler and this model keep the same books."""
        snapshot = self.scheduler.snapshot(self.now)
        assert snapshot.waiting_total == len(self.waiting)
        assert {waiting.job.id for waiting in snapshot.waiting} == set(self.waiting)
        held = [j for j, _ in self.running.values() if j.kind.takes_slot]
        # A job whose model is nowhere is asked of any host and takes no slot there.
        assert sum(host.in_flight for host in snapshot.hosts) <= len(held)
        assert self.scheduler.idle is (not self.waiting and not self.running)

    @invariant()
    def slots_hold(self) -> None:
        for host in self.scheduler.snapshot(self.now).hosts:
            for model, count in host.in_flight_by_model.items():
                assert 0 < count <= host.spec.model_slots.get(model, host.spec.slots)

    @invariant()
    def the_queue_is_bounded(self) -> None:
        fresh = [waiting for waiting in self.waiting.values() if waiting.attempt == 1]
        retried = len(self.waiting) - len(fresh)
        assert len(fresh) <= MAX_WAITING or retried

    @invariant()
    def nobody_waits_beside_a_free_slot_unless_held(self) -> None:
        """Under a planner a host with all its concurrency in use is busy for everybody."""
        hosts, planned = list(self.scheduler._pool), self.scheduler._planned
        for waiting in self.waiting.values():
            asked = self.scheduler._queue.get(waiting.id)
            assert asked is not None
            eligible = [host for host in hosts if host.is_eligible(asked)]
            assert asked.kind.takes_slot or not eligible
            if planned is None:
                assert all(host.free_slots(asked.model) <= 0 for host in eligible)
            elif asked.kind.takes_slot and free_for(asked, hosts):
                bound_s = planned.holds.bound_s(lane_of(asked), asked.id)
                assert bound_s is not None, "waits beside a free slot and is not held"
                assert self.now < bound_s <= self.now + MAX_HOLD_S

    @invariant()
    def dispatched_hosts_were_allowed(self) -> None:
        for ran, host_id in self.running.values():
            assert host_id not in ran.excluded
            assert ran.only in ("", host_id)
            host = next(host for host in SPECS if host.id == host_id)
            if ran.model:
                assert host.may_serve(ran.model)

    def learn(self, host_id: str, route: str, result: AttemptResult) -> None:
        """Keep our own book of what is missing, as the end of an attempt tells."""
        host = next(host for host in self.looked_at() if host.spec.id == host_id)
        if result is AttemptResult.ROUTE_MISSING and route:
            self.lacking.add((build_of(host), route))
        elif result is AttemptResult.COMPLETED:
            self.lacking.discard((build_of(host), route))

    def looked_at(self) -> tuple[HostSnapshot, ...]:
        return self.scheduler.snapshot(self.now).hosts

    @invariant()
    def what_nobody_can_lack_is_forgotten(self) -> None:
        present = {
            build_of(host)
            for host in self.looked_at()
            if host.version not in ("", "0.0.0") or host.state.is_routable
        }
        self.lacking = {(build, route) for build, route in self.lacking if build in present}

    @invariant()
    def eligible_are_those_whom_the_rules_leave(self) -> None:
        """What the pool keeps in mind equals what the rules give when worked out afresh."""
        hosts = self.looked_at()
        for kind in (JobKind.GENERATE, JobKind.UNLOAD, JobKind.OTHER):
            for model in MODELS[:2]:
                for route in ROUTES:
                    asked = job("?", kind=kind, model=model, route=route)
                    expected = self.eligible(asked, hosts)
                    pool = self.scheduler._pool
                    assert {host.spec.id for host in pool.eligible(asked)} == expected

    def eligible(self, asked: Job, hosts: Sequence[HostSnapshot]) -> set[str]:
        """Ids of the hosts that may take a job, by the letter of the rules."""
        left = []
        for host in hosts:
            holds = any(model.name == asked.model for model in host.installed)
            allowed = host.state.is_routable and host.spec.may_serve(asked.model)
            if allowed and (holds or not asked.kind.needs_model):
                left.append(host)
        if self.keeps_newest and asked.kind in (JobKind.GENERATE, JobKind.SHOW):
            left = newest(left, asked.model)
        knowing = [host for host in left if (build_of(host), asked.route) not in self.lacking]
        return {host.spec.id for host in knowing or left}

    @invariant()
    def probation_has_one_trial(self) -> None:
        for host in self.scheduler._pool:
            if host.health.base is HostState.PROBATION and host.health.trial is not None:
                assert host.health.trial in self.running
                assert host.free_slots("a:1") == 0


def build_of(host: HostSnapshot) -> str:
    """What stands for the host's version; the host itself where that says nothing."""
    return host.spec.id if host.version in ("", "0.0.0") else host.version


def newest(hosts: Sequence[HostSnapshot], model: str) -> list[HostSnapshot]:
    """Those with the newest copy, and those whose copy has no digest."""
    copies = {h.spec.id: next(m for m in h.installed if m.name == model) for h in hosts}
    ages = [(c.modified_ns, c.digest) for c in copies.values() if c.digest]
    _, digest = max(ages, default=(0, ""))
    return [host for host in hosts if copies[host.spec.id].digest in ("", digest)]


class HostileMachine(SchedulerMachine):
    """The same promises, whatever the policy does."""

    def policy(self, seed: int) -> Policy:
        return Hostile(Random(seed))


TestSane = SchedulerMachine.TestCase
TestSane.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestHostile = HostileMachine.TestCase
TestHostile.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
