"""Leases: whichever way a block is left, the slot comes back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import AttemptResult, HostState
from sollol_proxy.errors import ClientGone, Draining, Expired, NoHost, NoModel, QueueFull
from sollol_proxy.server.dispatcher import Dispatcher
from tests.core.builders import down, job, report, scheduler, spec


def dispatcher(*specs: object, **rules: object) -> Dispatcher:
    made = scheduler(*specs, **rules)  # type: ignore[arg-type]
    # The loop's own clock starts anywhere; the scheduler only asks that it does not go back.
    return Dispatcher(made, asyncio.get_running_loop().time, lambda host_id: None)


def in_flight(made: Dispatcher) -> int:
    return sum(host.in_flight for host in made.snapshot().hosts)


async def hold(made: Dispatcher, job_id: str, until: asyncio.Event) -> str:
    async with made.lease(job(job_id)) as lease:
        await until.wait()
        return lease.decision.host_id


async def until_waiting(made: Dispatcher, count: int) -> None:
    while made.snapshot().waiting_total != count:  # noqa: ASYNC110 - plain calls, no events
        await asyncio.sleep(0)


async def test_lease_holds_its_slot_for_the_block() -> None:
    made = dispatcher(spec("a"))
    async with made.lease(job("1")) as lease:
        assert lease.decision.host_id == "a"
        assert in_flight(made) == 1
        lease.done(AttemptResult.COMPLETED)
    assert in_flight(made) == 0


async def test_lease_waits_until_the_slot_is_free() -> None:
    made = dispatcher(spec("a"))
    free = asyncio.Event()
    first = asyncio.create_task(hold(made, "1", free))
    second = asyncio.create_task(hold(made, "2", free))
    await until_waiting(made, 1)
    free.set()
    assert await first == await second == "a"
    assert in_flight(made) == 0


@pytest.mark.parametrize("error", [ValueError, ClientGone])
async def test_lease_returns_its_slot_when_the_block_raises(error: type[Exception]) -> None:
    made = dispatcher(spec("a"))
    with pytest.raises(error):
        async with made.lease(job("1")):
            raise error
    assert in_flight(made) == 0
    failures = made.snapshot().hosts[0].failures
    assert failures == (0 if error is ClientGone else 1)


async def test_lease_returns_its_slot_when_its_holder_is_cancelled() -> None:
    made = dispatcher(spec("a"))
    task = asyncio.create_task(hold(made, "1", asyncio.Event()))
    while in_flight(made) != 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert in_flight(made) == 0
    assert made.snapshot().hosts[0].failures == 0


async def test_waiting_job_leaves_the_queue_when_its_client_leaves() -> None:
    made = dispatcher(spec("a"))
    async with made.lease(job("1")):
        task = asyncio.create_task(hold(made, "2", asyncio.Event()))
        await until_waiting(made, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert made.snapshot().waiting_total == 0


@pytest.mark.parametrize("order", ["dispatched first", "cancelled first"])
async def test_slot_is_not_lost_when_dispatch_and_departure_fall_together(order: str) -> None:
    """Both orders within one tick of the loop, before the waiter runs again."""
    made = dispatcher(spec("a"))
    lease = made.lease(job("1"))
    await lease.__aenter__()
    task = asyncio.create_task(hold(made, "2", asyncio.Event()))
    await until_waiting(made, 1)
    if order == "cancelled first":
        task.cancel()
    await lease.__aexit__(None, None, None)
    if order == "dispatched first":
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert in_flight(made) == 0
    async with made.lease(job("3")) as after:
        assert after.decision.host_id == "a"


async def test_refusals_become_exceptions() -> None:
    made = dispatcher(spec("a", deny=("secret:*",)), max_waiting=0)
    made.report(report("a", "llama3:latest", "secret:1"))
    with pytest.raises(NoModel):
        async with made.lease(job("x", model="secret:1")):
            pass
    async with made.lease(job("1")):
        with pytest.raises(QueueFull) as full:
            async with made.lease(job("2")):
                pass
    assert full.value.retry_after_s >= 1
    with pytest.raises(NoHost):
        async with dispatcher().lease(job("3")):
            pass


async def test_deadline_rings_by_the_timer() -> None:
    made = dispatcher(spec("a"))
    now = asyncio.get_running_loop().time()
    async with made.lease(job("1", arrived_s=now)):
        with pytest.raises(Expired):
            async with made.lease(job("2", arrived_s=now, deadline_s=now + 0.01)):
                pass


async def test_job_without_a_host_is_refused_by_the_timer() -> None:
    made = dispatcher(spec("a"), no_host_wait_s=0.01)
    for _ in range(2):
        made.report(down("a"))
    with pytest.raises(NoHost, match="none of 1 hosts is up"):
        async with made.lease(job("1", arrived_s=asyncio.get_running_loop().time())):
            pass
    made.close()


async def test_ejected_host_is_asked_about_by_the_timer() -> None:
    asked: asyncio.Queue[str] = asyncio.Queue()
    made = Dispatcher(scheduler(spec("a")), asyncio.get_running_loop().time, asked.put_nowait)
    async with made.lease(job("1")) as lease:
        lease.done(AttemptResult.UNREACHABLE, detail="refused")
    assert made.snapshot().hosts[0].state is HostState.EJECTED
    assert await asked.get() == "a"
    made.close()


async def test_drain_refuses_new_jobs_and_waits_for_the_running() -> None:
    made = dispatcher(spec("a"))
    free = asyncio.Event()
    running = asyncio.create_task(hold(made, "1", free))
    while in_flight(made) != 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert not await made.drain(0.0)
    with pytest.raises(Draining):
        async with made.lease(job("2")):
            pass
    free.set()
    assert await made.drain(10.0)
    await running


@given(ends=st.lists(st.sampled_from(["done", "error", "gone", "cancel"]), max_size=30))
def test_no_slot_stays_held_after_any_mix_of_ends(ends: list[str]) -> None:
    async def one(made: Dispatcher, number: int, how: str) -> None:
        async with made.lease(job(f"{number}")) as lease:
            await asyncio.sleep(0)
            if how == "done":
                lease.done(AttemptResult.COMPLETED)
            elif how == "error":
                raise OSError("boom")
            elif how == "gone":
                raise ClientGone

    async def run() -> None:
        made = dispatcher(spec("a", slots=2), spec("b"), max_waiting=100)
        tasks = [asyncio.create_task(one(made, number, how)) for number, how in enumerate(ends)]
        await asyncio.sleep(0)
        for task, how in zip(tasks, ends, strict=True):
            if how == "cancel":
                task.cancel()
            made.report(report("a"))
            made.report(report("b"))
        pending = set(tasks)
        while pending:
            _, pending = await asyncio.wait(pending, timeout=0.001)
            made.report(report("a"))
            made.report(report("b"))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert in_flight(made) == 0
        assert made.snapshot().waiting_total == 0
        made.close()

    asyncio.run(run())


async def test_recall_ends_the_wait_for_a_first_byte_and_nothing_later() -> None:
    made = dispatcher(spec("a", slots=2), spec("b", slots=2))
    with pytest.raises(TimeoutError):  # noqa: PT012 - what is recalled is a block
        async with made.lease(job("1")) as lease, lease.recallable():
            for _ in range(2):
                made.report(down(lease.decision.host_id))
            await asyncio.Event().wait()
    async with made.lease(job("2")) as lease:
        async with lease.recallable():
            pass
        for _ in range(2):
            made.report(down(lease.decision.host_id))
        await asyncio.sleep(0)
        lease.done(AttemptResult.COMPLETED)
    made.close()
    assert in_flight(made) == 0
