"""Time that runs faster: an event loop whose seconds are model seconds.

Whatever runs in such a loop (hosts, the proxy in front of them) is not told: its timers, timeouts
and clocks are all scaled alike, so that a constant such as "half a second of loading" keeps its
meaning. What a computation takes is not scaled; at speed X it weighs X times what it would.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, Self

BEAT_S = 0.02
"""Seconds on the wall between two looks at how late the loop is."""


class _HastySelector(selectors.DefaultSelector):
    """A selector that takes its timeouts for model seconds."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / self._speed)


class ModelTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in which `speed` seconds pass while one passes on the wall."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        super().__init__(_HastySelector(speed))

    def time(self) -> float:
        """Monotonic model seconds; at equal speeds the same in every process of a machine."""
        return super().time() * self._speed


def run_in_model_time(work: Coroutine[Any, Any, None], speed: float) -> None:
    """`asyncio.run`, with time running `speed` times as fast."""
    with asyncio.Runner(loop_factory=lambda: ModelTimeLoop(speed)) as runner:
        runner.run(work)


class Heartbeat:
    """How late timers of the running loop ring, in the loop's seconds; `async with`."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.lateness_s: list[float] = []

    async def __aenter__(self) -> Self:
        self._set()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set(self) -> None:
        loop = asyncio.get_running_loop()
        self._due_s = loop.time() + self._every_s
        self._timer = loop.call_at(self._due_s, self._beat)

    def _beat(self) -> None:
        self.lateness_s.append(max(0.0, asyncio.get_running_loop().time() - self._due_s))
        self._set()
