"""The state machine that decides. Everything that waits, runs or ails is kept here.

A job is, from `submit` to its end, in exactly one place:

    submit ──▶ waiting ──▶ in flight ──▶ gone        (finish)
                  └──────▶ gone                      (withdraw, or a Refuse effect)

Invariants, whoever wrote the policy: each job leaves once; jobs in flight never exceed the slots
of a host and model; an ejected host gets nothing; nobody waits beside an eligible free slot. A
plan that names an ineligible host is refused and counted, and what a policy leaves lying beside
a free slot, or fails to plan, goes by `least_in_flight`.

There is no `async def` here, so no await can split a change, and no lock is needed. Every method
that may move jobs returns the effects that the shell has to carry out, in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from sollol_proxy.core.health import HealthRules
from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.memory import Memory
from sollol_proxy.core.passing import pass_on
from sollol_proxy.core.planned import LOOKED_AT, Planned, free_for
from sollol_proxy.core.policies.base import Plan, Planner, Policy
from sollol_proxy.core.policies.least_in_flight import LeastInFlight
from sollol_proxy.core.pool import Pool
from sollol_proxy.core.predict import rest_s
from sollol_proxy.core.queue import NO_SHIFT, Lane, Queue, Shift, lane_of
from sollol_proxy.core.reasons import of_decision, why_no_host, why_waiting
from sollol_proxy.core.snapshots import Snapshot, WaitingJob
from sollol_proxy.core.types import (
    AttemptResult,
    Decision,
    Dispatch,
    Effect,
    HostReport,
    HostSpec,
    HostState,
    InstalledModel,
    Job,
    JobKind,
    Observation,
    Outcome,
    ProbeNow,
    Recall,
    Refuse,
)

SHOWN_WAITING = 50
"""Waiting jobs that a snapshot lists."""

TOLD_AT_ONCE = 8
"""With so few waiting, who finds no free slot is told at once how long that may take; in a longer
queue it is worked out when the next slot is free."""

MAX_RETRY_AFTER_S = 60.0

CHANGES_MUCH_S = 1.0
CHANGES_MUCH_RATIO = 0.25
"""A running job's expected end has to move by both to be worth a new plan."""


@dataclass(frozen=True, slots=True)
class SchedulerRules:
    """Bounds of the scheduler, seconds; see `config.schema.QueueSection`.

    boost_s: for policies that move short jobs forward; None = their own.
    keeps_newest: of hosts with different models under one name only those with the newest serve it.
    """

    max_waiting: int = 512
    ageing_s: float = 60.0
    boost_s: float | None = None
    overtaking_s: float = 240.0
    no_host_wait_s: float = 2.0
    keeps_newest: bool = False
    health: HealthRules = field(default_factory=HealthRules)


