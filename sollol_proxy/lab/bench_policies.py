"""`sollol-proxy bench policies`: what `simulate` computes, measured over real sockets.

Simulated hosts, the proxy and its clients run on this machine, with time sped up. Every contender
gets the same requests at the same instants in front of hosts that begin anew. The order of the
contenders turns from seed to seed, so that a machine that changes its mind hits all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from sollol_proxy.lab import simulate_plots
from sollol_proxy.lab.bench_agreement import simulated
from sollol_proxy.lab.bench_arguments import add_arguments
from sollol_proxy.lab.bench_command import enter, json_file, run_until_signal, say, write_line
from sollol_proxy.lab.bench_contenders import (
    RIVALS,
    Contender,
    ContenderFailed,
    Scene,
    ours,
    rival,
    running,
)
from sollol_proxy.lab.bench_report import agreement, line_of, ratios, samples_of, trust
from sollol_proxy.lab.bench_run import arena, requests_of, run_once
from sollol_proxy.lab.bench_scale import UNKNOWN_SPEED, trial
from sollol_proxy.lab.bench_slow import notice
from sollol_proxy.lab.capacity import ScipyMissing, capacity_rps
from sollol_proxy.lab.pools import PoolError, furnish, pool
from sollol_proxy.lab.process import ChildFailed
from sollol_proxy.lab.simulate import Scenario
from sollol_proxy.lab.simulate_report import table
from sollol_proxy.lab.simulate_world import Sample
from sollol_proxy.lab.workload_files import WorkloadError, workload

__all__ = ["add_arguments", "run"]


class _NotLive(Exception):
    """A scenario that only the simulator can run."""


@dataclass(slots=True)
class _Results:
    lines: list[dict[str, Any]] = field(default_factory=list)
    samples: dict[tuple[str, str], Sequence[Sample]] = field(default_factory=dict)


def run(options: argparse.Namespace) -> int:
    """Run what the arguments ask for; the exit code.

    Raises:
        OSError: a file cannot be read or written.
    """
    try:
        if options.plots:
            simulate_plots.pyplot()  # rather now than after the runs
        scenario, contenders = _scenario(options), _contenders(options)
        return run_until_signal(_main(options, scenario, contenders))
    except (
        PoolError,
        WorkloadError,
        ScipyMissing,
        ContenderFailed,
        ChildFailed,
        _NotLive,
        simulate_plots.MatplotlibMissing,
    ) as error:
        sys.stderr.write(f"sollol-proxy bench policies: {error}\n")
    return 2


async def _main(
    options: argparse.Namespace, scenario: Scenario, contenders: Sequence[Contender]
) -> int:
    speed = options.time_scale or await _speed(scenario, contenders)
    with ExitStack() as stack:
        out = json_file(options.json, stack)
        if options.slow:
            report = await _notice(options, scenario, contenders, speed, out)
        else:
            report = await _compare(options, scenario, contenders, speed, out)
    if options.json != "-":
        sys.stdout.write(report)
    return 0


async def _speed(scenario: Scenario, contenders: Sequence[Contender]) -> float:
    tried = await trial(scenario, next((c for c in contenders if c.policy), ours("round_robin")))
    if tried is None:
        say(f"nothing is known of this machine's load: time runs {UNKNOWN_SPEED:g} times as fast")
        return UNKNOWN_SPEED
    say(
        f"a model second costs {tried.cost * 1000:.1f} ms of CPU for {tried.records:.0f} records; "
        f"with {tried.free_cores:.1f} cores free that is {tried.most_records:.0f} records a second "
        f"at most; time runs {tried.speed:g} times as fast"
    )
    if tried.is_tight:
        say("this machine is too busy or too small for the scenario; a smaller pool would help")
    return tried.speed


async def _compare(
    options: argparse.Namespace,
    scenario: Scenario,
    contenders: Sequence[Contender],
    speed: float,
    out: TextIO | None,
) -> str:
    """Every seed with every contender; the report."""
    results = _Results()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    async with arena(scenario, speed, options.first_port) as hosts:
        if options.hold:
            await _hold(hosts.scene)
        for number, seed in enumerate(seeds):
            turn = number % len(contenders)
            for contender in (*contenders[turn:], *contenders[:turn]):
                done = await run_once(hosts, contender, requests_of(scenario, seed), seed)
                line = line_of(scenario, contender.name, seed, speed, done)
                results.lines.append(line)
                results.samples.setdefault((scenario.load, contender.name), samples_of(done))
                write_line(out, line)
                say(f"seed {seed}, {contender.name}: P95 {line['p95_s']:.1f} s")
    names = [contender.name for contender in contenders]
    results.lines.sort(key=lambda line: names.index(line["policy"]))
    report = table(results.lines) + trust(results.lines)
    report += ratios(
        results.lines, [contender.name for contender in contenders if contender.policy]
    )
    if options.simulated:
        drawn = [simulated(scenario, contender, seed) for contender in contenders for seed in seeds]
        report += agreement(results.lines, [line for line in drawn if line is not None])
    if options.plots:
        folder = Path(options.plots)
        for path in simulate_plots.draw(folder, results.lines, results.samples):
            say(str(path))
    return report


async def _notice(
    options: argparse.Namespace,
    scenario: Scenario,
    contenders: Sequence[Contender],
    speed: float,
    out: TextIO | None,
) -> str:
    """How soon each of our policies notices a slow host; the report."""
    report = ""
    async with arena(scenario, speed, options.first_port) as hosts:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for contender in contenders:
                if contender.policy:
                    requests = requests_of(scenario, seed)
                    found = await notice(hosts, contender, requests, seed, options.slow)
                    write_line(out, found.line())
                    report += found.text()
    return report


async def _hold(scene: Scene) -> None:
    """Wait for Enter, or the end of the input."""
    for host in scene.hosts:
        say(f"{host.id}: {scene.urls[host.id]} ({host.slots} at once)")
    say("These hosts stay. Configure the others, then press Enter.")
    await enter()


def _scenario(options: argparse.Namespace) -> Scenario:
    asked = workload(options.workload)
    if asked.has_faults:
        raise _NotLive(f"the faults of {asked.name} are only simulated; try --slow HOST")
    hosts = furnish(pool(options.pool), asked.models, resident=asked.is_resident)
    if options.slow and options.slow not in [host.id for host in hosts]:
        raise PoolError(f"{options.slow} is none of {', '.join(host.id for host in hosts)}")
    rate_rps = options.load * capacity_rps(hosts, asked.demands())
    load = f"{options.load:g}"
    return Scenario(options.pool, asked, load, hosts, rate_rps, options.requests)


def _contenders(options: argparse.Namespace) -> list[Contender]:
    contenders = [ours(policy) for policy in options.policies]
    contenders += [rival(name) for name in RIVALS if getattr(options, name)]
    contenders += [running(name, url) for name, url in options.against]
    names = [contender.name for contender in contenders]
    if not names:
        raise ContenderFailed("nobody to compare: name --policies, --nginx, --haproxy or --against")
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise ContenderFailed(f"several contenders are called {', '.join(twins)}")
    return contenders
