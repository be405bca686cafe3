"""One run of a bench: one contender, one pool of hosts that begin anew, one list of requests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from aiohttp import ClientSession

from sollol_proxy.lab.bench_contenders import Contender, ContenderFailed, Scene
from sollol_proxy.lab.bench_load import Answer, Load
from sollol_proxy.lab.bench_machine import Busy, machine, processes
from sollol_proxy.lab.bench_pool import spawned_pool
from sollol_proxy.lab.simulate import Scenario
from sollol_proxy.lab.workload import Request

_RESET_TRIES = 500
_LOOK_EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class Log:
    """What the hosts say of a run.

    host_ids, begun_s: by request; when a slot took it, model seconds on the machine's clock.
    lateness_s: of the hosts' timers, model seconds.
    """

    host_ids: Mapping[str, str]
    begun_s: Mapping[str, float]
    loads: Mapping[str, int]
    lateness_s: Sequence[float]


@dataclass(frozen=True, slots=True)
class Done:
    """A finished run. started_s: the clients' first instant, on the clock of `Log.begun_s`.

    busy_cores: of the machine; used_cores: by the hosts, the clients and our proxy. None = nobody
    knows.
    """

    answers: Sequence[Answer]
    lateness_s: Sequence[float]
    log: Log
    started_s: float
    busy_cores: float | None
    used_cores: float | None


@dataclass(slots=True)
class Arena:
    """The hosts, started, and the way to their control port."""

    scene: Scene
    session: ClientSession
    control_url: str
    pid: int

    async def reset(self) -> None:
        """Empty the hosts' memory, once nothing is left in them.

        Raises:
            ContenderFailed: somebody goes on asking.
        """
        for _ in range(_RESET_TRIES):
            async with self.session.post(f"{self.control_url}/reset") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(_LOOK_EVERY_S)
        raise ContenderFailed("requests of the run before are still in the hosts")

    async def slow_down(self, host_id: str, factor: float) -> None:
        """Let a host compute so many times slower until the next reset."""
        asked = {"host": host_id, "factor": factor}
        async with self.session.post(f"{self.control_url}/slow", json=asked) as response:
            response.raise_for_status()

    async def log(self) -> Log:
        """What the hosts have done since the last reset."""
        async with self.session.get(f"{self.control_url}/log") as response:
            document = await response.json()
        answered = document["answered"]
        return Log(
            {request_id: host_id for request_id, host_id, _ in answered},
            {request_id: begun_s for request_id, _, begun_s in answered},
            document["loads"],
            document["lateness_s"],
        )


@asynccontextmanager
async def arena(scenario: Scenario, speed: float, first_port: int = 0) -> AsyncIterator[Arena]:
    """The scenario's hosts in a process of their own, for the block."""
    async with (
        spawned_pool(scenario.hosts, speed=speed, first_port=first_port) as child,
        ClientSession() as session,
    ):
        async with session.get(f"{child.url}/hosts") as response:
            urls = await response.json()
        yield Arena(Scene(scenario.hosts, urls, speed), session, child.url, child.pid)


async def run_once(
    arena: Arena,
    contender: Contender,
    requests: Sequence[Request],
    seed: int,
    watch: Callable[[Load], Coroutine[Any, Any, None]] | None = None,
) -> Done:
    """Ask the contender all the requests. watch: runs beside, and is cancelled at their end.

    Raises:
        ContenderFailed: it does not start.
        ChildFailed: nor does its process.
    """
    await arena.reset()
    async with contender.start(arena.scene, seed) as started:
        pids = [os.getpid(), arena.pid, *([started.pid] if started.pid else [])]
        load = Load(started.url, arena.scene.speed)
        before = machine(), processes(pids)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch(load)) if watch is not None else None
            await load.run(requests)
            if watching is not None:
                watching.cancel()
        busy, used = machine(), processes(pids)
        log = await arena.log()
    return Done(
        load.answers,
        load.lateness_s,
        log,
        load.started_s * arena.scene.speed,
        _cores(before[0], busy),
        _cores(before[1], used),
    )


def requests_of(scenario: Scenario, seed: int) -> list[Request]:
    """The requests of a seed: the same as in the simulation."""
    return scenario.workload.requests(scenario.rate_rps, scenario.requests, Random(seed))


def _cores(before: Busy | None, after: Busy | None) -> float | None:
    return None if before is None or after is None else after.cores_since(before)
