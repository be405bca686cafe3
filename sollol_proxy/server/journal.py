"""Requests by id: those that run, the last finished ones; each counted and logged once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

import structlog

from sollol_proxy import logs
from sollol_proxy.core.types import RequestRecord
from sollol_proxy.metrics import Metrics
from sollol_proxy.server.calibration import Calibration
from sollol_proxy.server.decision_log import DecisionLog
from sollol_proxy.server.exchange import Exchange, Ids


class Journal:
    """Running requests, the last `limit` finished ones, and the door to metrics and logs.

    calibration: how near the predictions of finished requests came. ids: of requests to come.
    """

    def __init__(
        self,
        limit: int,
        metrics: Metrics,
        clock: Callable[[], float],
        decision_log: DecisionLog | None = None,
    ) -> None:
        self.calibration = Calibration()
        self.ids = Ids()
        self._limit = limit
        self._metrics = metrics
        self._clock = clock
        self._decision_log = decision_log
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
        self.calibration.add(record)
        if self._decision_log is not None:
            self._decision_log.add(record, exchange.facts, exchange.arrived_s)
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
