"""`completion_time`: the host on which a job is expected to end soonest, all waiting jobs together.

A job's cost on a host is a sum of seconds with names: wait, load, prefill, decode, and a price for
what a load would push out of memory. The waiting jobs are laid out over all slots, busy ones with
the time until they are free (`layout`); what stands first on a free slot goes, everybody else is
held, because a busy host may be the better place than an idle one.

The constants come from a simulator of Ollama pools; see `Options`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, log
from random import Random

from sollol_proxy.core.policies.base import HostView, Plan, Planner
from sollol_proxy.core.policies.explain import Price, Priced, RunnersUp, reason_for
from sollol_proxy.core.policies.lone import best_host
from sollol_proxy.core.policies.scene import Options, Scene, Views, best_of, idle_times, least_s
from sollol_proxy.core.policies.slots import Wish
from sollol_proxy.core.queue import NO_SHIFT, Shift
from sollol_proxy.core.types import Decision, Job

MIN_SERVICE_S = 0.05
"""Shortest service time that moves a job forward in the queue; bounds how far."""

NAMED_RUNNERS_UP = 7


class CompletionTime(Planner):
    """Plans by predicted time of completion. Deterministic: ties go to who was used longest ago."""

    name = "completion_time"

    def __init__(self, rng: Random | None = None, options: Options | None = None) -> None:
        super().__init__()
        self.options = options if options is not None else Options()
        self._turn = 0
        self._last_turn: dict[str, int] = {}
        self._views: Views | None = None

    def key_shift(self, job: Job, hosts: Sequence[HostView]) -> Shift:
        """The boost times ln(1 − e^(−s ÷ boost)) with s the seconds on the best host."""
        boost_s = self.options.boost_s if self.boost_s is None else self.boost_s
        if boost_s <= 0:
            return NO_SHIFT
        service_s = least_s(self._kept(), job, hosts, self.options.large_pool)
        if service_s is None:
            service_s = boost_s
        across_s = min(boost_s, self.options.boost_across_s)
        return Shift(_shift_s(service_s, boost_s), _shift_s(service_s, across_s))

    def plan_all(self, waiting: Sequence[Job], hosts: Sequence[HostView], now: float) -> Plan:
        """Lay the jobs out; those that stand first on a free slot go, the others are held."""
        scene = self._scene(waiting, hosts, now)
        decisions = [self._decide(scene, *start) for start in scene.starts()]
        # Where fewer go than hosts were looked at for each, the others would not help either.
        is_partial = scene.is_partial and len(decisions) >= self.options.looked_at_hosts
        holds = scene.holds()
        scene.close()
        return Plan(decisions, holds, is_partial=is_partial)

    def place_at_once(self, job: Job, hosts: Sequence[HostView], now: float) -> Decision | None:
        """See `Planner.place_at_once`; nothing where only a whole plan can tell."""
        views, turns = self._kept(), self._last_turn
        best = best_host(views, job, hosts, now, turns=turns, options=self.options)
        if best is None:
            return None
        return self._decided(job, best.host_id, best.price, best.others)

    def idle_times(
        self, jobs: Sequence[Job], hosts: Sequence[HostView], now: float
    ) -> Sequence[float]:
        """The least of load, prefill and decode, over the hosts that are best for the first."""
        views = self._kept()
        return idle_times(views, jobs, best_of(views, jobs[0], hosts, self.options.looked_at_hosts))

    def place(self, job: Job, hosts: Sequence[HostView], now: float) -> Decision:
        """The free host with the least cost."""
        # All of them have a slot, so the rates alone tell which are worth a close look.
        scene = self._scene([job], best_of(self._kept(), job, hosts, self.options.large_pool), now)
        prices = scene.prices(scene.wishes[0])
        index = min(prices, key=lambda host: (prices[host].total_s, scene.hosts[host].view.spec.id))
        return self._decide(scene, scene.wishes[0], index, waits=True)

    def turn_of(self, host: HostView) -> int:
        """The turn in which the host was last used; 0 = never."""
        return self._last_turn.get(host.spec.id, 0)

    def _kept(self) -> Views:
        """What is kept between plans, of the memory that the scheduler gave."""
        views = self._views
        if views is None or views.memory is not self.memory:
            views = self._views = Views(self.memory, self.options.prices())
        return views

    def _scene(self, jobs: Sequence[Job], hosts: Sequence[HostView], now: float) -> Scene:
        return Scene(self._kept(), jobs, hosts, now, turn_of=self.turn_of, options=self.options)

    def _decide(self, scene: Scene, wish: Wish, index: int, *, waits: bool = False) -> Decision:
        """waits: what has to leave the host first is still in use there, perhaps."""
        job = scene.jobs[wish.order]
        host_id = scene.hosts[index].view.spec.id
        prices = scene.prices(wish, index)
        price = prices.pop(index)
        if not waits:
            price = price._replace(wait_s=0.0)
        named = ((scene.hosts[other].view.spec.id, its) for other, its in prices.items())
        others = [(its.total_s, other_id, its) for other_id, its in named if other_id != host_id]
        return self._decided(job, host_id, price, others, waits=waits)

    def _decided(
        self,
        job: Job,
        host_id: str,
        price: Price,
        others: list[Priced],
        *,
        waits: bool = False,
    ) -> Decision:
        self._turn += 1
        self._last_turn[host_id] = self._turn
        if len(others) > 1:
            others.sort()
            del others[NAMED_RUNNERS_UP:]
        return Decision(
            job_id=job.id,
            host_id=host_id,
            policy=self.name,
            cost=price.cost(),
            reason=reason_for(host_id, price, others, only_free=waits),
            runners_up=RunnersUp(others),
            predicted_wait_s=0.0,
            predicted_total_s=price.wait_s + price.own_s,
        )


def _shift_s(service_s: float, boost_s: float) -> float:
    return boost_s * log(-expm1(-max(service_s, MIN_SERVICE_S) / boost_s))
