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
from sollol_proxy.core.policies.layout import Layout, Slot, Wish
from sollol_proxy.core.policies.outlook import HostOutlook, LoadPrices, Moment
from sollol_proxy.core.predict import output_tokens, phases
from sollol_proxy.core.types import Job, JobKind

EQUAL_RATIO = 1.1
"""Idle hosts whose times for a job are within a tenth take turns: learnt speeds of equal hosts
differ by that much by chance, and who is never used is never measured again."""


@dataclass(frozen=True, slots=True)
class Options:
    """Constants of the planner. Measured in simulation over mixed, many-model and chat traffic.

    boost_s: how far short jobs stand before long ones of their priority; 0 = order of arrival. 20
        to 200 serve alike but for a queue of minutes, where 120 has a fifth less mean than 40, half
        the median and a fifth more P99.
    boost_across_s: the most of it that counts against other priorities, a level of which is worth
        60 s: with 120, short jobs would overtake long ones six levels above.
    wait_price: of a second of waiting against one of work, because a job that waits for a fast
        host takes it from whoever comes next; 1.5 to 4 serve, at face value (1) everybody
        queues for the fast host, and the slow ones idle when the pool is nearly full.
    power: of a job's seconds in the sum; above 1 a long wait of one outweighs short ones of many.
        1 to 1.7 serve.
    load_price: of a second of loading, during which the host serves nobody, in a crowded pool; at
        face value (1) in an empty one, see `LoadPrices`. 4 at any time costs six models on eight
        hosts 3 to 5 % of the mean at a third of the load, 2 at any time 6 % near full load.
    eviction_price: of a second of loading again what a load pushes out.
    priority_weight: of a job against one a priority lower; 1.5 to 3 serve, 1 puts long urgent
        jobs on the slowest host.
    large_pool: from so many hosts on, only the best are looked at for each job: this many free
        ones and this many that will be free soonest.
    """

    boost_s: float = 120.0
    boost_across_s: float = 40.0
    wait_price: float = 2.0
    load_price: float = 5.0
    eviction_price: float = 2.0
    power: float = 1.2
    priority_weight: float = 1.5
    large_pool: int = 50
    looked_at_hosts: int = 4


class Views:
    """What is kept of hosts and lanes between plans."""

    def __init__(self, memory: Memory, prices: LoadPrices) -> None:
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


def work_of(memory: Memory, job: Job) -> tuple[float, float]:
    """Tokens that a host has to read, nothing cached, and is expected to write."""
    if job.kind in (JobKind.LOAD, JobKind.TRANSCRIBE):
        return 0.0, 0.0
    ratio = memory.prompt_ratio(job.model)
    return max(job.prompt_tokens_est, 1) * ratio, output_tokens(memory, job)


