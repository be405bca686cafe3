"""The figures of one simulated run, and tables over several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median
from typing import Any

from sollol_proxy.lab.simulate_world import PATIENCE_S, Served, World

LEFT_OUT_RATIO = 0.1
"""The first part of a run, in which the pool fills and the proxy learns nothing yet."""

Line = Mapping[str, Any]
"""One run as it goes into the JSON file."""

_COLUMNS = (
    ("mean", "mean_s", ".2f"),
    ("p50", "p50_s", ".2f"),
    ("p95", "p95_s", ".2f"),
    ("p99", "p99_s", ".2f"),
    ("first", "first_token_mean_s", ".2f"),
    ("ok", "ok_ratio", ".4f"),
    ("req/s", "throughput_rps", ".3f"),
    ("loads", "loads", ".0f"),
    ("gini", "gini", ".2f"),
)


def figures(world: World, decisions_s: Sequence[float] = ()) -> dict[str, Any]:
    """What a finished run came to; failures count as the client's patience.

    gini: of the numbers of answers by host. share: part of the answers by host.
    decisions_p99_ms: on the wall's clock, the one figure here that differs from run to run.
    """
    in_order = sorted(world.served, key=lambda served: served.request.arrived_s)
    counted = in_order[int(len(in_order) * LEFT_OUT_RATIO) :]
    latencies = sorted(latency_s(served) for served in counted)
    firsts = [
        served.first_token_s - served.request.arrived_s
        for served in counted
        if served.ok and served.first_token_s is not None
    ]
    good = [served for served in counted if served.ok]
    spans_s = max(s.ended_s for s in counted) - counted[0].request.arrived_s
    by_host = dict.fromkeys(world.hosts, 0)
    for served in good:
        by_host[served.host_id] += 1
    line: dict[str, Any] = {
        "requests": len(in_order),
        "mean_s": _round(mean(latencies)),
        "p50_s": _round(quantile(latencies, 0.50)),
        "p95_s": _round(quantile(latencies, 0.95)),
        "p99_s": _round(quantile(latencies, 0.99)),
        "max_s": _round(latencies[-1]),
        "first_token_mean_s": _round(mean(firsts)) if firsts else None,
        "ok_ratio": _round(len(good) / len(counted)),
        "throughput_rps": _round(len(good) / spans_s) if spans_s else None,
        "gini": _round(gini(list(by_host.values()))),
        "loads": sum(host.loads for host in world.hosts.values()),
        "by_priority": _by_priority(counted),
        "share": {host_id: _round(count / max(1, len(good))) for host_id, count in by_host.items()},
    }
    if decisions_s:
        line["decisions_p99_ms"] = round(quantile(sorted(decisions_s), 0.99) * 1000, 3)
    return line


def latency_s(served: Served) -> float:
    """Seconds from arrival to the last token; the client's patience where there was none."""
    if not served.ok:
        return PATIENCE_S
    return min(PATIENCE_S, served.ended_s - served.request.arrived_s)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank quantile of sorted values."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def gini(values: Sequence[float]) -> float:
    """The Gini coefficient: 0 when all are equal, towards 1 when one has everything."""
    total = sum(values)
    if not total:
        return 0.0
    ranked = sum(rank * value for rank, value in enumerate(sorted(values), 1))
    return 2 * ranked / (len(values) * total) - (len(values) + 1) / len(values)


def table(lines: Iterable[Line]) -> str:
    """Policies below each other for each pool, workload and load; medians over the seeds."""
    groups: dict[tuple[str, str, str], dict[str, list[Line]]] = {}
    for line in lines:
        key = (line["pool"], line["workload"], str(line["load"]))
        groups.setdefault(key, {}).setdefault(line["policy"], []).append(line)
    blocks = []
    for (pool, workload, load), policies in groups.items():
        seeds = max(len(runs) for runs in policies.values())
        over = f", median of {seeds} seeds" if seeds > 1 else ""
        rows = [["policy", *(title for title, _, _ in _COLUMNS)]]
        rows += [[policy, *map(str, _row(runs))] for policy, runs in policies.items()]
        blocks.append(f"{workload} on {pool}, load {load}{over}; seconds\n{aligned(rows)}")
        if any(len(line["by_priority"]) > 1 for runs in policies.values() for line in runs):
            blocks.append(_priorities(policies))
    return "\n\n".join(blocks) + "\n"


def _row(runs: Sequence[Line]) -> list[str]:
    cells = []
    for _, key, form in _COLUMNS:
        values = [line[key] for line in runs if line[key] is not None]
        cells.append(format(median(values), form) if values else "-")
    return cells


def _priorities(policies: Mapping[str, Sequence[Line]]) -> str:
    levels = sorted(
        {level for runs in policies.values() for line in runs for level in line["by_priority"]},
        key=int,
        reverse=True,
    )
    rows = [["policy", *(f"p95 of priority {level}" for level in levels)]]
    for policy, runs in policies.items():
        cells = []
        for level in levels:
            values = [r["by_priority"][level]["p95_s"] for r in runs if level in r["by_priority"]]
            cells.append(format(median(values), ".2f") if values else "-")
        rows.append([policy, *cells])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns below each other, the first one left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )


def _by_priority(counted: Sequence[Served]) -> dict[str, dict[str, float]]:
    by_level: dict[int, list[float]] = {}
    for served in counted:
        by_level.setdefault(served.request.priority, []).append(latency_s(served))
    return {
        str(level): {
            "mean_s": _round(mean(values)),
            "p95_s": _round(quantile(sorted(values), 0.95)),
            "count": len(values),
        }
        for level, values in sorted(by_level.items(), reverse=True)
    }


def _round(value: float) -> float:
    return round(value, 4)
