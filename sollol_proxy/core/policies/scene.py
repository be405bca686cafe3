"""One plan in the making: the jobs and hosts of a moment, laid out, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapreplace, nsmallest
from operator import itemgetter

from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.base import Hold, HostView
from sollol_proxy.core.policies.explain import Price, price_on
from sollol_proxy.core.policies.lanes import LaneBook, LaneRates, Row, lane_key
from sollol_proxy.core.policies.layout import Layout
from sollol_proxy.core.policies.outlook import HostOutlook, Moment, Prices
from sollol_proxy.core.policies.slots import Slot, Wish
from sollol_proxy.core.policies.standing import Standing, before_s
from sollol_proxy.core.predict import output_tokens, phases, work_of
from sollol_proxy.core.types import Job, JobKind

EQUAL_RATIO = 1.1
"""Idle hosts whose times for a job are within a tenth take turns: learnt speeds of equal hosts
differ by that much by chance, and who is never used is never measured again."""


@dataclass(frozen=True, slots=True)
class Options:
    """Constants of the planner. Measured in simulation over mixed, many-model and chat traffic.

    boost_s: how far short jobs stand before long ones of their priority; 0 = order of arrival. 20
        to 600 serve alike but for a queue of minutes: the longer, the lower its mean and median.
    boost_across_s: the most of it that counts against other priorities, a level of which is worth
        60 s: with 120, short jobs would overtake long ones six levels above.
    wait_price: of a second of waiting against one of work, because a job that waits for a fast
        host takes it from whoever comes next; 1.5 to 4 serve, at face value (1) everybody
        queues for the fast host, and the slow ones idle when the pool is nearly full.
    full_wait_price: the same where there are two jobs for every host, see `Prices`. The more there
        are, the likelier is it that somebody comes next: 1.75 throughout costs uniform traffic on
        hosts of four slots 10 % of the mean near full load, and mixed traffic 5; from half a job a
        host on, one-slot hosts lose 2 to 3 % at half the load.
    power: of a job's seconds in the sum; above 1 a long wait of one outweighs short ones of many.
        1 to 1.7 serve.
    load_price: of a second of loading, during which the host serves nobody, in a crowded pool; at
        face value (1) in an empty one, see `Prices`. 4 at any time costs six models on eight
        hosts 3 to 5 % of the mean at a third of the load, 2 at any time 6 % near full load.
    eviction_price: of a second of loading again what a load pushes out.
    priority_weight: of a job against one a priority lower; 1.5 to 3 serve, 1 puts long urgent
        jobs on the slowest host.
    large_pool: from so many hosts on, only the best are looked at for each job: this many free
        ones and this many that will be free soonest.
    """

    boost_s: float = 300.0
    boost_across_s: float = 40.0
    wait_price: float = 1.75
    full_wait_price: float = 3.0
    load_price: float = 5.0
    eviction_price: float = 2.0
    power: float = 1.2
    priority_weight: float = 1.5
    large_pool: int = 50
    looked_at_hosts: int = 4

    def prices(self) -> Prices:
        """Of what is no work."""
        return Prices(self.wait_price, self.full_wait_price, self.load_price, self.eviction_price)


class Views:
    """What is kept of hosts and lanes between plans."""

    def __init__(self, memory: Memory, prices: Prices) -> None:
        self.memory = memory
        self._life = memory.life
        self.lanes = LaneBook(memory)
        self.prices = prices
        self._hosts: dict[str, HostOutlook] = {}

    def outlook(self, view: HostView, moment: Moment) -> HostOutlook:
        """A host as it is now."""
        if self._life != self.memory.life:
            self._life = self.memory.life
            self._hosts.clear()
        outlook = self._hosts.get(view.spec.id)
        if outlook is None:
            outlook = self._hosts[view.spec.id] = HostOutlook(view, self.memory, self.prices)
        outlook.look(view, moment)
        return outlook


def least_s(views: Views, job: Job, hosts: Sequence[HostView], large: int) -> float | None:
    """Seconds of prefill and decode on the best host, alone and in memory; None = on none.

    large: see `Options.large_pool`.
    """
    if job.kind is JobKind.TRANSCRIBE:
        rows = views.lanes.rows(job, hosts)
        times = (phases(views.memory, job, host, needs_load=False).decode_s for host, _ in rows)
        return min(times, default=None)
    prompt, tokens = work_of(views.memory, job)
    rates = views.lanes.rates(job)
    if len(hosts) > large:
        alone_s = views.lanes.survey.alone_s(rates, hosts, prompt, tokens)
    else:
        alone_s = [
            prompt * row.prefill_s + tokens * row.decode_s
            for row in rates.rows(hosts)
            if row is not None
        ]
    return min(alone_s, default=None)


def best_of(views: Views, job: Job, hosts: Sequence[HostView], most: int) -> Sequence[HostView]:
    """The hosts, or so many of them on which the job alone would be done soonest."""
    if len(hosts) <= most:
        return hosts
    prompt, tokens = work_of(views.memory, job)
    times = [
        (row.alone_s(prompt, tokens) + row.load_s, host.spec.id, host)
        for host, row in views.lanes.rows(job, hosts)
    ]
    return [host for _, _, host in nsmallest(most, times, key=itemgetter(0, 1))]


def idle_times(views: Views, jobs: Sequence[Job], hosts: Sequence[HostView]) -> list[float]:
    """Seconds of load, prefill and decode that each job of a lane needs on the best of the hosts.

    Nothing cached: it is for jobs that are far back, and a bound.
    """
    rows = [row for _, row in views.lanes.rows(jobs[0], hosts)]
    times = []
    for job in jobs:
        prompt, tokens = work_of(views.memory, job)
        own_s = (row.alone_s(prompt, tokens) * row.slowed + row.load_s for row in rows)
        times.append(min(own_s, default=0.0))
    return times


class Scene:
    """One plan in the making. jobs: in queue order; a wish's order is its place there.

    is_partial: hosts were left out that are free.
    """

    def __init__(
        self,
        views: Views,
        jobs: Sequence[Job],
        hosts: Sequence[HostView],
        now: float,
        *,
        turn_of: Callable[[HostView], int],
        options: Options,
    ) -> None:
        self.jobs = jobs
        self.is_partial = False
        self._memory, self._prices = views.memory, views.prices
        self._rates: list[LaneRates] = []
        """Of each job's lane."""
        lanes: dict[object, LaneRates] = {}
        for job in jobs:
            key = lane_key(job)
            rates = lanes.get(key)
            if rates is None:
                rates = lanes[key] = views.lanes.rates(job, key)
            self._rates.append(rates)
        self._looked_at: dict[LaneRates, set[str]] | None = None
        chosen: Sequence[HostView] = hosts
        if len(hosts) > options.large_pool:
            chosen = self._choose(views.lanes, hosts, options.looked_at_hosts, now)
        # In an order that does not depend on that of the pool.
        ordered = sorted(chosen, key=lambda host: (turn_of(host), host.spec.id))
        moment = self._moment = Moment(hosts, now, len(jobs))
        self.hosts = [views.outlook(host, moment) for host in ordered]
        self._ordered = ordered
        if any(job.kind is JobKind.EMBED for job in jobs):  # nothing else may run there
            self.hosts += [side for host in self.hosts if (side := host.side()) is not None]
        self._slots = [host.slots(index, len(jobs)) for index, host in enumerate(self.hosts)]
        self._lanes: list[Standing] = []
        """Of each job."""
        self.wishes = self._wishes(options.priority_weight, now)
        self._layout = Layout(moment.waiting(views.prices), options.power)
        self._taken: dict[int, dict[str, int]] = {}
        self._started: set[int] = set()
        self._given: dict[int, list[Wish]] = {}
        self._roomy: Sequence[int] = ()

    def starts(self) -> list[tuple[Wish, int]]:
        """Jobs that go now, each with the index of its host."""
        layout = self._layout
        # One lane without caches and loads is laid out well in one pass: measured, no difference.
        varied = len(set(self._rates)) > 1 or any(job.prefix for job in self.jobs)
        layout.fill(self.wishes, improve=varied)
        starts = []
        for slot in (slot for slots in self._slots for slot in slots):
            if slot.wishes and slot.states[0][0] <= 0 and slot.turn_s(0) <= 0:
                wish = slot.wishes[0]
                host = self._whose_turn(wish, slot)
                if self._take(self.jobs[wish.order], host):
                    self._started.add(wish.order)
                    self._given.setdefault(host, []).append(wish)
                    starts.append((wish, host))
        return starts

    def holds(self) -> list[Hold]:
        """Everybody else who has a place, with the best host that is idle all the same."""
        self._roomy = [
            index for index, host in enumerate(self.hosts) if host.free() > 0 and not host.is_side
        ]
        holds, started, hosts = [], self._started, self.hosts
        for slots in self._slots:
            for slot in slots:
                host_id = hosts[slot.host].view.spec.id
                for index, wish in enumerate(slot.wishes):
                    if wish.order not in started:
                        holds.append((wish.order, self._hold(wish, slot, index, host_id)))
        holds.sort()  # no two have the same order
        return [hold for _, hold in holds]

    def close(self) -> None:
        """Take apart what refers to each other, or all of it would wait for the garbage collector.

        Its looks are the slowest thing that can happen in a plan.
        """
        for slots in self._slots:
            for slot in slots:
                slot.wishes.clear()

    def prices(self, wish: Wish, chosen: int | None = None) -> dict[int, Price]:
        """What the job would cost on each host that it may go to, by index."""
        job, memory = self.jobs[wish.order], self._memory
        tokens = output_tokens(memory, job)
        return {
            index: price_on(self.hosts[index], job, row, self._wait_s(index, wish), memory, tokens)
            for index, row in enumerate(self._lanes[wish.order].rows)
            if row is not None and (index == chosen or not self.hosts[index].is_side)
        }

    def _whose_turn(self, wish: Wish, slot: Slot) -> int:
        """The slot's host, or an idle one that is as good for its only job and was used before it.

        Where one of them would have to load the model, or has more of the prompt in its cache, they
        are not alike, however little the job itself would lose: the host's other jobs wait for a
        load, and the rest of a conversation follows its beginning.
        """
        chosen = slot.host
        if len(slot.wishes) > 1 or self.hosts[chosen].is_side:
            return chosen
        limit_s = self._alone_s(wish, chosen) * EQUAL_RATIO
        is_held, matched = self._is_held(wish, chosen), self._matched(wish, chosen)
        for other in wish.slots:
            host = other.host
            if (
                not other.wishes
                and other.states[0][0] <= 0
                and not self.hosts[host].is_side
                and host not in self._taken
                and host < chosen  # they are in the order of their turns
                and self._is_held(wish, host) is is_held
                and self._alone_s(wish, host) <= limit_s
                and self._matched(wish, host) == matched
                and self._has_room(self.jobs[wish.order], host)
            ):
                chosen = host
        return chosen

    def _is_held(self, wish: Wish, index: int) -> bool:
        return wish.tokens[index] in self.hosts[index].held

    def _matched(self, wish: Wish, index: int) -> int:
        job = self.jobs[wish.order]
        if not job.prefix:
            return 0
        return self._memory.affinity.matched_tokens(self.hosts[index].view.spec.id, job)

    def _hold(self, wish: Wish, slot: Slot, index: int, host_id: str) -> Hold:
        job, turn_s = self.jobs[wish.order], slot.turn_s(index)
        own_s = slot.states[index + 1][0] - turn_s
        if own_s < 0:
            own_s = 0.0
        if not self._roomy:
            return Hold(job.id, host_id, turn_s, own_s)
        idle_for = self._lanes[wish.order].idle
        if idle_for is None:
            idle_for = self._idle_for(wish)
        if not idle_for:
            return Hold(job.id, host_id, turn_s, own_s)
        alone_s = wish.own_s
        if len(idle_for) == 1:
            [(host, idle_host_id, its_s)] = idle_for
            return Hold(job.id, host_id, turn_s, own_s, idle_host_id, alone_s[host] + its_s)
        idle_s, idle_host_id = min(
            [(alone_s[host] + its_s, idle_id) for host, idle_id, its_s in idle_for]
        )
        return Hold(job.id, host_id, turn_s, own_s, idle_host_id, idle_s)

    def _idle_for(self, wish: Wish) -> Sequence[tuple[int, str, float]]:
        """The hosts that are idle all the same and could take the job: what comes before it there.

        Equal for all jobs of a lane. Index, id, seconds.
        """
        job, lane = self.jobs[wish.order], self._lanes[wish.order]
        lane.idle = [
            (host, self.hosts[host].view.spec.id, before_s(self.hosts[host], lane.tokens[host]))
            for host in self._roomy
            if lane.rows[host] is not None and self._has_room(job, host)
        ]
        return lane.idle

    def _wishes(self, base: float, now: float) -> list[Wish]:
        """What each job wants. base: weight of a job against one a priority lower."""
        seen, wishes = dict[LaneRates, Standing](), []
        for order, (job, rates) in enumerate(zip(self.jobs, self._rates, strict=True)):
            lane, age_s = seen.get(rates), now - job.arrived_s
            weight = base ** (job.priority - 5)
            if age_s < 0:
                age_s = 0.0
            if lane is None:
                rows = self._rows(job, rates)
                load_price = self._moment.loading(self._prices)
                lane = Standing(self._memory, job, rows, self.hosts, self._slots, load_price)
                seen[rates] = lane
                wish = lane.wish(order, job, weight, age_s)
                lane.find_slots(wish)
            else:
                wish = lane.wish(order, job, weight, age_s)
            self._lanes.append(lane)
            wishes.append(wish)
        return wishes

    def _rows(self, job: Job, rates: LaneRates) -> Sequence[Row | None]:
        """The lane's rows by host index; None = it is not to be considered there."""
        if self._looked_at is not None:
            looked_at = self._looked_at[rates]
            return [
                None
                if host.view.spec.id not in looked_at or (host.is_side and not host.may_join(job))
                else rates.row(host.view, is_side=host.is_side)
                for host in self.hosts
            ]
        rows = rates.rows(self._ordered)
        return rows + [
            rates.row(host.view, is_side=True) if host.may_join(job) else None
            for host in self.hosts[len(self._ordered) :]
        ]

    def _choose(
        self, lanes: LaneBook, hosts: Sequence[HostView], few: int, now: float
    ) -> list[HostView]:
        """The hosts of a large pool that are worth a close look."""
        looked_at = self._looked_at = {}
        survey = lanes.survey
        survey.begin(hosts, now)
        for job, rates in zip(self.jobs, self._rates, strict=True):
            if rates not in looked_at:
                prompt, tokens = work_of(self._memory, job)
                looked_at[rates], leaves_out = survey.promising(
                    rates, few, prompt=prompt, tokens=tokens
                )
                self.is_partial = self.is_partial or leaves_out
        chosen = set().union(*looked_at.values())
        return [host for host in hosts if host.spec.id in chosen]

    def _wait_s(self, index: int, wish: Wish) -> float:
        """Until the host has a slot for the job, beside what the same plan has given it."""
        slots = self._slots[index]
        if not slots:
            return max(self.hosts[index].ends_s, default=0.0)
        given = self._given.get(index)
        if given is None:
            return slots[0].states[0][0]
        times = [slot.states[0][0] for slot in slots]  # the soonest free first
        for other in given:
            if other is not wish:
                heapreplace(times, self._alone_s(other, index))
        return times[0]

    def _alone_s(self, wish: Wish, index: int) -> float:
        """Seconds on a host where the job would be next."""
        return wish.own_s[index] + self._lanes[wish.order].before_s[index]

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
