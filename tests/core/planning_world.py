"""A pool in virtual time for tests of the planner: a real scheduler, hosts that keep their secrets.

What hosts tell of themselves may be wrong by any factor, so that predictions are, too. After each
call of the scheduler the books are compared with it, and every promise that holds at any moment is
looked after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from random import Random

from sollol_proxy.core.health import HealthRules
from sollol_proxy.core.holds import MAX_HOLD_S
from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.planned import free_for
from sollol_proxy.core.policies.base import HostView, Plan
from sollol_proxy.core.policies.completion_time import CompletionTime
from sollol_proxy.core.policies.explain import price_on
from sollol_proxy.core.policies.lanes import LaneBook
from sollol_proxy.core.policies.outlook import HostOutlook, Moment, Prices
from sollol_proxy.core.queue import lane_of
from sollol_proxy.core.scheduler import Scheduler, SchedulerRules
from sollol_proxy.core.types import (
    AttemptResult,
    Dispatch,
    HostSpec,
    Job,
    JobKind,
    Observation,
    Refuse,
    TaskType,
)
from tests.core.builders import down, job, report, spec

MODELS = ("a:1", "b:1", "c:1")
KINDS = (JobKind.GENERATE,) * 8 + (
    JobKind.EMBED,
    JobKind.LOAD,
    JobKind.TRANSCRIBE,
    JobKind.SHOW,
    JobKind.UNLOAD,
)
TASKS = (TaskType.GENERATION, TaskType.ANALYSIS)
AGEING_S = 20.0
CLOSE_S = 1e-6


@dataclass(frozen=True)
class Lies:
    """Factors between what hosts and jobs tell and what is: of lengths, speeds and prompts."""

    length: float = 1.0
    speed: float = 1.0
    prompt: float = 1.0


class Watched(CompletionTime):
    """Keeps in mind what was said of those who are held, and checks it against the hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.idle_s: dict[str, float] = {}
        self.broken: list[str] = []

    def plan_all(self, waiting: Sequence[Job], hosts: Sequence[HostView], now: float) -> Plan:
        plan = super().plan_all(waiting, hosts, now)
        jobs, views = {each.id: each for each in waiting}, {host.spec.id: host for host in hosts}
        for hold in plan.holds:
            if hold.host_id not in hold.reason:
                self.broken.append(f"held without a reason: {hold}")
            if hold.idle_s is not None:
                self.compare(hold.idle_s, jobs[hold.job_id], views[hold.idle_host_id], now)
                self.say(hold.job_id, hold.idle_s)
        return plan

    def idle_times(
        self, jobs: Sequence[Job], hosts: Sequence[HostView], now: float
    ) -> Sequence[float]:
        times = super().idle_times(jobs, hosts, now)
        for asked, idle_s in zip(jobs, times, strict=True):
            # A bound without a plan takes nothing for cached.
            uncached = replace(asked, prefix=(), prefix_tokens=())
            for host in hosts:
                self.compare(idle_s, uncached, host, now)
            self.say(asked.id, idle_s)
        return times

    def say(self, job_id: str, idle_s: float) -> None:
        """A call of the scheduler may make several plans; a hold goes by one of them."""
        self.idle_s[job_id] = max(idle_s, self.idle_s.get(job_id, 0.0))

    def compare(self, idle_s: float, asked: Job, host: HostView, now: float) -> None:
        """Not raised here, where the scheduler would take it for a fault of the policy."""
        most_s = self.alone_s(asked, host, now)
        if idle_s > most_s + CLOSE_S:
            self.broken.append(f"{asked} held {idle_s} s beside {host.spec.id} with {most_s} s")

    def alone_s(self, asked: Job, host: HostView, now: float) -> float:
        """Seconds that the job would need there if it went at once, by what nobody has kept.

        A load under way counts for the model that is being loaded and for loads behind it.
        """
        seen = HostOutlook(host, self.memory, Prices(1.0, 1.0, 1.0, 0.0))
        seen.look(host, Moment([host], now))
        row = LaneBook(self.memory).rates(asked).row(host)
        assert row is not None, "held beside a host that may not take the job"
        price = price_on(seen, asked, row, 0.0, self.memory)
        # What a load has to wait for is remembered for a while, whatever other hosts teach.
        may_wait_s = max(seen.ends_s, default=0.0) if row.load_s else 0.0
        return max(price.wait_s, may_wait_s) + price.own_s


