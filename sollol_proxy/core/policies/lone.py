"""The plan for one job when nobody else waits: the best host, without laying anything out.

Says what a whole plan would say (`tests/core/policies/test_lone.py` holds them together), or
nothing where it takes one: beside a load that is under way or a host on trial, and where a busy
host may be the better place than an idle one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import NamedTuple

from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.base import HostView
from sollol_proxy.core.policies.explain import Price, price_on
from sollol_proxy.core.policies.lanes import Row
from sollol_proxy.core.policies.layout import TIE_RATIO
from sollol_proxy.core.policies.outlook import HostOutlook, Moment
from sollol_proxy.core.policies.scene import EQUAL_RATIO, Options, Views, work_of
from sollol_proxy.core.types import Job, JobKind

_KINDS = frozenset({JobKind.GENERATE, JobKind.EMBED})


class _Place(NamedTuple):
    """A host with a free slot for the job, in the order in which the planner looks at them.

    alone_s: seconds from now to the job's end. felt_s: the same with all prices, the wait for what
    has to leave counted as the planner counts waiting.
    """

    alone_s: float
    turn: int
    host_id: str
    felt_s: float
    drain_s: float
    is_held: bool
    matched: int
    outlook: HostOutlook
    row: Row


class Best(NamedTuple):
    """Where a lone job goes, and what it would cost on the other hosts, in no order."""

    host_id: str
    price: Price
    others: list[tuple[str, Price]]


def best_host(
    views: Views,
    job: Job,
    hosts: Sequence[HostView],
    now: float,
    *,
    turn_of: Callable[[HostView], int],
    options: Options,
) -> Best | None:
    """The host that a plan for this job alone would start it on; None = make that plan."""
    if job.kind not in _KINDS:
        return None
    memory, rates, moment = views.memory, views.lanes.rates(job), Moment(hosts, now)
    prompt, tokens = work_of(memory, job)
    if len(hosts) > options.large_pool:
        survey = views.lanes.survey
        survey.begin(hosts, now)
        looked_at, _ = survey.promising(
            rates, options.looked_at_hosts, prompt=prompt, tokens=tokens
        )
        hosts = [host for host in hosts if host.spec.id in looked_at]
    places: list[_Place] = []
    for host in hosts:
        row = rates.row(host)
        if row is None:
            continue
        outlook = views.outlook(host, moment)
        is_full = host.in_flight >= host.concurrency or row.room <= 0
        if is_full or outlook.is_on_trial or host.loading:
            return None
        places.append(
            _place(memory, job, outlook, row, (prompt, tokens), turn_of(host), options.wait_price)
        )
    if not places:
        return None
    chosen = _chosen(places, max(now - job.arrived_s, 0.0), options.power)
    if chosen is None:
        return None
    prices = [(each, price_on(each.outlook, job, each.row, 0.0, memory, tokens)) for each in places]
    [price] = [its for each, its in prices if each is chosen]
    others = [(each.host_id, its) for each, its in prices if each is not chosen]
    return Best(chosen.host_id, price, others)


def _place(
    memory: Memory,
    job: Job,
    outlook: HostOutlook,
    row: Row,
    work: tuple[float, float],
    turn: int,
    wait_price: float,
) -> _Place:
    """The sums of `scene._Lane`, in the same order: equal to the last bit.

    work: tokens to read and to write.
    """
    host_id = outlook.view.spec.id
    prompt, tokens = work
    prefill_s, decode_s = row.prefill_s * row.slowed, row.decode_s * row.slowed
    own_s, matched = prompt * prefill_s + tokens * decode_s, 0
    if job.prefix and prompt:
        matched = memory.affinity.matched_tokens(host_id, job)
        saved = min(matched, max(job.prompt_tokens_est - 1, 0))
        own_s -= saved * memory.prompt_ratio(job.model) * prefill_s
    felt_s = own_s * (1 + row.harm) if row.harm else own_s
    is_held, drain_s = row.token in outlook.held, 0.0
    if not is_held:
        step = outlook.step(outlook.held, row.token)
        drain_s = step.drain_s
        own_s += drain_s + step.load_s
        felt_s += step.load_s + step.price_s + wait_price * drain_s
    return _Place(own_s, turn, host_id, felt_s, drain_s, is_held, matched, outlook, row)


def _chosen(places: list[_Place], age_s: float, power: float) -> _Place | None:
    """The best place, or one as good that was used longer ago; see `Scene._whose_turn`.

    None: the job would have to wait there for a model to come to rest.
    """
    tie_ratio = TIE_RATIO ** (1 / power)
    places.sort(key=itemgetter(0, 1, 2))
    best = places[0]
    for place in places:
        if age_s + place.felt_s < (age_s + best.felt_s) * tie_ratio:
            best = place
    limit_s = best.alone_s * EQUAL_RATIO
    alike = (
        place
        for place in places
        if place.alone_s <= limit_s
        and place.is_held is best.is_held
        and place.matched == best.matched
    )
    chosen = min(alike, key=itemgetter(1, 2))
    return None if best.drain_s > 0 or chosen.drain_s > 0 else chosen
