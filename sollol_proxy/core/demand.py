"""How often each model is asked for just now: decayed counts of arrivals."""

from __future__ import annotations

from math import exp

TIME_CONSTANT_S = 60.0
"""Arrivals of the last minute or so count; so the count is what the next minute may bring."""

MAX_MODELS = 1024
"""Names come from clients, so the table has to be bounded."""


class Demand:
    """Arrivals by model. An arrival told late counts as old; it never makes time go back."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, float]] = {}

    def add(self, model: str, now: float) -> None:
        """A job for the model has arrived."""
        count, at_s = self._counts.pop(model, (0.0, now))
        if now >= at_s:
            self._counts[model] = (count * exp((at_s - now) / TIME_CONSTANT_S) + 1.0, now)
        else:
            self._counts[model] = (count + exp((now - at_s) / TIME_CONSTANT_S), at_s)
        if len(self._counts) > MAX_MODELS:
            del self._counts[next(iter(self._counts))]  # the one asked for the longest ago

    def next_minute(self, model: str, now: float) -> float:
        """Arrivals to expect within a minute, ≥ 0."""
        known = self._counts.get(model)
        if known is None:
            return 0.0
        count, at_s = known
        return count * exp(min(at_s - now, 0.0) / TIME_CONSTANT_S)
