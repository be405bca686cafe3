"""`least_in_flight`: the host that runs the fewest jobs for its slots."""

from __future__ import annotations

from collections.abc import Sequence

from sollol_proxy.core.policies.base import HostView, PerJob
from sollol_proxy.core.types import Cost, Job, Term


class LeastInFlight(PerJob):
    """Cost is the number of jobs in flight ÷ slots: nginx's `least_conn`, with a queue in front."""

    name = "least_in_flight"

    def cost(self, job: Job, host: HostView, hosts: Sequence[HostView], now: float) -> Cost:
        """Jobs in flight on the host ÷ slots for the job's model; 0 when idle."""
        slots = host.slots(job.model)
        share = host.in_flight / slots
        return Cost(
            share, (Term("in_flight", share, f"{host.in_flight} in flight, {slots} slots"),)
        )
