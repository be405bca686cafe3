"""Counters and histograms that cost a request little, in prometheus_client's registry.

The library's own take a lock and five calls for each number, because any thread may count; here
only the event loop does, and only it renders. What they say is what the library's would, names of
series and their order included.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from time import time
from typing import Generic, TypeVar

from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_NO_CREATED = "PROMETHEUS_DISABLE_CREATED_SERIES"
"""The library's variable; set, nothing says since when a series is counted."""


class _Child:
    """One series. created_s: wall time of its first number, seconds since 1970."""

    __slots__ = ("created_s",)

    def __init__(self) -> None:
        self.created_s = time()


class _Count(_Child):
    __slots__ = ("value",)

    def __init__(self) -> None:
        super().__init__()
        self.value = 0.0


class _Buckets(_Child):
    """counts: of each bucket by itself, not of those below it too."""

    __slots__ = ("counts", "sum")

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.counts = [0] * buckets
        self.sum = 0.0


_AChild = TypeVar("_AChild", bound=_Child)
_Samples = Iterator[tuple[str, dict[str, str], float]]


class _Family(Collector, Generic[_AChild]):
    """Series of one name. labels: their values have to come from closed lists.

    begun: makes a series at its first number.
    """

    kind: str

    def __init__(
        self, name: str, text: str, labels: Sequence[str], begun: Callable[[], _AChild]
    ) -> None:
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._children: defaultdict[tuple[str, ...], _AChild] = defaultdict(begun)

    def describe(self) -> list[Metric]:
        """What the registry keeps names apart by."""
        return [Metric(self._name, self._text, self.kind)]

    def collect(self) -> list[Metric]:
        """All series as they stand."""
        metric = Metric(self._name, self._text, self.kind)
        has_created = os.environ.get(_NO_CREATED, "").lower() not in ("true", "1", "t")
        for values, child in self._children.items():
            labels = dict(zip(self._labels, values, strict=True))
            for suffix, more, value in self._samples(child):
                metric.add_sample(self._name + suffix, labels | more, value)
            if has_created:
                metric.add_sample(f"{self._name}_created", labels, child.created_s)
        return [metric]

    @abstractmethod
    def _samples(self, child: _AChild) -> _Samples:
        """Suffix, further labels and value of each sample of a series."""


class Tally(_Family[_Count]):
    """A counter."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        super().__init__(name, text, labels, _Count)

    def add(self, amount: float, *labels: str) -> None:
        """Count so many more. amount: at least 0."""
        self._children[labels].value += amount

    def _samples(self, child: _Count) -> _Samples:
        yield "_total", {}, child.value


class Histogram(_Family[_Buckets]):
    """A histogram.

    bounds: the highest value of each bucket, ascending; one for whatever is above is added.
    """

    kind = "histogram"

    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        self._bounds = (*bounds, inf)
        super().__init__(name, text, labels, partial(_Buckets, len(self._bounds)))
        self._shown = [str(floatToGoString(bound)) for bound in self._bounds]  # type: ignore[no-untyped-call]

    def observe(self, value: float, *labels: str) -> None:
        """Count a value into its bucket."""
        child = self._children[labels]
        child.sum += value
        child.counts[bisect_left(self._bounds, value)] += 1

    def _samples(self, child: _Buckets) -> _Samples:
        total = 0
        for bound, count in zip(self._shown, child.counts, strict=True):
            total += count
            yield "_bucket", {"le": bound}, total
        yield "_count", {}, total
        # Of values on both sides of zero the sum may fall, which Prometheus takes for a restart.
        if self._bounds[0] >= 0:
            yield "_sum", {}, child.sum
