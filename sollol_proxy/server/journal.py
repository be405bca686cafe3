"""Requests by id: those that run, the last finished ones; each counted and logged once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

import structlog

from sollol_proxy import logs
from sollol_proxy.core.types import RequestRecord
from sollol_proxy.metrics import Metrics
from sollol_proxy.server.exchange import Exchange


class Journal:
    """Running requests, the last `limit` finished ones, and the door to metrics and log."""

    def __init__(self, limit: int, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._metrics = metrics
        self._clock = clock
        self._running: dict[str, Exchange] = {}
        self._finished: dict[str, RequestRecord] = {}
        self._order: deque[str] = deque()
        self._log = structlog.get_logger("sollol")

    def begin(self, exchange: Exchange) -> None:
        """A request has arrived."""
        self._running[exchange.id] = exchange

    def close(self, exchange: Exchange) -> None:
        """The request is over, whichever way."""
        del self._running[exchange.id]
        record = exchange.close(self._clock())
        if len(self._order) >= self._limit:
            del self._finished[self._order.popleft()]
        self._order.append(record.id)
        self._finished[record.id] = record
        self._metrics.observe(record)
        logs.access(self._log, record)

    def running(self, request_id: str) -> RequestRecord | None:
        """What is known so far of a request that runs or waits."""
        exchange = self._running.get(request_id)
        return None if exchange is None else exchange.close(self._clock())

    def finished(self, request_id: str) -> RequestRecord | None:
        """A finished request that is still kept."""
        return self._finished.get(request_id)

    def latest(self, count: int) -> list[RequestRecord]:
        """The last finished requests, newest first."""
        return [self._finished[request_id] for request_id in islice(reversed(self._order), count)]
