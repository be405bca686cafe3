"""What the default policy is worth: times through our proxy beside those through nginx.

To see the figures: pytest tests/chaos/test_nginx.py --log-cli-level=info
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, TCPConnector

from sollol_proxy.lab.simhost import preset
from tests.chaos.compare import Result, arrivals_s, comparable, compare, service_s

TIME_SCALES = {0.3: 40.0, 0.5: 40.0}
"""By load: how much faster than on the wall time runs for the hosts.

Between two jobs our proxy leaves a slot empty for the few milliseconds of a round trip, while
nginx queues in the host. Speeding up the hosts and not the proxy multiplies that; the higher the
load, the more it counts. At these loads the two are several times apart, on a busy machine too;
higher ones are for `sollol-proxy bench policies`, which says when the machine was too slow.
"""

ARRIVING_S = 28.0
"""Seconds on the wall for which requests arrive."""

SEED = 2
"""Simulated without a proxy's own time, ours was slower with none of 40 seeds at any load. But at
load 0.3 between 4 and 5 % of the requests meet the CPU host, and with some seeds its 38 s are the
P95 of both; this one tells them apart.
"""

RESOLUTION_S = 0.005
"""Seconds on the wall below which two times are the same on a machine that others share."""

EQUAL_LOAD = 0.5
EQUAL_COUNT = 400

UNEQUAL = tuple(preset(name) for name in ("4090", "3060", "cpu"))
EQUAL = tuple(comparable(preset("3060", id=f"3060-{n}"), 100.0) for n in range(4))

_log = logging.getLogger(__name__)


def show(load: float, nginx: Result, ours: Result) -> None:
    for name, result in (("nginx", nginx), ("ours", ours)):
        figures = (load, name, len(result.taken_s), result.p95_s, result.mean_s, result.shares)
        _log.info("load %.2f %-5s n=%d p95 %5.1f s mean %5.1f s %s", *figures)


async def compare_at(load: float, session: ClientSession, directory: Path) -> tuple[Result, Result]:
    scale = TIME_SCALES[load]
    specs = [comparable(spec, scale) for spec in UNEQUAL]
    capacity = sum(1 / service_s(spec) for spec in specs)
    count = round(load * capacity * scale * ARRIVING_S)
    moments = arrivals_s(specs, load=load, count=count, seed=SEED)
    return await compare(specs, moments, session, directory)


async def test_p95_is_no_worse_than_least_connections_of_nginx_on_unequal_hosts(
    tmp_path: Path,
) -> None:
    async with ClientSession(
        connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None)
    ) as session:
        # All loads at once, each with hosts and proxies of its own.
        results = await asyncio.gather(
            *(compare_at(load, session, tmp_path) for load in TIME_SCALES)
        )
    slower = []
    for load, (nginx, ours) in zip(TIME_SCALES, results, strict=True):
        show(load, nginx, ours)
        if ours.p95_s > nginx.p95_s + RESOLUTION_S * TIME_SCALES[load]:
            slower.append((load, ours.p95_s, nginx.p95_s))
    assert slower == []


async def test_equal_hosts_get_even_shares(session: ClientSession, tmp_path: Path) -> None:
    moments = arrivals_s(EQUAL, load=EQUAL_LOAD, count=EQUAL_COUNT, seed=SEED)
    nginx, ours = await compare(EQUAL, moments, session, tmp_path)
    show(EQUAL_LOAD, nginx, ours)
    even = EQUAL_COUNT / len(EQUAL)
    assert all(abs(share - even) <= 0.15 * even for share in ours.shares.values()), ours.shares
