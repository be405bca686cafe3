"""`completion_time`: the host on which a job is expected to end soonest, all waiting jobs together.

A job's cost on a host is a sum of seconds with names: wait, load, prefill, decode, and a price for
what a load would push out of memory. The waiting jobs are laid out over all slots, busy ones with
the time until they are free (`layout`); what stands first on a free slot goes, everybody else is
held, because a busy host may be the better place than an idle one.

The constants come from a simulator of Ollama pools; see `Options`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1, log
from random import Random

from sollol_proxy.core.policies.base import Hold, HostView, Plan, Planner
from sollol_proxy.core.policies.explain import Price, price_on, reason_for
from sollol_proxy.core.policies.layout import Layout, Slot, Wish
from sollol_proxy.core.policies.outlook import HostOutlook, Lane, LoadPrices, holders_of, promising
from sollol_proxy.core.predict import alone_times
from sollol_proxy.core.types import Candidate, Decision, Job

MIN_SERVICE_S = 0.05
"""Shortest service time that moves a job forward in the queue; bounds how far."""

NAMED_RUNNERS_UP = 7

EQUAL_RATIO = 1.1
"""Idle hosts whose times for a job are within a tenth take turns: learnt speeds of equal hosts
differ by that much by chance, and who is never used is never measured again."""


@dataclass(frozen=True, slots=True)
class Options:
    """Constants of the planner. Measured in simulation over mixed, many-model and chat traffic.

    boost_s: how far short jobs stand before long ones; 20 to 80 serve alike, 0 = order of arrival.
    wait_price: of a second of waiting against one of work, because a job that waits for a fast
        host takes it from whoever comes next; 1.5 to 3 serve alike, at face value (1) everybody
        queues for the fast host.
    power: of a job's seconds in the sum; above 1 a long wait of one outweighs short ones of many.
        1 to 1.7 serve.
    load_price: of a second of loading, during which the host serves nobody.
    eviction_price: of a second of loading again what a load pushes out.
    priority_weight: of a job against one a priority lower; 1.5 to 3 serve, 1 puts long urgent
        jobs on the slowest host.
    large_pool: from so many hosts on, only the best are looked at for each job: this many free
        ones and this many that will be free soonest.
    """

    boost_s: float = 40.0
    wait_price: float = 1.75
    load_price: float = 4.0
    eviction_price: float = 2.0
    power: float = 1.2
    priority_weight: float = 1.5
    large_pool: int = 50
    looked_at_hosts: int = 8


class CompletionTime(Planner):
    """Plans by predicted time of completion. Deterministic: ties go to who was used longest ago."""

    name = "completion_time"

    def __init__(self, rng: Random | None = None, options: Options | None = None) -> None:
        super().__init__()
        self.options = options if options is not None else Options()
        self._turn = 0
        self._last_turn: dict[str, int] = {}

    def key_shift(self, job: Job, hosts: Sequence[HostView]) -> float:
        """The boost times ln(1 − e^(−s ÷ boost)) with s the seconds on the best host."""
        boost_s = self.options.boost_s
        if boost_s <= 0:
            return 0.0
        times = alone_times(self.memory, job, hosts)
        service_s = min((own_s for own_s, _ in times), default=boost_s)
        return boost_s * log(-expm1(-max(service_s, MIN_SERVICE_S) / boost_s))

    def plan_all(self, waiting: Sequence[Job], hosts: Sequence[HostView], now: float) -> Plan:
        """Lay the jobs out; those that stand first on a free slot go, the others are held."""
        scene = _Scene(self, waiting, hosts, now)
        decisions = [self._decide(scene, *start) for start in scene.starts()]
        return Plan(decisions, scene.holds(), is_partial=scene.is_partial)

    def idle_times(
        self, jobs: Sequence[Job], hosts: Sequence[HostView], now: float
    ) -> Sequence[float]:
        """The least of load, prefill and decode over the first hosts."""
        scene = _Scene(self, jobs, hosts[: self.options.looked_at_hosts], now)
        return [scene.idle_s(wish) for wish in scene.wishes]

    def place(self, job: Job, hosts: Sequence[HostView], now: float) -> Decision:
        """The free host with the least cost."""
        scene = _Scene(self, [job], hosts, now)
        prices = scene.prices(scene.wishes[0])
        index = min(prices, key=lambda host: (prices[host].total_s, scene.hosts[host].view.spec.id))
        return self._decide(scene, scene.wishes[0], index)

    def turn_of(self, host: HostView) -> int:
        """The turn in which the host was last used; 0 = never."""
        return self._last_turn.get(host.spec.id, 0)

    def _decide(self, scene: _Scene, wish: Wish, index: int) -> Decision:
        job = scene.jobs[wish.order]
        host_id = scene.hosts[index].view.spec.id
        self._turn += 1
        self._last_turn[host_id] = self._turn
        prices = scene.prices(wish, index)
        price = prices.pop(index)._replace(wait_s=0.0)
        named = ((scene.hosts[other].view.spec.id, its) for other, its in prices.items())
        others = sorted(
            ((other_id, its) for other_id, its in named if other_id != host_id),
            key=lambda entry: (entry[1].total_s, entry[0]),
        )[:NAMED_RUNNERS_UP]
        return Decision(
            job_id=job.id,
            host_id=host_id,
            policy=self.name,
            cost=price.cost(),
            reason=reason_for(host_id, price, others),
            runners_up=tuple(Candidate(other, its.cost()) for other, its in others),
            predicted_total_s=price.own_s,
        )


class _Scene:
    """One plan in the making. jobs: in queue order; a wish's order is its place there."""

    def __init__(
        self, policy: CompletionTime, jobs: Sequence[Job], hosts: Sequence[HostView], now: float
    ) -> None:
        options, self._memory = policy.options, policy.memory
        self.jobs = jobs
        holders = holders_of(hosts)
        # In an order that does not depend on that of the pool.
        ordered = sorted(hosts, key=lambda host: (policy.turn_of(host), host.spec.id))
        self.is_partial = False
        self._looked_at: dict[object, set[str]] | None = None
        if len(hosts) > options.large_pool:
            ordered = self._choose(ordered, options.looked_at_hosts, now)
        prices = LoadPrices(options.load_price, options.eviction_price)
        self.hosts = [HostOutlook(host, self._memory, holders, now, prices) for host in ordered]
        self.hosts += [side for host in self.hosts if (side := host.side()) is not None]
        self._slots = [host.slots(index) for index, host in enumerate(self.hosts)]
        self._lanes: dict[object, Lane] = {}
        self.wishes = [
            self._wish(order, job, options.priority_weight, now) for order, job in enumerate(jobs)
        ]
        self._layout = Layout(options.wait_price, options.power)
        self._taken: dict[int, dict[str, int]] = {}
        self._started: set[int] = set()
        self._roomy: Sequence[int] = ()

    def starts(self) -> list[tuple[Wish, int]]:
        """Jobs that go now, each with the index of its host."""
        layout = self._layout
        # One lane without caches and loads is laid out well in one pass: measured, no difference.
        varied = len(self._lanes) > 1 or any(job.prefix for job in self.jobs)
        layout.fill(self.wishes, improve=varied)
        starts = []
        for slot in (slot for slots in self._slots for slot in slots):
            if slot.wishes and slot.states[0][0] <= 0 and slot.turn_s(0) <= 0:
                wish = slot.wishes[0]
                host = self._whose_turn(wish, slot)
                if self._take(self.jobs[wish.order], host):
                    self._started.add(wish.order)
                    starts.append((wish, host))
        return starts

    def holds(self) -> list[Hold]:
        """Everybody else who has a place, with the best host that is idle all the same."""
        self._roomy = [
            index for index, host in enumerate(self.hosts) if host.free() > 0 and not host.is_side
        ]
        holds = []
        for wish in self.wishes:
            slot = self._layout.slot_of(wish)
            if wish.order in self._started or slot is None:
                continue
            holds.append(self._hold(wish, slot))
        return holds

    def prices(self, wish: Wish, chosen: int | None = None) -> dict[int, Price]:
        """What the job would cost on each host that it may go to, by index."""
        job = self.jobs[wish.order]
        return {
            index: price_on(self.hosts[index], job, self._wait_s(index), self._memory)
            for index, own_s in enumerate(wish.own_s)
            if own_s is not None and (index == chosen or not self.hosts[index].is_side)
        }

    def idle_s(self, wish: Wish) -> float:
        """Seconds on the best host."""
        return min(
            (
                self._alone_s(wish, host)
                for host, own_s in enumerate(wish.own_s)
                if own_s is not None
            ),
            default=0.0,
        )

    def _whose_turn(self, wish: Wish, slot: Slot) -> int:
        """The slot's host, or an idle one that is as good for its only job and was used before it.

        Where one of them has more of the prompt in its cache they are not alike, however little
        the job itself would lose: the rest of the conversation would follow it.
        """
        chosen = slot.host
        if len(slot.wishes) > 1 or self.hosts[chosen].is_side:
            return chosen
        limit_s = self._alone_s(wish, chosen) * EQUAL_RATIO
        matched = self._matched(wish, chosen)
        for other in wish.slots:
            host = other.host
            if (
                not other.wishes
                and other.states[0][0] <= 0
                and not self.hosts[host].is_side
                and host not in self._taken
                and host < chosen  # they are in the order of their turns
                and self._alone_s(wish, host) <= limit_s
                and self._matched(wish, host) == matched
                and self._has_room(self.jobs[wish.order], host)
            ):
                chosen = host
        return chosen

    def _matched(self, wish: Wish, index: int) -> int:
        job = self.jobs[wish.order]
        if not job.prefix:
            return 0
        return self._memory.affinity.matched_tokens(self.hosts[index].view.spec.id, job)

    def _hold(self, wish: Wish, slot: Slot) -> Hold:
        job = self.jobs[wish.order]
        index = slot.wishes.index(wish)
        turn_s = slot.turn_s(index)
        idle = [
            (self._alone_s(wish, host), self.hosts[host].view.spec.id)
            for host in self._roomy
            if wish.own_s[host] is not None and self._has_room(job, host)
        ]
        idle_s, idle_host_id = min(idle, default=(None, ""))
        return Hold(
            job_id=job.id,
            host_id=self.hosts[slot.host].view.spec.id,
            wait_s=turn_s,
            own_s=max(slot.end_s(index) - turn_s, 0.0),
            idle_host_id=idle_host_id,
            idle_s=idle_s,
        )

    def _wish(self, order: int, job: Job, base: float, now: float) -> Wish:
        key = _lane_key(job)
        lane = self._lanes.get(key)
        if lane is None:
            looked_at = None if self._looked_at is None else self._looked_at[key]
            lane = self._lanes[key] = Lane(job, self.hosts, self._memory, looked_at)
        own_s = lane.own_s(job, self.hosts, self._memory)
        wish = Wish(
            order,
            base ** (job.priority - 5),
            max(now - job.arrived_s, 0.0),
            own_s,
            lane.felt_s(own_s),
            lane.tokens,
        )
        if lane.slots is None:
            lane.slots = self._slots_for(wish)
        wish.slots = lane.slots
        return wish

    def _choose(self, hosts: Sequence[HostView], few: int, now: float) -> list[HostView]:
        """The hosts of a large pool that are worth a close look, in their order."""
        looked_at = self._looked_at = {}
        for job in self.jobs:
            key = _lane_key(job)
            if key not in looked_at:
                looked_at[key], leaves_out = promising(job, hosts, self._memory, few, now)
                self.is_partial = self.is_partial or leaves_out
        chosen = set().union(*looked_at.values())
        return [host for host in hosts if host.spec.id in chosen]

    def _slots_for(self, wish: Wish) -> list[Slot]:
        """Slots of the hosts that the lane may use, the most promising for its first job first."""
        found = [
            (self._alone_s(wish, index) + slot.states[0][0], place, slot)
            for index, own_s in enumerate(wish.own_s)
            if own_s is not None
            for place, slot in enumerate(self._slots[index], start=index * 1000)
        ]
        found.sort(key=lambda entry: entry[:2])
        return [slot for _, _, slot in found]

    def _wait_s(self, index: int) -> float:
        slots = self._slots[index]
        return slots[0].states[0][0] if slots else max(self.hosts[index].ends_s, default=0.0)

    def _alone_s(self, wish: Wish, index: int) -> float:
        """Seconds on a host where the job would be next."""
        host, token = self.hosts[index], wish.tokens[index]
        own_s = wish.own_s[index] or 0.0
        if token in host.held:
            return own_s
        step = host.step(host.held, token)
        return step.drain_s + step.load_s + own_s

    def _take(self, job: Job, index: int) -> bool:
        """Spend a slot of the host, if the job may still have one."""
        if not self._has_room(job, index):
            return False
        taken = self._taken.setdefault(index, {})
        taken[job.model] = taken.get(job.model, 0) + 1
        return True

    def _has_room(self, job: Job, index: int) -> bool:
        """Whether the host has a slot for the job beside what runs and has been taken."""
        host, taken = self.hosts[index], self._taken.get(index)
        view = host.view
        free = view.free_slots(job.model)
        if not taken:
            return free > 0 and host.free() > 0
        if host.is_on_trial or sum(taken.values()) >= host.free():
            return False
        # Another model taken here may have used up the host's bound on models, or be another name
        # of the same file.
        return set(taken) == {job.model} and free > taken[job.model]


def _lane_key(job: Job) -> tuple[object, ...]:
    """What has to be equal for jobs to differ in their lengths only."""
    return (
        job.model,
        job.kind,
        job.options_key,
        job.num_ctx,
        job.excluded,
        job.only,
        job.route,
        bool(job.prefix),
    )
