"""What replays of a log came to, in figures and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from sollol_proxy.lab.replay_log import Log
from sollol_proxy.lab.replay_run import Answer
from sollol_proxy.lab.simulate_report import aligned, quantile

Figures = dict[str, Any]

_COLUMNS = (
    ("mean", "mean_s"),
    ("p50", "p50_s"),
    ("p95", "p95_s"),
    ("queue mean", "queue_mean_s"),
    ("queue p50", "queue_p50_s"),
    ("queue p95", "queue_p95_s"),
)


def figures(answers: Sequence[Answer]) -> Figures:
    """Seconds from arrival to the end and in the queue, over what was answered; by priority too.

    cold: requests that waited for a load. share: part of the answers by host.
    """
    good = [answer for answer in answers if answer.ok]
    levels = sorted({answer.priority for answer in good}, reverse=True)
    hosts = sorted({answer.host for answer in good})
    return {
        **_of(good),
        "failed": len(answers) - len(good),
        "by_priority": {str(n): _of([a for a in good if a.priority == n]) for n in levels},
        "share": {h: round(sum(a.host == h for a in good) / len(good), 4) for h in hosts},
    }


def change(before: Sequence[Answer], after: Sequence[Answer]) -> Figures:
    """What is different in the second one: requests on another host, and ratios of the figures.

    mean_ratio, p95_ratio: after ÷ before, below 1 = sooner; None where there is nothing.
    """
    one, two = figures(before), figures(after)
    moved = sum(old.host != new.host for old, new in zip(before, after, strict=True))
    return {
        "moved": moved,
        "mean_ratio": ratio(two["mean_s"], one["mean_s"]),
        "p95_ratio": ratio(two["p95_s"], one["p95_s"]),
        "queue_mean_s": None
        if one["queue_mean_s"] is None or two["queue_mean_s"] is None
        else round(two["queue_mean_s"] - one["queue_mean_s"], 4),
    }


def ratio(part: float | None, whole: float | None) -> float | None:
    """The part ÷ the whole; None where one is missing or there is nothing to compare with."""
    return round(part / whole, 4) if part is not None and whole else None


def percent(value: float | None) -> str:
    """A ratio as a change: `-12 %`, `+3 %`."""
    return "-" if value is None else f"{100 * (value - 1):+.0f} %"


def heading(log: Log, hosts: int, models: int) -> str:
    """What is played, and what is not."""
    span_s = log.entries[-1].at_s - log.entries[0].at_s
    lines = [
        f"{_count(len(log.entries), 'request')} for {_count(models, 'model')} "
        f"on {_count(hosts, 'host')} in {span_s / 60:.1f} minutes"
    ]
    left_out = [f"{count} {reason}" for reason, count in sorted(log.left_out.items())]
    if log.broken:
        first = ", ".join(map(str, log.broken[:3]))
        more = ", ..." if len(log.broken) > 3 else ""
        noun = _count(len(log.broken), "broken line")
        left_out.append(f"{noun} ({first}{more})")
    if left_out:
        lines.append(f"left out: {', '.join(left_out)}")
    return "\n".join(lines)


def table(runs: Mapping[str, Figures]) -> str:
    """Runs below each other, and the same by priority where there are several."""
    rows = [["seconds", "priority", "requests", *(title for title, _ in _COLUMNS), "cold"]]
    for name, run in runs.items():
        rows.append([name, "all", *_cells(run)])
        if len(run["by_priority"]) > 1:
            rows += [["", n, *_cells(part)] for n, part in run["by_priority"].items()]
    failed = [
        f"{name}: {_count(r['failed'], 'request')} refused"
        for name, r in runs.items()
        if r["failed"]
    ]
    return "\n".join([aligned(rows), *failed])


def trust(logged: Figures, replayed: Figures) -> str:
    """How far the hosts that were rebuilt are like those of the log."""
    mean_ratio = ratio(replayed["mean_s"], logged["mean_s"])
    p95_ratio = ratio(replayed["p95_s"], logged["p95_s"])
    return (
        f"The replay differs from the log by {percent(mean_ratio)} in the mean and by "
        f"{percent(p95_ratio)} in the P95: smaller changes than that mean little."
    )


def in_words(name: str, changed: Mapping[str, Any], requests: int) -> str:
    """What another setup would have changed."""
    wait_s = changed["queue_mean_s"]
    waits = "" if wait_s is None else f", {wait_s:+.2f} s in the queue"
    return (
        f"With {name}: {changed['moved']} of {_count(requests, 'request')} on another host, mean "
        f"{percent(changed['mean_ratio'])}, P95 {percent(changed['p95_ratio'])}{waits}. "
        "An estimate, against the replay."
    )


def _of(answers: Sequence[Answer]) -> Figures:
    totals = sorted(answer.total_s for answer in answers)
    queues = sorted(answer.queue_s for answer in answers)
    line: Figures = {
        "requests": len(answers),
        "cold": sum(answer.is_cold for answer in answers),
    }
    for prefix, values in (("", totals), ("queue_", queues)):
        line[f"{prefix}mean_s"] = round(mean(values), 4) if values else None
        line[f"{prefix}p50_s"] = round(quantile(values, 0.5), 4) if values else None
        line[f"{prefix}p95_s"] = round(quantile(values, 0.95), 4) if values else None
    return line


def _cells(run: Mapping[str, Any]) -> list[str]:
    values = [run[key] for _, key in _COLUMNS]
    return [
        str(run["requests"]),
        *("-" if v is None else f"{v:.2f}" for v in values),
        str(run["cold"]),
    ]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
