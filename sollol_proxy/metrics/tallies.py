"""Counters and histograms that cost a dictionary look-up each, told to Prometheus when it asks.

prometheus_client's own take locks and walk their buckets for every observation, which is right for
threads; all of this happens in one. What a scrape shows is the same, sample by sample.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import inf
from time import time

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


class Tally(Collector):
    """A counter. labels: names; values of labels come from closed lists, so they stay few."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._counts: dict[Labels, float] = {}
        self._since: dict[Labels, float] = {}
        registry.register(self)

    def add(self, labels: Labels, amount: float = 1.0) -> None:
        """Count. amount: ≥ 0."""
        counts = self._counts
        if labels in counts:
            counts[labels] += amount
        else:
            counts[labels] = amount
            self._since[labels] = time()

    def describe(self) -> Iterable[CounterMetricFamily]:
        """See `Collector`."""
        return [CounterMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """See `Collector`."""
        [family] = self.describe()
        for labels, count in self._counts.items():
            family.add_metric(labels, count, created=self._since[labels])
        return [family]


class Distribution(Collector):
    """A histogram. bounds: of its buckets, ascending; one without a bound is added."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
        bounds: Sequence[float],
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = [float(bound) for bound in bounds]
        self._texts = [_text_of(bound) for bound in (*self._bounds, inf)]
        self._rows: dict[Labels, list[float]] = {}
        self._since: dict[Labels, float] = {}
        registry.register(self)

    def observe(self, labels: Labels, value: float) -> None:
        """Count a value in its bucket."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = [0.0] * (len(self._bounds) + 2)
            self._since[labels] = time()
        row[bisect_left(self._bounds, value)] += 1
        row[-1] += value

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """See `Collector`."""
        return [HistogramMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """See `Collector`."""
        [family] = self.describe()
        for labels, (*counts, total) in self._rows.items():
            named = dict(zip(self._labels, labels, strict=True))
            # Not by `add_metric`, which leaves out the count, too, where a bound is below 0.
            for text, count in zip(self._texts, accumulate(counts), strict=True):
                family.add_sample(f"{self._name}_bucket", {**named, "le": text}, count)
            family.add_sample(f"{self._name}_count", named, sum(counts))
            if self._bounds[0] >= 0:
                family.add_sample(f"{self._name}_sum", named, total)
            family.add_sample(f"{self._name}_created", named, self._since[labels])
        return [family]


def _text_of(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]
