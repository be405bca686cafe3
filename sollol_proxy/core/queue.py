"""The one waiting room: order, bound, deadlines.

A job's place is the key `arrived − ageing · priority`, plus what the policy adds when the job
arrives, smaller first, then order of arrival. All jobs age alike, so this constant key is the
founding rule "+1 priority for each `ageing` seconds waited" without ever sorting again: a rank
against another job never flips. Where the policy adds nothing, a priority-1 job stands before
fresh priority-10 ones after nine times `ageing`; that bound is meant.

Jobs that the same hosts may take stand in the same lane, each lane sorted. What has no free
host is skipped lane by lane, so a thousand jobs for a busy model hide nobody else's turn.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush, merge
from typing import NamedTuple

from sollol_proxy.core.types import Job, JobKind


class Lane(NamedTuple):
    """What decides which hosts may take a job."""

    model: str
    kind: JobKind
    excluded: frozenset[str]
    only: str
    route: str


class _Place(NamedTuple):
    key: float
    serial: int
    job: Job


@dataclass(slots=True)
class Entry:
    """A job that waits."""

    place: _Place
    enqueued_s: float
    shift_s: float


def lane_of(job: Job) -> Lane:
    """The lane a job stands in."""
    return Lane(job.model, job.kind, job.excluded, job.only, job.route)


class Queue:
    """Waiting jobs in order. Not bounded by itself: the scheduler refuses.

    ageing_s: seconds of waiting that are worth one level of priority.
    entries: by job id; changed by nobody else. Empty = nobody waits.
    """

    def __init__(self, ageing_s: float) -> None:
        self.ageing_s = ageing_s
        self._lanes: dict[Lane, list[_Place]] = {}
        self.entries: dict[str, Entry] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self.entries

    def key(self, job: Job) -> float:
        """The job's place, seconds; constant while it waits."""
        return job.arrived_s - self.ageing_s * job.priority

    def add(self, job: Job, now: float, shift_s: float = 0.0) -> None:
        """Let a job in. shift_s: added to its key; < 0 moves it forward.

        Raises:
            ValueError: a job of that id waits already.
        """
        if job.id in self.entries:
            raise ValueError(f"job {job.id} waits already")
        self._serial += 1
        place = _Place(self.key(job) + shift_s, self._serial, job)
        self.entries[job.id] = Entry(place, now, shift_s)
        insort(self._lanes.setdefault(lane_of(job), []), place, key=lambda p: (p.key, p.serial))
        if job.deadline_s is not None:
            heappush(self._deadlines, (job.deadline_s, job.id))

    def remove(self, job_id: str) -> Job | None:
        """Take a job out; None when it does not wait."""
        entry = self.entries.pop(job_id, None)
        if entry is None:
            return None
        place = entry.place
        lane = lane_of(place.job)
        places = self._lanes[lane]
        position = bisect_left(places, (place.key, place.serial), key=lambda p: (p.key, p.serial))
        del places[position]
        if not places:
            del self._lanes[lane]
        return place.job

    def replace(self, job: Job) -> None:
        """Put a job in the place of the one with its id; it keeps the time it has waited.

        Raises:
            KeyError: no job of that id waits.
        """
        entry = self.entries[job.id]
        self.remove(job.id)
        self.add(job, entry.enqueued_s, entry.shift_s)

    def get(self, job_id: str) -> Job | None:
        """A waiting job."""
        entry = self.entries.get(job_id)
        return None if entry is None else entry.place.job

    def waited_s(self, job_id: str, now: float) -> float:
        """Seconds since the job was let in."""
        return max(0.0, now - self.entries[job_id].enqueued_s)

    def lanes(self) -> list[Lane]:
        """Lanes in which somebody waits."""
        return list(self._lanes)

    def first_in(self, lane: Lane) -> Job:
        """The first job of a lane in which somebody waits."""
        return self._lanes[lane][0].job

    def count_in(self, lane: Lane) -> int:
        """How many wait in a lane."""
        return len(self._lanes.get(lane, ()))

    def in_lane(self, lane: Lane) -> list[Job]:
        """The jobs of a lane in order."""
        return [place.job for place in self._lanes.get(lane, ())]

    def window(self, limit: int, is_open: Callable[[Lane], bool] | None = None) -> list[Job]:
        """The first jobs in order, at most `limit`, of all lanes or of the open ones."""
        lanes = [places for lane, places in self._lanes.items() if is_open is None or is_open(lane)]
        ordered = self._merged(lanes)
        return [place.job for place, _ in zip(ordered, range(limit), strict=False)]

    def __iter__(self) -> Iterator[Job]:
        return (place.job for place in self._merged(list(self._lanes.values())))

    def next_deadline_s(self) -> float | None:
        """The first deadline of a waiting job; None when none has any."""
        self._drop_stale_deadlines()
        return self._deadlines[0][0] if self._deadlines else None

    def overdue(self, now: float) -> list[Job]:
        """Jobs whose deadline is over; they stay until removed."""
        # A job that has come back, or changed its place, stands in the heap more than once.
        overdue = {
            job_id: entry.place.job
            for deadline_s, job_id in self._deadlines
            if deadline_s <= now
            and (entry := self.entries.get(job_id)) is not None
            and entry.place.job.deadline_s == deadline_s
        }
        return list(overdue.values())

    def _drop_stale_deadlines(self) -> None:
        while self._deadlines:
            deadline_s, job_id = self._deadlines[0]
            entry = self.entries.get(job_id)
            if entry is not None and entry.place.job.deadline_s == deadline_s:
                return
            heappop(self._deadlines)

    @staticmethod
    def _merged(lanes: list[list[_Place]]) -> Iterator[_Place]:
        if len(lanes) == 1:
            return iter(lanes[0])
        return merge(*lanes, key=lambda place: (place.key, place.serial))
