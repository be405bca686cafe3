"""How long answers get, learnt from those that ended.

Histograms over half octaves of tokens: one for each task type, model and size of prompt (by
octaves), on a coarser one without the task type, on the model's own, on a prior. Each lends its
weight to the finer ones, so a first sample counts at once and a hundred count alone.

An answer that was broken off tells only that it would have been longer than this.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from math import log2
from typing import Any

from sollol_proxy.core.jsonable import mapping, number, rows, text, whole
from sollol_proxy.core.types import TaskType

PRIOR_MEAN_TOKENS = 128.0
PRIOR_WEIGHT = 0.25
"""What the prior counts, in samples. Its tail is that of a Lomax distribution of shape 3, so what
has outlasted everything known is expected to go on for half as long again."""

_PRIOR_SHAPE = 3.0
_PRIOR_SCALE = PRIOR_MEAN_TOKENS * (_PRIOR_SHAPE - 1)

MODEL_WEIGHT = 1 / 20
SIZE_WEIGHT = 1 / 8
"""What a sample counts in the estimate for another prompt size / another task type."""

FORGETTING = 0.998
FORGETS_AFTER = 400
"""From so many samples on, each new one takes this factor off the older ones."""

MOST_KEPT = 1e15
"""Weight or sum of a bin; a file with more was not written by this."""

MAX_CELLS = 4096
"""Models × prompt sizes × task types that are kept apart; others share the coarser ones."""

_BINS = 44
"""Half octaves: up to four million tokens."""


def _bin_of(tokens: float) -> int:
    return min(int(2 * log2(tokens)), _BINS - 1) if tokens > 1 else 0


_EDGES = tuple(2 ** (index / 2) for index in range(_BINS + 1))


@dataclass(slots=True)
class Histogram:
    """Weights and sums of tokens by half octave, with the tails kept ready."""

    samples: int = 0
    _weights: list[float] = field(default_factory=lambda: [0.0] * _BINS)
    _sums: list[float] = field(default_factory=lambda: [0.0] * _BINS)
    _tails: list[tuple[float, float]] | None = None

    def add(self, tokens: float, weight: float = 1.0) -> None:
        """Take an answer's length in."""
        self._age()
        self._put(tokens, weight)

    def add_longer_than(self, tokens: float) -> None:
        """An answer was broken off after so many: spread it over what is longer."""
        weight, _ = self.tail(tokens)
        if weight <= 0:
            self.add(1.5 * tokens + 1)
            return
        self._age()
        weight, _ = self.tail(tokens)
        first = _bin_of(tokens)
        for index in range(first, _BINS):
            part, part_sum = self._part(index, tokens)
            if part > 0:
                self._put(part_sum / part, part / weight)

    def tail(self, tokens: float) -> tuple[float, float]:
        """Weight of the answers longer than this, and the sum of their lengths."""
        if self._tails is None:
            self._tails = self._sum_up()
        if tokens <= 0:
            return self._tails[0]
        index = _bin_of(tokens)
        weight, total = self._tails[index + 1]
        part, part_sum = self._part(index, tokens)
        return weight + part, total + part_sum

    def export(self) -> list[list[float]]:
        """Bin, weight, sum of each bin that has any, for JSON."""
        return [
            [index, self._weights[index], self._sums[index]]
            for index in range(_BINS)
            if self._weights[index] > 0
        ]

    @classmethod
    def restored(cls, samples: int, bins: object) -> Histogram:
        """From what `export` gave."""
        histogram = cls(samples)
        for index, weight, total in rows(bins, 3):
            place = whole(index)
            if not 0 <= place < _BINS:
                raise ValueError(f"no bin {place}")
            histogram._weights[place] = _bounded(weight)
            histogram._sums[place] = _bounded(total)
        return histogram

    def _age(self) -> None:
        """One more sample: once there are many, the older ones count a little less."""
        self._tails = None
        if self.samples >= FORGETS_AFTER:
            self._weights = [old * FORGETTING for old in self._weights]
            self._sums = [old * FORGETTING for old in self._sums]
        self.samples += 1

    def _put(self, tokens: float, weight: float) -> None:
        index = _bin_of(tokens)
        self._weights[index] += weight
        self._sums[index] += weight * tokens
        self._tails = None

    def _part(self, index: int, tokens: float) -> tuple[float, float]:
        """The part of a bin that is above a length, its answers taken as spread evenly."""
        weight = self._weights[index]
        if not weight:
            return 0.0, 0.0
        low, high = _EDGES[index], _EDGES[index + 1]
        if tokens <= low:
            return weight, self._sums[index]
        share = max(high - tokens, 0.0) / (high - low)
        return weight * share, weight * share * (tokens + high) / 2

    def _sum_up(self) -> list[tuple[float, float]]:
        weights = accumulate(reversed(self._weights), initial=0.0)
        totals = accumulate(reversed(self._sums), initial=0.0)
        return [*zip(weights, totals, strict=True)][::-1]


