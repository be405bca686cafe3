"""Who is compared: our policies, nginx and haproxy started here, and whatever else runs already."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from aiohttp import ClientError, ClientSession

from sollol_proxy.lab import bench_serve
from sollol_proxy.lab.bench_configs import Upstream, haproxy_cfg, nginx_conf
from sollol_proxy.lab.bench_machine import pinned
from sollol_proxy.lab.process import end
from sollol_proxy.lab.simspec import SimSpec

NGINX, HAPROXY = "nginx", "haproxy"
RIVALS = (NGINX, HAPROXY)

_FOLDERS = f"{os.defpath}:/usr/sbin:/usr/local/sbin:/sbin"
_READY_TIMEOUT_S = 30.0
_LOOK_EVERY_S = 0.005


class ContenderFailed(Exception):
    """A contender is not installed, or does not get ready."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a contender stands in front of. urls: of the hosts by id."""

    hosts: Sequence[SimSpec]
    urls: dict[str, str]
    speed: float

    def upstreams(self) -> list[Upstream]:
        """The hosts as a load balancer knows them."""
        return [
            Upstream(h.id, self.urls[h.id], h.slots, frozenset(m.name for m in h.models))
            for h in self.hosts
        ]


@dataclass(frozen=True, slots=True)
class Started:
    """Where a contender answers. pid: of our own process; None = it is somebody else's.

    start_s: from its first instruction to its first connection; None = nobody saw it start.
    """

    url: str
    pid: int | None = None
    start_s: float | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody to compare. start: a block within which it answers.

    policy: of ours; empty = somebody else.
    """

    name: str
    start: Callable[[Scene, int], AbstractAsyncContextManager[Started]]
    policy: str = ""


def ours(policy: str) -> Contender:
    """The proxy with a policy: a new process, which has learnt nothing."""

    @asynccontextmanager
    async def start(scene: Scene, seed: int) -> AsyncIterator[Started]:
        config = bench_serve.document(policy, scene.hosts, scene.urls, speed=scene.speed)
        async with (
            bench_serve.spawned_proxy(config, speed=scene.speed, seed=seed) as child,
            ClientSession() as session,
        ):
            await until(
                lambda: are_up(session, child.url, len(scene.hosts)),
                "the proxy does not find its hosts up",
            )
            yield Started(child.url, child.pid)

    return Contender(policy, start, policy)


def rival(name: str) -> Contender:
    """Either nginx or haproxy.

    Raises:
        ContenderFailed: it is not installed.
    """
    program = find_program(name)

    @asynccontextmanager
    async def start(scene: Scene, seed: int) -> AsyncIterator[Started]:
        port = free_port()
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
            words = configured(name, scene.upstreams(), port, Path(folder))
            async with program_on((program, *words), port, Path(folder)) as started:
                yield Started(started.url)

    return Contender(name, start)


def running(name: str, url: str) -> Contender:
    """Somebody whom somebody else has started."""

    @asynccontextmanager
    async def start(scene: Scene, seed: int) -> AsyncIterator[Started]:
        yield Started(url)

    return Contender(name, start)


def find_program(name: str) -> str:
    """The path of a program.

    Raises:
        ContenderFailed: it is not installed.
    """
    program = shutil.which(name) or shutil.which(name, path=_FOLDERS)
    if program is None:
        raise ContenderFailed(f"{name} is not installed")
    return program


def configured(name: str, hosts: Sequence[Upstream], port: int, folder: Path) -> tuple[str, ...]:
    """Write the configuration of nginx or haproxy; the arguments to start it with."""
    folder.chmod(0o755)  # nginx started by root works as somebody else
    if name == NGINX:
        file = folder / "nginx.conf"
        file.write_text(nginx_conf(hosts, port), encoding="ascii")
        return ("-p", str(folder), "-c", str(file))
    file = folder / "haproxy.cfg"
    file.write_text(haproxy_cfg(hosts, port), encoding="ascii")
    return ("-db", "-f", str(file))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def program_on(
    command: Sequence[str],
    port: int,
    folder: Path,
    *,
    cores: frozenset[int] = frozenset(),
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Started]:
    """A program that listens on a port of 127.0.0.1, for the block.

    folder: gets what it prints, as stdout.log and stderr.log. cores: it and what it starts may
    use; empty = all. environment: None = this process's.

    Raises:
        ContenderFailed: it ends at its start, or does not listen within 30 s.
    """
    said = folder / "stderr.log"
    began_s = monotonic()
    with said.open("wb") as stderr, (folder / "stdout.log").open("wb") as stdout, pinned(cores):
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=stdout, stderr=stderr, env=environment
        )
    try:
        await until(lambda: _accepts(port, process), f"{command[0]} does not listen")
        if process.returncode is not None:
            lines = said.read_text(errors="replace").splitlines()
            raise ContenderFailed(f"{command[0]} ended at its start: {' / '.join(lines)}")
        yield Started(f"http://127.0.0.1:{port}", process.pid, monotonic() - began_s)
    finally:
        await end(process)


async def until(holds: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    """Wait until something holds.

    Raises:
        ContenderFailed: it did not within 30 s; with `otherwise` as its text.
    """
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            while not await holds():  # noqa: ASYNC110 - another process sets no event
                await asyncio.sleep(_LOOK_EVERY_S)
    except TimeoutError:
        raise ContenderFailed(otherwise) from None


async def _accepts(port: int, process: Process) -> bool:
    """Whether somebody listens there, or never will."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return process.returncode is not None
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


async def are_up(session: ClientSession, url: str, hosts: int) -> bool:
    """Whether our proxy finds so many hosts up."""
    try:
        async with session.get(f"{url}/sollol/stats") as response:
            document = await response.json()
    except ClientError:
        return False
    return bool(document["hosts"]["routable"] == hosts)
