"""Jobs that wait beside a free slot because a better place is expected: why, and until when.

A hold begins when a job is first found beside a free slot and ends when the job goes, or when no
free slot is left for it. Its bound, counted from its beginning, is the seconds that the job would
need on the best idle host. No plan moves it. Only where it is reached, that host has been given
away and all that are idle by then would need longer, it is put off to what the best of them would
need. So waiting for a better place can cost a job at most as much again as the place that it gets.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

from sollol_proxy.core.queue import Lane

MAX_HOLD_S = 300.0
"""Longest hold, whatever is predicted."""


class _Held(NamedTuple):
    begun_s: float
    bound_s: float


class Holds:
    """The holds of this moment, by lane."""

    def __init__(self) -> None:
        self._by_lane: dict[Lane, dict[str, _Held]] = {}
        self._bounds: dict[Lane, list[tuple[float, str]]] = {}
        """Heaps; what has gone is dropped when it comes up."""

    def lanes(self) -> list[Lane]:
        """Lanes in which somebody is held."""
        return list(self._by_lane)

    def has(self, lane: Lane, job_id: str) -> bool:
        """Whether the job is held."""
        return job_id in self._by_lane.get(lane, ())

    def count(self, lane: Lane) -> int:
        """How many jobs of the lane are held."""
        return len(self._by_lane.get(lane, ()))

    def begin(self, lane: Lane, job_id: str, idle_s: float, now: float) -> None:
        """The job is beside a free slot, where it would need so long; a hold goes on as it is."""
        held = self._by_lane.setdefault(lane, {})
        if job_id not in held:
            self._set(lane, held, job_id, now, idle_s)

    def put_off(self, lane: Lane, job_id: str, idle_s: float, now: float) -> bool:
        """Whether the hold goes on, because the job would need so long on the best idle host now.

        Raises:
            KeyError: the job is not held.
        """
        held = self._by_lane[lane]
        begun_s = held[job_id].begun_s
        if begun_s + longest_s(idle_s) <= now:
            return False
        self._set(lane, held, job_id, begun_s, idle_s)
        return True

    def end(self, lane: Lane, job_id: str) -> None:
        """The job has gone."""
        held = self._by_lane.get(lane)
        if held is not None and held.pop(job_id, None) is not None and not held:
            self.end_lane(lane)

    def end_lane(self, lane: Lane) -> None:
        """There is no free slot for the lane's jobs any more."""
        self._by_lane.pop(lane, None)
        self._bounds.pop(lane, None)

    def due(self, lane: Lane, now: float) -> list[str]:
        """Jobs of the lane that have been held to their bound, the first due first."""
        held = self._by_lane.get(lane)
        if not held or self._first_s(lane, held) > now:
            return []
        due = [(each.bound_s, job_id) for job_id, each in held.items() if each.bound_s <= now]
        return [job_id for _, job_id in sorted(due)]

    def bound_s(self, lane: Lane, job_id: str) -> float | None:
        """Until when the job is held; None = it is not."""
        held = self._by_lane.get(lane, {}).get(job_id)
        return None if held is None else held.bound_s

    def next_bound_s(self) -> float | None:
        """The first bound; None when nobody is held."""
        firsts = (self._first_s(lane, held) for lane, held in self._by_lane.items())
        return min(firsts, default=None)

    def _set(
        self, lane: Lane, held: dict[str, _Held], job_id: str, begun_s: float, idle_s: float
    ) -> None:
        bound_s = begun_s + longest_s(idle_s)
        held[job_id] = _Held(begun_s, bound_s)
        heappush(self._bounds.setdefault(lane, []), (bound_s, job_id))

    def _first_s(self, lane: Lane, held: dict[str, _Held]) -> float:
        """The first bound of a lane in which somebody is held."""
        bounds = self._bounds[lane]
        while (first := held.get(bounds[0][1])) is None or first.bound_s != bounds[0][0]:
            heappop(bounds)
        return bounds[0][0]


def longest_s(idle_s: float) -> float:
    """How long a job may be held; no time where a planner says something that is none."""
    return min(idle_s, MAX_HOLD_S) if idle_s > 0 else 0.0