class World:
    """One history. steps: calls of the scheduler so far."""

    def __init__(self, seed: int, lies: Lies, policy: Watched | None = None) -> None:
        self.rng = rng = Random(seed)
        self.lies = lies
        self.now = 0.0
        self.steps = self.held = self.put_off = 0
        self.waiting: dict[str, Job] = {}
        self.running: dict[str, tuple[Job, str]] = {}
        self.ends: list[tuple[float, str]] = []
        self.bounds: dict[str, float] = {}
        self.beside: set[str] = set()
        self.arrived = 0
        self.specs = [self._spec(f"h{number}") for number in range(rng.randint(1, 4))]
        self.speeds = {host.id: 10 ** rng.uniform(0.7, 2.0) for host in self.specs}
        self.policy = Watched() if policy is None else policy
        rules = SchedulerRules(
            max_waiting=10, ageing_s=AGEING_S, health=HealthRules(eject_after=2, backoff_s=2.0)
        )
        self.scheduler = Scheduler(self.specs, self.policy, rules, rng=rng, now=0.0)
        self.pace_s = rng.choice([0.3, 1.0, 3.0])
        for host in self.specs:
            self.probe(host)

    def _spec(self, host_id: str) -> HostSpec:
        rng = self.rng
        return spec(
            host_id,
            slots=rng.choice([1, 1, 2, 3]),
            max_models=rng.choice([1, 2, 3]),
            model_slots=rng.choice([{}, {}, {"a:1": 2}]),
            deny=rng.choice([(), (), ("c:*",)]),
        )

    def run(self, steps: int) -> None:
        """At least so many calls of the scheduler."""
        doings = (
            [self.arrive] * 30
            + [self.probe_any] * 3
            + [self.fail, self.leave, self.drain] * 2
            + [self.probe_down, self.first_bytes]
            + [self.progress] * 8
        )
        while self.steps < steps:
            self.pass_time(self.rng.expovariate(1 / self.pace_s))
            self.rng.choice(doings)()

    # What happens

    def pass_time(self, seconds: float) -> None:
        """Answers end and timers ring, each at its moment."""
        until_s = self.now + seconds
        for _ in range(1000):
            timer_s = self.scheduler.next_timer_s()
            end_s = self.ends[0][0] if self.ends else until_s
            if timer_s is not None and timer_s <= min(end_s, until_s):
                self.now = max(self.now, timer_s)
                self.apply(self.scheduler.tick(self.now))
            elif self.ends and end_s <= until_s:
                self.now = max(self.now, end_s)
                self.end(heappop(self.ends)[1], AttemptResult.COMPLETED)
            else:
                break
        else:
            raise AssertionError("the timer rings for ever")
        self.now = until_s

    def arrive(self) -> None:
        rng = self.rng
        self.arrived += 1
        prompt = int(10 ** rng.uniform(0, 3.5))
        kind = rng.choice(KINDS)
        shared = rng.choice([(), (), (1,), (1, 2), (3,)]) if kind is JobKind.GENERATE else ()
        new = job(
            f"j{self.arrived}",
            model=rng.choice(MODELS),
            kind=kind,
            task_type=rng.choice(TASKS),
            priority=rng.randint(1, 10),
            arrived_s=self.now,
            deadline_s=self.now + rng.uniform(1, 60) if rng.random() < 0.1 else None,
            prompt_tokens_est=prompt,
            output_limit_tokens=rng.choice([None, None, 50]),
            stream=rng.random() < 0.5,
            options_key=rng.choice(["", "", "", "num_ctx=8192"]),
            prefix=shared,
            prefix_tokens=tuple(prompt * (n + 1) // len(shared) for n in range(len(shared))),
        )
        self.waiting[new.id] = new
        self.apply(self.scheduler.submit(new, self.now))

    def end(self, job_id: str, result: AttemptResult) -> None:
        if job_id not in self.running:
            return
        ended, host_id = self.running.pop(job_id)
        seen = None
        if result is AttemptResult.COMPLETED:
            decode = self.speeds[host_id] * self.lies.speed
            tokens = int(self.rng.lognormvariate(4, 1) * self.lies.length) + 1
            prompt = int(ended.prompt_tokens_est * self.lies.prompt) + 1
            seen = Observation(
                prompt,
                tokens,
                load_s=self.rng.choice([0.0, 0.0, 4.0]),
                prefill_s=prompt / (decode * 20),
                decode_s=tokens / decode,
                total_s=prompt / (decode * 20) + tokens / decode,
            )
        self.apply(self.scheduler.finish(job_id, result, self.now, observation=seen, detail="x"))
        if result is AttemptResult.FAILED and ended.attempt < 3:
            again = replace(
                ended,
                attempt=ended.attempt + 1,
                excluded=ended.excluded | {host_id},
            )
            self.waiting[job_id] = again
            self.apply(self.scheduler.submit(again, self.now))

    def fail(self) -> None:
        if self.running:
            self.end(
                self.rng.choice(sorted(self.running)),
                self.rng.choice(
                    [AttemptResult.FAILED, AttemptResult.UNREACHABLE, AttemptResult.CLIENT_GONE]
                ),
            )

    def leave(self) -> None:
        if self.waiting:
            job_id = self.rng.choice(sorted(self.waiting))
            del self.waiting[job_id]
            self.apply(self.scheduler.withdraw(job_id, self.now))

    def first_bytes(self) -> None:
        for job_id in sorted(self.running):
            self.apply(self.scheduler.first_byte(job_id, self.now))

    def progress(self) -> None:
        if self.running:
            job_id = self.rng.choice(sorted(self.running))
            self.apply(self.scheduler.first_byte(job_id, self.now))
            tokens = self.rng.randint(1, 400)
            self.apply(self.scheduler.progress(job_id, tokens, self.now))

    def probe_any(self) -> None:
        self.probe(self.rng.choice(self.specs))

    def probe(self, host: HostSpec) -> None:
        names = self.rng.choice([MODELS, MODELS, MODELS[:2]])
        resident = tuple(self.rng.sample(names, self.rng.randint(0, len(names))))
        self.apply(self.scheduler.report(report(host.id, *names, resident=resident), self.now))

    def probe_down(self) -> None:
        self.apply(self.scheduler.report(down(self.rng.choice(self.specs).id), self.now))

    def drain(self) -> None:
        host = self.rng.choice(self.specs)
        is_draining = self.rng.random() < 0.3
        self.apply(self.scheduler.set_host_draining(host.id, is_draining, self.now))

    # What is promised

    def apply(self, effects: Sequence[object]) -> None:
        """Carry the effects out in our own books, and compare them."""
        self.steps += 1
        for effect in effects:
            if isinstance(effect, Dispatch):
                job_id = effect.decision.job_id
                assert job_id in self.waiting, "a job left twice"
                self.running[job_id] = (self.waiting.pop(job_id), effect.decision.host_id)
                takes_s = self.rng.lognormvariate(4, 1) / self.speeds[effect.decision.host_id]
                heappush(self.ends, (self.now + takes_s, job_id))
            elif isinstance(effect, Refuse):
                assert self.waiting.pop(effect.job_id, None) is not None, "a job left twice"
        assert not self.policy.broken, self.policy.broken
        self.check_slots()
        self.check_holds()
        self.policy.idle_s.clear()
        if self.steps % 50 == 0:
            self.check_reasons()

    def check_slots(self) -> None:
        for host in self.scheduler._pool:
            by_model = host.in_flight_by_model
            assert len(by_model) <= host.spec.max_models
            assert all(0 < count <= host.slots(model) for model, count in by_model.items())
        assert self.scheduler.plan_faults == 0, "the planner named a host that may not take the job"

    def check_holds(self) -> None:
        """Nobody waits beside a free slot but held, with a bound that keeps its word."""
        planned, queue = self.scheduler._planned, self.scheduler._queue
        assert planned is not None
        assert len(queue) == len(self.waiting)
        hosts: Sequence[HostEntry] = self.scheduler._pool.routable()
        roomy = [host for host in hosts if host.in_flight < host.concurrency]
        bounds: dict[str, float] = {}
        beside = set()
        for job_id in self.waiting:
            asked = queue.get(job_id)
            assert asked is not None
            if not asked.kind.takes_slot:
                assert not any(host.is_eligible(asked) for host in hosts)
                continue
            bound_s = planned.holds.bound_s(lane_of(asked), job_id)
            if free_for(asked, roomy):
                beside.add(job_id)
                assert bound_s is not None, "waits beside a free slot and is not held"
                assert self.now < bound_s, "held beyond its bound"
            if bound_s is not None:
                bounds[job_id] = bound_s
                if bound_s != self.bounds.get(job_id):
                    self.held += 1
                    if job_id in self.bounds and job_id in self.beside:
                        assert self.bounds[job_id] <= self.now + CLOSE_S, "bound moved too early"
                        self.put_off += 1
                    longest_s = min(self.policy.idle_s[job_id], MAX_HOLD_S)
                    assert bound_s <= self.now + longest_s + CLOSE_S, "the bound is too far"
        self.beside = beside
        self.bounds = bounds
        next_s = self.scheduler.next_timer_s()
        assert not bounds or (next_s is not None and next_s <= min(bounds.values()))
        for lane in planned.holds.lanes():
            ids = [each.id for each in queue.in_lane(lane)]
            assert planned.holds.count(lane) == sum(planned.holds.has(lane, each) for each in ids)

    def check_reasons(self) -> None:
        snapshot = self.scheduler.snapshot(self.now)
        assert {waiting.job.id for waiting in snapshot.waiting} == self.waiting.keys()
        assert all(waiting.reason for waiting in snapshot.waiting)
        running = [each for each, _ in self.running.values() if each.kind.takes_slot]
        assert sum(host.in_flight for host in snapshot.hosts) <= len(running)
        assert self.scheduler.idle is (not self.waiting and not self.running)
