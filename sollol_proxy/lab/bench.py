"""`sollol-proxy bench`: measurements."""

from __future__ import annotations

import argparse

from sollol_proxy.lab import bench_decisions, bench_overhead, bench_policies

_KINDS = {
    "policies": (bench_policies, "compare policies, and other proxies, over simulated hosts"),
    "overhead": (bench_overhead, "what passing requests on costs: time, CPU, memory"),
    "decisions": (bench_decisions, "what a decision of the scheduler costs"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    for name, (module, text) in _KINDS.items():
        kind = kinds.add_parser(name, help=text, description=text, allow_abbrev=False)
        module.add_arguments(kind)


def run(options: argparse.Namespace) -> int:
    """Run the command; its exit code."""
    return int(_KINDS[options.kind][0].run(options))
