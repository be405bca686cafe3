"""What a plan needs to know of a host, in seconds from now."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

from sollol_proxy.core.eviction import evicted
from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.base import HostView
from sollol_proxy.core.policies.lanes import name_of, token_of
from sollol_proxy.core.policies.slots import Held, Slot, Step
from sollol_proxy.core.predict import load_s, rest_s
from sollol_proxy.core.types import HostState, Job, JobKind

CROWDED = 0.8
"""Jobs a slot from which on a load counts in full."""

BUSY, FULL = 1.0, 2.0
"""Jobs a host from which on waiting counts more than in an idle pool, and in full."""

PRICED_S = 2.0
"""How long the price of an eviction is kept, and what it takes to be taken for granted: the demand
that it rests on decays within a minute."""


class Prices(NamedTuple):
    """What seconds count that are none of work; see `scene.Options`.

    wait, full_wait: before a job's turn, where there is no more than a job for every host, and
    where there are two. Who waits for a fast host takes it from whoever comes next, and the more
    there are, the likelier does somebody come.
    load: in a crowded pool. While a host loads it serves nobody, which costs the others the more
    the more there are of them, and the more the dearer waiting is.
    eviction: of loading again what a load pushes out.
    """

    wait: float
    full_wait: float
    load: float
    eviction: float

    def of_waiting(self, jobs_a_host: float) -> float:
        """A second of waiting where there are so many jobs for each host, running or waiting."""
        share = min(max(jobs_a_host - BUSY, 0.0) / (FULL - BUSY), 1.0)
        return self.wait + (self.full_wait - self.wait) * share

    def of_load(self, crowd: float, waiting: float) -> float:
        """A second of a load in a pool with so many jobs a slot; 1 = only its own job waits.

        waiting: price of a second of waiting then.
        """
        price = 1.0 + (self.load - 1.0) * min(crowd / CROWDED, 1.0)
        return price * (waiting / self.wait) if self.wait > 0 else price


class Moment:
    """The moment of a plan. hosts: all that it may use. waiting: jobs that it is made for."""

    __slots__ = ("_holders", "_hosts", "_jobs", "_loading", "_slots", "_waiting", "now")

    def __init__(self, hosts: Sequence[HostView], now: float, waiting: int = 1) -> None:
        self.now = now
        self._hosts = hosts
        self._waiting = waiting
        self._jobs: int | None = None
        self._slots = 0
        self._loading: float | None = None
        self._holders: dict[str, int] | None = None

    @property
    def crowd(self) -> float:
        """Jobs a slot: those in flight, and those that wait."""
        jobs = self._count()
        return jobs / max(self._slots, 1)

    @property
    def jobs_a_host(self) -> float:
        """Those in flight, and those that wait."""
        return self._count() / max(len(self._hosts), 1)

    def waiting(self, prices: Prices) -> float:
        """What a second of waiting counts."""
        return prices.of_waiting(self.jobs_a_host)

    def loading(self, prices: Prices) -> float:
        """What a second of a load counts."""
        if self._loading is None:
            self._loading = prices.of_load(self.crowd, self.waiting(prices))
        return self._loading

    def holders(self, model: str) -> int:
        """How many hosts have a model in memory."""
        if self._holders is None:
            self._holders = {}
            for host in self._hosts:
                for name in host.resident:
                    self._holders[name] = self._holders.get(name, 0) + 1
        return self._holders.get(model, 0)

    def _count(self) -> int:
        if self._jobs is None:
            self._jobs = self._waiting
            for host in self._hosts:
                self._jobs += host.in_flight
                self._slots += host.concurrency
        return self._jobs


class _Way(NamedTuple):
    """How a host brings a runner into memory, whatever the moment.

    load_s: waited for, once no other load is under way. gone: models that leave. drains: those that
    have to come to rest before. learnt: date of what the guess rests on beside the host itself.
    """

    held: Held
    load_s: float
    gone: tuple[str, ...]
    drains: tuple[str, ...]
    learnt: int


class HostOutlook:
    """One host: when its slots are free, what it holds, what a load there costs.

    Made once for a host and brought up to date for each plan (`look`). What its jobs in flight
    will do is worked out only when somebody asks: a host with hundreds of streams and a free slot
    takes a job like an idle one.
    """

    def __init__(self, view: HostView, memory: Memory, prices: Prices) -> None:
        self.view = view
        self.is_on_trial = False
        self.is_side = False
        self.held: Held = ()
        self._changes = 0
        self._priced_s = 0.0
        self._moment = Moment((), 0.0)
        self._memory = memory
        self._prices = prices
        self._is_seen = True
        """The jobs in flight have been looked at; the five that follow tell of them."""
        self._ends_s: list[float] = []
        self._busy_s: dict[str, float] = {}
        self._ends_of: dict[str, list[float]] = {}
        self._loads: dict[str, float] = {}
        self._tokens: dict[str, str] = {}
        self._ways: dict[tuple[Held, str], _Way] = {}
        self._priced: dict[tuple[Held, str], tuple[_Way, float]] = {}
        """Each with `Step.eviction_s`."""
        self._steps: dict[tuple[Held, str], Step] = {}

    def look(self, view: HostView, moment: Moment) -> None:
        """See how the host is now."""
        now = moment.now
        self._moment = moment
        if view.changes != self._changes:
            self.view, self._changes = view, view.changes
            self.is_on_trial = view.state is HostState.PROBATION
            self._tokens = {name: token_of(view, name) for name in view.resident}
            self.held = tuple(self._tokens.values())
            self._ways, self._priced, self._priced_s = {}, {}, now
        elif now - self._priced_s > PRICED_S:
            self._priced, self._priced_s = {}, now
        if self._steps:  # their prices are those of a moment
            self._steps = {}
        if view.running or self._ends_s or not self._is_seen:
            self._is_seen = False

    @property
    def ends_s(self) -> Sequence[float]:
        """When each job in flight that holds a slot is expected to end, soonest first."""
        self._see()
        return self._ends_s

    def _see(self) -> None:
        """Look at the jobs in flight, once a plan."""
        if self._is_seen:
            return
        view, now = self.view, self._moment.now
        self._is_seen = True
        self._ends_s, self._busy_s, self._ends_of, self._loads = [], {}, {}, {}
        for running in view.running:
            if running.job.kind.takes_slot:
                self._add_end(running.job.model, rest_s(self._memory, running, view, now))
                if running.was_cold and running.first_byte_s is None:
                    done_s = running.begun_s + load_s(view, running.job.model) - now
                    self._loads[running.job.model] = max(done_s, 0.0)
        self._ends_s.sort()

    def free(self) -> int:
        """Slots that are free now, whatever the model."""
        return 1 if self.is_side else self.view.concurrency - self.view.in_flight

    def slots(self, index: int, most: int) -> list[Slot]:
        """The host's slots, with nothing planned for them; none when it may take no more.

        most: jobs that are planned, so that no more slots can be of use: the first to be free.
        """
        if self.is_side:
            return [Slot(index, 0.0, self.held, self.step, {}, 1)]
        if self.is_on_trial:
            if self.view.in_flight:
                return []
            return [Slot(index, 0.0, self.held, self.step, {}, 1)]
        ready_s = self._ready_s()
        free, over = max(self.free(), 0), max(-self.free(), 0)
        times = [0.0] * min(free, most)
        if len(times) < most:
            times += self.ends_s[over : over + most - len(times)]
        return [Slot(index, at_s, self.held, self.step, ready_s, 1 << 30) for at_s in times]

    def first(self) -> tuple[float, dict[str, float]]:
        """When the first of the slots is free, and its `ready_s`; not for a host on trial."""
        free = self.view.concurrency - self.view.in_flight
        return 0.0 if free > 0 else self.ends_s[-free], self._ready_s()

    def side(self) -> HostOutlook | None:
        """The host once more, as a place beside the job that keeps it busy.

        Busy runners share a host's time, so a short job beside a long one ends soon and costs the
        long one little; one at a time.
        """
        view = self.view
        if self.is_on_trial or self.free():
            return None
        if len(view.in_flight_by_model) >= view.spec.max_models:
            return None
        self._see()  # for both
        side = copy(self)
        side.is_side = True
        return side

    def may_join(self, job: Job) -> bool:
        """Whether a job may run beside those of another model: only what is short for certain.

        Measured in simulation: to let short generations in as well shortens them and lengthens
        the queue more.
        """
        view = self.view
        return (
            job.kind is JobKind.EMBED
            and job.model not in view.in_flight_by_model
            and view.free_slots(job.model) > 0
            and not view.needs_load(job)
        )

    @property
    def is_loading(self) -> bool:
        """Whether a load is under way."""
        return bool(self.view.loading) and bool(self._loads_s)

    def loading_s(self, model: str) -> float:
        """Seconds until the load of this model that is under way is done; 0 = there is none."""
        return self._loads_s.get(model, 0.0) if self.view.loading else 0.0

    @property
    def _loads_s(self) -> dict[str, float]:
        self._see()
        return self._loads

    def step(self, held: Held, token: str) -> Step:
        """What it takes to have this runner in memory."""
        key = (held, token)
        step = self._steps.get(key)
        if step is None:
            if not self._is_seen:
                self._see()
            priced = self._priced.get(key)
            if priced is None:
                way = self._ways.get(key)
                # Of several busy models the less busy leave first, so these are asked again.
                if way is None or way.learnt != self._memory.learnt or len(self._busy_s) > 1:
                    way = self._ways[key] = self._make_way(held, token)
                priced = self._priced[key] = way, self._price(way.gone)
            step = self._steps[key] = self._at_this_moment(*priced)
        return step

    def _at_this_moment(self, way: _Way, eviction_s: float) -> Step:
        # Loads of one host run one after the other.
        after, its_s, _, drains, _ = way
        loading_s, drain_s, busy_s = its_s, 0.0, self._busy_s
        if self._loads:
            loading_s += max(self._loads.values())
        if busy_s:
            for name in drains:
                if name in busy_s and busy_s[name] > drain_s:
                    drain_s = busy_s[name]
        price_s = eviction_s
        if its_s:
            price_s += (self._moment.loading(self._prices) - 1) * its_s
        return Step(after, loading_s, price_s, drain_s, eviction_s)

    def _make_way(self, held: Held, token: str) -> _Way:
        view, model = self.view, name_of(token)
        by_name = {name_of(other): other for other in held}
        keep, gone, is_sure = evicted(view, self._memory, tuple(by_name), model, self._busy_s)
        drains = gone if is_sure else (*gone, *keep)
        if model in by_name and model not in drains:
            drains = (*drains, model)
        after = tuple([token if name == model else by_name[name] for name in keep])
        return _Way(after, load_s(view, model), gone, drains, self._memory.learnt)

    def _price(self, gone: Sequence[str]) -> float:
        """Of pushing these models out."""
        evicted_s, moment = 0.0, self._moment
        for victim in gone:
            wanted = self._memory.demand.next_minute(victim, moment.now)
            again = min(1.0, wanted / max(moment.holders(victim), 1))
            evicted_s += load_s(self.view, victim) * again
        return self._prices.eviction * evicted_s

    def _add_end(self, model: str, end_s: float) -> None:
        self._ends_s.append(end_s)
        self._busy_s[model] = max(self._busy_s.get(model, 0.0), end_s)
        self._ends_of.setdefault(model, []).append(end_s)

    def _ready_s(self) -> dict[str, float]:
        """When models may start beside what runs, where their own slots are fewer than the host's.

        Empty for a host that runs one job at a time.
        """
        view = self.view
        ready_s: dict[str, float] = {}
        if view.concurrency < 2 or not view.in_flight:
            return ready_s
        for model, count in view.in_flight_by_model.items():
            over = count - view.slots(model)
            if over >= 0:
                self._see()
                ready_s[self._tokens.get(model, model)] = sorted(self._ends_of[model])[over]
        if len(view.in_flight_by_model) >= view.spec.max_models:
            self._see()
            first_s = min(self._busy_s.values())
            for name, token in self._tokens.items():
                if name not in self._ends_of:
                    ready_s[token] = first_s
        return ready_s
