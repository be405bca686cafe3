"""The figures of a bench: the simulator's, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, cast

from sollol_proxy.lab.bench_machine import cores
from sollol_proxy.lab.bench_run import Done
from sollol_proxy.lab.simulate import Scenario
from sollol_proxy.lab.simulate_report import Line, figures, quantile
from sollol_proxy.lab.simulate_world import Sample, Served, World

MOST_BUSY_RATIO = 0.95
"""Of the machine's cores, with whatever else runs; above it things queue for the CPU."""

MOST_LATE_RATIO = 0.05
"""Of the mean time of a request, for the P99 of timers and sends that ring too late."""

AGREEMENT = 0.15
"""How far from the simulated figure a live one may be to count as the same."""

_SAMPLE_EVERY = 10


@dataclass(frozen=True, slots=True)
class _Loaded:
    loads: int


@dataclass(frozen=True, slots=True)
class _Past:
    """What `figures` reads of a world that has run."""

    served: Sequence[Served]
    hosts: Mapping[str, _Loaded]


def line_of(scenario: Scenario, name: str, seed: int, speed: float, done: Done) -> dict[str, Any]:
    """The figures of one run: keys of the simulator, and those of a live run.

    lateness_p99_s: of the clients; hosts_lateness_p99_s: of the hosts' timers; model seconds.
    busy_ratio: of the machine's cores; None = unknown. is_saturated: trust nothing here.
    """
    past = _Past(
        [
            Served(a.request, a.ok, a.ended_s, a.first_s, done.log.host_ids.get(a.request.id, ""))
            for a in done.answers
        ],
        {host_id: _Loaded(loads) for host_id, loads in done.log.loads.items()},
    )
    measured = figures(cast(World, past))
    late_s = quantile(sorted(done.lateness_s), 0.99)
    hosts_late_s = quantile(sorted(done.log.lateness_s) or [0.0], 0.99)
    busy = None if done.busy_cores is None else done.busy_cores / cores()
    is_late = max(late_s, hosts_late_s) > MOST_LATE_RATIO * measured["mean_s"]
    return {
        "pool": scenario.pool,
        "workload": scenario.workload.name,
        "load": float(scenario.load),
        "policy": name,
        "seed": seed,
        **measured,
        "live": True,
        "time_scale": speed,
        "lateness_p99_s": round(late_s, 4),
        "hosts_lateness_p99_s": round(hosts_late_s, 4),
        "busy_ratio": None if busy is None else round(busy, 3),
        "is_saturated": is_late or (busy is not None and busy > MOST_BUSY_RATIO),
    }


def samples_of(done: Done) -> list[Sample]:
    """The queue over time: requests that have come and hold no slot of a host."""
    in_order = sorted(done.answers, key=lambda answer: answer.request.arrived_s)
    begun_s = {key: at_s - done.started_s for key, at_s in done.log.begun_s.items()}
    samples = []
    for answer in in_order[::_SAMPLE_EVERY]:
        now = answer.request.arrived_s
        there = [a for a in in_order if a.request.arrived_s <= now < a.ended_s]
        waiting = sum(begun_s.get(a.request.id, a.ended_s) > now for a in there)
        samples.append(Sample(now, waiting, len(there)))
    return samples


def ratios(lines: Sequence[Line], ours: Sequence[str]) -> str:
    """Mean and P95 of our policies ÷ those of everybody else, seed by seed; a text."""
    by_name = _by_name(lines)
    rows = []
    for place, policy in enumerate(ours):
        # Two of ours are compared once.
        for other in (name for name in by_name if name not in ours[: place + 1]):
            cells = [
                f"{title} {shown(quotients(by_name[policy], by_name[other], key))}"
                for key, title in (("mean_s", "mean"), ("p95_s", "P95"))
            ]
            rows.append(f"{policy} ÷ {other}: {', '.join(cells)}\n")
    return "".join(rows)


def agreement(lines: Sequence[Line], simulated: Sequence[Line]) -> str:
    """Live ÷ simulated, of means over the seeds; a text."""
    live, drawn = _by_name(lines), _by_name(simulated)
    rows = []
    for name, runs in drawn.items():
        cells = []
        for key, title in (("mean_s", "mean"), ("p50_s", "P50"), ("p95_s", "P95")):
            ratio = _mean(live[name], key) / _mean(runs, key)
            is_near = abs(ratio - 1) <= AGREEMENT
            cells.append(f"{title} {ratio:.2f}{'' if is_near else '!'}")
        rows.append(f"{name} live ÷ simulated: {', '.join(cells)}\n")
    if any("!" in row for row in rows):
        rows.append(f"! more than {AGREEMENT:.0%} apart\n")
    return "".join(rows)


def trust(lines: Sequence[Line]) -> str:
    """How late the clients and hosts were, and which figures are worth nothing; a text."""
    late_s = max(line["lateness_p99_s"] for line in lines)
    hosts_late_s = max(line["hosts_lateness_p99_s"] for line in lines)
    busy = [line["busy_ratio"] for line in lines if line["busy_ratio"] is not None]
    text = (
        f"time ran {lines[0]['time_scale']:g} times as fast; at most, in model seconds: clients "
        f"{late_s:.2f} late, hosts {hosts_late_s:.2f} (P99 of a run)"
    )
    text += f"; cores busy {max(busy):.0%}\n" if busy else "\n"
    spoilt = [f"{line['policy']} (seed {line['seed']})" for line in lines if line["is_saturated"]]
    if spoilt:
        text += f"THE MACHINE WAS SATURATED: do not trust {', '.join(spoilt)}\n"
    return text


def _by_name(lines: Sequence[Line]) -> dict[str, dict[int, Line]]:
    """By contender and seed."""
    found: dict[str, dict[int, Line]] = {}
    for line in lines:
        found.setdefault(line["policy"], {})[line["seed"]] = line
    return found


def _mean(runs: Mapping[int, Line], key: str) -> float:
    return mean(float(line[key]) for line in runs.values())


def quotients(one: Mapping[int, Line], other: Mapping[int, Line], key: str) -> list[float]:
    """One's figures ÷ another's, seed by seed, or whatever else the runs are numbered by."""
    return [one[seed][key] / other[seed][key] for seed in one if seed in other]


def shown(values: Sequence[float]) -> str:
    """The median, and from where to where the values go."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
