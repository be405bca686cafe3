"""What a policy is, and the adapter for policies that price one job at a time.

A policy plans: it is shown the first waiting jobs in queue order and all routable hosts, busy
ones included, and says which jobs go where now. Who is not in the plan waits. Eligibility is
not its business: the scheduler checks every decision and refuses a plan that overruns a slot.

A `Policy` leaves nobody beside a free slot: what it does not place goes by another policy. A
`Planner` may: it holds a job there because a better place is expected, says so, and for how long.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from random import Random
from typing import ClassVar, NamedTuple, Protocol

from sollol_proxy.core.memory import HostMemory, Memory
from sollol_proxy.core.queue import Shift
from sollol_proxy.core.running import Running
from sollol_proxy.core.types import (
    Candidate,
    Cost,
    Decision,
    HostSpec,
    HostState,
    InstalledModel,
    Job,
    ResidentModel,
)
from sollol_proxy.core.unread import MadeWhenRead

TIE_RATIO = 1.001
"""Costs within a thousandth of the best count as equal: no measured figure is more exact."""


class HostView(Protocol):
    """What a policy may see of a host: live, and read-only to it."""

    @property
    def spec(self) -> HostSpec:
        """What the configuration says."""

    @property
    def changes(self) -> int:
        """Another number after each change of what is told here, but for how far jobs have come."""

    @property
    def state(self) -> HostState:
        """Healthy or probation; others are not shown to a policy."""

    @property
    def in_flight(self) -> int:
        """Jobs running there that hold a slot."""

    @property
    def installed(self) -> Mapping[str, InstalledModel]:
        """Models on disk by canonical name."""

    @property
    def resident(self) -> Mapping[str, ResidentModel]:
        """Models in memory by canonical name, those a job in flight is loading included."""

    @property
    def success_ratio(self) -> float | None:
        """Decayed share of attempts that ended well; None before the first."""

    @property
    def in_flight_by_model(self) -> Mapping[str, int]:
        """The jobs that hold a slot, by canonical model name."""

    @property
    def running(self) -> Collection[Running]:
        """Jobs in flight there, those without a slot included."""

    @property
    def concurrency(self) -> int:
        """Jobs that the host is meant to run at once, whatever their models."""

    @property
    def known(self) -> HostMemory:
        """What was learnt of the host."""

    @property
    def loading(self) -> Collection[str]:
        """Models that are being loaded for a job."""

    def runner(self, model: str) -> ResidentModel | None:
        """The model in memory, under this name or another of the same file."""

    def needs_load(self, job: Job) -> bool:
        """Whether the job's model has to be loaded for it, or loaded anew with its options."""

    def slots(self, model: str) -> int:
        """Jobs the host runs at once for this model."""

    def free_slots(self, model: str) -> int:
        """Slots for this model that are free now."""

    def is_eligible(self, job: Job) -> bool:
        """Whether the host may take the job at all: routable, has the model, not excluded."""

    def first_token_s(self, model: str, prompt_tokens: int) -> float | None:
        """Expected seconds from start to first token with the model loaded; None = not known."""

    def decode_tokens_per_s(self, model: str) -> float | None:
        """Learnt output speed; None = not known."""


class Policy(Protocol):
    """Plans which waiting jobs go to which hosts now."""

    name: ClassVar[str]

    def plan(self, waiting: Sequence[Job], hosts: Sequence[HostView], now: float) -> list[Decision]:
        """Decisions for jobs that start now, each naming a job of `waiting` at most once."""


class Hold(NamedTuple):
    """A job that is to wait, although it may be beside a free slot.

    host_id: where it is expected to run, after `wait_s` for `own_s` seconds.
    idle_host_id, idle_s: the best host that could take it at once, and how long it would need
        there: it is not held longer than that. Empty and None = there is no such host.
    """

    job_id: str
    host_id: str
    wait_s: float
    own_s: float
    idle_host_id: str = ""
    idle_s: float | None = None

    @property
    def reason(self) -> str:
        """What a person is told."""
        text = f"host {self.host_id} frees in {self.wait_s:.1f} s" if self.host_id else "its turn"
        if self.host_id:
            text += f" and then needs {self.own_s:.1f} s"
        if self.idle_s is not None:
            text += f"; host {self.idle_host_id} would need {self.idle_s:.1f} s"
        return text


@dataclass(frozen=True, slots=True)
class Plan:
    """What a planner says: who goes where now, and who is held.

    is_partial: hosts were left out of it that may still be free; plan again.
    """

    decisions: Sequence[Decision] = ()
    holds: Sequence[Hold] = ()
    is_partial: bool = False


class Planner(ABC):
    """A policy that sees all waiting jobs together and may hold some of them.

    memory: what was learnt; the scheduler puts its own here.
    boost_s: how far short jobs may stand before long ones, as configured; None = as the planner
        likes. Against other priorities it may be less.
    """

    name: ClassVar[str] = ""

    def __init__(self) -> None:
        self.memory = Memory()
        self.boost_s: float | None = None

    @abstractmethod
    def key_shift(self, job: Job, hosts: Sequence[HostView]) -> Shift:
        """What is added to the job's key in the queue when it arrives."""

    @abstractmethod
    def plan_all(self, waiting: Sequence[Job], hosts: Sequence[HostView], now: float) -> Plan:
        """A decision or a hold for each job that some host may take.

        waiting: the first jobs in queue order, whether or not a slot is free, all of kinds that
        take a slot. hosts: all routable ones, busy ones with what they run.
        """

    def place_at_once(self, job: Job, hosts: Sequence[HostView], now: float) -> Decision | None:
        """What `plan_all` would say of a job that has just come while nobody waits, if it goes now.

        For planners that know it with less work; None = make the plan.
        """
        return None

    @abstractmethod
    def idle_times(
        self, jobs: Sequence[Job], hosts: Sequence[HostView], now: float
    ) -> Sequence[float]:
        """Seconds that each job would need on the best of hosts that have a free slot for it.

        jobs: of one lane, so they differ in their lengths only.
        """

    @abstractmethod
    def place(self, job: Job, hosts: Sequence[HostView], now: float) -> Decision:
        """The best of hosts that are eligible and have a free slot, for a job to wait no more."""

    def plan(self, waiting: Sequence[Job], hosts: Sequence[HostView], now: float) -> list[Decision]:
        """The decisions of `plan_all` alone."""
        jobs = [job for job in waiting if job.kind.takes_slot]
        return list(self.plan_all(jobs, hosts, now).decisions) if jobs else []