class Scheduler:
    """Owns the queue, the jobs in flight and the hosts.

    `now` is monotonic seconds and never goes back between calls. rng breaks ties.
    memory: all that is learnt, an empty one unless given; the shell may export it, restore it and
        forget it.
    """

    def __init__(
        self,
        specs: Sequence[HostSpec],
        policy: Policy,
        rules: SchedulerRules,
        *,
        rng: Random,
        now: float,
        memory: Memory | None = None,
    ) -> None:
        self.memory = Memory() if memory is None else memory
        self._pool = Pool(
            specs, rules.health, now, keeps_newest=rules.keeps_newest, memory=self.memory
        )
        self._policy = policy
        self._fallback = LeastInFlight(rng)
        self._rules = rules
        self._queue = Queue(rules.ageing_s, rules.overtaking_s)
        self._running: dict[str, HostEntry] = {}
        self._stranded_since: dict[str, float] = {}
        self._is_draining = False
        self._expected_end_s: dict[str, float] = {}
        self._planned: Planned | None = None
        if isinstance(policy, Planner):
            policy.memory, policy.boost_s = self.memory, rules.boost_s
            self._planned = Planned(policy, self._queue)
        self._plan_faults = 0

    # Jobs

    def submit(self, job: Job, now: float) -> list[Effect]:
        """A request arrives, or comes back for another attempt with its old `arrived_s`.

        Raises:
            ValueError: a job of that id is here already.
        """
        if job.id in self._running:
            raise ValueError(f"job {job.id} is in flight already")
        if self._is_draining and job.attempt == 1:
            return [Refuse(job.id, Outcome.DRAINING, "the proxy is shutting down", 1.0)]
        if job.attempt == 1 and job.kind.takes_slot:
            self.memory.demand.add(job.model, now)
        if not self._queue.entries and (at_once := self._at_once(job, now)) is not None:
            return [at_once]
        asked = self._as_asked(job)
        self._queue.add(asked, now, self._key_shift(asked))
        effects = self._dispatch(now, arrived=asked)
        if (
            job.attempt == 1
            and job.id in self._queue
            and len(self._queue) > self._rules.max_waiting
        ):
            self._forget_waiting(job.id)
            detail = f"{self._rules.max_waiting} jobs wait already (queue.max_waiting)"
            effects.append(
                Refuse(job.id, Outcome.REJECTED_QUEUE_FULL, detail, self.retry_after_s())
            )
        return effects

    def withdraw(self, job_id: str, now: float) -> list[Effect]:
        """The client of a waiting job has left. Unknown ids are ignored."""
        self._forget_waiting(job_id)
        return self._dispatch(now)

    def first_byte(self, job_id: str, now: float) -> list[Effect]:
        """A job in flight got the first byte of a good answer."""
        host = self._running.get(job_id)
        if host is None:
            return []
        was, effects = host.health.base, list[Effect]()
        if host.loading and host.is_loading(job_id):
            effects.append(ProbeNow(host.spec.id))
        host.first_byte(job_id, now)
        return effects + self._dispatch(now) if host.health.base is not was else effects

    def progress(self, job_id: str, tokens: int, now: float) -> list[Effect]:
        """A job in flight has streamed so many output tokens so far.

        To be called a few times a second at most; unknown ids are ignored.
        """
        host = self._running.get(job_id)
        if host is None:
            return []
        host.progress(job_id, tokens, now)
        if self._planned is None or not self._planned.holds.lanes():
            return []
        end_s = now + rest_s(self.memory, host.running_job(job_id), host, now)
        expected_s = self._expected_end_s.setdefault(job_id, end_s)
        moved_s = abs(end_s - expected_s)
        if moved_s < CHANGES_MUCH_S or moved_s < CHANGES_MUCH_RATIO * (end_s - now):
            return []
        self._expected_end_s[job_id] = end_s
        return self._dispatch(now)

    def finish(
        self,
        job_id: str,
        result: AttemptResult,
        now: float,
        *,
        observation: Observation | None = None,
        detail: str = "",
    ) -> list[Effect]:
        """An attempt is over and its slot is free again.

        Raises:
            KeyError: the job is not in flight.
        """
        host = self._running.pop(job_id)
        self._expected_end_s.pop(job_id, None)
        job = host.job(job_id)
        host.end(job_id, result, observation, detail, now)
        self._pool.note(host)
        self._pool.learn_route(host, job, result)
        if result is AttemptResult.COMPLETED and observation is not None:
            self.memory.stats.add(job, observation)
        effects: list[Effect] = []
        if job.kind is JobKind.UNLOAD:
            effects.append(ProbeNow(host.spec.id))
        return effects + self._dispatch(now) if self._queue.entries else effects

    # Hosts

    def report(self, report: HostReport, now: float) -> list[Effect]:
        """A probe came back. Unknown hosts are ignored: the pool may have changed meanwhile."""
        host = self._pool.get(report.host_id)
        if host is None:
            return []
        host.report(report, now)
        self._pool.note(host)
        return self._recalls(host) + self._dispatch(now)

    def set_host_draining(self, host_id: str, is_draining: bool, now: float) -> list[Effect]:
        """The operator takes a host out, or back in.

        Raises:
            KeyError: no host of that id.
        """
        host = self._pool[host_id]
        host.health.is_draining = is_draining
        host.health.since_s = now
        self._pool.note(host)
        return self._dispatch(now)

    def drain(self) -> None:
        """Take no new jobs; those that are here go on."""
        self._is_draining = True

    def lists(self, model: str) -> bool:
        """Whether some host, up or down, is known to have the model."""
        return self._pool.first_copy(model) is not None

    def routable(self) -> list[str]:
        """Ids of the hosts that may be given jobs, in the order of the pool."""
        return [host.spec.id for host in self._pool.routable()]

    def holders(self, model: str) -> list[str]:
        """Ids of the hosts that may be given jobs and have the model, in the order of the pool."""
        return [host.spec.id for host in self._pool.routable() if model in host.installed]

    def inventory(self) -> Mapping[str, Mapping[str, InstalledModel]]:
        """What every host, up or down, was last known to have: id → canonical name → model."""
        return self._pool.inventory()

    def is_remote(self, model: str) -> bool:
        """Whether the hosts that may be given jobs list the model only as one run elsewhere."""
        return self._pool.is_remote(model)

    def is_ejected(self, host_id: str) -> bool:
        """Whether a host is out after failures, draining or not."""
        return self._pool[host_id].health.base is HostState.EJECTED

    def spelling(self, model: str) -> str:
        """A model's name as the first host that has it writes it; empty when none does."""
        copy = self._pool.first_copy(model)
        return copy.spelling if copy is not None else ""

    def has_alternative(self, job: Job, host_id: str) -> bool:
        """Whether a routable host other than this one and the excluded could do the job."""
        return self._pool.has_alternative(job, host_id)

    def model_bytes(self, model: str) -> int:
        """Size of a model on the disk of the first host that has it; 0 when unknown."""
        copy = self._pool.first_copy(model)
        return copy.size_bytes if copy is not None else 0

    @property
    def plan_faults(self) -> int:
        """Times the policy raised, or named a host that may not take the job."""
        return self._plan_faults + (self._planned.faults if self._planned is not None else 0)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is in flight."""
        return not self._running and not len(self._queue)

    # Time

    def next_timer_s(self) -> float | None:
        """When `tick` has to be called at the latest; None = not needed."""
        if not self._queue.entries and not self._stranded_since and self._pool.is_all_up:
            return None  # nobody waits, nobody is held, nobody is out
        instants = [since + self._rules.no_host_wait_s for since in self._stranded_since.values()]
        deadline_s = self._queue.next_deadline_s()
        if deadline_s is not None:
            instants.append(deadline_s)
        if self._planned is not None:
            bound_s = self._planned.holds.next_bound_s()
            if bound_s is not None:
                instants.append(bound_s)
        instants.extend(self._pool.probes_due())
        return min(instants, default=None)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: refuse whoever waited too long, end holds, ask about ejected hosts."""
        effects: list[Effect] = []
        for host in self._pool.out():
            if host.health.probe_at_s is not None and host.health.probe_at_s <= now:
                host.health.probe_at_s = None
                effects.append(ProbeNow(host.spec.id))
        for job in self._queue.overdue(now):
            self._forget_waiting(job.id)
            detail = f"waited {now - job.arrived_s:.1f} s (queue.deadline)"
            effects.append(Refuse(job.id, Outcome.EXPIRED_IN_QUEUE, detail, self.retry_after_s()))
        return effects + self._dispatch(now)

    def retry_after_s(self) -> float:
        """Seconds until the queue of this moment is likely to have moved on; 1 to 60."""
        service_s = self.memory.stats.service_s or 1.0
        slots = sum(host.spec.slots for host in self._pool.routable()) or 1
        return min(max(len(self._queue) * service_s / slots, 1.0), MAX_RETRY_AFTER_S)

    # Looking

    def snapshot(self, now: float) -> Snapshot:
        """A frozen copy for pages, JSON and metrics."""
        by_priority: dict[int, int] = {}
        oldest_s = 0.0
        for job in self._queue:
            by_priority[job.priority] = by_priority.get(job.priority, 0) + 1
            oldest_s = max(oldest_s, now - job.arrived_s)
        return Snapshot(
            policy=self._policy.name,
            hosts=tuple(host.snapshot(now) for host in self._pool),
            waiting_total=len(self._queue),
            waiting_by_priority=by_priority,
            oldest_wait_s=oldest_s,
            waiting=tuple(
                WaitingJob(job, max(0.0, now - job.arrived_s), self._why_waiting(job, now))
                for job in self._queue.window(SHOWN_WAITING)
            ),
            learnt=self.memory.stats.rows(),
            is_draining=self._is_draining,
            plan_faults=self.plan_faults,
        )

    # Inside

    def _as_asked(self, job: Job) -> Job:
        """The job, or the same as OTHER when no host is known to have its model.

        Such a request goes to some host all the same, which answers in its own words: Ollama's
        texts for a missing model differ by route and version.
        """
        if not job.kind.needs_model or self._might_be_somewhere(job):
            return job
        return replace(job, kind=JobKind.OTHER)

    def _might_be_somewhere(self, job: Job) -> bool:
        return any(
            host.could_serve(job)
            if host.inventory_known
            else host.state is HostState.UNKNOWN and job.may_go_to(host.spec.id)
            for host in self._pool
        ) or any(job.model in self._pool[host_id].installed for host_id in job.excluded)

    def _key_shift(self, job: Job) -> Shift:
        if self._planned is None or not job.kind.takes_slot:
            return NO_SHIFT
        return self._planned.key_shift(job, self._pool.routable())

    def _at_once(self, job: Job, now: float) -> Dispatch | None:
        """Give a job that comes while nobody waits to its host, without letting it in first."""
        if not job.kind.takes_slot:
            return None
        hosts, planned = self._pool.routable(), self._planned
        if planned is not None:
            decision = planned.place_at_once(job, hosts, now)
            return None if decision is None else self._checked(decision, job, now)
        for host in hosts:
            if self._may_take(host, job):
                break
        else:
            return None  # no policy is asked where no host is free
        for policy in (self._policy, self._fallback):
            for decision in self._plan(policy, [job], hosts, now):
                dispatch = self._checked(decision, job, now)
                if dispatch is not None:
                    return dispatch
        return None

    def _checked(self, decision: Decision, job: Job, now: float) -> Dispatch | None:
        """Carry out a decision on a job that has not been let in; None = it cannot be."""
        host = self._pool.get(decision.host_id)
        if host is None or decision.job_id != job.id or not self._may_take(host, job):
            self._plan_faults += 1
            return None
        return self._begin(decision, job, host, now, waited_s=0.0, predicted_wait_s=0.0)

    def _begin(
        self,
        decision: Decision,
        job: Job,
        host: HostEntry,
        now: float,
        *,
        waited_s: float,
        predicted_wait_s: float | None,
    ) -> Dispatch:
        reason = of_decision(job, self._pool)
        host.begin(job, now)
        self._running[job.id] = host
        if decision.predicted_total_s is None:
            predicted_wait_s = None
        if (
            not reason
            and waited_s == decision.waited_s
            and predicted_wait_s == decision.predicted_wait_s
        ):
            return Dispatch(decision)
        return Dispatch(
            Decision(
                decision.job_id,
                decision.host_id,
                decision.policy,
                decision.cost,
                decision.reason + reason if reason else decision.reason,
                decision.runners_up,
                waited_s,
                predicted_wait_s,
                decision.predicted_total_s,
            )
        )

    def _forget_waiting(self, job_id: str) -> float:
        """Take a job out of the queue; the wait that was predicted for it."""
        job = self._queue.remove(job_id)
        self._stranded_since.pop(job_id, None)
        return self._planned.gone(job) if self._planned is not None and job is not None else 0.0

    def _dispatch(self, now: float, *, arrived: Job | None = None) -> list[Effect]:
        """Give out what can be given out. arrived: nothing has happened but that this job came."""
        effects: list[Effect] = []
        more = bool(len(self._queue))
        if more:
            self._queue.settle(now)
        while more:
            # Each round that dispatches something may open the way for another: a plan may put
            # only one model at a time on a host. Rounds are bounded by the jobs that wait.
            if self._planned is None:
                while self._round(now, effects):
                    pass
            else:
                while self._planned_round(self._planned, now, effects, arrived=arrived):
                    arrived = None
            more = self._look_after_stranded(now, effects)
        return effects

    def _planned_round(
        self, planned: Planned, now: float, effects: list[Effect], *, arrived: Job | None
    ) -> bool:
        """One plan, carried out; whether another may bring more.

        arrived: the only thing that is new since the last one.
        """
        hosts = self._pool.routable()
        waiting = self._queue.window(LOOKED_AT, self._is_possible)
        without_slot = [job for job in waiting if not job.kind.takes_slot]
        if without_slot and self._send_without_slot(without_slot, hosts, now, effects):
            return True
        lanes = planned.open_lanes(hosts)
        for lane in planned.holds.lanes():
            if lane not in lanes:
                planned.holds.end_lane(lane)
        if not waiting or not (lanes or (arrived is not None and len(waiting) <= TOLD_AT_ONCE)):
            return False
        seen = {lane_of(job) for job in waiting}
        waiting += self._queue.window(
            LOOKED_AT // 2, lambda lane: lane in lanes and lane not in seen
        )
        looked_at = [job for job in waiting if job.kind.takes_slot]
        if arrived is not None and all(job is not arrived for job in looked_at):
            # So far back that nothing changes for those that were planned for.
            return self._hold(planned, Plan(), looked_at, hosts, now, effects)
        plan = planned.plan(looked_at, hosts, now) if looked_at else None
        if plan is None:
            return self._round(now, effects, is_fallback=True)
        first = looked_at[0]
        if planned.is_passed_over(first, plan, hosts, now) and self._end_hold(
            planned, first.id, hosts, now, effects
        ):
            return True
        done = [self._carry_out(decision, now, effects) for decision in plan.decisions]
        if plan.is_partial and any(done):
            return True
        return self._hold(planned, plan, looked_at, hosts, now, effects)

    def _hold(
        self,
        planned: Planned,
        plan: Plan,
        looked_at: Sequence[Job],
        hosts: Sequence[HostEntry],
        now: float,
        effects: list[Effect],
    ) -> bool:
        """Hold whoever is left beside a free slot, unless nobody answers for it or it is time."""
        told = {hold.job_id: hold for hold in plan.holds}
        ids = {job.id for job in looked_at}
        done = False
        for lane, roomy in planned.open_lanes(hosts).items():
            free = planned.free_in(lane, roomy) if self._queue.count_in(lane) else []
            left = planned.hold(lane, free, told, ids, now) if free else []
            for job in left:
                for decision in self._plan(self._fallback, [job], free, now):
                    done = self._carry_out(decision, now, effects) or done
            for job_id in planned.holds.due(lane, now):
                if planned.put_off(lane, job_id, free, now):
                    continue
                if not self._end_hold(planned, job_id, hosts, now, effects):
                    break
                done = True
        return done

    def _end_hold(
        self,
        planned: Planned,
        job_id: str,
        hosts: Sequence[HostEntry],
        now: float,
        effects: list[Effect],
    ) -> bool:
        """Give a job that has been held long enough to a free host; False when there is none."""
        job = self._queue.get(job_id)
        free = free_for(job, hosts) if job is not None else []
        if job is None or not free:
            return False
        placed = planned.place(job, free, now)
        if placed is not None and self._carry_out(placed, now, effects):
            return True
        decisions = self._plan(self._fallback, [job], free, now)
        return any(self._carry_out(decision, now, effects) for decision in decisions)

    def _send_without_slot(
        self,
        waiting: Sequence[Job],
        hosts: Sequence[HostEntry],
        now: float,
        effects: list[Effect],
    ) -> bool:
        """Send what takes no slot; a planner has nothing to weigh there."""
        done = False
        for job in waiting:
            if job.kind.is_passed:
                passed = pass_on(job, self._pool)
                decisions = [passed] if passed is not None else []
            else:
                decisions = self._plan(self._fallback, [job], hosts, now)
            for decision in decisions:
                done = self._carry_out(decision, now, effects) or done
        return done

    def _is_possible(self, lane: Lane) -> bool:
        return self._pool.any_eligible(self._queue.first_in(lane))

    def _round(self, now: float, effects: list[Effect], *, is_fallback: bool = False) -> bool:
        waiting = self._queue.window(LOOKED_AT, self._is_open)
        if not waiting:
            return False
        routable = self._pool.routable()
        done = False
        for job in waiting:
            passed = pass_on(job, self._pool) if job.kind.is_passed else None
            if passed is not None:
                done = self._carry_out(passed, now, effects) or done
        waiting = [job for job in waiting if not job.kind.is_passed]
        for policy in (self._fallback,) if is_fallback else (self._policy, self._fallback):
            for decision in self._plan(policy, waiting, routable, now):
                done = self._carry_out(decision, now, effects) or done
            if done:
                return True
            # The policy left jobs beside free slots: the fallback takes them.
        return False

    def _recalls(self, host: HostEntry) -> list[Effect]:
        """Jobs to take back from a host that has fallen silent, where another host could do them.

        No timeout on the first byte: silence of one answer is normal while a host loads. Silence
        to every probe is not. What passes through without being inference may have had effects
        and stays.
        """
        if not host.health.is_silent:
            return []
        return [
            Recall(job.id)
            for job in host.unanswered()
            if not job.kind.is_passed and self.has_alternative(job, host.spec.id)
        ]

    def _plan(
        self, policy: Policy, waiting: Sequence[Job], hosts: Sequence[HostEntry], now: float
    ) -> list[Decision]:
        try:
            plan = policy.plan(waiting, hosts, now)
            return [decision for decision in plan if isinstance(decision, Decision)]
        except Exception:  # noqa: BLE001 - a policy may be a stranger's: it must not lose a job
            self._plan_faults += 1
            return []

    def _carry_out(self, decision: Decision, now: float, effects: list[Effect]) -> bool:
        job = self._queue.get(decision.job_id)
        host = self._pool.get(decision.host_id)
        if job is None or host is None or not self._may_take(host, job):
            self._plan_faults += 1
            return False
        waited_s = self._queue.waited_s(job.id, now)
        predicted_wait_s = self._forget_waiting(job.id)
        effects.append(
            self._begin(
                decision,
                job,
                host,
                now,
                waited_s=waited_s,
                predicted_wait_s=predicted_wait_s,
            )
        )
        return True

    @staticmethod
    def _may_take(host: HostEntry, job: Job) -> bool:
        return host.is_eligible(job) and (not job.kind.takes_slot or host.free_slots(job.model) > 0)

    def _is_open(self, lane: Lane) -> bool:
        job = self._queue.first_in(lane)
        return any(self._may_take(host, job) for host in self._pool)

    def _look_after_stranded(self, now: float, effects: list[Effect]) -> bool:
        """Refuse jobs that no host can take, at once or after `no_host_wait`.

        Returns whether some of them may be dispatched after all: those whose model turned out to
        be nowhere are asked of any host.
        """
        requeued = False
        for lane in self._queue.lanes():
            first = self._queue.first_in(lane)
            if self._pool.any_eligible(first):
                if self._stranded_since:
                    for job in self._queue.in_lane(lane):
                        self._stranded_since.pop(job.id, None)
                continue
            may_come = any(self._may_come(host, first) for host in self._pool)
            for job in self._queue.in_lane(lane):
                asked = self._as_asked(job)
                if asked is not job and self._pool.any_eligible(asked):
                    self._queue.replace(asked)
                    requeued = True
                    continue
                since = self._stranded_since.setdefault(job.id, now)
                if may_come and now < since + self._rules.no_host_wait_s:
                    continue
                self._forget_waiting(job.id)
                outcome, detail = why_no_host(job, self._pool)
                retry_after_s = self.retry_after_s() if outcome is Outcome.NO_HOST else 1.0
                effects.append(Refuse(job.id, outcome, detail, retry_after_s))
        return requeued

    def _may_come(self, host: HostEntry, job: Job) -> bool:
        """Whether a host that is out now could take the job once it is back."""
        if host.state.is_routable:
            return False
        if not host.inventory_known:
            return job.may_go_to(host.spec.id)
        return host.could_serve(job)

    def _why_waiting(self, job: Job, now: float) -> str:
        held = self._planned.reason(job.id, now) if self._planned is not None else ""
        if held:
            return held
        since = self._stranded_since.get(job.id, now)
        refused_in_s = max(0.0, since + self._rules.no_host_wait_s - now)
        return why_waiting(job, self._pool, refused_in_s=refused_in_s)
