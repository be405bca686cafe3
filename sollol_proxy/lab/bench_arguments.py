"""The arguments of `sollol-proxy bench policies`."""

from __future__ import annotations

import argparse
from random import Random

from sollol_proxy.core.policies import POLICIES, make_policy
from sollol_proxy.errors import ConfigError
from sollol_proxy.lab.bench_contenders import RIVALS
from sollol_proxy.lab.pools import POOLS
from sollol_proxy.lab.workload_builtin import WORKLOADS

DEFAULT_POLICIES = "completion_time,seven_factor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument(
        "--pool",
        metavar="NAME|FILE",
        default="tri",
        help=f"one of {', '.join(POOLS)}, each also with /SLOTS, or a file",
    )
    parser.add_argument(
        "--workload",
        metavar="NAME|FILE",
        default="mixed",
        help=f"one of {', '.join(WORKLOADS)}, or a file; .jsonl is a recording",
    )
    parser.add_argument(
        "--load", metavar="LOAD", type=positive, default=0.6, help="of the pool's capacity"
    )
    parser.add_argument("--requests", metavar="N", type=count, default=300, help="in a run")
    parser.add_argument("--seeds", metavar="N", type=count, default=1, help="runs of each")
    parser.add_argument(
        "--first-seed", metavar="N", type=int, default=0, help="the seeds count from here"
    )
    parser.add_argument(
        "--time-scale",
        metavar="X",
        type=positive,
        help="model seconds a second; default: what a short trial shows this machine to carry",
    )
    parser.add_argument(
        "--policies",
        metavar="NAME,...",
        type=policies,
        default=policies(DEFAULT_POLICIES),
        help=f"of ours: {', '.join(POLICIES)} or package.module:Class; default {DEFAULT_POLICIES}",
    )
    parser.add_argument("--nginx", action="store_true", help="compare with nginx's least_conn")
    parser.add_argument(
        "--haproxy", action="store_true", help="compare with haproxy's leastconn and queue"
    )
    parser.add_argument(
        "--against",
        metavar="NAME=URL",
        type=_against,
        action="append",
        default=[],
        help="compare with a proxy that runs already and has the same hosts; repeatable; a URL "
        "that ends in /v1/chat/completions is asked only that",
    )
    add_hold_arguments(parser)
    parser.add_argument(
        "--simulated", action="store_true", help="simulate the same, and print live ÷ simulated"
    )
    parser.add_argument(
        "--slow",
        metavar="HOST",
        help="instead of comparing: how soon each policy notices that the host computes four "
        "times slower",
    )
    parser.add_argument("--json", metavar="FILE", help="write one JSON line a run; - = stdout")
    parser.add_argument("--plots", metavar="DIR", help="draw pictures (needs matplotlib)")


def add_hold_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what lets others be configured for the hosts before anything is measured."""
    parser.add_argument(
        "--hold",
        action="store_true",
        help="print the hosts' addresses and wait for Enter, so that others can be configured",
    )
    parser.add_argument(
        "--first-port", metavar="N", type=port, default=0, help="of the hosts; default: free ones"
    )


def positive(value: str) -> float:
    """A number above 0 and below 1000."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < 1000:
        raise argparse.ArgumentTypeError(f"{value!r} is no number above 0")
    return number


def count(value: str) -> int:
    """A whole number above 0."""
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is no number above 0")
    return int(value)


def port(value: str) -> int:
    """A port with some more above it; 0 = any."""
    if not value.isdecimal() or not 0 <= int(value) < 65_000:
        raise argparse.ArgumentTypeError(f"{value!r} is no port")
    return int(value)


def policies(value: str) -> list[str]:
    """Names of policies of ours, each once."""
    names = list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    for name in names:
        try:
            make_policy(name, Random(0))
        except ConfigError:
            text = f"{name!r} is not one of {', '.join(POLICIES)}"
            raise argparse.ArgumentTypeError(text) from None
    return names


def _against(value: str) -> tuple[str, str]:
    name, equals, url = value.partition("=")
    if not name or not equals or not url.startswith("http://"):
        raise argparse.ArgumentTypeError(f"{value!r} is not NAME=http://ADDRESS")
    if name in (*RIVALS, *POLICIES):
        raise argparse.ArgumentTypeError(f"{name} is the name of another contender")
    return name, url
