"""The same scenario in the simulator: what each contender of a bench should come to."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from sollol_proxy.lab.bench_contenders import HAPROXY, NGINX, Contender
from sollol_proxy.lab.simulate import Scenario, simulate
from sollol_proxy.lab.simulate_baselines import Fifo, Known
from sollol_proxy.lab.simulate_report import figures
from sollol_proxy.lab.simulate_world import World
from sollol_proxy.lab.workload import Request


class CentralQueue(Fifo):
    """One queue, and of the hosts with a free slot the one with the fewest jobs: haproxy's."""

    def choose(self, request: Request, hosts: Sequence[Known]) -> Known:
        """It knows no speeds: equals take turns."""
        return self.least(hosts, lambda host: host.in_flight)


def simulated(scenario: Scenario, contender: Contender, seed: int) -> dict[str, Any] | None:
    """The figures of one simulated run; None for a contender that the simulator has no model of."""
    if contender.policy:
        line = simulate(scenario, contender.policy, seed).line
    elif contender.name == NGINX:
        line = simulate(scenario, "lc", seed).line
    elif contender.name == HAPROXY:
        line = _central(scenario, seed)
    else:
        return None
    return {**line, "policy": contender.name, "seed": seed}


def _central(scenario: Scenario, seed: int) -> dict[str, Any]:
    requests = scenario.workload.requests(scenario.rate_rps, scenario.requests, Random(seed))
    front = CentralQueue(scenario.hosts, scenario.workload.demands(), seed)
    world = World(scenario.hosts, requests, front)
    world.run()
    return figures(world)
