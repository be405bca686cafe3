"""`round_robin`: hosts in turn, as a yardstick."""

from __future__ import annotations

from collections.abc import Sequence

from sollol_proxy.core.policies.base import HostView, PerJob
from sollol_proxy.core.types import Cost, Job, Term


class RoundRobin(PerJob):
    """Every host costs the same, so ties decide, and ties take turns.

    Only hosts with a free slot take part, so a slow host gets fewer turns than it would from a
    proxy without a queue.
    """

    name = "round_robin"

    def cost(self, job: Job, host: HostView, hosts: Sequence[HostView], now: float) -> Cost:
        """Always 1."""
        return Cost(1.0, (Term("turn", 1.0, "its turn"),))
