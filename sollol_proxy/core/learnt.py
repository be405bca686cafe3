"""What was learnt of each task type and model: the founding `stats`, for the page and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sollol_proxy.core.estimate import DecayedMean, RunningSpread
from sollol_proxy.core.jsonable import mapping, number, rows, text, whole
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

    def export(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "rows": [
                [
                    task_type.value,
                    model,
                    [row.total.count, row.total.mean_s, row.total.min_s, row.total.max_s],
                    row.output_tokens.value,
                    row.first_byte_s.value,
                ]
                for (task_type, model), row in self._rows.items()
            ],
            "service_s": self._service.value,
        }

    @classmethod
    def restored(cls, given: object) -> Learnt:
        """From what `export` gave.

        Raises:
            ValueError: it is something else.
        """
        data, learnt = mapping(given), cls()
        for task_type, model, total, output_tokens, first_byte_s in rows(data.get("rows", []), 5):
            [(count, mean_s, min_s, max_s)] = rows([total], 4)
            row = _Row(RunningSpread(whole(count), number(mean_s), number(min_s), number(max_s)))
            for mean, value in (
                (row.output_tokens, output_tokens),
                (row.first_byte_s, first_byte_s),
            ):
                if value is not None:
                    mean.add(number(value))
            if len(learnt._rows) < MAX_ROWS:
                learnt._rows[TaskType(text(task_type)), text(model)] = row
        if data.get("service_s") is not None:
            learnt._service.add(number(data["service_s"]))
        return learnt

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