def least_s(views: Views, job: Job, hosts: Sequence[HostView]) -> float | None:
    """Seconds of prefill and decode on the best host, alone and in memory; None = on none."""
    if job.kind is JobKind.TRANSCRIBE:
        rows = views.lanes.rows(job, hosts)
        times = (phases(views.memory, job, host, needs_load=False).decode_s for host, _ in rows)
        return min(times, default=None)
    prompt, tokens = work_of(views.memory, job)
    alone_s = [
        prompt * row.prefill_s + tokens * row.decode_s
        for row in views.lanes.rates(job).rows(hosts)
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


class _Lane:
    """A lane in one plan. By host index: token of the runner, row (None = not there).

    slots: those that its jobs may go to, the most promising first. loading: hosts that load its
        model, with the seconds until that is done. idle: see `Scene`. None = not found yet.
    """

    def __init__(
        self, memory: Memory, rows: Sequence[Row | None], prices: LoadPrices, moment: Moment
    ) -> None:
        self.rows = rows
        self.slots: Sequence[Slot] | None = None
        self.idle: Sequence[tuple[int, str, float]] | None = None
        self.loading: Sequence[tuple[int, float]] | None = None
        self.tokens = [row.token if row is not None else "" for row in rows]
        # Never less: a runner that was not in memory has to be loaded, whatever stands before.
        self.loads_s = [row.load_s if row is not None else 0.0 for row in rows]
        if any(self.loads_s):
            load_price = prices.of_load(moment.crowd)
            self.loads_s = [load_s * load_price for load_s in self.loads_s]
        self._memory = memory
        self._rates = [
            None if row is None else (row.prefill_s * row.slowed, row.decode_s * row.slowed)
            for row in rows
        ]
        self._harm = {index: row.harm for index, row in enumerate(rows) if row and row.harm}

    def own_s(self, job: Job, hosts: Sequence[HostOutlook]) -> list[float | None]:
        """Seconds on each host without a load; None = may not go there."""
        if job.kind is JobKind.TRANSCRIBE:
            return [
                None
                if row is None
                else row.slowed * phases(self._memory, job, host.view, needs_load=False).decode_s
                for row, host in zip(self.rows, hosts, strict=True)
            ]
        prompt, tokens = work_of(self._memory, job)
        own_s = [
            None if rate is None else prompt * rate[0] + tokens * rate[1] for rate in self._rates
        ]
        if job.prefix and prompt:
            ratio = self._memory.prompt_ratio(job.model)
            for index, rate in enumerate(self._rates):
                if rate is not None:
                    saved_s = self._saved(job, hosts[index]) * ratio * rate[0]
                    own_s[index] = (own_s[index] or 0.0) - saved_s
        return own_s

    def felt_s(self, own_s: Sequence[float | None]) -> Sequence[float | None]:
        """The same with what other jobs on the hosts lose.

        Busy runners share a host's time, so each job of another model loses what this one takes.
        """
        if not self._harm:
            return own_s
        felt_s = list(own_s)
        for index, harm in self._harm.items():
            felt_s[index] = (felt_s[index] or 0.0) * (1 + harm)
        return felt_s

    def _saved(self, job: Job, host: HostOutlook) -> int:
        matched = self._memory.affinity.matched_tokens(host.view.spec.id, job)
        return min(matched, max(job.prompt_tokens_est - 1, 0))


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
        self._keys = [lane_key(job) for job in jobs]
        self._rates: dict[object, LaneRates] = {}
        for job, key in zip(jobs, self._keys, strict=True):
            if key not in self._rates:
                self._rates[key] = views.lanes.rates(job, key)
        self._looked_at: dict[object, set[str]] | None = None
        chosen: Sequence[HostView] = hosts
        if len(hosts) > options.large_pool:
            chosen = self._choose(views.lanes, hosts, options.looked_at_hosts, now)
        # In an order that does not depend on that of the pool.
        ordered = sorted(chosen, key=lambda host: (turn_of(host), host.spec.id))
        moment = self._moment = Moment(hosts, now, len(jobs))
        self.hosts = [views.outlook(host, moment) for host in ordered]
        if any(job.kind is JobKind.EMBED for job in jobs):  # nothing else may run there
            self.hosts += [side for host in self.hosts if (side := host.side()) is not None]
        self._loading = [
            index for index, host in enumerate(self.hosts) if host.is_loading and host.free() > 0
        ]
        self._slots = [host.slots(index, len(jobs)) for index, host in enumerate(self.hosts)]
        self._lanes: dict[object, _Lane] = {}
        self.wishes = [
            self._wish(order, job, options.priority_weight, now) for order, job in enumerate(jobs)
        ]
        self._layout = Layout(options.wait_price, options.power)
        self._taken: dict[int, dict[str, int]] = {}
        self._started: set[int] = set()
        self._given: dict[int, list[Wish]] = {}
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
                    self._given.setdefault(host, []).append(wish)
                    starts.append((wish, host))
        return starts

    def holds(self) -> list[Hold]:
        """Everybody else who has a place, with the best host that is idle all the same."""
        self._roomy = [
            index for index, host in enumerate(self.hosts) if host.free() > 0 and not host.is_side
        ]
        holds = []
        for slot in (slot for slots in self._slots for slot in slots):
            host_id = self.hosts[slot.host].view.spec.id
            for index, wish in enumerate(slot.wishes):
                if wish.order not in self._started:
                    holds.append((wish.order, self._hold(wish, slot, index, host_id)))
        holds.sort()  # no two have the same order
        return [hold for _, hold in holds]

    def prices(self, wish: Wish, chosen: int | None = None) -> dict[int, Price]:
        """What the job would cost on each host that it may go to, by index."""
        job, memory = self.jobs[wish.order], self._memory
        tokens = output_tokens(memory, job)
        return {
            index: price_on(self.hosts[index], job, row, self._wait_s(index, wish), memory, tokens)
            for index, row in enumerate(self._lanes[self._keys[wish.order]].rows)
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
        own_s = max(slot.end_s(index) - turn_s, 0.0)
        idle_for = self._idle_for(wish)
        if not idle_for:
            return Hold(job.id, host_id, turn_s, own_s)
        alone_s = wish.own_s
        idle_s, idle_host_id = min(
            [((alone_s[host] or 0.0) + before_s, idle_id) for host, idle_id, before_s in idle_for]
        )
        return Hold(job.id, host_id, turn_s, own_s, idle_host_id, idle_s)

    def _idle_for(self, wish: Wish) -> Sequence[tuple[int, str, float]]:
        """The hosts that are idle all the same and could take the job: what comes before it there.

        Equal for all jobs of a lane. Index, id, seconds.
        """
        lane = self._lanes[self._keys[wish.order]]
        if lane.idle is None:
            job = self.jobs[wish.order]
            lane.idle = [
                (host, self.hosts[host].view.spec.id, self._before_s(wish, host))
                for host in self._roomy
                if wish.own_s[host] is not None and self._has_room(job, host)
            ]
        return lane.idle

    def _wish(self, order: int, job: Job, base: float, now: float) -> Wish:
        key = self._keys[order]
        lane = self._lanes.get(key)
        if lane is None:
            rows = self._rows(job, key)
            lane = self._lanes[key] = _Lane(self._memory, rows, self._prices, self._moment)
        own_s = lane.own_s(job, self.hosts)
        if self._loading:
            if lane.loading is None:
                lane.loading = [
                    (index, loading_s)
                    for index in self._loading
                    if lane.rows[index] is not None
                    and lane.tokens[index] in self.hosts[index].held
                    and (loading_s := self.hosts[index].loading_s(job.model))
                ]
            for index, loading_s in lane.loading:
                own_s[index] = (own_s[index] or 0.0) + loading_s
        wish = Wish(
            order,
            base ** (job.priority - 5),
            max(now - job.arrived_s, 0.0),
            own_s,
            lane.felt_s(own_s),
            lane.tokens,
            lane.loads_s,
        )
        if lane.slots is None:
            lane.slots = self._slots_for(wish)
        wish.slots = lane.slots
        return wish

    def _rows(self, job: Job, key: object) -> Sequence[Row | None]:
        """The lane's rows by host index; None = it is not to be considered there."""
        rates = self._rates[key]
        if self._looked_at is not None:
            looked_at = self._looked_at[key]
            return [
                None
                if host.view.spec.id not in looked_at or (host.is_side and not host.may_join(job))
                else rates.row(host.view, is_side=host.is_side)
                for host in self.hosts
            ]
        places = [host for host in self.hosts if not host.is_side]
        rows = rates.rows([host.view for host in places])
        return rows + [
            rates.row(host.view, is_side=True) if host.may_join(job) else None
            for host in self.hosts[len(places) :]
        ]

    def _choose(
        self, lanes: LaneBook, hosts: Sequence[HostView], few: int, now: float
    ) -> list[HostView]:
        """The hosts of a large pool that are worth a close look."""
        looked_at = self._looked_at = {}
        survey = lanes.survey
        survey.begin(hosts, now)
        for job, key in zip(self.jobs, self._keys, strict=True):
            if key not in looked_at:
                prompt, tokens = work_of(self._memory, job)
                looked_at[key], leaves_out = survey.promising(
                    self._rates[key], few, prompt=prompt, tokens=tokens
                )
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

    def _wait_s(self, index: int, wish: Wish) -> float:
        """Until the host has a slot for the job, beside what the same plan has given it."""
        times = sorted(slot.states[0][0] for slot in self._slots[index])
        if not times:
            return max(self.hosts[index].ends_s, default=0.0)
        for other in self._given.get(index, ()):
            if other is not wish:
                heapreplace(times, self._alone_s(other, index))
        return times[0]

    def _alone_s(self, wish: Wish, index: int) -> float:
        """Seconds on a host where the job would be next."""
        return (wish.own_s[index] or 0.0) + self._before_s(wish, index)

    def _before_s(self, wish: Wish, index: int) -> float:
        """Seconds of loading, and of waiting for what has to leave, where the job would be next."""
        host, token = self.hosts[index], wish.tokens[index]
        if token in host.held:
            return 0.0
        step = host.step(host.held, token)
        return step.drain_s + step.load_s

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