class Lengths:
    """Expected lengths by task type, model and size of the prompt."""

    def __init__(self) -> None:
        self._by_task: dict[tuple[str, str, int], Histogram] = {}
        self._by_size: dict[tuple[str, int], Histogram] = {}
        self._by_model: dict[str, Histogram] = {}
        self._means: dict[str, dict[tuple[str, int], float]] = {}

    def add(self, task: TaskType, model: str, prompt_tokens: int, tokens: int) -> None:
        """An answer ended by itself after so many tokens."""
        for histogram in self._touched(task, model, prompt_tokens):
            histogram.add(max(tokens, 1))

    def add_longer_than(self, task: TaskType, model: str, prompt_tokens: int, tokens: int) -> None:
        """An answer was broken off after so many tokens."""
        if tokens > 0:
            for histogram in self._touched(task, model, prompt_tokens):
                histogram.add_longer_than(tokens)

    def expected(
        self,
        task: TaskType,
        model: str,
        prompt_tokens: int,
        *,
        beyond: float = 0.0,
        limit: int | None = None,
    ) -> float:
        """Expected whole length of an answer that is longer than `beyond` tokens; > beyond.

        limit: what the request allows; the result does not exceed it, but for `beyond`.
        """
        size = (prompt_tokens if prompt_tokens > 1 else 1).bit_length()
        if not beyond:
            means = self._means.get(model)
            if means is None:
                if len(self._means) >= MAX_CELLS:
                    self._means.clear()
                means = self._means[model] = {}
            mean = means.get((task, size))
            if mean is None:
                mean = means[task, size] = self._expected(task, model, size, 0.0)
            if limit is not None and mean >= limit:
                mean = float(limit)
            return mean if mean > 1.0 else 1.0
        tokens = self._expected(task, model, size, beyond)
        if limit is not None and tokens > limit:
            tokens = float(limit)
        return max(tokens, beyond + 1.0)

    def _expected(self, task: TaskType, model: str, size: int, beyond: float) -> float:
        weight: float = PRIOR_WEIGHT * (1 + beyond / _PRIOR_SCALE) ** -_PRIOR_SHAPE
        total = weight * (beyond + (_PRIOR_SCALE + beyond) / (_PRIOR_SHAPE - 1))
        for histogram, lent in (
            (self._by_task.get((task, model, size)), 1.0),
            (self._by_size.get((model, size)), SIZE_WEIGHT),
            (self._by_model.get(model), MODEL_WEIGHT),
        ):
            if histogram is not None:
                part, part_sum = histogram.tail(beyond)
                weight += lent * part
                total += lent * part_sum
        return total / weight

    def export(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "by_task": [[*key, h.samples, h.export()] for key, h in self._by_task.items()],
            "by_size": [[*key, h.samples, h.export()] for key, h in self._by_size.items()],
            "by_model": [[key, h.samples, h.export()] for key, h in self._by_model.items()],
        }

    @classmethod
    def restored(cls, given: object) -> Lengths:
        """From what `export` gave.

        Raises:
            ValueError: it is something else.
        """
        data, lengths = mapping(given), cls()
        for task, model, size, samples, bins in rows(data.get("by_task", []), 5)[:MAX_CELLS]:
            key = (text(task), text(model), whole(size))
            lengths._by_task[key] = Histogram.restored(whole(samples), bins)
        for model, size, samples, bins in rows(data.get("by_size", []), 4)[:MAX_CELLS]:
            histogram = Histogram.restored(whole(samples), bins)
            lengths._by_size[text(model), whole(size)] = histogram
        for model, samples, bins in rows(data.get("by_model", []), 3)[:MAX_CELLS]:
            lengths._by_model[text(model)] = Histogram.restored(whole(samples), bins)
        return lengths

    def _touched(self, task: TaskType, model: str, prompt_tokens: int) -> list[Histogram]:
        size = _size_of(prompt_tokens)
        self._means.pop(model, None)
        found = (
            _cell(self._by_task, (task.value, model, size)),
            _cell(self._by_size, (model, size)),
            _cell(self._by_model, model),
        )
        return [histogram for histogram in found if histogram is not None]


def _bounded(value: object) -> float:
    """A weight or sum that can be added up with others.

    Raises:
        ValueError: it is none.
    """
    result = number(value)
    if result > MOST_KEPT:
        raise ValueError(f"expected at most {MOST_KEPT:g}, not {result:g}")
    return result


def _size_of(prompt_tokens: int) -> int:
    return max(prompt_tokens, 1).bit_length()


def _cell(cells: dict[Any, Histogram], key: Any) -> Histogram | None:
    histogram = cells.get(key)
    if histogram is None and len(cells) < MAX_CELLS:
        histogram = cells[key] = Histogram()
    return histogram
