"""The scheduler's side of a planner: what it is shown, what is held, and for how long.

A planner is trusted with the choice and not with the promise: whoever waits beside a free slot of
a host that is not fully busy is held, with a bound that does not move; at the bound it goes to a
free host. What a planner leaves out, refuses to price or fails to plan goes by another policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite

from sollol_proxy.core.holds import Holds, longest_s
from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.policies.base import Hold, Plan, Planner
from sollol_proxy.core.queue import (
    MAX_LANES_KEPT,
    NO_SHIFT,
    Lane,
    Queue,
    Shift,
    lane_of,
)
from sollol_proxy.core.types import Decision, Job

LOOKED_AT = 32
"""Waiting jobs that one plan sees. Measured in a simulator: 8 lose up to 1.3 ×, 64 gain nothing."""

MAX_REASONS = 512


class Planned:
    """Keeps the holds of one planner. faults: times that it raised."""

    def __init__(self, planner: Planner, queue: Queue) -> None:
        self.holds = Holds()
        self.faults = 0
        self._planner = planner
        self._queue = queue
        self._said: dict[str, tuple[Hold, float]] = {}
        self._first_wait_s: dict[str, float] = {}
        self._passed_s: dict[str, float] = {}
        self._free: dict[Lane, dict[str, tuple[int, bool]]] = {}

    def key_shift(self, job: Job, hosts: Sequence[HostEntry]) -> Shift:
        """What the planner adds to the job's key."""
        try:
            within_s, across_s = self._planner.key_shift(job, hosts)
            is_shift = isfinite(within_s) and isfinite(across_s)
        except Exception:  # noqa: BLE001 - a policy may be a stranger's: it must not lose a job
            is_shift = False
        if is_shift:
            return Shift(within_s, across_s)
        self.faults += 1
        return NO_SHIFT

    def open_lanes(self, hosts: Sequence[HostEntry]) -> dict[Lane, list[HostEntry]]:
        """Lanes that have a free slot, with the hosts that have it."""
        roomy = [host for host in hosts if host.in_flight < host.concurrency]
        lanes: dict[Lane, list[HostEntry]] = {}
        if not roomy:
            return lanes
        for lane in self._queue.lanes():
            if lane.kind.takes_slot:
                free = self.free_in(lane, roomy)
                if free:
                    lanes[lane] = free
        return lanes

    def free_in(self, lane: Lane, hosts: Sequence[HostEntry]) -> list[HostEntry]:
        """`free_for` a lane in which somebody waits; looks again at hosts that have changed."""
        kept = self._free.get(lane)
        if kept is None:
            if len(self._free) >= MAX_LANES_KEPT:
                self._free.clear()
            kept = self._free[lane] = {}
        job = self._queue.first_in(lane)
        free = []
        for host in hosts:
            host_id = host.spec.id
            known = kept.get(host_id)
            if known is None or known[0] != host.changes:
                known = kept[host_id] = host.changes, _is_free_for(job, host)
            if known[1]:
                free.append(host)
        return free

    def plan(self, looked_at: Sequence[Job], hosts: Sequence[HostEntry], now: float) -> Plan | None:
        """The planner's word on the jobs looked at; None = it raised."""
        try:
            plan = self._planner.plan_all(looked_at, hosts, now)
            decisions = [d for d in plan.decisions if isinstance(d, Decision)]
            holds = {hold.job_id: hold for hold in plan.holds if isinstance(hold, Hold)}
        except Exception:  # noqa: BLE001 - see above
            self.faults += 1
            return None
        for job in looked_at:
            hold = holds.get(job.id)
            if hold is not None and len(self._said) < MAX_REASONS:
                self._said[job.id] = (hold, now)
                if job.id not in self._first_wait_s:
                    self._first_wait_s[job.id] = now - job.arrived_s + hold.wait_s
        return Plan(decisions, tuple(holds.values()), plan.is_partial)

    def place_at_once(self, job: Job, hosts: Sequence[HostEntry], now: float) -> Decision | None:
        """The planner's word on a job that comes while nobody waits; None = it has to plan."""
        return self._decision(self._planner.place_at_once, job, hosts, now)

    def hold(
        self,
        lane: Lane,
        free: Sequence[HostEntry],
        told: dict[str, Hold],
        looked_at: set[str],
        now: float,
    ) -> list[Job]:
        """Hold the lane's jobs beside these hosts; those that nobody holds, to go at once."""
        holds, unlooked, left = self.holds, [], []
        for job in (
            self._queue.in_lane(lane) if holds.count(lane) < self._queue.count_in(lane) else ()
        ):
            if holds.has(lane, job.id):
                continue
            hold = told.get(job.id)
            if hold is not None and hold.idle_s is not None:
                holds.begin(lane, job.id, hold.idle_s, now)
            elif job.id in looked_at:
                left.append(job)
            else:
                unlooked.append(job)
        if unlooked:
            for job, idle_s in zip(unlooked, self._idle_times(unlooked, free, now), strict=False):
                holds.begin(lane, job.id, idle_s, now)
        return left

    def put_off(self, lane: Lane, job_id: str, free: Sequence[HostEntry], now: float) -> bool:
        """Whether a job is held beyond its bound, since all that is free now is worse than that."""
        job = self._queue.get(job_id)
        free = free_for(job, free) if job is not None else []
        if job is None or not free:
            return False
        [idle_s] = self._idle_times([job], free, now)
        return self.holds.put_off(lane, job_id, idle_s, now)

    def is_passed_over(
        self, first: Job, plan: Plan, hosts: Sequence[HostEntry], now: float
    ) -> bool:
        """Whether the first of the queue has seen others get its slot for as long as it may.

        A plan is made anew at each moment, and what is best for all may be to let the same job
        wait each time. So once somebody behind it was given a host it could have had, it waits for
        one level of ageing, to leave runs of one model whole (measured: without that, many models
        on few hosts lose a tenth), and for as long as it would need on the host it gets then.
        """
        taken = {decision.host_id for decision in plan.decisions}
        if not taken or any(decision.job_id == first.id for decision in plan.decisions):
            return False
        begun_s = self._passed_s.get(first.id)
        if begun_s is None:
            if any(host.spec.id in taken for host in free_for(first, hosts)):
                self._passed_s[first.id] = now
            return False
        waited_s = now - begun_s - self._queue.ageing_s
        free = free_for(first, hosts) if waited_s >= 0 else []
        if not free:
            return False
        [idle_s] = self._idle_times([first], free, now)
        return waited_s >= longest_s(idle_s)

    def place(self, job: Job, free: Sequence[HostEntry], now: float) -> Decision | None:
        """Where a job goes that has been held to its bound; None = the planner does not know."""
        decision = self._decision(self._planner.place, job, free, now)
        if decision is None:
            return None
        return replace(decision, reason=f"held no longer; {decision.reason}")

    def gone(self, job: Job) -> float:
        """The job waits no more; the wait that was predicted for it at first."""
        self.holds.end(lane_of(job), job.id)
        self._said.pop(job.id, None)
        self._passed_s.pop(job.id, None)
        return max(self._first_wait_s.pop(job.id, 0.0), 0.0)

    def reason(self, job_id: str, now: float) -> str:
        """What was last said of a waiting job; empty = nothing."""
        said = self._said.get(job_id)
        if said is None:
            return ""
        hold, at_s = said
        return hold._replace(wait_s=max(hold.wait_s - (now - at_s), 0.0)).reason

    def _decision(
        self,
        ask: Callable[[Job, Sequence[HostEntry], float], object],
        job: Job,
        hosts: Sequence[HostEntry],
        now: float,
    ) -> Decision | None:
        try:
            decision = ask(job, hosts, now)
        except Exception:  # noqa: BLE001 - see above
            self.faults += 1
            return None
        return decision if isinstance(decision, Decision) else None

    def _idle_times(
        self, jobs: Sequence[Job], free: Sequence[HostEntry], now: float
    ) -> Sequence[float]:
        try:
            times = self._planner.idle_times(jobs, free, now)
        except Exception:  # noqa: BLE001 - see above
            self.faults += 1
            times = ()
        return times if len(times) == len(jobs) else [0.0] * len(jobs)


def free_for(job: Job, hosts: Sequence[HostEntry]) -> list[HostEntry]:
    """The hosts that have a free slot for a job and are not fully busy with others."""
    return [host for host in hosts if _is_free_for(job, host)]


def _is_free_for(job: Job, host: HostEntry) -> bool:
    return (
        host.in_flight < host.concurrency
        and host.free_slots(job.model) > 0
        and host.is_eligible(job)
    )
