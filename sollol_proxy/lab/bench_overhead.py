"""`sollol-proxy bench overhead`: what a relay costs, beside others and beside none at all.

Hosts that compute nothing and clients that hardly read stand around a contender, which has a core
of its own. Rounds are interleaved: every contender once for every measure, started anew for each
(but for those that run already), in an order that turns, so that a machine that changes its mind
hits all of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from aiohttp import ClientSession

from sollol_proxy.lab import bench_overhead_measures as measures
from sollol_proxy.lab import bench_overhead_plots as plots
from sollol_proxy.lab.bench_callers import CallFailed
from sollol_proxy.lab.bench_command import enter, json_file, run_until_signal, say, write_line
from sollol_proxy.lab.bench_contenders import RIVALS, ContenderFailed, find_program
from sollol_proxy.lab.bench_machine import affinity, family_memory_bytes, most_descriptors, pinned
from sollol_proxy.lab.bench_overhead_arguments import (
    MANY,
    MEASURES,
    SMALL,
    add_arguments,
    rounds_of,
    sizes_of,
)
from sollol_proxy.lab.bench_overhead_contenders import (
    BUILT_IN,
    SERVER,
    SLOTS,
    Relay,
    Running,
    Stand,
    built_in,
    somebody_elses,
)
from sollol_proxy.lab.bench_overhead_measures import Flows, Measure, Sizes, Stage
from sollol_proxy.lab.bench_overhead_meter import is_floor
from sollol_proxy.lab.bench_overhead_report import ratios, table, trust
from sollol_proxy.lab.bench_upstream import spawned_upstreams, urls_of
from sollol_proxy.lab.process import Child, ChildFailed
from sollol_proxy.lab.simulate_plots import MatplotlibMissing, pyplot

__all__ = ["add_arguments", "run"]

_HOSTS = 4
_SPARE_DESCRIPTORS = 500


@dataclass(frozen=True, slots=True)
class Cores:
    """Who may run where; empty = anywhere."""

    relay: frozenset[int]
    load: frozenset[int]


def run(options: argparse.Namespace) -> int:
    """Run what the arguments ask for; the exit code.

    Raises:
        OSError: a file cannot be written.
    """
    try:
        if options.plots:
            pyplot()  # rather now than after the runs
        relays = contenders_of(options)
        return run_until_signal(_main(options, relays))
    except (ContenderFailed, ChildFailed, MatplotlibMissing) as error:
        sys.stderr.write(f"sollol-proxy bench overhead: {error}\n")
    return 2


async def _main(options: argparse.Namespace, relays: Sequence[Relay]) -> int:
    cores, sizes = _cores(), _sizes(options)
    with ExitStack() as stack:
        out = json_file(options.json, stack)
        stack.enter_context(pinned(cores.load))
        async with (
            spawned_upstreams(_hosts(options, sizes), options.first_port) as child,
            ClientSession() as session,
        ):
            stand = Stand(urls_of(child), cores.relay, options.policy)
            if options.hold:
                await _hold(stand)
            bench = _Bench(stand, cores, sizes, child, session)
            lines = await _rounds(options, relays, bench, out)
    report = table(lines) + "\n" + ratios(lines) + "\n" + trust(lines)
    if options.json != "-":
        sys.stdout.write(report)
    if options.plots:
        say(str(plots.draw(Path(options.plots), lines)))
    return 0


@dataclass(frozen=True, slots=True)
class _Bench:
    """What is the same for every run."""

    stand: Stand
    cores: Cores
    sizes: Sizes
    child: Child
    session: ClientSession

    async def run(self, relay: Relay, name: str, measure: Measure) -> dict[str, Any]:
        """One measure of one contender, started for it; its figures, with both names.

        Raises:
            ContenderFailed: it does not start.
        """
        async with relay.start(self.stand) as running:
            pid = running.pid
            idle_bytes = family_memory_bytes(pid) if pid is not None else None
            figures: dict[str, Any] = {
                "measure": name,
                "contender": relay.name,
                "start_s": running.start_s,
                # Of one that was asked before, this would be no idle memory.
                "idle_mb": idle_bytes / 1e6 if idle_bytes and running.start_s else None,
                "is_pinned": affinity(pid) == self.cores.relay
                if pid and self.cores.relay
                else None,
            }
            stage = self._stage(running)
            try:
                figures |= await measure(stage)
                if not await stage.have_all_left():
                    figures["error"] = "streams that nobody reads any more stay open in the hosts"
            except CallFailed as error:
                figures["error"] = str(error)
        figures["is_floor"] = is_floor(figures, len(self.cores.load))
        if figures.get("asked_per_s"):
            figures["kept"] = 100 * figures["records_per_s"] / figures["asked_per_s"]
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}

    def _stage(self, running: Running) -> Stage:
        return Stage(
            running,
            self.stand.direct,
            self.child.pid,
            self.stand.urls[0],
            self.session,
            self.sizes,
        )


async def _rounds(
    options: argparse.Namespace, relays: Sequence[Relay], bench: _Bench, out: TextIO | None
) -> list[dict[str, Any]]:
    """Every measure of every contender, so many times."""
    lines = []
    wanted = _measures(options.measures, bench.sizes)
    for number in range(rounds_of(options)):
        for shift, (name, measure) in enumerate(wanted.items()):
            turn = (number + shift) % len(relays)
            for relay in (*relays[turn:], *relays[:turn]):
                figures = await bench.run(relay, name, measure)
                line = {"round": number, "place": relays.index(relay), **figures}
                lines.append(line)
                write_line(out, line)
                say(f"round {number + 1}, {name}, {relay.name}: {line.get('error', 'done')}")
    return lines


def _measures(names: Sequence[str], sizes: Sizes) -> dict[str, Measure]:
    """The measures by the names that they have in the figures."""
    found: dict[str, Measure] = {}
    for name in (name for name in MEASURES if name in names):
        if name == "streams":
            found |= {f"streams {flows}": measures.streams_of(flows) for flows in sizes.streams}
        else:
            found[name] = getattr(measures, name)
    return found


def contenders_of(options: argparse.Namespace) -> list[Relay]:
    """Who is compared.

    Raises:
        ContenderFailed: a program is not installed, or nobody is named, or two are called the same.
    """
    names = options.contenders
    if names is None:
        names = [name for name in BUILT_IN if name != SERVER]
        names = [name for name in names if name not in RIVALS or _is_installed(name)]
    if SERVER in names and options.measures != [SMALL]:
        raise ContenderFailed(f"{SERVER} answers embeddings alone: --measures {SMALL}")
    relays = [built_in(name) for name in names]
    relays += [somebody_elses(other.name, other.url, other.pid) for other in options.contender]
    called = [relay.name for relay in relays]
    if not called:
        raise ContenderFailed("nobody to measure: name --contenders or --contender")
    if twins := sorted({name for name in called if called.count(name) > 1}):
        raise ContenderFailed(f"several contenders are called {', '.join(twins)}")
    return relays


def _is_installed(name: str) -> bool:
    try:
        find_program(name)
    except ContenderFailed:
        return False
    return True


def _cores() -> Cores:
    """The last core for the contender, the others for the load; a single one for everybody."""
    mine = affinity(os.getpid())
    if len(mine) < 2:
        say("there is one core, or no way to choose one: all figures are mixed with the load's")
        return Cores(frozenset(), frozenset())
    relay = frozenset({max(mine)})
    say(
        f"contenders run on core {max(mine)}; start others there, such as by taskset -c {max(mine)}"
    )
    return Cores(relay, mine - relay)


def _sizes(options: argparse.Namespace) -> Sizes:
    """As asked for, but with no more streams than a process may have sockets for.

    To be called before any process is started: they inherit what they may have.
    """
    sizes = sizes_of(options)
    most = (most_descriptors() - _SPARE_DESCRIPTORS) // 2
    if sizes.many.streams > most:
        say(f"{most} streams rather than {sizes.many.streams}: a process may have no more sockets")
        sizes = replace(sizes, many=Flows(most, sizes.many.rate))
    return sizes


def _hosts(options: argparse.Namespace, sizes: Sizes) -> int:
    """As many as asked for, or enough that no stream of `many` waits for a slot."""
    most = sizes.many.streams if MANY in options.measures else 0
    if not options.hosts:
        return max(_HOSTS, -(-most // SLOTS))
    if options.hosts * SLOTS < most:
        say(f"{most} streams, and {options.hosts * SLOTS} slots: through ours, the others wait")
    return int(options.hosts)


async def _hold(stand: Stand) -> None:
    """Wait for Enter, or the end of the input."""
    for host in stand.upstreams:
        say(f"{host.id}: {host.url}")
    say("These hosts stay. Configure the others, then press Enter.")
    await enter()
