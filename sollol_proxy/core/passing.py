"""Where jobs go that no policy has to weigh: routes that are not balanced, parts of broadcasts."""

from __future__ import annotations

from sollol_proxy.core.pool import Pool
from sollol_proxy.core.types import Cost, Decision, Job


def pass_on(job: Job, pool: Pool) -> Decision | None:
    """The first host in the order of the pool that may take the job; None when none may.

    Always the same one, since such requests may belong together (a blob and the model that is
    created from it); a host that has the named model comes before those that do not.
    """
    eligible = pool.eligible(job)
    if not eligible:
        return None
    having = [host for host in eligible if job.model in host.installed]
    host = (having or eligible)[0]
    if job.only:
        reason = "asked of this host alone"
    elif having:
        reason = "first of the pool that has the model"
    else:
        reason = "first of the pool"
    return Decision(job.id, host.spec.id, "pass", Cost(0.0), reason)
