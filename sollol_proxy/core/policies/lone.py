"""The plan for one job when nobody else waits: the best host, without laying anything out.

Says what a whole plan would say (`tests/core/policies/test_lone.py` holds them together), or
nothing where it takes one: beside a load that is under way or a host on trial, for an embedding
that may run beside another model's job, and where a busy host is better than an idle one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from sollol_proxy.core.policies.base import HostView
from sollol_proxy.core.policies.explain import Price, Priced
from sollol_proxy.core.policies.lanes import Row
from sollol_proxy.core.policies.layout import TIE_RATIO
from sollol_proxy.core.policies.outlook import Moment
from sollol_proxy.core.policies.scene import EQUAL_RATIO, Options, Views
from sollol_proxy.core.predict import work_of
from sollol_proxy.core.types import Job, JobKind

_KINDS = frozenset({JobKind.GENERATE, JobKind.EMBED})


class _Place(NamedTuple):
    """A host for the job, in the order in which the planner looks at them.

    until_s: seconds from now to the job's end. felt_s: the same with all prices, waiting counted as
    the planner counts it. begins_s: the job's turn. alone_s: its seconds where it would be next.
    is_open: it could begin at once, but for what has to leave the host's memory.
    """

    until_s: float
    turn: int
    host_id: str
    felt_s: float
    begins_s: float
    alone_s: float
    is_held: bool
    matched: int
    is_open: bool
    price: Price


class _Before(NamedTuple):
    """What comes before the job on a host, seconds.

    free_s: until a slot is free. begins_s: until the job's turn. The rest as in `slots.Step`.
    """

    free_s: float
    begins_s: float
    drain_s: float
    load_s: float
    price_s: float
    eviction_s: float


_NOTHING = _Before(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Best(NamedTuple):
    """Where a lone job goes, and what it would cost on the other hosts, in no order."""

    host_id: str
    price: Price
    others: list[Priced]


def best_host(
    views: Views,
    job: Job,
    hosts: Sequence[HostView],
    now: float,
    *,
    turns: Mapping[str, int],
    options: Options,
) -> Best | None:
    """The host that a plan for this job alone would start it on; None = make that plan.

    turns: in which the hosts were last used.
    """
    if job.kind not in _KINDS:
        return None
    rates = views.lanes.rates(job)
    work = work_of(views.memory, job)
    looked_at, moment = hosts, Moment(hosts, now)
    if len(hosts) > options.large_pool:
        survey, few = views.lanes.survey, options.looked_at_hosts
        survey.begin(hosts, now)
        ids, _ = survey.promising(rates, few, prompt=work[0], tokens=work[1])
        looked_at = [host for host in hosts if host.spec.id in ids]
    rows = rates.rows(looked_at)
    places = _places(views, job, moment, looked_at, rows, work, turns)
    if not places:
        return None
    chosen = _chosen(places, max(now - job.arrived_s, 0.0), options.power)
    if chosen is None:
        return None
    others = []
    for each in places:
        if each is not chosen:
            wait_s, load_s, prefill_s, decode_s, blocking_s, eviction_s = price = each.price
            total_s = wait_s + (load_s + prefill_s + decode_s) + blocking_s + eviction_s
            others.append((total_s, each.host_id, price))
    return Best(chosen.host_id, chosen.price, others)


def _places(
    views: Views,
    job: Job,
    moment: Moment,
    hosts: Sequence[HostView],
    rows: Sequence[Row | None],
    work: tuple[float, float],
    turns: Mapping[str, int],
) -> list[_Place] | None:
    """The hosts that the job may go to; None where only a plan can tell.

    The sums of `standing.Standing` and `explain.price_on`, in the same order: equal to the last
    bit. One loop, because every request goes through it with every host. work: tokens to read and
    write.
    """
    memory, asked_tokens = views.memory, job.prompt_tokens_est
    prompt, tokens = work
    matching = memory.affinity.matching(job) if job.prefix else None
    ratio = memory.prompt_ratio(job.model)
    places = []
    for host, row in zip(hosts, rows, strict=True):
        if row is None:
            continue
        _, prefill_s, decode_s, slowed, loads_s, harm, is_open = row
        before = _NOTHING if is_open and not loads_s else _before(views, job, moment, host, row)
        if before is None:
            return None
        free_s, begins_s, drain_s, load_s, price_s, eviction_s = before
        host_id, read, matched = host.spec.id, prompt, 0
        own_s = prompt * (prefill_s * slowed) + tokens * (decode_s * slowed)
        if matching and host_id in matching:
            matched = matching[host_id]
            own_s -= min(matched, max(asked_tokens - 1, 0)) * ratio * (prefill_s * slowed)
            if not loads_s:
                read = max(asked_tokens - matched, 1) * ratio
        felt_s = own_s * (1 + harm) if harm else own_s
        alone_s = own_s + (drain_s + load_s)
        places.append(
            _Place(
                alone_s + free_s,
                turns.get(host_id, 0),
                host_id,
                # A second of waiting has no price where nobody waits: the hosts are not counted.
                felt_s
                + (load_s + price_s)
                + (moment.waiting(views.prices) * begins_s if begins_s else 0.0),
                begins_s,
                alone_s,
                not loads_s,
                matched,
                is_open,
                Price(
                    free_s if free_s > drain_s else drain_s,
                    load_s,
                    read * prefill_s * slowed,
                    tokens * decode_s * slowed,
                    price_s - eviction_s,
                    eviction_s,
                ),
            )
        )
    return places


def _before(views: Views, job: Job, moment: Moment, host: HostView, row: Row) -> _Before | None:
    """What comes before the job on a host that is busy or has to load; None = a plan can tell."""
    outlook = views.outlook(host, moment)
    if host.loading or outlook.is_on_trial or (not row.is_open and outlook.may_join(job)):
        return None
    free_s, all_ready_s = outlook.first()
    if not row.load_s:
        ready_s = all_ready_s.get(row.token, 0.0)
        return _Before(free_s, max(free_s, ready_s), 0.0, 0.0, 0.0, 0.0)
    _, load_s, price_s, drain_s, eviction_s = outlook.step(outlook.held, row.token)
    return _Before(free_s, max(free_s, drain_s), drain_s, load_s, price_s, eviction_s)


_WHOSE_TURN = attrgetter("turn", "host_id")


def _chosen(places: list[_Place], age_s: float, power: float) -> _Place | None:
    """The best place, or one as good that was used longer ago; see `Scene._whose_turn`.

    None: the job would have to wait there, for a slot or for a model to come to rest.
    """
    if len(places) > 1:
        places.sort()  # no two have the same id
    tie_ratio = TIE_RATIO ** (1 / power)
    best = places[0]
    for place in places:
        if age_s + place.felt_s < (age_s + best.felt_s) * tie_ratio:
            best = place
    if not best.is_open or best.begins_s > 0:
        return None
    limit_s, is_held, matched = best.alone_s * EQUAL_RATIO, best.is_held, best.matched
    alike = [
        place
        for place in places
        if place.alone_s <= limit_s
        and place.is_open
        and place.is_held is is_held
        and place.matched == matched
    ]
    chosen = min(alike, key=_WHOSE_TURN) if len(alike) > 1 else best
    return None if chosen.begins_s > 0 else chosen
