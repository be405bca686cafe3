"""Running streams are looked at while there are any, all by one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from sollol_proxy.core.types import AttemptResult
from sollol_proxy.server.dispatcher import Dispatcher
from sollol_proxy.server.sampler import Sampler
from tests.core.builders import job, scheduler, spec

OFTEN_S = 0.001


async def test_sampler_tells_what_all_counters_say_until_they_are_removed() -> None:
    told: asyncio.Queue[Mapping[str, int]] = asyncio.Queue()
    counts = {"a": 1, "b": 5}
    sampler = Sampler(told.put_nowait, OFTEN_S)
    sampler.add("a", lambda: counts["a"])
    sampler.add("b", lambda: counts["b"])
    assert await told.get() == {"a": 1, "b": 5}
    counts["a"] = 2
    assert await told.get() == {"a": 2, "b": 5}
    sampler.remove("b")
    assert await told.get() == {"a": 2}
    sampler.close()


async def test_sampler_rests_when_nothing_streams() -> None:
    told: asyncio.Queue[Mapping[str, int]] = asyncio.Queue()
    sampler = Sampler(told.put_nowait, OFTEN_S)
    assert sampler.is_resting
    sampler.remove("never began")
    sampler.add("a", lambda: 1)
    await told.get()
    assert not sampler.is_resting
    sampler.remove("a")
    assert sampler.is_resting


async def test_scheduler_is_told_how_far_a_lease_has_come() -> None:
    made = scheduler(spec("a"))
    seen: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
    progress = made.progress

    def watched(job_id: str, tokens: int, now: float) -> object:
        seen.put_nowait((job_id, tokens))
        return progress(job_id, tokens, now)

    made.progress = watched  # type: ignore[method-assign, assignment]
    loop = asyncio.get_running_loop()
    dispatcher = Dispatcher(made, loop.time, lambda host_id: None, sample_every_s=OFTEN_S)
    tokens = 3
    async with dispatcher.lease(job("1")) as lease:
        lease.first_byte()
        lease.streams(lambda: tokens)
        assert await seen.get() == ("1", 3)
        tokens = 9
        while await seen.get() != ("1", 9):
            pass
        lease.done(AttemptResult.COMPLETED)
    dispatcher.close()
