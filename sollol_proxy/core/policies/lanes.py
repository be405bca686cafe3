"""How hosts stand to jobs that differ in their lengths only, kept from plan to plan.

A plan looks at many hosts for many jobs, and between two plans one host has changed. So what does
not depend on the moment is kept by host, with the host's `changes` as its date.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import nsmallest
from typing import NamedTuple

from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.base import HostView
from sollol_proxy.core.predict import load_s, size_bytes, slow_down, soonest_s
from sollol_proxy.core.types import Job

SEPARATOR = "\n"
"""Between a model's name and its options in a token; no name has it."""

MAX_LANES = 128
"""Options, exclusions and names come from clients, so what is kept has to be bounded."""


class Row(NamedTuple):
    """How a host stands to a lane.

    token: what stands for the runner that the jobs need there. prefill_s, decode_s: seconds a
        prompt and an output token, alone. slowed: how many times longer it takes beside what runs
        there. load_s: seconds to load the runner; 0 = it is in memory.
    harm: what other jobs there lose of each second.
    """

    token: str
    prefill_s: float
    decode_s: float
    slowed: float
    load_s: float
    harm: float


def lane_key(job: Job) -> tuple[object, ...]:
    """What has to be equal for jobs to differ in their lengths only."""
    return (
        job.model,
        job.kind,
        job.options_key,
        job.num_ctx,
        job.excluded,
        job.only,
        job.route,
        bool(job.prefix),
    )


def token_of(view: HostView, model: str) -> str:
    """What stands for a runner that is in a host's memory: its name, and the options it has."""
    options_key = view.known.variants.last(model)
    return f"{model}{SEPARATOR}{options_key}" if options_key else model


def name_of(token: str) -> str:
    """The model's name in a token."""
    return token.partition(SEPARATOR)[0]


class LaneRates:
    """The rows of one lane. job: any of its jobs."""

    def __init__(self, job: Job, memory: Memory) -> None:
        self._job = job
        self._memory = memory
        self._rows: dict[str, tuple[int, Row | None]] = {}
        self._side_rows: dict[str, tuple[int, Row | None]] = {}

    def row(self, view: HostView, *, is_side: bool = False) -> Row | None:
        """How the host stands to the lane; None = it may not take its jobs.

        is_side: as a place beside what keeps it busy.
        """
        host_id, changes = view.spec.id, view.changes
        rows = self._side_rows if is_side else self._rows
        kept = rows.get(host_id)
        if kept is not None and kept[0] == changes:
            return kept[1]
        row = self._look(view, joins=is_side or view.in_flight < view.concurrency)
        rows[host_id] = changes, row
        return row

    def _look(self, view: HostView, *, joins: bool) -> Row | None:
        job, model = self._job, self._job.model
        if not view.is_eligible(job):
            return None
        needs_load = view.needs_load(job)
        resident = view.runner(model)
        if resident is not None and not needs_load:
            token = token_of(view, resident.name)
        else:
            token = f"{model}{SEPARATOR}{job.options_key}" if job.options_key else model
        slowed = slow_down(view, model, joins=joins)
        harm = 0.0
        if joins and view.in_flight:
            others = sum(
                count for other, count in view.in_flight_by_model.items() if other != model
            )
            harm = others / slowed
        pace = self._memory.pace(view.spec.id, model, size_bytes(view, model))
        return Row(
            token,
            1 / pace.prefill,
            1 / pace.decode,
            slowed,
            load_s(view, model) if needs_load else 0.0,
            harm,
        )


class LaneBook:
    """The lanes in use, and when hosts that are fully busy will have a slot.

    Everything is forgotten when the memory's `epoch` changes: guesses for hosts that were never
    measured rest on what others do.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._epoch = memory.epoch
        self._lanes: dict[tuple[object, ...], LaneRates] = {}
        self._frees_s: dict[str, tuple[int, float]] = {}

    def rates(self, job: Job, key: tuple[object, ...] | None = None) -> LaneRates:
        """The rows of the job's lane. key: of the job, where it is known already."""
        if self._epoch != self._memory.epoch:
            self._epoch = self._memory.epoch
            self._lanes.clear()
        if key is None:
            key = lane_key(job)
        lane = self._lanes.get(key)
        if lane is None:
            if len(self._lanes) >= MAX_LANES:
                self._lanes.clear()
            lane = self._lanes[key] = LaneRates(job, self._memory)
        return lane

    def rows(self, job: Job, hosts: Sequence[HostView]) -> Iterator[tuple[HostView, Row]]:
        """The hosts that may take the job, each with its row."""
        rates = self.rates(job)
        for host in hosts:
            row = rates.row(host)
            if row is not None:
                yield host, row

    def waits_s(self, hosts: Sequence[HostView], now: float) -> list[float]:
        """About how long each host has no slot for anybody, seconds; 0 = it has one.

        An end once expected is kept until the host changes or the end is overdue: this is for
        choosing among many hosts which to look at closely.
        """
        frees_s, waits_s = self._frees_s, []
        for host in hosts:
            if host.in_flight < host.concurrency:
                waits_s.append(0.0)
                continue
            kept = frees_s.get(host.spec.id)
            if kept is None or kept[0] != host.changes or kept[1] <= now:
                kept = host.changes, now + soonest_s(self._memory, host, now)
                frees_s[host.spec.id] = kept
            waits_s.append(kept[1] - now)
        return waits_s


def promising(
    rates: LaneRates,
    hosts: Sequence[HostView],
    waits_s: Sequence[float],
    few: int,
    *,
    prompt: float,
    tokens: float,
) -> tuple[set[str], bool]:
    """Of many hosts those worth a close look for a job: the best free and the soonest free ones.

    waits_s: how long each host has no slot. prompt, tokens: to read and to write.
    Returns their ids, and whether free ones were left out.
    """
    free: list[tuple[float, str]] = []
    busy: list[tuple[float, str]] = []
    look = rates.row
    for host, wait_s in zip(hosts, waits_s, strict=True):
        row = look(host)
        if row is not None:
            seconds = wait_s + prompt * row.prefill_s + tokens * row.decode_s + row.load_s
            (busy if wait_s else free).append((seconds, host.spec.id))
    best = nsmallest(few, free) + nsmallest(few, busy)
    return {host_id for _, host_id in best}, len(free) > few
