"""Lab hosts in processes of their own: starting, announcing, stopping.

A host prints one line when it is ready. It runs in a session of its own, so that Ctrl-C in a
terminal reaches only the parent, and leaves when its standard input (a pipe that nobody writes
to) ends, so that it does not outlive a parent that was killed.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Self

_READY = "listening on "
_UNTIL_EOF = "--until-eof"
_READY_TIMEOUT_S = 60.0
_TERM_TIMEOUT_S = 5.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ChildFailed(Exception):
    """A host's process ended, or said nothing, instead of getting ready."""


class Child:
    """A lab host in a process of its own; `async with` starts it and ends it."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self._arguments = arguments
        self._process: Process | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """Base address of the host."""
        return self._url

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._running().pid

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the process and wait until its host is ready.

        Raises:
            ChildFailed: it ended first, or took longer than a minute.
        """
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *self._arguments, stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                self._url = await self._ready_url()
        except BaseException:
            await self.stop()
            raise

    async def kill(self) -> None:
        """SIGKILL: what a crash of the whole host looks like."""
        process = self._running()
        with suppress(ProcessLookupError):
            process.kill()
        await self._wait_and_close(process)

    def release(self) -> None:
        """Close the child's standard input: it leaves, as it would if this process died."""
        stdin = self._running().stdin
        if stdin is not None:
            stdin.close()

    async def wait(self) -> int:
        """Wait until the process has ended by itself; its exit code."""
        return await self._wait_and_close(self._running())

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL if that does not help. Nothing to a process that has ended."""
        if self._process is not None:
            await end(self._process)
            await self._wait_and_close(self._process)

    async def _ready_url(self) -> str:
        process = self._running()
        if process.stdout is None:
            raise ChildFailed("the process has no standard output")
        async for line in process.stdout:
            text = line.decode(errors="replace").strip()
            if text.startswith(_READY):
                return text.removeprefix(_READY)
        raise ChildFailed(f"{self._arguments[0]} ended with {await process.wait()} at its start")

    async def _wait_and_close(self, process: Process) -> int:
        code = await process.wait()
        if process.stdin is not None:
            process.stdin.close()
            with suppress(ConnectionError):
                await process.stdin.wait_closed()
        if process.stdout is not None:
            # Reading to the end closes the pipe.
            await process.stdout.read()
        return code

    def _running(self) -> Process:
        if self._process is None:
            raise RuntimeError("the process is not started")
        return self._process


async def end(process: Process) -> None:
    """SIGTERM, then SIGKILL if that does not help in time; wait for the end."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_TERM_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
    await process.wait()


def spawned(module: str, *arguments: str) -> Child:
    """A lab host that `python -m module arguments` runs, on a free port."""
    return Child((module, _UNTIL_EOF, *arguments))


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every lab host has."""
    parser.add_argument("--port", type=int, default=0, help="0 = any free one")
    parser.add_argument(_UNTIL_EOF, action="store_true", help="leave when standard input ends, too")


async def announce_and_wait(url: str, *, until_eof: bool) -> None:
    """Print the line that says where the host listens; wait for the sign to leave.

    The sign is SIGTERM, SIGINT, or with `until_eof` the end of standard input.
    """
    loop = asyncio.get_running_loop()
    leave = asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, leave.set)
    if until_eof:
        loop.add_reader(sys.stdin.fileno(), leave.set)
    sys.stdout.write(f"{_READY}{url}\n")
    sys.stdout.flush()
    try:
        await leave.wait()
    finally:
        if until_eof:
            loop.remove_reader(sys.stdin.fileno())
