"""What a planner keeps between two plans changes none of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sollol_proxy.core.policies import outlook
from sollol_proxy.core.policies.base import HostView, Plan
from sollol_proxy.core.types import Decision, Job
from tests.core.planning_world import Lies, Watched, World


class Forgetful(Watched):
    """Looks at everything anew."""

    def plan_all(self, waiting: Sequence[Job], hosts: Sequence[HostView], now: float) -> Plan:
        self._views = None
        return super().plan_all(waiting, hosts, now)

    def place_at_once(self, job: Job, hosts: Sequence[HostView], now: float) -> Decision | None:
        self._views = None
        return super().place_at_once(job, hosts, now)

    def place(self, job: Job, hosts: Sequence[HostView], now: float) -> Decision:
        self._views = None
        return super().place(job, hosts, now)


class Told(World):
    """Writes down what is said to the shell and of those who wait."""

    def __init__(self, seed: int, policy: Watched) -> None:
        self.said: list[object] = []
        super().__init__(seed, Lies(), policy)

    def apply(self, effects: Sequence[object]) -> None:
        super().apply(effects)
        waiting = self.scheduler.snapshot(self.now).waiting
        self.said.append((list(effects), [each.reason for each in waiting]))


@pytest.mark.parametrize("seed", range(10))
def test_plans_of_a_planner_that_keeps_what_it_saw_are_those_of_one_that_looks_anew(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the price of an eviction, which is kept for a while whatever happens."""
    monkeypatch.setattr(outlook, "PRICED_S", -1.0)
    keeps, forgets = Told(seed, Watched()), Told(seed, Forgetful())
    for world in (keeps, forgets):
        world.run(300)
    assert len(keeps.said) == len(forgets.said)
    for kept, fresh in zip(keeps.said, forgets.said, strict=True):
        assert kept == fresh
