"""What the commands under `sollol-proxy bench` have in common: their end, and what they write."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine, Mapping
from contextlib import ExitStack
from typing import Any, TextIO

from sollol_proxy.server import lifecycle

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Run a command that starts processes; its exit code, or 128 + the number of a signal.

    SIGTERM and SIGINT cancel the work, so that the blocks in which it started processes end them.
    Further signals change nothing: what ends processes is bounded in time, and to be left with
    some of them serves nobody.
    """
    return lifecycle.run(_until_signal(work))


async def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    received: list[int] = []

    def stop(number: int) -> None:
        if not received and task is not None:
            received.append(number)
            task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await work
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def enter() -> None:
    """Wait for a line on standard input, or its end.

    In the event loop: a thread that waits for a key would keep a cancelled command from ending.
    """
    came = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(sys.stdin.fileno(), came.set)
    except (OSError, ValueError):
        pass  # a file, which is never waited for, or nothing at all
    else:
        try:
            await came.wait()
        finally:
            loop.remove_reader(sys.stdin.fileno())
    sys.stdin.readline()


def json_file(name: str | None, stack: ExitStack) -> TextIO | None:
    """Where the JSON lines go; `-` = standard output, None = nowhere.

    Raises:
        OSError: the file cannot be written.
    """
    if name is None:
        return None
    if name == "-":
        return sys.stdout
    return stack.enter_context(open(name, "w", encoding="utf-8"))


def write_line(out: TextIO | None, line: Mapping[str, Any]) -> None:
    """Write a JSON line at once, so that a run that is broken off has left what it found."""
    if out is not None:
        out.write(json.dumps(line) + "\n")
        out.flush()


def say(text: str) -> None:
    """A word to whoever watches; standard output is for the report."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
