"""Frozen copies of the scheduler's state at one moment, for pages, JSON and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sollol_proxy.core.types import (
    HostSpec,
    HostState,
    InstalledModel,
    Job,
    ResidentModel,
    TaskType,
)


@dataclass(frozen=True, slots=True)
class Spread:
    """Count, mean, minimum and maximum of a series of durations, seconds."""

    count: int
    mean_s: float
    min_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class LearntRow:
    """What was learnt of a task type and model: the founding `stats`."""

    task_type: TaskType
    model: str
    total: Spread
    output_tokens_mean: float | None
    first_byte_s_mean: float | None


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """One host at one moment.

    state_for_s: seconds since the state last changed.
    in_flight_by_model: jobs running, by canonical model name.
    resident, loading: canonical names in memory / being loaded by a job in flight.
    round_trip_s: last probe. first_token_s: expected wait for the first token of a 256-token
        prompt, from learnt speeds; None before anything was learnt.
    success_ratio: decayed share of attempts that ended well; None before the first.
    retry_in_s: seconds until an ejected host is tried again; None when it is not ejected.
    """

    spec: HostSpec
    state: HostState
    state_for_s: float
    detail: str
    version: str
    in_flight: int
    in_flight_by_model: Mapping[str, int]
    installed: tuple[InstalledModel, ...]
    resident: tuple[ResidentModel, ...]
    loading: tuple[str, ...]
    round_trip_s: float | None
    first_token_s: float | None
    decode_tokens_per_s: float | None
    success_ratio: float | None
    completed: int
    failures: int
    retry_in_s: float | None


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job in the queue, as the page shows it."""

    job: Job
    waited_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The scheduler's state at one moment, for pages, JSON and metrics.

    waiting_by_priority: number of waiting jobs for each priority that has any.
    waiting: the first of them in queue order, bounded.
    plan_faults: times the policy raised, or named a host that may not take the job.
    """

    policy: str
    hosts: tuple[HostSnapshot, ...]
    waiting_total: int
    waiting_by_priority: Mapping[int, int]
    oldest_wait_s: float
    waiting: tuple[WaitingJob, ...]
    learnt: tuple[LearntRow, ...]
    is_draining: bool = False
    plan_faults: int = 0
