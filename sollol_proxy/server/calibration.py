"""How near predictions came to what happened, by host: the last requests of each."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import fmean, median

from sollol_proxy.core.types import RequestRecord
from sollol_proxy.metrics import total_ratio, wait_error_s

KEPT = 500
"""Requests of a host that count: a host that changed is judged by what it is now."""


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """A host's predictions.

    count: requests looked at. ratio_median: real ÷ predicted time from dispatch to end; 1 = right,
        2 = it took twice as long. total_error_s, wait_error_s: mean distance between predicted
        and real, of that time and of the wait. None = no such prediction.
    """

    host_id: str
    count: int
    ratio_median: float | None
    total_error_s: float | None
    wait_error_s: float | None


@dataclass(slots=True)
class _Samples:
    count: int = 0
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    total_errors_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    wait_errors_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))


class Calibration:
    """Bounded: hosts of the pool, and `KEPT` requests of each."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Samples] = {}

    def add(self, record: RequestRecord) -> None:
        """Look at a finished request; one without a prediction, or cut short, teaches nothing."""
        ratio, wait_error = total_ratio(record), wait_error_s(record)
        decision, seen = record.decision, record.observation
        if decision is None or (ratio is None and wait_error is None):
            return
        samples = self._hosts.get(decision.host_id)
        if samples is None:
            samples = self._hosts[decision.host_id] = _Samples()
        if samples.count < KEPT:
            samples.count += 1
        if wait_error is not None:
            samples.wait_errors_s.append(abs(wait_error))
        if ratio is not None and seen is not None and seen.total_s is not None:
            samples.ratios.append(ratio)
            samples.total_errors_s.append(abs(seen.total_s - (decision.predicted_total_s or 0.0)))

    def rows(self) -> tuple[CalibrationRow, ...]:
        """One for each host that anything was predicted for."""
        return tuple(
            CalibrationRow(
                host_id,
                samples.count,
                median(samples.ratios) if samples.ratios else None,
                fmean(samples.total_errors_s) if samples.total_errors_s else None,
                fmean(samples.wait_errors_s) if samples.wait_errors_s else None,
            )
            for host_id, samples in self._hosts.items()
        )

    def forget(self) -> None:
        """Begin anew."""
        self._hosts.clear()
