"""What a simulated host counts, and waiting for a count."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from sollol_proxy.lab.ask import AskError
from sollol_proxy.lab.faults import FaultStruck
from sollol_proxy.lab.simjobs import HostCounts


@dataclass(frozen=True, slots=True)
class ManageCounts:
    """What has been done to the disk.

    pulls_*: also those that a creation needs; cancelled = the client left. pulls, max_pulls:
        running now, and at most. blobs_stored: uploads that were kept. blob_bytes: of uploads,
        as they arrive.
    """

    pulls: int = 0
    max_pulls: int = 0
    pulls_begun: int = 0
    pulls_finished: int = 0
    pulls_failed: int = 0
    pulls_cancelled: int = 0
    pushes: int = 0
    creates: int = 0
    copies: int = 0
    deletes: int = 0
    blobs_stored: int = 0
    blob_bytes: int = 0


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
    manage: ManageCounts = field(default_factory=ManageCounts)

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
        self._cloud_counts = HostCounts()
        self._manage = ManageCounts()
        self._waits: list[tuple[Callable[[SimStats], bool], asyncio.Future[None]]] = []

    def watch(self, counts: HostCounts, cloud_counts: HostCounts) -> None:
        """Include the virtual host's own counts, and the cancellations of what the cloud runs."""
        self._counts = counts
        self._cloud_counts = cloud_counts

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

    def did(self, name: str, amount: int = 1) -> None:
        """Add to one of `ManageCounts`."""
        self._manage = replace(self._manage, **{name: getattr(self._manage, name) + amount})
        self.changed()

    @contextmanager
    def pulling(self) -> Iterator[None]:
        """Count a pull: how many run, and how each of them ends."""
        self.did("pulls_begun")
        self.did("pulls")
        self.did("max_pulls", max(0, self._manage.pulls - self._manage.max_pulls))
        end = "pulls_cancelled"
        try:
            yield
            end = "pulls_finished"
        except (AskError, FaultStruck):
            end = "pulls_failed"
            raise
        finally:
            self.did("pulls", -1)
            self.did(end)

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
            cancelled=counts.cancelled + self._cloud_counts.cancelled,
            manage=self._manage,
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
