"""Pictures of simulated runs. Needs matplotlib, which the `plots` extra brings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from sollol_proxy.lab.simulate_report import Line
from sollol_proxy.lab.simulate_world import Sample


class MatplotlibMissing(Exception):
    """Pictures need matplotlib."""

    def __init__(self) -> None:
        super().__init__("--plots needs matplotlib: pip install 'sollol-proxy[plots]'")


def pyplot() -> Any:
    """Matplotlib's pyplot, drawing into files only.

    Raises:
        MatplotlibMissing: it is not installed.
    """
    try:
        import_module("matplotlib").use("Agg")
        return import_module("matplotlib.pyplot")
    except ImportError as error:
        raise MatplotlibMissing from error


def draw(
    folder: Path, lines: Sequence[Line], samples: Mapping[tuple[str, str], Sequence[Sample]]
) -> list[Path]:
    """Write the pictures of one pool and workload and say which.

    samples: the queue over time of the first seed, by (load, policy).

    Raises:
        MatplotlibMissing: it is not installed.
        OSError: the folder cannot be written.
    """
    plt = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", f"{lines[0]['workload']}-{lines[0]['pool']}").strip("-")
    figures = [
        ("latency", _latency(plt, lines)),
        ("queue", _queue(plt, samples)),
        ("share", _share(plt, lines)),
    ]
    written = []
    for kind, figure in figures:
        path = folder / f"{name}-{kind}.png"
        figure.savefig(path, dpi=120, bbox_inches="tight")
        plt.close(figure)
        written.append(path)
    return written


def _latency(plt: Any, lines: Sequence[Line]) -> Any:
    """Mean and P95 over load, a curve a policy; medians over the seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, key, title in zip(axes, ("mean_s", "p95_s"), ("mean", "P95"), strict=True):
        for policy in _in_order(lines, "policy"):
            loads = [str(load) for load in _in_order(lines, "load")]
            values = [
                median(
                    line[key]
                    for line in lines
                    if line["policy"] == policy and str(line["load"]) == load
                )
                for load in loads
            ]
            axis.plot(loads, values, marker="o", label=policy)
        axis.set(title=f"{title}, arrival to last token", xlabel="load", ylabel="s", yscale="log")
        axis.legend(fontsize=8)
    return figure


def _queue(plt: Any, samples: Mapping[tuple[str, str], Sequence[Sample]]) -> Any:
    """Requests that wait, over time, one panel a load."""
    loads = list(dict.fromkeys(load for load, _ in samples))
    figure, axes = plt.subplots(len(loads), 1, figsize=(9, 2.6 * len(loads)), squeeze=False)
    for axis, load in zip(axes[:, 0], loads, strict=True):
        for (of_load, policy), series in samples.items():
            if of_load == load:
                axis.plot([s.at_s for s in series], [s.waiting for s in series], label=policy)
        axis.set(title=f"load {load}", xlabel="s", ylabel="waiting")
        axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def _share(plt: Any, lines: Sequence[Line]) -> Any:
    """Share of the answers by host at the highest load, one bar a policy."""
    load = str(_in_order(lines, "load")[-1])
    policies = [str(policy) for policy in _in_order(lines, "policy")]
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(policies) + 1.5))
    left = [0.0] * len(policies)
    for host_id in lines[0]["share"]:
        widths = [
            median(
                line["share"][host_id]
                for line in lines
                if line["policy"] == policy and str(line["load"]) == load
            )
            for policy in policies
        ]
        axis.barh(policies, widths, left=left, label=host_id)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set(title=f"share of the answers, load {load}", xlim=(0, 1))
    axis.invert_yaxis()
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _in_order(lines: Sequence[Line], key: str) -> list[Any]:
    return list(dict.fromkeys(line[key] for line in lines))
