"""Lab hosts in processes of their own."""

from __future__ import annotations

import os
import signal

import pytest
from aiohttp import ClientConnectionError, ClientPayloadError, ClientSession

from sollol_proxy.lab.process import ChildFailed, spawned
from sollol_proxy.lab.simhost import SimModel, SimSpec, spawned_simhost

SPEC = SimSpec(id="h", models=(SimModel("m"),), resident=("m",), time_scale=10)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_child_answers_and_is_gone_after_the_block() -> None:
    async with spawned_simhost(SPEC) as child:
        pid = child.pid
        async with ClientSession(child.url) as session, session.get("/api/tags") as answer:
            assert (await answer.json())["models"][0]["name"] == "m:latest"
    assert not is_alive(pid)


async def test_child_breaks_off_when_it_is_killed_mid_stream() -> None:
    async with spawned_simhost(SPEC) as child, ClientSession(child.url) as session:
        fields = {"model": "m", "prompt": "x", "options": {"num_predict": 1_000_000}}
        async with session.post("/api/generate", json=fields) as answer:
            await answer.content.readline()
            await child.kill()
            with pytest.raises(ClientConnectionError):
                await session.get("/api/version")


async def test_child_dies_of_the_crash_fault() -> None:
    async with spawned_simhost(SPEC) as child, ClientSession(child.url) as session:
        fault = {"kind": "crash", "after_records": 2}
        async with session.post("/sim/fault", json=fault) as answer:
            assert answer.status == 200
        async with session.post("/api/generate", json={"model": "m", "prompt": "x"}) as answer:
            with pytest.raises(ClientPayloadError):
                await answer.read()
        assert await child.wait() == 1


async def test_child_leaves_on_sigterm_with_code_0() -> None:
    async with spawned_simhost(SPEC) as child:
        os.kill(child.pid, signal.SIGTERM)
        assert await child.wait() == 0


async def test_child_leaves_when_its_parent_closes_the_pipe() -> None:
    async with spawned_simhost(SPEC) as child:
        child.release()
        assert await child.wait() == 0


async def test_child_that_does_not_start_is_reported() -> None:
    with pytest.raises(ChildFailed, match="ended with 2"):
        await spawned("sollol_proxy.lab.simhost", "--spec", "[]").start()
