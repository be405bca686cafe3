"""What was learnt of each task type and model: the founding `stats`, for the page and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from sollol_proxy.core.estimate import DecayedMean, RunningSpread
from sollol_proxy.core.snapshots import LearntRow
from sollol_proxy.core.types import Job, Observation, TaskType

MAX_ROWS = 500
"""Task types × models kept; names come from clients, so the table has to be bounded."""


@dataclass(slots=True)
class _Row:
    total: RunningSpread = field(default_factory=RunningSpread)
    output_tokens: DecayedMean = field(default_factory=DecayedMean)
    first_byte_s: DecayedMean = field(default_factory=DecayedMean)


class Learnt:
    """Durations and lengths of completed jobs by (task type, model)."""

    def __init__(self) -> None:
        self._rows: dict[tuple[TaskType, str], _Row] = {}
        self._service = DecayedMean()

    @property
    def service_s(self) -> float | None:
        """Recent mean time a job holds its slot; None before the first."""
        return self._service.value

    def add(self, job: Job, observation: Observation) -> None:
        """Take a completed job in."""
        if observation.total_s is None or not job.kind.takes_slot:
            return
        self._service.add(observation.total_s)
        key = (job.task_type, job.model)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MAX_ROWS:
                return
            row = self._rows[key] = _Row()
        row.total.add(observation.total_s)
        if observation.output_tokens is not None:
            row.output_tokens.add(observation.output_tokens)
        if observation.first_byte_s is not None:
            row.first_byte_s.add(observation.first_byte_s)

    def rows(self) -> tuple[LearntRow, ...]:
        """The table, most frequent first."""
        rows = (
            LearntRow(
                task_type,
                model,
                row.total.freeze(),
                row.output_tokens.value,
                row.first_byte_s.value,
            )
            for (task_type, model), row in self._rows.items()
        )
        return tuple(sorted(rows, key=lambda row: -row.total.count))
