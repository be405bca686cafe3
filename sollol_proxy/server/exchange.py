"""The record of one request in the making: a local of that request, frozen at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import urandom

from aiohttp import web

from sollol_proxy.core.types import (
    Complexity,
    Decision,
    Facts,
    JobKind,
    Observation,
    Outcome,
    RequestRecord,
)
from sollol_proxy.ollama.routes import Route
from sollol_proxy.server import headers

MAX_PATH_KEPT = 200
MAX_MODEL_KEPT = 200
"""Characters of a client's text that a record keeps: records must stay small."""


_IDS_AT_ONCE = 64
_ID_BYTES = 8
_NOTHING_YET = Facts(kind=JobKind.OTHER)


class Ids:
    """Random ids of requests, read from the system many at a time: each read is a system call."""

    def __init__(self) -> None:
        self._unused: list[str] = []

    def new(self) -> str:
        """An id that nobody has had."""
        if not self._unused:
            digits = urandom(_ID_BYTES * _IDS_AT_ONCE).hex()
            length = 2 * _ID_BYTES
            self._unused = [digits[at : at + length] for at in range(0, len(digits), length)]
        return self._unused.pop()


@dataclass(slots=True)
class Exchange:
    """What is known of a request so far. `arrived_s` and the `_s` fields: monotonic clock.

    rewrote: what the proxy changed in the body on its way to the host.
    targets: hosts that are to carry the request out, where it is more than one host's; else 0.
    """

    id: str
    started_at: str
    method: str
    path: str
    route: Route
    arrived_s: float
    facts: Facts = _NOTHING_YET
    complexity: Complexity = Complexity.SIMPLE
    priority: int = 0
    decision: Decision | None = None
    attempts: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    targets: int = 0
    queue_s: float = 0.0
    waiting_since_s: float | None = None
    first_byte_s: float | None = None
    bytes_out: int = 0
    status: int = 0
    answered_by_host: bool = False
    outcome: Outcome = Outcome.CLIENT_GONE
    detail: str = ""
    rewrote: str = ""
    observation: Observation | None = None

    @classmethod
    def begin(cls, id_: str, request: web.BaseRequest, route: Route, now: float) -> Exchange:
        """A request has arrived."""
        return cls(
            id=id_,
            started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            method=request.method,
            path=request.rel_url.raw_path[:MAX_PATH_KEPT],
            route=route,
            arrived_s=now,
        )

    def start_waiting(self, now: float) -> None:
        """The job joins the queue."""
        self.waiting_since_s = now

    def stop_waiting(self, now: float) -> None:
        """The job has left the queue, with a host or without."""
        if self.waiting_since_s is not None:
            self.queue_s += max(0.0, now - self.waiting_since_s)
            self.waiting_since_s = None

    def routing_headers(self) -> Mapping[str, str]:
        """What was decided so far, as response headers."""
        fields = headers.routing(
            self.id,
            self.decision,
            task_type=self.facts.task_type,
            complexity=self.complexity,
            priority=self.priority,
            attempts=self.attempts,
            queue_s=self.queue_s,
            rewrote=self.rewrote,
        )
        if self.targets:
            fields |= headers.parts(self.hosts, self.failures, self.targets)
        return fields

    def close(self, now: float) -> RequestRecord:
        """The record of the request as it stands now: final when it is over."""
        waits_s = 0.0 if self.waiting_since_s is None else max(0.0, now - self.waiting_since_s)
        facts = self.facts
        return RequestRecord(
            id=self.id,
            started_at=self.started_at,
            method=self.method,
            route=self.route.path,
            path=self.path,
            model=(facts.model or facts.model_as_written)[:MAX_MODEL_KEPT],
            kind=facts.kind,
            task_type=facts.task_type,
            complexity=self.complexity,
            priority=self.priority,
            outcome=self.outcome,
            status=self.status,
            answered_by_host=self.answered_by_host,
            stream=facts.stream,
            decision=self.decision,
            failures=tuple(self.failures),
            hosts=tuple(self.hosts),
            skipped=tuple(self.skipped),
            attempts=self.attempts,
            queue_s=self.queue_s + waits_s,
            first_byte_s=self.first_byte_s,
            total_s=max(0.0, now - self.arrived_s),
            body_bytes_in=facts.body_bytes,
            body_bytes_out=self.bytes_out,
            observation=self.observation,
            detail=self.detail,
        )


EXCHANGE = web.RequestKey("exchange", Exchange)
