"""What a plan needs to know of hosts and jobs, in seconds from now: made once for each plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from heapq import nsmallest
from typing import NamedTuple

from sollol_proxy.core.eviction import evicted
from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.base import HostView
from sollol_proxy.core.policies.layout import Held, Slot, Step
from sollol_proxy.core.predict import (
    alone_times,
    load_s,
    output_tokens,
    phases,
    rest_s,
    size_bytes,
    slow_down,
    soonest_s,
)
from sollol_proxy.core.types import HostState, Job, JobKind

_SEPARATOR = "\n"
"""Between a model's name and its options in a token; no name has it."""


class LoadPrices(NamedTuple):
    """What a second of a load counts, and a second of loading again what it pushes out."""

    load: float
    eviction: float


class HostOutlook:
    """One host: when its slots are free, what it holds, what a load there costs.

    ends_s: when each job in flight that holds a slot is expected to end, soonest first.
    """

    def __init__(
        self,
        view: HostView,
        memory: Memory,
        holders: dict[str, int],
        now: float,
        prices: LoadPrices,
    ) -> None:
        self.view = view
        self.is_on_trial = view.state is HostState.PROBATION
        self.is_side = False
        self.ends_s: list[float] = []
        self._busy_s: dict[str, float] = {}
        self._ends_of: dict[str, list[float]] = {}
        self._loads: dict[str, float] = {}
        self._memory = memory
        self._holders = holders
        self._now = now
        self._prices = prices
        self._concurrency = view.concurrency
        self._steps: dict[tuple[Held, str], Step] = {}
        self._tokens = {name: self._token_of(name) for name in view.resident}
        self.held: Held = tuple(self._tokens.values())
        for running in view.running:
            if running.job.kind.takes_slot:
                self._add_end(running.job.model, rest_s(memory, running, view, now))
                if running.was_cold and running.first_byte_s is None:
                    done_s = running.begun_s + load_s(view, running.job.model) - now
                    self._loads[running.job.model] = max(done_s, 0.0)
        self.ends_s.sort()

    def free(self) -> int:
        """Slots that are free now, whatever the model."""
        return 1 if self.is_side else self._concurrency - len(self.ends_s)

    def slots(self, index: int) -> list[Slot]:
        """The host's slots, with nothing planned for them; none when it may take no more."""
        if self.is_side:
            return [Slot(index, 0.0, self.held, self.step, {}, 1)]
        if self.is_on_trial:
            if self.ends_s:
                return []
            return [Slot(index, 0.0, self.held, self.step, {}, 1)]
        ready_s = self._ready_s()
        free = max(self.free(), 0)
        over = max(-self.free(), 0)
        times = [0.0] * free + self.ends_s[over:]
        return [Slot(index, at_s, self.held, self.step, ready_s, 1 << 30) for at_s in times]

    def side(self) -> HostOutlook | None:
        """The host once more, as a place beside the job that keeps it busy.

        Busy runners share a host's time, so a short job beside a long one ends soon and costs the
        long one little; one at a time.
        """
        if self.is_on_trial or self.free() or len(self._ends_of) >= self.view.spec.max_models:
            return None
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

    def loading_s(self, model: str) -> float:
        """Seconds until the load of this model that is under way is done; 0 = there is none."""
        loads = self._loads
        return loads.get(model, 0.0) if loads else 0.0

    def token(self, job: Job) -> str:
        """What stands for the runner that the job needs here."""
        resident = self.view.runner(job.model)
        if resident is not None and not self.view.needs_load(job):
            return self._tokens.get(resident.name, resident.name)
        return f"{job.model}{_SEPARATOR}{job.options_key}" if job.options_key else job.model

    def step(self, held: Held, token: str) -> Step:
        """What it takes to have this runner in memory."""
        step = self._steps.get((held, token))
        if step is None:
            step = self._steps[held, token] = self._make_way(held, token)
        return step

    def _make_way(self, held: Held, token: str) -> Step:
        view, model = self.view, _name(token)
        by_name = {_name(other): other for other in held}
        drain_s = self._busy_s.get(model, 0.0) if model in by_name else 0.0
        keep, gone, is_sure = evicted(view, self._memory, tuple(by_name), model, self._busy_s)
        if not is_sure:
            drain_s = max([drain_s, *(self._busy_s.get(name, 0.0) for name in keep)])
        evicted_s = 0.0
        for victim in gone:
            drain_s = max(drain_s, self._busy_s.get(victim, 0.0))
            wanted = self._memory.demand.next_minute(victim, self._now)
            again = min(1.0, wanted / max(self._holders.get(victim, 1), 1))
            evicted_s += load_s(view, victim) * again
        after = tuple(token if name == model else by_name[name] for name in keep)
        # Loads of one host run one after the other.
        own_s = load_s(view, model)
        price_s = (self._prices.load - 1) * own_s + self._prices.eviction * evicted_s
        loading_s = own_s + max(self._loads.values(), default=0.0)
        return Step(after, loading_s, price_s, drain_s)

    def _token_of(self, model: str) -> str:
        options_key = self.view.known.variants.last(model)
        return f"{model}{_SEPARATOR}{options_key}" if options_key else model

    def _add_end(self, model: str, end_s: float) -> None:
        self.ends_s.append(end_s)
        self._busy_s[model] = max(self._busy_s.get(model, 0.0), end_s)
        self._ends_of.setdefault(model, []).append(end_s)

    def _ready_s(self) -> dict[str, float]:
        """When models may start beside what runs, where their own slots are fewer than the host's.

        Empty for a host that runs one job at a time.
        """
        view = self.view
        ready_s: dict[str, float] = {}
        if self._concurrency < 2:
            return ready_s
        for model, ends_s in self._ends_of.items():
            over = len(ends_s) - view.slots(model)
            if over >= 0:
                ready_s[self._tokens.get(model, model)] = sorted(ends_s)[over]
        if len(self._ends_of) >= view.spec.max_models:
            first_s = min(self._busy_s.values())
            for name, token in self._tokens.items():
                if name not in self._ends_of:
                    ready_s[token] = first_s
        return ready_s


