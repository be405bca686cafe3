"""Who is compared by `bench overhead`: nobody in between, ours, and other relays."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import ClientSession

from sollol_proxy.lab.bench_bytes import Target
from sollol_proxy.lab.bench_configs import Upstream, haproxy_cfg, nginx_conf
from sollol_proxy.lab.bench_contenders import (
    HAPROXY,
    NGINX,
    Started,
    are_up,
    find_program,
    free_port,
    program_on,
    until,
)
from sollol_proxy.lab.bench_machine import most_descriptors
from sollol_proxy.lab.bench_upstream import addresses_of

DIRECT, SOLLOL, PLAIN, SERVER = "direct", "sollol", "plain", "server"
BUILT_IN = (DIRECT, SOLLOL, PLAIN, SERVER, NGINX, HAPROXY)

SLOTS = 1024
"""Of a model on a host, the most that our configuration takes."""

_SPARE_DESCRIPTORS = 900
"""What a program opens besides the connections to clients and hosts."""


@dataclass(frozen=True, slots=True)
class Stand:
    """What a contender stands in front of, and where it may run. cores: empty = anywhere."""

    urls: Sequence[str]
    cores: frozenset[int]
    policy: str

    @property
    def upstreams(self) -> list[Upstream]:
        """The hosts as a load balancer knows them."""
        return [Upstream(f"host-{n}", url, SLOTS) for n, url in enumerate(self.urls, 1)]

    @property
    def direct(self) -> Target:
        """The hosts themselves, in turn."""
        return Target(addresses_of(self.urls))


@dataclass(frozen=True, slots=True)
class Running:
    """A contender that answers. pid: None = it has no process, or nobody knows which.

    start_s: None = nobody saw it start.
    """

    target: Target
    pid: int | None = None
    start_s: float | None = None


@dataclass(frozen=True, slots=True)
class Relay:
    """A contender. start: a block within which it answers."""

    name: str
    start: Callable[[Stand], AbstractAsyncContextManager[Running]]


def built_in(name: str) -> Relay:
    """One of those that need nothing but their program.

    Raises:
        ContenderFailed: it is not installed.
    """
    if name == DIRECT:
        return Relay(name, _direct)
    if name == SOLLOL:
        return Relay(name, _sollol)
    if name == PLAIN:
        return Relay(name, _plain)
    if name == SERVER:
        return Relay(name, _server)
    return Relay(name, _program(name, find_program(name)))


def somebody_elses(name: str, url: str, pid: int | None) -> Relay:
    """One that runs already. pid: it and all that descend from it are counted; None = nobody."""

    @asynccontextmanager
    async def start(stand: Stand) -> AsyncIterator[Running]:
        path = urlsplit(url).path.rstrip("/")
        yield Running(Target(addresses_of([url]), path), pid)

    return Relay(name, start)


@asynccontextmanager
async def _direct(stand: Stand) -> AsyncIterator[Running]:
    yield Running(stand.direct)


@asynccontextmanager
async def _sollol(stand: Stand) -> AsyncIterator[Running]:
    """`sollol-proxy serve` as it is by default: metrics, and a line a request into a file."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-sollol-") as folder:
        file = Path(folder) / "sollol.yaml"
        config = {
            "listen": f"127.0.0.1:{port}",
            "policy": stand.policy,
            "hosts": [
                {"id": h.id, "url": h.url, "slots": h.slots, "max_models": 16}
                for h in stand.upstreams
            ],
        }
        file.write_text(json.dumps(config), encoding="ascii")  # JSON is YAML
        command = (sys.executable, "-m", "sollol_proxy", "serve", "--config", str(file))
        async with (
            program_on(
                command, port, Path(folder), cores=stand.cores, environment=_environment()
            ) as started,
            ClientSession() as session,
        ):
            await until(
                lambda: are_up(session, started.url, len(stand.urls)),
                "the proxy does not find its hosts up",
            )
            yield _running(started)


def _plain(stand: Stand) -> AbstractAsyncContextManager[Running]:
    return _bench_plain(stand, [word for url in stand.urls for word in ("--host", url)])


def _server(stand: Stand) -> AbstractAsyncContextManager[Running]:
    """No relay at all: aiohttp's server, which answers embeddings itself."""
    return _bench_plain(stand, ["--alone"])


@asynccontextmanager
async def _bench_plain(stand: Stand, words: Sequence[str]) -> AsyncIterator[Running]:
    port = free_port()
    command = (sys.executable, "-m", "sollol_proxy.lab.bench_plain", "--port", str(port), *words)
    with tempfile.TemporaryDirectory(prefix="bench-plain-") as folder:
        async with program_on(
            command, port, Path(folder), cores=stand.cores, environment=_environment()
        ) as started:
            yield _running(started)


def _environment() -> dict[str, str]:
    """Settings of whoever measures are not those of what is measured.

    Nor is it measured without bytecode: what is installed has it, and to compile all modules takes
    a quarter of a start. The first start writes it.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SOLLOL_") and name != "PYTHONDONTWRITEBYTECODE"
    }


def _program(name: str, program: str) -> Callable[[Stand], AbstractAsyncContextManager[Running]]:
    @asynccontextmanager
    async def start(stand: Stand) -> AsyncIterator[Running]:
        port = free_port()
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as place:
            folder = Path(place)
            words = _configured(name, stand.upstreams, port, folder)
            async with program_on((program, *words), port, folder, cores=stand.cores) as started:
                yield _running(started)

    return start


def _configured(name: str, hosts: Sequence[Upstream], port: int, folder: Path) -> tuple[str, ...]:
    """With a line a request in a file, as ours writes one."""
    folder.chmod(0o755)  # nginx started by root works as somebody else
    most = most_descriptors()
    if name == NGINX:
        file = folder / "nginx.conf"
        # Where less than a sixteenth of its connections is free, nginx closes new ones unasked.
        text = nginx_conf(hosts, port, access_log="access.log", connections=most)
        file.write_text(text, encoding="ascii")
        return ("-p", str(folder), "-c", str(file))
    file = folder / "haproxy.cfg"
    # haproxy counts clients only, and wants two descriptors for each.
    clients = (most - _SPARE_DESCRIPTORS) // 2
    # Its queue counts the jobs of a host whatever their model.
    hosts = [replace(host, slots=clients) for host in hosts]
    text = haproxy_cfg(hosts, port, has_log=True, connections=clients, buffer_bytes=None)
    file.write_text(text, encoding="ascii")
    return ("-db", "-f", str(file))


def _running(started: Started) -> Running:
    return Running(Target(addresses_of([started.url])), started.pid, started.start_s)