class _Offer(NamedTuple):
    """What a host with a free slot would cost."""

    needs_load: bool
    cost: Cost
    host: HostView


_BY_COST = attrgetter("needs_load", "cost.total")


class _RunnersUp(MadeWhenRead[Candidate]):
    """Offers as candidates."""

    __slots__ = ("_offers",)

    def __init__(self, offers: Sequence[_Offer]) -> None:
        self._offers = [(offer.host.spec.id, offer.cost) for offer in offers]

    def made(self) -> tuple[Candidate, ...]:
        return tuple([Candidate(host_id, cost) for host_id, cost in self._offers])


class PerJob(ABC):
    """Gives each job, in queue order, the cheapest host with a free slot.

    Subclasses write `cost`. Hosts that hold the model in memory come before hosts that would
    have to load it, whatever the cost says: a load delays everybody behind it on that host. Ties
    (`TIE_RATIO`) take turns, so that equal hosts share evenly and a host that has come back is
    used again.
    """

    name: ClassVar[str] = ""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._turn = 0
        self._last_turn: dict[str, int] = {}

    @abstractmethod
    def cost(self, job: Job, host: HostView, hosts: Sequence[HostView], now: float) -> Cost:
        """The price of giving `job` to `host`, which has a free slot; lower wins.

        hosts: all that are eligible for the job, busy ones included, for comparison.
        """

    def plan(self, waiting: Sequence[Job], hosts: Sequence[HostView], now: float) -> list[Decision]:
        """One decision for each job that finds a free slot, in queue order."""
        ledger = SlotLedger()
        decisions = []
        for job in waiting:
            eligible = [host for host in hosts if host.is_eligible(job)]
            free = (
                [host for host in eligible if ledger.has_free(host, job)]
                if job.kind.takes_slot
                else eligible
            )
            if not free:
                continue
            decision = self._choose(job, free, eligible, now)
            ledger.take(decision.host_id, job)
            decisions.append(decision)
        return decisions

    def _choose(
        self, job: Job, free: Sequence[HostView], eligible: Sequence[HostView], now: float
    ) -> Decision:
        priced = [
            _Offer(host.needs_load(job), self.cost(job, host, eligible, now), host) for host in free
        ]
        if len(priced) > 1:
            self._rng.shuffle(priced)  # among hosts that were never used, any may be the first
            priced.sort(key=_BY_COST)
        chosen = min(self._equal_to_first(priced), key=self._turn_of)
        needs_load, cost, host = chosen
        self._turn += 1
        self._last_turn[host.spec.id] = self._turn
        return Decision(
            job_id=job.id,
            host_id=host.spec.id,
            policy=self.name,
            cost=cost,
            reason=self.reason(job, host, cost, needs_load=needs_load, others=len(priced) - 1),
            runners_up=_RunnersUp([each for each in priced if each is not chosen]),
        )

    def _turn_of(self, offer: _Offer) -> int:
        """The turn in which the host was last used; 0 = never."""
        return self._last_turn.get(offer.host.spec.id, 0)

    @staticmethod
    def _equal_to_first(priced: Sequence[_Offer]) -> list[_Offer]:
        """The first and those that are as good, all in memory or none."""
        needs_load, cheapest, _ = priced[0]
        limit = cheapest.total * TIE_RATIO
        return [
            offer
            for offer in priced
            if offer.needs_load is needs_load and offer.cost.total <= limit
        ]

    def reason(self, job: Job, host: HostView, cost: Cost, *, needs_load: bool, others: int) -> str:
        """One line that says why this host, for the header and the page."""
        if not job.kind.takes_slot:
            model = "answers without a slot"
        elif needs_load:
            model = "has to load the model"
        else:
            model = "holds the model"
        compared = f"best of {others + 1} free" if others else "the only free host"
        terms = ", ".join(term.text for term in cost.terms if term.text)
        return f"{host.spec.id} {model}, {compared}" + (f": {terms}" if terms else "")


class SlotLedger:
    """Slots that a plan in the making has already spent, beside those in flight."""

    def __init__(self) -> None:
        self._taken: dict[str, dict[str, int]] = {}

    def has_free(self, host: HostView, job: Job) -> bool:
        """Whether the host still has a slot for the job; always, for jobs that take none."""
        if not job.kind.takes_slot:
            return True
        taken = self._taken.get(host.spec.id)
        if taken is None:
            return host.free_slots(job.model) > 0
        # Another model planned on this host may use up its bound on models, so once anything is
        # planned there only the same model may be added; the next plan comes at once anyway.
        if set(taken) != {job.model}:
            return False
        return host.free_slots(job.model) > taken[job.model]

    def take(self, host_id: str, job: Job) -> None:
        """Spend one slot."""
        if job.kind.takes_slot:
            taken = self._taken.setdefault(host_id, {})
            taken[job.model] = taken.get(job.model, 0) + 1
