"""`sollol-proxy demo`: a pool to look at, on one machine and without Ollama.

Two hosts with a real, very small model where its packages are installed, else three simulated
ones of different speeds. They run as child processes and end with the proxy.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from sollol_proxy.config.schema import Config, split_listen
from sollol_proxy.lab.engine import CHAT_MODEL, available, spawned_engine
from sollol_proxy.lab.process import Child, ChildFailed
from sollol_proxy.lab.simhost import SimModel, preset, spawned_simhost
from sollol_proxy.server import lifecycle

_OLLAMAS_ADDRESS = ("127.0.0.1", 11434)
_OTHER_ADDRESS = ("127.0.0.1", 11435)
_NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")

_SIMULATED_CLASSES = ("4090", "3060", "cpu")
# The real model's name stands for both, so that what the README says to try works either way.
_SIMULATED_MODELS = (
    SimModel(CHAT_MODEL, size_bytes=98_000_000, params_b=0.135),
    SimModel("llama3.2:3b", size_bytes=2_000_000_000, params_b=3.2),
    SimModel("qwen2.5:7b", size_bytes=4_700_000_000, params_b=7.6),
    SimModel("nomic-embed-text", 274_000_000, 0.137, capabilities=("embedding",)),
)


@dataclass(frozen=True, slots=True)
class _Member:
    """A host of the demo's pool: its child process and what the configuration says of it."""

    id: str
    child: Child
    settings: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        type=_address,
        help="default: 127.0.0.1:11434, or the next port where that is taken",
    )
    parser.add_argument("--simulate", action="store_true", help="scripted hosts, no real model")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; its exit code."""
    return lifecycle.run(demo(arguments.listen, simulate=arguments.simulate))


def _address(value: str) -> str:
    try:
        split_listen(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} {error}") from None
    return value


async def demo(
    listen: str | None,
    *,
    hosts: int = 2,
    simulate: bool = False,
    say: Callable[[str], None] | None = None,
) -> int:
    """Run the proxy in front of hosts of its own until a signal; the exit code.

    listen: ADDRESS:PORT; None = Ollama's own, or the next port where something listens there.
    hosts: real ones, 1 to 8. say: takes each line for the person who watches.
    """
    say = say or _say
    reason = "asked for" if simulate else available()
    if reason is None:
        members = _real_pool(hosts)
        say(f"Starting {hosts} hosts with real tiny models, one CPU thread each.")
    else:
        members = _simulated_pool()
        say(f"Starting {len(members)} simulated hosts ({reason}); their answers are word lists.")
    address = listen or _free_address(say)
    async with AsyncExitStack() as stack:
        try:
            for member in members:
                await stack.enter_async_context(member.child)
                say(f"  {member.id}: {member.child.url}")
        except ChildFailed as error:
            say(f"A host did not start: {error}")
            return 1
        config = Config.model_validate(
            {
                "listen": address,
                "hosts": [
                    {"id": member.id, "url": member.child.url, **member.settings}
                    for member in members
                ],
            }
        )
        return await lifecycle.serve(config, ready=lambda url: _say_what_to_try(say, url))


def _real_pool(count: int) -> list[_Member]:
    settings = {"memory": 0, "labels": {"kind": "real, tiny"}}
    return [_Member(name, spawned_engine(), settings) for name in _NAMES[:count]]


def _simulated_pool() -> list[_Member]:
    specs = [
        preset(name, models=_SIMULATED_MODELS, resident=(CHAT_MODEL,))
        for name in _SIMULATED_CLASSES
    ]
    return [
        _Member(
            spec.id,
            spawned_simhost(spec),
            {
                "memory": spec.memory_bytes if spec.has_gpu else 0,
                "labels": {"kind": "simulated"},
            },
        )
        for spec in specs
    ]


def _free_address(say: Callable[[str], None]) -> str:
    host, port = _OLLAMAS_ADDRESS
    with socket.socket() as probe:
        # As a server binds: a port that was in use a moment ago counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            say(f"Port {port} is taken (by an Ollama?), so this listens on {_OTHER_ADDRESS[1]}.")
            host, port = _OTHER_ADDRESS
    return f"{host}:{port}"


def _say_what_to_try(say: Callable[[str], None], url: str) -> None:
    model = CHAT_MODEL
    body = f'{{"model":"{model}","prompt":"Why is the sky blue?"}}'
    python = (
        f"from ollama import Client; print(Client('{url}').generate('{model}', 'Hi')['response'])"
    )
    for line in (
        "",
        f"The pool answers at {url}. Try, in another terminal:",
        f"  curl -N {url}/api/generate -d '{body}'",
        f"  OLLAMA_HOST={url} ollama run {model}",
        f'  python -c "{python}"',
        f"What was decided and why: {url}/sollol/",
        "Ctrl-C ends the proxy and its hosts.",
    ):
        say(line)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
