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

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

from sollol_proxy.core.health import HealthRules
from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.learnt import Learnt
from sollol_proxy.core.policies.base import Policy
from sollol_proxy.core.policies.least_in_flight import LeastInFlight
from sollol_proxy.core.queue import Lane, Queue
from sollol_proxy.core.snapshots import Snapshot, WaitingJob
from sollol_proxy.core.types import (
    AttemptResult,
    Cost,
    Decision,
    Dispatch,
    Effect,
    HostReport,
    HostSpec,
    HostState,
    Job,
    JobKind,
    Observation,
    Outcome,
    ProbeNow,
    Recall,
    Refuse,
)

LOOKED_AT = 32
"""Waiting jobs that one plan sees. Measured in a simulator: 8 lose up to 1.3 ×, 64 gain nothing."""

SHOWN_WAITING = 50
"""Waiting jobs that a snapshot lists."""

MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class SchedulerRules:
    """Bounds of the scheduler; see `config.schema.QueueSection`. Seconds."""

    max_waiting: int = 512
    ageing_s: float = 60.0
    no_host_wait_s: float = 2.0
    health: HealthRules = field(default_factory=HealthRules)


class Scheduler:
    """Owns the queue, the jobs in flight and the hosts.

    `now` is monotonic seconds and never goes back between calls. rng breaks ties.
    """

    def __init__(
        self,
        specs: Sequence[HostSpec],
        policy: Policy,
        rules: SchedulerRules,
        *,
        rng: Random,
        now: float,
    ) -> None:
        self._hosts = {spec.id: HostEntry(spec, rules.health, now) for spec in specs}
        self._policy = policy
        self._fallback = LeastInFlight(rng)
        self._rules = rules
        self._queue = Queue(rules.ageing_s)
        self._running: dict[str, HostEntry] = {}
        self._stranded_since: dict[str, float] = {}
        self._is_draining = False
        self._learnt = Learnt()
        self.plan_faults = 0

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
        self._queue.add(self._as_asked(job), now)
        effects = self._dispatch(now)
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
        was = host.state
        effects: list[Effect] = [ProbeNow(host.spec.id)] if host.is_loading(job_id) else []
        host.first_byte(job_id, now)
        return effects + self._dispatch(now) if host.state is not was else effects

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
        job = host.job(job_id)
        host.end(job_id, result, observation, detail, now)
        if result is AttemptResult.COMPLETED and observation is not None:
            self._learnt.add(job, observation)
        unloads = job.kind is JobKind.UNLOAD
        effects: list[Effect] = [ProbeNow(host.spec.id)] if unloads else []
        return effects + self._dispatch(now)

    # Hosts

    def report(self, report: HostReport, now: float) -> list[Effect]:
        """A probe came back. Unknown hosts are ignored: the pool may have changed meanwhile."""
        host = self._hosts.get(report.host_id)
        if host is None:
            return []
        host.report(report, now)
        return self._recalls(host) + self._dispatch(now)

    def set_host_draining(self, host_id: str, is_draining: bool, now: float) -> list[Effect]:
        """The operator takes a host out, or back in.

        Raises:
            KeyError: no host of that id.
        """
        health = self._hosts[host_id].health
        health.is_draining = is_draining
        health.since_s = now
        return self._dispatch(now)

    def drain(self) -> None:
        """Take no new jobs; those that are here go on."""
        self._is_draining = True

    def lists(self, model: str) -> bool:
        """Whether some host, up or down, is known to have the model."""
        return any(model in host.installed for host in self._hosts.values())

    def routable(self) -> list[str]:
        """Ids of the hosts that may be given jobs, in the order of the pool."""
        return [host_id for host_id, host in self._hosts.items() if host.state.is_routable]

    def has_alternative(self, job: Job, host_id: str) -> bool:
        """Whether a routable host other than this one and the excluded could take the job."""
        others = replace(job, excluded=job.excluded | {host_id})
        return any(host.is_eligible(others) for host in self._hosts.values())

    def model_bytes(self, model: str) -> int:
        """Size of a model on the disk of the first host that has it; 0 when unknown."""
        return next(
            (
                host.installed[model].size_bytes
                for host in self._hosts.values()
                if model in host.installed
            ),
            0,
        )

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is in flight."""
        return not self._running and not len(self._queue)

    # Time

    def next_timer_s(self) -> float | None:
        """When `tick` has to be called at the latest; None = not needed."""
        instants = [since + self._rules.no_host_wait_s for since in self._stranded_since.values()]
        deadline_s = self._queue.next_deadline_s()
        if deadline_s is not None:
            instants.append(deadline_s)
        instants.extend(
            host.health.probe_at_s
            for host in self._hosts.values()
            if host.health.probe_at_s is not None
        )
        return min(instants, default=None)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: refuse whoever waited too long, ask about ejected hosts."""
        effects: list[Effect] = []
        for host_id, host in self._hosts.items():
            if host.health.probe_at_s is not None and host.health.probe_at_s <= now:
                host.health.probe_at_s = None
                effects.append(ProbeNow(host_id))
        for job in self._queue.overdue(now):
            self._forget_waiting(job.id)
            detail = f"waited {now - job.arrived_s:.1f} s (queue.deadline)"
            effects.append(Refuse(job.id, Outcome.EXPIRED_IN_QUEUE, detail, self.retry_after_s()))
        return effects + self._dispatch(now)

    def retry_after_s(self) -> float:
        """Seconds until the queue of this moment is likely to have moved on; 1 to 60."""
        service_s = self._learnt.service_s or 1.0
        slots = sum(h.spec.slots for h in self._hosts.values() if h.state.is_routable) or 1
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
            hosts=tuple(host.snapshot(now) for host in self._hosts.values()),
            waiting_total=len(self._queue),
            waiting_by_priority=by_priority,
            oldest_wait_s=oldest_s,
            waiting=tuple(
                WaitingJob(job, max(0.0, now - job.arrived_s), self._why_waiting(job, now))
                for job in self._queue.window(SHOWN_WAITING)
            ),
            learnt=self._learnt.rows(),
            is_draining=self._is_draining,
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
            else host.state is HostState.UNKNOWN and host.spec.id not in job.excluded
            for host in self._hosts.values()
        ) or any(job.model in self._hosts[host_id].installed for host_id in job.excluded)

    def _forget_waiting(self, job_id: str) -> None:
        self._queue.remove(job_id)
        self._stranded_since.pop(job_id, None)

    def _dispatch(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        more = bool(len(self._queue))
        while more:
            # Each round that dispatches something may open the way for another: a plan may put
            # only one model at a time on a host. Rounds are bounded by the jobs that wait.
            while self._round(now, effects):
                pass
            more = self._look_after_stranded(now, effects)
        return effects

    def _round(self, now: float, effects: list[Effect]) -> bool:
        waiting = self._queue.window(LOOKED_AT, self._is_open)
        if not waiting:
            return False
        routable = [host for host in self._hosts.values() if host.state.is_routable]
        done = self._pass_on([job for job in waiting if job.kind is JobKind.PASS], now, effects)
        waiting = [job for job in waiting if job.kind is not JobKind.PASS]
        for policy in (self._policy, self._fallback):
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
            if job.kind is not JobKind.PASS and self.has_alternative(job, host.spec.id)
        ]

    def _pass_on(self, jobs: Sequence[Job], now: float, effects: list[Effect]) -> bool:
        """Give jobs of routes that are not balanced to the first host in the order of the pool.

        Always the same one, since such requests may belong together (a blob and the model that is
        created from it); a host that has the named model comes before those that do not.
        """
        for job in jobs:
            eligible = [host for host in self._hosts.values() if host.is_eligible(job)]
            having = [host for host in eligible if job.model in host.installed]
            host = (having or eligible)[0]
            reason = "first of the pool that has the model" if having else "first of the pool"
            decision = Decision(job.id, host.spec.id, "pass", Cost(0.0), reason)
            self._carry_out(decision, now, effects)
        return bool(jobs)

    def _plan(
        self, policy: Policy, waiting: Sequence[Job], hosts: Sequence[HostEntry], now: float
    ) -> list[Decision]:
        try:
            plan = policy.plan(waiting, hosts, now)
            return [decision for decision in plan if isinstance(decision, Decision)]
        except Exception:  # noqa: BLE001 - a policy may be a stranger's: it must not lose a job
            self.plan_faults += 1
            return []

    def _carry_out(self, decision: Decision, now: float, effects: list[Effect]) -> bool:
        job = self._queue.get(decision.job_id)
        host = self._hosts.get(decision.host_id)
        if job is None or host is None or not self._may_take(host, job):
            self.plan_faults += 1
            return False
        waited_s = self._queue.waited_s(job.id, now)
        self._forget_waiting(job.id)
        host.begin(job)
        self._running[job.id] = host
        effects.append(Dispatch(replace(decision, waited_s=waited_s)))
        return True

    @staticmethod
    def _may_take(host: HostEntry, job: Job) -> bool:
        return host.is_eligible(job) and (not job.kind.takes_slot or host.free_slots(job.model) > 0)

    def _is_open(self, lane: Lane) -> bool:
        job = self._queue.in_lane(lane)[0]
        return any(self._may_take(host, job) for host in self._hosts.values())

    def _look_after_stranded(self, now: float, effects: list[Effect]) -> bool:
        """Refuse jobs that no host can take, at once or after `no_host_wait`.

        Returns whether some of them may be dispatched after all: those whose model turned out to
        be nowhere are asked of any host.
        """
        requeued = False
        for lane in self._queue.lanes():
            jobs = self._queue.in_lane(lane)
            if any(host.is_eligible(jobs[0]) for host in self._hosts.values()):
                for job in jobs:
                    self._stranded_since.pop(job.id, None)
                continue
            may_come = any(self._may_come(host, jobs[0]) for host in self._hosts.values())
            for job in jobs:
                asked = self._as_asked(job)
                if asked is not job and any(h.is_eligible(asked) for h in self._hosts.values()):
                    self._queue.replace(asked)
                    requeued = True
                    continue
                since = self._stranded_since.setdefault(job.id, now)
                if may_come and now < since + self._rules.no_host_wait_s:
                    continue
                self._forget_waiting(job.id)
                effects.append(self._no_host(job))
        return requeued

    def _may_come(self, host: HostEntry, job: Job) -> bool:
        """Whether a host that is out now could take the job once it is back."""
        if host.state.is_routable:
            return False
        if not host.inventory_known:
            return host.spec.id not in job.excluded
        return host.could_serve(job)

    def _no_host(self, job: Job) -> Refuse:
        routable = [host for host in self._hosts.values() if host.state.is_routable]
        if not self._hosts:
            return Refuse(job.id, Outcome.NO_HOST, "the pool has no hosts", 1.0)
        if routable and not any(host.spec.may_serve(job.model) for host in routable):
            detail = "no host may serve this model (hosts: models: allow, deny)"
            return Refuse(job.id, Outcome.NO_MODEL, detail, 1.0)
        if not routable:
            detail = f"none of {len(self._hosts)} hosts is up"
        else:
            detail = "no host that has this model is up"
        return Refuse(job.id, Outcome.NO_HOST, detail, self.retry_after_s())

    def _why_waiting(self, job: Job, now: float) -> str:
        eligible = [host for host in self._hosts.values() if host.is_eligible(job)]
        if eligible:
            names = ", ".join(host.spec.id for host in eligible[:3])
            more = f" and {len(eligible) - 3} more" if len(eligible) > 3 else ""
            return f"for a slot on {names}{more}"
        since = self._stranded_since.get(job.id, now)
        left_s = max(0.0, since + self._rules.no_host_wait_s - now)
        return f"for a host that has the model to come up; refused in {left_s:.1f} s"
