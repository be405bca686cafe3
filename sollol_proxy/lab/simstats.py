"""What a simulated host counts, and waiting for a count."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sollol_proxy.lab.simjobs import HostCounts


@dataclass(frozen=True, slots=True)
class SimStats:
    """Counts since the start.

    requests: by path, of any status. in_flight, max_in_flight: inference requests inside the
        host by canonical model name, those that wait there included; zeros left out.
    cancelled: requests whose client left. records_sent: one a streamed token.
    """

    requests: Mapping[str, int]
    in_flight: Mapping[str, int]
    max_in_flight: Mapping[str, int]
    records_sent: int
    loads: int
    aborted_loads: int
    evictions: int
    unloads: int
    reloads: int
    cancelled: int

    @property
    def total_in_flight(self) -> int:
        """Inference requests inside the host."""
        return sum(self.in_flight.values())


class Tally:
    """Keeps the counts and wakes who waits for them."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._in_flight: Counter[str] = Counter()
        self._max_in_flight: Counter[str] = Counter()
        self._records_sent = 0
        self._counts = HostCounts()
        self._waits: list[tuple[Callable[[SimStats], bool], asyncio.Future[None]]] = []

    def watch(self, counts: HostCounts) -> None:
        """Include the virtual host's own counts."""
        self._counts = counts

    def came(self, path: str) -> None:
        """A request arrived."""
        self._requests[path] += 1
        self.changed()

    def entered(self, model: str) -> None:
        """An inference request is inside."""
        self._in_flight[model] += 1
        self._max_in_flight[model] = max(self._max_in_flight[model], self._in_flight[model])
        self.changed()

    def left(self, model: str) -> None:
        """An inference request is out."""
        self._in_flight[model] -= 1
        self.changed()

    def sent(self) -> None:
        """A token's record went out."""
        self._records_sent += 1
        self.changed()

    def stats(self) -> SimStats:
        """The counts as they are."""
        counts = self._counts
        return SimStats(
            requests=dict(self._requests),
            in_flight=dict(+self._in_flight),
            max_in_flight=dict(self._max_in_flight),
            records_sent=self._records_sent,
            loads=counts.loads,
            aborted_loads=counts.aborted_loads,
            evictions=counts.evictions,
            unloads=counts.unloads,
            reloads=counts.reloads,
            cancelled=counts.cancelled,
        )

    def changed(self) -> None:
        """Look whether somebody has waited for what is now so."""
        if not self._waits:
            return
        stats = self.stats()
        for holds, future in self._waits:
            if not future.done() and holds(stats):
                future.set_result(None)

    async def until(self, holds: Callable[[SimStats], bool]) -> SimStats:
        """Wait until the counts satisfy `holds`."""
        if not holds(self.stats()):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = (holds, future)
            self._waits.append(entry)
            try:
                await future
            finally:
                self._waits.remove(entry)
        return self.stats()
