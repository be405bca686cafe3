"""How much a pool can serve: the fluid capacity, by a linear program.

Each kind of request may be split over the hosts in any proportion; what limits is the time of
each host. Loads, queues and prompt caches do not exist here, so no scheduler can keep up with
more for long, unless caches save it work. Needs scipy, which the `lab` extra brings.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from sollol_proxy.lab.simspec import SimSpec
from sollol_proxy.lab.workload import Demand


class ScipyMissing(Exception):
    """The linear program needs scipy."""

    def __init__(self) -> None:
        super().__init__(
            "loads are relative to the capacity, which needs scipy: install the "
            "`lab` extra, or name absolute rates"
        )


def service_s(host: SimSpec, demand: Demand) -> float | None:
    """Seconds of a host's time that one request takes when all its slots are in use.

    None when the host does not have the model. b streams do b ÷ (1 + alpha·(b-1)) times the work
    of one.
    """
    if host.model(demand.model.name) is None:
        return None
    alone_s = demand.prompt_tokens / host.prefill_tps_of(demand.model)
    alone_s += demand.output_tokens / host.decode_tps_of(demand.model)
    return alone_s * (1 + host.alpha * (host.slots - 1)) / host.slots


def mean_service_s(host: SimSpec, demands: Sequence[Demand]) -> float | None:
    """The same over the part of the mix that the host can serve; None = it can serve nothing."""
    times = [(d.share, s) for d in demands if (s := service_s(host, d)) is not None]
    if not times:
        return None
    return sum(share * seconds for share, seconds in times) / sum(share for share, _ in times)


def capacity_rps(hosts: Sequence[SimSpec], demands: Sequence[Demand]) -> float:
    """The most requests a second of this mix that the hosts can do; 0 when a kind has no host.

    Variables are the rate r and the rates x of each kind on each host that can do it:

        maximise r    subject to    Σ_hosts x = r · share, each kind
                                    Σ_kinds x · seconds ≤ 1, each host

    Raises:
        ScipyMissing: scipy is not installed.
    """
    pairs = [
        (h, k, seconds)
        for h, host in enumerate(hosts)
        for k, demand in enumerate(demands)
        if (seconds := service_s(host, demand)) is not None
    ]
    width = 1 + len(pairs)
    balance = [[0.0] * width for _ in demands]
    time = [[0.0] * width for _ in hosts]
    for k, demand in enumerate(demands):
        balance[k][0] = -demand.share
    for column, (h, k, seconds) in enumerate(pairs, 1):
        balance[k][column] = 1.0
        time[h][column] = seconds
    solved = _linprog()(
        [-1.0] + [0.0] * len(pairs),
        A_ub=time,
        b_ub=[1.0] * len(hosts),
        A_eq=balance,
        b_eq=[0.0] * len(demands),
        method="highs",
    )
    return max(0.0, float(-solved.fun))


def _linprog() -> Any:
    try:
        return import_module("scipy.optimize").linprog
    except ImportError as error:
        raise ScipyMissing from error
