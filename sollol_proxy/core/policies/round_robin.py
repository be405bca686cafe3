"""`round_robin`: hosts in turn, as a yardstick."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from sollol_proxy.core.policies.base import HostView, PerJob
from sollol_proxy.core.types import Cost, Decision, Job, Term


class RoundRobin(PerJob):
    """Cost is the turn in which the host was last used: the one used longest ago comes first.

    Only hosts with a free slot take part, so a slow host gets fewer turns than it would from a
    proxy without a queue.
    """

    name = "round_robin"

    def __init__(self, rng: Random) -> None:
        super().__init__(rng)
        self._turn = 0
        self._last_turn: dict[str, int] = {}

    def cost(self, job: Job, host: HostView, hosts: Sequence[HostView], now: float) -> Cost:
        """The number of the host's last turn; 0 before the first."""
        turn = self._last_turn.get(host.spec.id, 0)
        text = f"last used {self._turn - turn} turns ago" if turn else "not used yet"
        return Cost(float(turn), (Term("turn", float(turn), text),))

    def _choose(
        self, job: Job, free: Sequence[HostView], eligible: Sequence[HostView], now: float
    ) -> Decision:
        decision = super()._choose(job, free, eligible, now)
        self._turn += 1
        self._last_turn[decision.host_id] = self._turn
        return decision