class Lane:
    """Jobs that differ only in their lengths: where they may go, and how fast each token is there.

    By host index: token of the runner; seconds a prompt and an output token, or None.
    looked_at: ids of the hosts to consider; None = all.
    slots: those of these hosts, in an order of promise; None = not made yet.
    """

    def __init__(
        self,
        job: Job,
        hosts: Sequence[HostOutlook],
        memory: Memory,
        looked_at: Collection[str] | None,
    ) -> None:
        self.slots: Sequence[Slot] | None = None
        self.ratio = memory.prompt_ratio(job.model)
        self.has_affinity = bool(job.prefix)
        self.tokens = [""] * len(hosts)
        self.rates: list[tuple[float, float] | None] = [None] * len(hosts)
        self._loading_s: dict[int, float] = {}
        self._harm: dict[int, float] = {}
        for index, host in enumerate(hosts):
            view = host.view
            if looked_at is not None and view.spec.id not in looked_at:
                continue
            if not view.is_eligible(job):
                continue
            if host.is_side and not host.may_join(job):
                continue
            slowed = slow_down(view, job.model, joins=host.free() > 0)
            pace = memory.pace(view.spec.id, job.model, size_bytes(view, job.model))
            self.tokens[index] = host.token(job)
            self.rates[index] = (slowed / pace.prefill, slowed / pace.decode)
            if host.ends_s and host.free() > 0:
                self._look_beside(index, host, job, slowed)

    def own_s(
        self, job: Job, hosts: Sequence[HostOutlook], memory: Memory
    ) -> Sequence[float | None]:
        """Seconds on each host without a load; None = may not go there."""
        if job.kind is JobKind.LOAD:
            return [None if rate is None else 0.0 for rate in self.rates]
        if job.kind is JobKind.TRANSCRIBE:
            return [
                None
                if rate is None
                else phases(memory, job, host.view, needs_load=False).decode_s
                * slow_down(host.view, job.model, joins=host.free() > 0)
                for rate, host in zip(self.rates, hosts, strict=True)
            ]
        prompt = max(job.prompt_tokens_est, 1) * self.ratio
        tokens = output_tokens(memory, job)
        own_s: list[float | None] = [
            None if rate is None else prompt * rate[0] + tokens * rate[1] for rate in self.rates
        ]
        for index, loading_s in self._loading_s.items():
            own_s[index] = (own_s[index] or 0.0) + loading_s
        if job.prefix:
            for index, rate in enumerate(self.rates):
                if rate is not None:
                    own_s[index] = (own_s[index] or 0.0) - self._saved_s(
                        job, hosts[index], memory, rate[0]
                    )
        return own_s

    def felt_s(self, own_s: Sequence[float | None]) -> Sequence[float | None]:
        """The same with what other jobs on the hosts lose."""
        if not self._harm:
            return own_s
        felt_s = list(own_s)
        for index, harm in self._harm.items():
            felt_s[index] = (felt_s[index] or 0.0) * (1 + harm)
        return felt_s

    def _look_beside(self, index: int, host: HostOutlook, job: Job, slowed: float) -> None:
        """What runs on a host with a slot to spare, and would be slowed down by the job.

        Busy runners share a host's time, so each job of another model loses what this one takes.
        """
        loading_s = host.loading_s(job.model)
        if loading_s:
            self._loading_s[index] = loading_s
        others = sum(
            count for model, count in host.view.in_flight_by_model.items() if model != job.model
        )
        if others:
            self._harm[index] = others / slowed

    def _saved_s(self, job: Job, host: HostOutlook, memory: Memory, token_s: float) -> float:
        matched = memory.affinity.matched_tokens(host.view.spec.id, job)
        return min(matched, max(job.prompt_tokens_est - 1, 0)) * self.ratio * token_s


def _name(token: str) -> str:
    return token.partition(_SEPARATOR)[0]


def holders_of(hosts: Sequence[HostView]) -> dict[str, int]:
    """How many hosts have each model in memory."""
    holders: dict[str, int] = {}
    for host in hosts:
        for model in host.resident:
            holders[model] = holders.get(model, 0) + 1
    return holders


def promising(
    job: Job, hosts: Sequence[HostView], memory: Memory, few: int, now: float
) -> tuple[set[str], bool]:
    """Of many hosts those worth a close look for a job: the best free and the soonest free ones.

    By id; and whether free ones were left out.
    """
    free: list[tuple[float, str]] = []
    busy: list[tuple[float, str]] = []
    for own_s, host in alone_times(memory, job, hosts):
        seconds = own_s + load_s(host, job.model) if host.needs_load(job) else own_s
        if host.in_flight < host.concurrency:
            free.append((seconds, host.spec.id))
        else:
            busy.append((soonest_s(memory, host, now) + seconds, host.spec.id))
    chosen = {host_id for _, host_id in nsmallest(few, free) + nsmallest(few, busy)}
    return chosen, len(free) > few
