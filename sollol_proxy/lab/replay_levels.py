"""How many things of a kind were under way at once, over time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

Interval = tuple[float, float]
"""From and to, seconds."""


class Levels:
    """A number that changes at instants: of the intervals, how many cover one."""

    def __init__(self, intervals: Sequence[Interval]) -> None:
        # What ends at an instant makes room for what begins at it.
        real = [(a, b) for a, b in intervals if b > a]
        changes = sorted([(a, 1) for a, _ in real] + [(b, -1) for _, b in real])
        self._times = [at_s for at_s, _ in changes]
        self._levels: list[int] = []
        self._areas: list[float] = []
        level, area, before_s = 0, 0.0, 0.0
        for at_s, step in changes:
            area += level * (at_s - before_s)
            level += step
            before_s = at_s
            self._levels.append(level)
            self._areas.append(area)

    @property
    def peak(self) -> int:
        """The most at once."""
        return max(self._levels, default=0)

    def mean(self, start_s: float, end_s: float) -> float:
        """The mean over a stretch of time; 0 over none."""
        if end_s <= start_s:
            return 0.0
        return (self._area(end_s) - self._area(start_s)) / (end_s - start_s)

    def covered(self) -> list[Interval]:
        """The stretches in which there is at least one."""
        stretches = []
        start_s: float | None = None
        for at_s, level in zip(self._times, self._levels, strict=True):
            if level and start_s is None:
                start_s = at_s
            elif not level and start_s is not None:
                stretches.append((start_s, at_s))
                start_s = None
        return stretches

    def _area(self, at_s: float) -> float:
        place = bisect_right(self._times, at_s) - 1
        if place < 0:
            return 0.0
        return self._areas[place] + self._levels[place] * (at_s - self._times[place])
