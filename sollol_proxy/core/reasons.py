"""Why a job waits, why it is refused, and what a decision owes to the rest of the pool, in words.

The texts reach clients, pages and logs; nothing decides by them.
"""

from __future__ import annotations

from sollol_proxy.core.pool import Pool
from sollol_proxy.core.types import HostState, Job, Outcome

_NAMED = 3
"""Hosts that a text names; the others are counted."""


def why_waiting(job: Job, pool: Pool, *, refused_in_s: float) -> str:
    """What a waiting job waits for.

    refused_in_s: until it is given up, if no host that could take it comes up.
    """
    eligible = [host.spec.id for host in pool.eligible(job)]
    if eligible:
        return f"for a slot on {_some(eligible)}{_left_out(job, pool)}"
    host = f"host {job.only}" if job.only else "a host that has the model"
    return f"for {host} to come up; refused in {refused_in_s:.1f} s"


def why_no_host(job: Job, pool: Pool) -> tuple[Outcome, str]:
    """Why a job that no host can take is refused."""
    if not len(pool):
        return Outcome.NO_HOST, "the pool has no hosts"
    if job.only:
        return _why_not_this(job, pool)
    routable = pool.routable()
    if not routable:
        return Outcome.NO_HOST, f"none of {len(pool)} hosts is up"
    if job.model and not any(host.spec.may_serve(job.model) for host in routable):
        return Outcome.NO_MODEL, "no host may serve this model (hosts: models: allow, deny)"
    having = " that has this model" if job.kind.needs_model else ""
    failed = [host.spec.id for host in pool if host.spec.id in job.excluded]
    if failed:
        detail = f"no other host{having} is up; it failed on {_some(failed)}"
    else:
        detail = f"no host{having} is up"
    return Outcome.NO_HOST, detail + _left_out(job, pool)


def of_decision(job: Job, pool: Pool) -> str:
    """What to add to a decision's reason: who was left out of it; empty when nobody was."""
    if job.route and not job.only and pool.is_missing_everywhere(job):
        return f"; no host is known to have {job.route}"
    return _left_out(job, pool)


def _why_not_this(job: Job, pool: Pool) -> tuple[Outcome, str]:
    host = pool.get(job.only)
    if host is None:
        return Outcome.NO_HOST, f"host {job.only} is not in the pool"
    if job.model and not host.spec.may_serve(job.model):
        detail = f"host {job.only} may not serve this model (hosts: models: allow, deny)"
        return Outcome.NO_MODEL, detail
    if host.state is HostState.DRAINING:
        detail = "is draining"
    elif not host.state.is_routable:
        detail = "is not up"
    elif job.only in job.excluded:
        detail = "has failed this request"
    else:
        detail = "does not have this model"
    return Outcome.NO_HOST, f"host {job.only} {detail}"


def _left_out(job: Job, pool: Pool) -> str:
    left_out = [f"{host_id} ({why})" for host_id, why in pool.left_out(job)]
    return f"; left out: {_some(left_out)}" if left_out else ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
