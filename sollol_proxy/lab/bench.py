"""`sollol-proxy bench`: measurements over real sockets."""

from __future__ import annotations

import argparse

from sollol_proxy.lab import bench_policies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    text = "compare policies, and other proxies, over simulated hosts"
    policies = kinds.add_parser("policies", help=text, description=text, allow_abbrev=False)
    bench_policies.add_arguments(policies)


def run(options: argparse.Namespace) -> int:
    """Run the command; its exit code."""
    return bench_policies.run(options)
