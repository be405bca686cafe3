"""An event loop in which time runs faster."""

from __future__ import annotations

import asyncio

from sollol_proxy.lab.bench_clock import Heartbeat, run_in_model_time

HOUR_S = 3600.0
SPEED = 1e6


def test_timers_and_timeouts_are_model_seconds() -> None:
    seen: list[float] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        rang = loop.create_future()
        loop.call_later(HOUR_S, rang.set_result, None)
        await rang
        seen.append(loop.time() - started_s)
        try:
            async with asyncio.timeout(HOUR_S):
                await loop.create_future()
        except TimeoutError:
            seen.append(loop.time() - started_s)

    run_in_model_time(work(), SPEED)
    assert seen[0] >= HOUR_S
    assert seen[1] >= 2 * HOUR_S


def test_heartbeat_notes_how_late_each_beat_was() -> None:
    heart = Heartbeat(1.0)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with heart:
            ended = loop.create_future()
            loop.call_later(HOUR_S, ended.set_result, None)
            await ended

    run_in_model_time(work(), SPEED)
    assert heart.lateness_s
    assert all(late_s >= 0 for late_s in heart.lateness_s)
