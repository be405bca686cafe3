"""What `bench overhead` measures of a contender, a measure a function.

Each gets a contender that was started for it, and gives figures under names that are the keys of
the JSON lines. CPU time is the contender's alone, over a window in which nothing begins or ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientError, ClientSession

from sollol_proxy.lab.bench_bytes import ENDLESS, Target
from sollol_proxy.lab.bench_callers import CallFailed, Line
from sollol_proxy.lab.bench_crowds import Loop, Streams, opened
from sollol_proxy.lab.bench_machine import family_memory_bytes
from sollol_proxy.lab.bench_overhead_contenders import Running
from sollol_proxy.lab.bench_overhead_meter import Meter
from sollol_proxy.lab.bench_upstream import GO, HOLD, STATS
from sollol_proxy.lab.simulate_report import quantile

_WARM_UPS = 50
_LEFT_TRIES = 500
_LOOK_EVERY_S = 0.02
_MANY = 4096
"""Requests made ahead; a longer run uses them again."""


@dataclass(frozen=True, slots=True)
class Flows:
    """So many streams at once, with so many records a second each."""

    streams: int
    rate: int

    def __str__(self) -> str:
        return f"{self.streams}@{self.rate}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    pairs: requests to the contender, each with one past it. window_s: of what goes on steadily.
    connections: that ask small requests. records: of each stream that is to end. opening_s: how
    long to wait for streams while none opens. ending_s: for their ends.
    """

    pairs: int = 400
    busy: Flows = Flows(500, 5)
    streams: tuple[Flows, ...] = (Flows(64, 50), Flows(1000, 10))
    window_s: float = 4.0
    connections: int = 32
    many: Flows = Flows(9000, 5)
    records: int = 50
    opening_s: float = 20.0
    ending_s: float = 180.0


QUICK = Sizes(
    pairs=20,
    busy=Flows(20, 20),
    streams=(Flows(16, 50),),
    window_s=0.3,
    connections=4,
    many=Flows(40, 50),
    records=20,
    opening_s=10.0,
    ending_s=20.0,
)
"""For a look at whether everything works: over in seconds, and worth nothing as a figure."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A started contender, the hosts behind it, and how to ask them."""

    running: Running
    direct: Target
    hosts_pid: int
    control_url: str
    session: ClientSession
    sizes: Sizes

    def meter(self) -> Meter:
        """Counting from now on."""
        return Meter(self.running.pid, self.hosts_pid)

    def memory_bytes(self) -> int | None:
        """Of the contender; None = nobody knows."""
        return family_memory_bytes(self.running.pid) if self.running.pid is not None else None

    async def control(self, path: str) -> dict[str, Any]:
        """Tell the hosts something; their counters."""
        try:
            async with self.session.get(self.control_url + path) as response:
                return dict(await response.json())
        except ClientError as error:
            raise CallFailed(f"the hosts do not answer: {error}") from None

    async def have_all_left(self) -> bool:
        """Whether the contender notices that its clients have gone: no stream is open any more."""
        for _ in range(_LEFT_TRIES):
            if not (await self.control(STATS))["open"]:
                return True
            await asyncio.sleep(_LOOK_EVERY_S)
        return False


Measure = Callable[[Stage], Awaitable[dict[str, Any]]]


async def first(stage: Stage) -> dict[str, Any]:
    """The time to the first record, one request at a time, beside that without a contender."""
    await _warm_up(stage.running.target)
    return await _pairs(stage)


async def busy(stage: Stage) -> dict[str, Any]:
    """The same while other streams flow, both through the contender and past it alike."""
    flows = stage.sizes.busy
    await _warm_up(stage.running.target)
    async with _flowing(stage, flows) as streams:
        figures = await _pairs(stage)
        return _prefixed("busy_", figures) | {"busy": str(flows), "busy_open": streams.flowing}


def streams_of(flows: Flows) -> Measure:
    """CPU time a streamed record, with so many streams that go on steadily."""

    async def measure(stage: Stage) -> dict[str, Any]:
        await _warm_up(stage.running.target)
        async with _flowing(stage, flows) as streams:
            await asyncio.sleep(stage.sizes.window_s / 4)  # what opening them left to do
            meter, before, pieces = stage.meter(), streams.records, streams.pieces
            flowing = streams.flowing
            await asyncio.sleep(stage.sizes.window_s)
            used, records = meter.usage(), streams.records - before
            pieces = streams.pieces - pieces
            stats = await stage.control(STATS)
            return {
                "streams": str(flows),
                "open": flowing,
                "broken": streams.broken,
                "cpu_us_per_record": used.cpu_us_per(records),
                "records_per_s": records / used.wall_s,
                "asked_per_s": flowing * flows.rate,
                "records_per_piece": records / pieces if pieces else None,
                "hosts_lateness_s": stats["lateness_s"],
                **used.shares(),
            }

    return measure


