"""`sollol-proxy simulate`: the real scheduler over simulated hosts, in virtual time.

Nothing sleeps and no socket is opened: thousands of requests over a pool take seconds. The same
arguments give the same figures, but for the time that decisions took.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TextIO

from sollol_proxy.core.policies import POLICIES, make_policy
from sollol_proxy.errors import ConfigError
from sollol_proxy.lab import simulate_plots
from sollol_proxy.lab.capacity import ScipyMissing, capacity_rps
from sollol_proxy.lab.clairvoyant import MANNERS, Clairvoyant
from sollol_proxy.lab.pools import POOLS, PoolError, furnish, pool
from sollol_proxy.lab.simspec import SimSpec
from sollol_proxy.lab.simulate_baselines import BASELINES
from sollol_proxy.lab.simulate_proxy import ProxyFront
from sollol_proxy.lab.simulate_report import figures, table
from sollol_proxy.lab.simulate_world import Front, Sample, World
from sollol_proxy.lab.simulate_wrong import Wrong
from sollol_proxy.lab.simulate_wrong import parse as parse_wrong
from sollol_proxy.lab.workload import Workload
from sollol_proxy.lab.workload_builtin import WORKLOADS
from sollol_proxy.lab.workload_files import WorkloadError, workload

CLAIRVOYANT = "clairvoyant"
RECORDED = "recorded"
"""Instead of a load: the times of the recording as they are."""

DEFAULT_POLICIES = (*POLICIES, "lc", "wlc", "fifo")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload at a load on a pool.

    rate_rps: None = as recorded. wrong: how far off the proxy's estimates are made.
    """

    pool: str
    workload: Workload
    load: str
    hosts: Sequence[SimSpec]
    rate_rps: float | None
    requests: int
    wrong: Wrong | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its line for the JSON file, and its queue over time."""

    line: dict[str, Any]
    samples: Sequence[Sample]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    named = f"one of {', '.join(POOLS)}, each also with /SLOTS, or a file"
    parser.add_argument("--pool", metavar="NAME|FILE", default="mix8", help=named)
    parser.add_argument(
        "--workload",
        metavar="NAME|FILE",
        default="mixed",
        help=f"one of {', '.join(WORKLOADS)}, or a file; .jsonl is a recording",
    )
    parser.add_argument(
        "--load",
        metavar="LOAD,...",
        type=_loads,
        default=["0.7"],
        help="of the pool's capacity, such as 0.3,0.7; `recorded` keeps a recording's times",
    )
    parser.add_argument(
        "--policies",
        metavar="NAME,...",
        type=_policies,
        default=list(DEFAULT_POLICIES),
        help=f"policies of the proxy ({', '.join(POLICIES)} or package.module:Class), "
        f"baselines ({', '.join(BASELINES)}), {CLAIRVOYANT}",
    )
    parser.add_argument("--seeds", metavar="N", type=_positive, default=1, help="runs of each")
    parser.add_argument("--requests", metavar="N", type=_positive, default=5000, help="in a run")
    parser.add_argument(
        "--wrong",
        metavar="NAME=NUMBER,...",
        type=parse_wrong,
        help="bend the proxy's estimates: lengths=4 (or 0.25), speeds=2 (each host's by chance), "
        "prompts=0.5 (up to so much more or less)",
    )
    parser.add_argument("--json", metavar="FILE", help="write one JSON line a run; - = stdout")
    parser.add_argument("--plots", metavar="DIR", help="draw pictures (needs matplotlib)")


def run(options: argparse.Namespace) -> int:
    """Simulate what the arguments ask for; the exit code.

    Raises:
        OSError: a file cannot be read or written.
    """
    try:
        return _run(options)
    except (PoolError, WorkloadError, ConfigError, ScipyMissing) as error:
        sys.stderr.write(f"sollol-proxy simulate: {error}\n")
    except simulate_plots.MatplotlibMissing as error:
        sys.stderr.write(f"sollol-proxy simulate: {error}\n")
    return 2


def _run(options: argparse.Namespace) -> int:
    if options.plots:
        simulate_plots.pyplot()  # rather now than after the runs
    scenarios = [_scenario(options, load) for load in options.load]
    lines: list[dict[str, Any]] = []
    samples: dict[tuple[str, str], Sequence[Sample]] = {}
    with ExitStack() as stack:
        out = _json_file(options.json, stack)
        for scenario in scenarios:
            for policy in options.policies:
                for seed in range(options.seeds):
                    done = simulate(scenario, policy, seed)
                    lines.append(done.line)
                    samples.setdefault((scenario.load, policy), done.samples)
                    if out is not None:
                        out.write(json.dumps(done.line) + "\n")
                        out.flush()
    if options.json != "-":
        sys.stdout.write(table(lines))
    if options.plots:
        for path in simulate_plots.draw(Path(options.plots), lines, samples):
            sys.stderr.write(f"{path}\n")
    return 0


def simulate(scenario: Scenario, policy: str, seed: int) -> Run:
    """One run.

    Raises:
        ConfigError: there is no such policy.
    """
    if policy == CLAIRVOYANT:
        rates_rps = _rates_rps(scenario)
        runs = [_once(scenario, Clairvoyant(m, rates_rps), policy, seed) for m in MANNERS]
        return min(runs, key=lambda one: one.line["mean_s"])
    if policy in BASELINES:
        balancer = BASELINES[policy](scenario.hosts, scenario.workload.demands(), seed)
        return _once(scenario, balancer, policy, seed)
    front = ProxyFront(policy, scenario.hosts, seed, wrong=scenario.wrong)
    return _once(scenario, front, policy, seed)


def _once(scenario: Scenario, front: Front, policy: str, seed: int) -> Run:
    requests = scenario.workload.requests(scenario.rate_rps, scenario.requests, Random(seed))
    faults = Random(f"faults {seed}") if scenario.workload.has_faults else None
    world = World(scenario.hosts, requests, front, faults=faults)
    world.run()
    decisions_s = front.decisions_s if isinstance(front, ProxyFront) else ()
    line = {
        "pool": scenario.pool,
        "workload": scenario.workload.name,
        "load": scenario.load if scenario.load == RECORDED else float(scenario.load),
        "policy": policy,
        "seed": seed,
        **figures(world, decisions_s),
    }
    if scenario.wrong is not None and isinstance(front, ProxyFront):
        line["wrong"] = scenario.wrong.as_told()
    return Run(line, world.samples)


def _rates_rps(scenario: Scenario) -> dict[str, float]:
    """How often each model is asked for."""
    rate_rps = scenario.rate_rps
    if rate_rps is None:
        rows = scenario.workload.rows
        rate_rps = len(rows) / max(1.0, sum(row.gap_s for row in rows))
    rates: dict[str, float] = {}
    for demand in scenario.workload.demands():
        rates[demand.model.name] = rates.get(demand.model.name, 0.0) + demand.share * rate_rps
    return rates


def _scenario(options: argparse.Namespace, load: str) -> Scenario:
    asked = workload(options.workload)
    hosts = furnish(pool(options.pool), asked.models, resident=asked.is_resident)
    rate_rps: float | None = None
    if load != RECORDED:
        capacity = capacity_rps(hosts, asked.demands())
        rate_rps = float(load) * capacity
    elif not asked.rows:
        raise WorkloadError(f"{options.workload} is no recording: it needs a load")
    return Scenario(options.pool, asked, load, hosts, rate_rps, options.requests, options.wrong)


def _json_file(name: str | None, stack: ExitStack) -> TextIO | None:
    if name is None:
        return None
    if name == "-":
        return sys.stdout
    return stack.enter_context(open(name, "w", encoding="utf-8"))


def _loads(value: str) -> list[str]:
    loads = [part.strip() for part in value.split(",") if part.strip()]
    for load in loads:
        try:
            is_fine = load == RECORDED or 0 < float(load) < 100
        except ValueError:
            is_fine = False
        if not is_fine:
            raise argparse.ArgumentTypeError(f"{load!r} is no load: say 0.7, or {RECORDED}")
    if not loads:
        raise argparse.ArgumentTypeError("name at least one load")
    return loads


def _policies(value: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    for name in names:
        if name not in BASELINES and name != CLAIRVOYANT:
            try:
                make_policy(name, Random(0))
            except ConfigError:
                known = ", ".join((*POLICIES, *BASELINES, CLAIRVOYANT))
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {known}") from None
    if not names:
        raise argparse.ArgumentTypeError("name at least one policy")
    return names


def _positive(value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is no number above 0")
    return number
