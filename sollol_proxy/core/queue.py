"""The one waiting room: order, bound, deadlines.

A job's place is the key `arrived − ageing · priority`, plus what the policy adds when the job
arrives, smaller first, then order of arrival. All jobs age alike, so this constant key is the
founding rule "+1 priority for each `ageing` seconds waited" without ever sorting again. Where the
policy adds nothing, a priority-1 job stands before fresh priority-10 ones after nine times
`ageing`; that bound is meant.

A policy may add one thing among jobs of one priority and another against the rest (`Shift`): jobs
of one priority stand in a file, in the order of the first, and whose turn it is among the files,
their first jobs tell by the second. So nobody waits for jobs that came later than itself by more
than what can be added within a file, the levels between the two, and what can be added against
other priorities. And whoever has waited for `overtaking_s` moves to the front of its file, behind
none but those who came before it: from then on nobody of its priority overtakes it.

Jobs that the same hosts may take stand in the same lane, a file for each priority in it. What has
no free host is skipped lane by lane, so a thousand jobs for a busy model hide nobody else's turn.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, merge
from itertools import islice
from math import inf
from operator import attrgetter
from typing import NamedTuple

from sollol_proxy.core.types import Job, JobKind

MAX_LANES_KEPT = 256
"""Names and routes come from clients, so what is kept by lane has to be bounded."""

FEW = 64
"""Jobs that have gone are not looked for where there are no more."""


class Lane(NamedTuple):
    """What decides which hosts may take a job."""

    model: str
    kind: JobKind
    excluded: frozenset[str]
    only: str
    route: str


class Shift(NamedTuple):
    """Seconds added to a job's key; < 0 moves it forward.

    within: among jobs of its own priority. across: against those of others.
    """

    within: float
    across: float


NO_SHIFT = Shift(0.0, 0.0)


class _Place(NamedTuple):
    """Where a job stands.

    rank: 0 where it is overtaken no more, else 1. key: within its file. across: against the first
    of another one.
    """

    rank: int
    key: float
    serial: int
    across: float
    job: Job


_WITHIN = attrgetter("rank", "key", "serial")
_ACROSS = attrgetter("across", "serial")

_Files = dict[int, list[_Place]]


@dataclass(slots=True)
class Entry:
    """A job that waits."""

    place: _Place
    enqueued_s: float
    shift: Shift


def lane_of(job: Job) -> Lane:
    """The lane a job stands in."""
    return Lane(job.model, job.kind, job.excluded, job.only, job.route)


class Queue:
    """Waiting jobs in order. Not bounded by itself: the scheduler refuses.

    ageing_s: seconds of waiting that are worth one level of priority.
    overtaking_s: seconds of waiting after which no later job of the same priority goes before;
        what has waited for so long is moved by `settle`.
    entries: by job id; changed by nobody else. Empty = nobody waits.
    """

    def __init__(self, ageing_s: float, overtaking_s: float = inf) -> None:
        self.ageing_s = ageing_s
        self._overtaking_s = overtaking_s
        self._lanes: dict[Lane, _Files] = {}
        self.entries: dict[str, Entry] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._arrivals: list[tuple[float, str]] = []
        """A heap of those who may still be overtaken; what has gone is dropped when it comes up."""
        self._serial = 0

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self.entries

    def key(self, job: Job) -> float:
        """The job's place where nothing is added, seconds; constant while it waits."""
        return job.arrived_s - self.ageing_s * job.priority

    def add(self, job: Job, now: float, shift: Shift = NO_SHIFT) -> None:
        """Let a job in. shift: added to its key.

        Raises:
            ValueError: a job of that id waits already.
        """
        if job.id in self.entries:
            raise ValueError(f"job {job.id} waits already")
        self._serial += 1
        key = self.key(job)
        place = _Place(1, key + shift.within, self._serial, key + shift.across, job)
        self.entries[job.id] = Entry(place, now, shift)
        self._stand(place)
        if job.deadline_s is not None:
            heappush(self._deadlines, (job.deadline_s, job.id))
        if len(self._arrivals) > 2 * len(self.entries) + FEW:
            # Most of them have gone long before they could come up.
            self._arrivals = [
                (entry.place.job.arrived_s, job_id)
                for job_id, entry in self.entries.items()
                if entry.place.rank
            ]
            heapify(self._arrivals)
        else:
            heappush(self._arrivals, (job.arrived_s, job.id))

    def remove(self, job_id: str) -> Job | None:
        """Take a job out; None when it does not wait."""
        entry = self.entries.pop(job_id, None)
        if entry is None:
            return None
        self._leave(entry.place)
        return entry.place.job

    def settle(self, now: float) -> None:
        """Move those who have waited for long enough to the front of their files."""
        arrivals = self._arrivals
        while arrivals and arrivals[0][0] + self._overtaking_s <= now:
            _, job_id = heappop(arrivals)
            entry = self.entries.get(job_id)
            if entry is None:
                continue
            place = entry.place
            job = place.job
            if place.rank and job.arrived_s + self._overtaking_s <= now:
                self._leave(place)
                entry.place = place._replace(rank=0, key=self.key(job))
                self._stand(entry.place)

    def replace(self, job: Job) -> None:
        """Put a job in the place of the one with its id; it keeps the time it has waited.

        Raises:
            KeyError: no job of that id waits.
        """
        entry = self.entries[job.id]
        self.remove(job.id)
        self.add(job, entry.enqueued_s, entry.shift)

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
        files = self._lanes[lane]
        if len(files) == 1:
            [places] = files.values()
            return places[0].job
        return min([places[0] for places in files.values()], key=_ACROSS).job

    def count_in(self, lane: Lane) -> int:
        """How many wait in a lane."""
        return sum([len(places) for places in self._lanes.get(lane, {}).values()])

    def in_lane(self, lane: Lane) -> list[Job]:
        """The jobs of a lane in order."""
        return [place.job for place in _merged([self._lanes.get(lane, {})])]

    def window(self, limit: int, is_open: Callable[[Lane], bool] | None = None) -> list[Job]:
        """The first jobs in order, at most `limit`, of all lanes or of the open ones."""
        lanes = [files for lane, files in self._lanes.items() if is_open is None or is_open(lane)]
        return [place.job for place in islice(_merged(lanes), limit)]

    def __iter__(self) -> Iterator[Job]:
        return (place.job for place in _merged(self._lanes.values()))

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

    def _stand(self, place: _Place) -> None:
        files = self._lanes.setdefault(lane_of(place.job), {})
        insort(files.setdefault(place.job.priority, []), place, key=_WITHIN)

    def _leave(self, place: _Place) -> None:
        lane, priority = lane_of(place.job), place.job.priority
        files = self._lanes[lane]
        places = files[priority]
        del places[bisect_left(places, _WITHIN(place), key=_WITHIN)]
        if not places:
            del files[priority]
            if not files:
                del self._lanes[lane]

    def _drop_stale_deadlines(self) -> None:
        while self._deadlines:
            deadline_s, job_id = self._deadlines[0]
            entry = self.entries.get(job_id)
            if entry is not None and entry.place.job.deadline_s == deadline_s:
                return
            heappop(self._deadlines)


def _merged(lanes: Iterable[_Files]) -> Iterator[_Place]:
    """The places of several lanes in order."""
    files: dict[int, list[list[_Place]]] = {}
    for lane in lanes:
        for priority, places in lane.items():
            files.setdefault(priority, []).append(places)
    ordered = [_file(parts) for parts in files.values()]
    # No two places have the same serial, so jobs are never compared.
    return ordered[0] if len(ordered) == 1 else merge(*ordered, key=_ACROSS)


def _file(parts: list[list[_Place]]) -> Iterator[_Place]:
    """The places of one priority in order, of whatever lanes."""
    return iter(parts[0]) if len(parts) == 1 else merge(*parts)
