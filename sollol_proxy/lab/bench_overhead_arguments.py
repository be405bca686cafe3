"""The arguments of `sollol-proxy bench overhead`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from urllib.parse import urlsplit

from sollol_proxy.config.schema import Config
from sollol_proxy.core.policies import POLICIES
from sollol_proxy.lab.bench_arguments import add_hold_arguments, count, policies, positive
from sollol_proxy.lab.bench_overhead_contenders import BUILT_IN
from sollol_proxy.lab.bench_overhead_measures import QUICK, Flows, Sizes
from sollol_proxy.lab.bench_upstream import TICKS_PER_S

SMALL, MANY = "small", "many"
MEASURES = ("first", "busy", "streams", SMALL, MANY)

_FULL = Sizes()
_MOST_HOSTS = 200


@dataclass(frozen=True, slots=True)
class Other:
    """A contender that runs already."""

    name: str
    url: str
    pid: int | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument(
        "--contenders",
        metavar="NAME,...",
        type=_built_in,
        help=f"of {', '.join(BUILT_IN)}; default: all that are installed, without `server`",
    )
    parser.add_argument(
        "--contender",
        metavar="NAME=URL[,pid=PID]",
        type=_other,
        action="append",
        default=[],
        help="a proxy that runs already and has the same hosts; repeatable; with its process, CPU "
        "time and memory count; a URL that ends in /v1/chat/completions is asked only OpenAI's "
        "routes",
    )
    parser.add_argument(
        "--policy",
        metavar="NAME",
        type=_policy,
        default=Config().policy,
        help=f"of ours: {', '.join(POLICIES)} or package.module:Class",
    )
    parser.add_argument(
        "--measures",
        metavar="NAME,...",
        type=_measures,
        default=list(MEASURES),
        help=f"of {', '.join(MEASURES)}; default: all",
    )
    _add_load_arguments(parser)
    add_hold_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="write one JSON line a run; - = stdout")
    parser.add_argument("--plots", metavar="DIR", help="draw a picture (needs matplotlib)")


def _add_load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", metavar="N", type=count, help="of every measure; default 3")
    parser.add_argument(
        "--hosts", metavar="N", type=_hosts, help="default 4, or as many as have a slot a stream"
    )
    parser.add_argument(
        "--streams",
        metavar="N@RATE,...",
        type=_several_flows,
        help="streams at once, and records a second of each; default "
        + ",".join(map(str, _FULL.streams)),
    )
    parser.add_argument(
        "--busy",
        metavar="N@RATE",
        type=_flows,
        help=f"streams that flow while first records are timed; default {_FULL.busy}",
    )
    parser.add_argument(
        "--many",
        metavar="N@RATE",
        type=_flows,
        help=f"streams that all have to end; default {_FULL.many}",
    )
    parser.add_argument(
        "--window", metavar="S", type=positive, help=f"seconds counted; default {_FULL.window_s:g}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small and one round: whether everything works"
    )


def sizes_of(options: argparse.Namespace) -> Sizes:
    """How much is to be measured."""
    base = QUICK if options.quick else _FULL
    return Sizes(
        pairs=base.pairs,
        busy=options.busy or base.busy,
        streams=options.streams or base.streams,
        window_s=options.window or base.window_s,
        connections=base.connections,
        many=options.many or base.many,
        records=base.records,
        opening_s=base.opening_s,
        ending_s=base.ending_s,
    )


def rounds_of(options: argparse.Namespace) -> int:
    """How often everything is measured."""
    return int(options.rounds or (1 if options.quick else 3))


def _built_in(value: str) -> list[str]:
    return _names_of(value, BUILT_IN)


def _measures(value: str) -> list[str]:
    return _names_of(value, MEASURES)


def _names_of(value: str, known: tuple[str, ...]) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
    return names


def _policy(value: str) -> str:
    names = policies(value)
    if len(names) != 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not one policy")
    return names[0]


def _hosts(value: str) -> int:
    number = count(value)
    if number > _MOST_HOSTS:
        raise argparse.ArgumentTypeError(f"more than {_MOST_HOSTS} hosts")
    return number


def _several_flows(value: str) -> tuple[Flows, ...]:
    return tuple(_flows(part) for part in value.split(","))


def _flows(value: str) -> Flows:
    streams, at, rate = value.partition("@")
    if not at:
        raise argparse.ArgumentTypeError(f"{value!r} is not STREAMS@RATE")
    flows = Flows(count(streams), count(rate))
    if TICKS_PER_S % flows.rate:
        raise argparse.ArgumentTypeError(f"{TICKS_PER_S} is no multiple of {flows.rate} a second")
    return flows


def _other(value: str) -> Other:
    name, equals, rest = value.partition("=")
    url, _, setting = rest.partition(",")
    if not name or not equals or not _is_address(url):
        raise argparse.ArgumentTypeError(f"{value!r} is not NAME=http://ADDRESS")
    if name in BUILT_IN:
        raise argparse.ArgumentTypeError(f"{name} is the name of another contender")
    key, _, pid = setting.partition("=")
    if setting and (key != "pid" or not pid.isdecimal()):
        raise argparse.ArgumentTypeError(f"{setting!r} is not pid=NUMBER")
    return Other(name, url, int(pid) if setting else None)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and bool(parts.hostname) and (parts.port or 80) > 0
    except ValueError:  # the port is no number
        return False