async def small(stage: Stage) -> dict[str, Any]:
    """Small requests as fast as they are answered: how many a second, and CPU time for each."""
    target, sizes = stage.running.target, stage.sizes
    requests = [target.embed(number) for number in range(_MANY)]
    async with Loop(target, requests, sizes.connections) as loop:
        await asyncio.sleep(sizes.window_s / 4)
        meter, before = stage.meter(), loop.done
        await asyncio.sleep(sizes.window_s)
        used, done = meter.usage(), loop.done - before
        if not done:
            raise CallFailed(f"no small request was answered; {loop.failed} failed")
        return {
            "cpu_us_per_request": used.cpu_us_per(done),
            "rps": done / used.wall_s,
            # Where others take a part of the core, this is what it would have carried.
            "rps_a_core": done / (used.relay * used.wall_s) if used.relay else None,
            "failed": loop.failed,
            **used.shares(),
        }


async def many(stage: Stage) -> dict[str, Any]:
    """Very many streams that all have to end: whether they do, and the memory of each."""
    flows, sizes = stage.sizes.many, stage.sizes
    await _warm_up(stage.running.target)
    loop = asyncio.get_running_loop()
    before_bytes, asked_s = stage.memory_bytes(), loop.time()
    async with _flowing(stage, flows, sizes.records) as streams:
        open_streams, begun_s = streams.flowing, loop.time()
        meter, pieces = stage.meter(), streams.pieces
        nominal_s = sizes.records / flows.rate
        await asyncio.sleep(nominal_s / 2)
        during_bytes = stage.memory_bytes()
        await streams.all_ended(sizes.ending_s)
        used, records = meter.usage(), streams.records - open_streams
        took_s, pieces = loop.time() - begun_s, streams.pieces - pieces
        stats = await stage.control(STATS)
        # A stream that never opened, or did not end in time, has not ended well either.
        figures = {
            "many": str(flows),
            "many_open": open_streams,
            "many_finished": streams.ended,
            "many_unfinished": flows.streams - streams.ended,
            "many_cpu_us_per_record": used.cpu_us_per(records),
            "many_slowdown": took_s / nominal_s,
            "many_opening_s": begun_s - asked_s,
            "records_per_piece": records / pieces if pieces else None,
            "hosts_lateness_s": stats["lateness_s"],
            **used.shares(),
        }
    if before_bytes is not None and during_bytes is not None and open_streams:
        figures["kb_per_stream"] = (during_bytes - before_bytes) / open_streams / 1000
    return figures


@asynccontextmanager
async def _flowing(stage: Stage, flows: Flows, records: int = ENDLESS) -> AsyncIterator[Streams]:
    """Streams that begin to flow together, once all are open.

    Raises:
        CallFailed: none opens.
    """
    target = stage.running.target
    requests = [target.chat(number, records, flows.rate) for number in range(flows.streams)]
    await stage.control(HOLD)
    try:
        async with opened(target, requests, stage.sizes.opening_s) as streams:
            if not streams.flowing:
                raise CallFailed(f"none of {flows.streams} streams opens")
            await stage.control(GO)
            yield streams
    finally:
        await stage.control(GO)


async def _pairs(stage: Stage) -> dict[str, Any]:
    """Requests one by one, by turns past the contender and through it; milliseconds."""
    past, through = Line(stage.direct), Line(stage.running.target)
    times: tuple[list[float], list[float]] = ([], [])
    meter = stage.meter()
    try:
        for number in range(stage.sizes.pairs):
            both = ((past, times[0]), (through, times[1]))
            for line, found in both if number % 2 else both[::-1]:
                found.append(await line.ask(line.target.chat(number, 2, 0)) * 1000)
    finally:
        past.close()
        through.close()
    without, within = (sorted(found) for found in times)
    figures: dict[str, Any] = {
        f"first_{name}_ms": quantile(within, share) for name, share in _QUANTILES
    }
    if stage.running.target != stage.direct:
        figures |= {
            f"added_{name}_ms": quantile(within, share) - quantile(without, share)
            for name, share in _QUANTILES
        }
    return figures | meter.usage().shares()


async def _warm_up(target: Target) -> None:
    """Let it do once what programs do at their first requests only."""
    line = Line(target)
    try:
        for number in range(_WARM_UPS):
            await line.ask(target.chat(number, 2, 0))
    finally:
        line.close()


_QUANTILES: Sequence[tuple[str, float]] = (("p50", 0.5), ("p99", 0.99))


def _prefixed(prefix: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        key if key.endswith("_cores") else prefix + key: value for key, value in figures.items()
    }
