"""A bench that a signal ends: its exit code, and that nothing it has started is left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sollol_proxy.lab.bench_machine import family

PATIENCE_S = 60.0

POLICIES = (
    *("policies", "--pool", "hom4", "--workload", "uniform", "--load", "0.1"),
    *("--requests", "1000", "--time-scale", "1", "--policies", "", "--nginx"),
)
# For both the contender is nginx, which would outlive the command if nobody ended it.
OVERHEAD = ("overhead", "--contenders", "nginx", "--measures", "streams", "--window", "900")


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended; one that nobody waited for has."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@asynccontextmanager
async def command(*words: str) -> AsyncIterator[Process]:
    """`sollol-proxy bench WORDS`; whatever comes, nothing of it outlives the block."""
    call = (sys.executable, "-m", "sollol_proxy", "bench", *words)
    process = await asyncio.create_subprocess_exec(*call, stdin=PIPE, stdout=DEVNULL, stderr=PIPE)
    try:
        yield process
    finally:
        for pid in family(process.pid) if process.returncode is None else ():
            os.kill(pid, signal.SIGKILL)
        await process.communicate()


async def serving(process: Process) -> list[int]:
    """The command and what it has started, once nginx serves: measuring begins or has begun."""
    async with asyncio.timeout(PATIENCE_S):
        while not any("worker process" in command_of(pid) for pid in family(process.pid)):
            assert process.returncode is None
            await asyncio.sleep(0)
    return family(process.pid)


@pytest.mark.parametrize(
    ("words", "number"),
    [(POLICIES, signal.SIGTERM), (OVERHEAD, signal.SIGINT)],
    ids=["policies", "overhead"],
)
async def test_signal_ends_everything_that_was_started(
    words: tuple[str, ...], number: signal.Signals
) -> None:
    pytest.importorskip("scipy")
    async with command(*words) as process:
        members = await serving(process)
        assert len(members) >= 4  # itself, the hosts, nginx and its worker
        process.send_signal(number)
        process.send_signal(number)  # the second one changes nothing
        async with asyncio.timeout(PATIENCE_S):
            _, said = await process.communicate()
        assert process.returncode == 128 + number
        assert b"Traceback" not in said
        assert [pid for pid in members if is_running(pid)] == []


async def test_signal_ends_the_wait_for_enter() -> None:
    async with command(*OVERHEAD, "--hold") as process:
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while b"press Enter" not in await process.stderr.readline():
                assert process.returncode is None
            members = family(process.pid)
            assert len(members) == 2  # itself and the hosts
            process.send_signal(signal.SIGTERM)
            await process.communicate()
        assert process.returncode == 128 + signal.SIGTERM
        assert [pid for pid in members if is_running(pid)] == []
