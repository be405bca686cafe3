"""One request in a line, as the status page lists it and its own page sums it up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sollol_proxy.core.types import Cost, Outcome, RequestRecord
from sollol_proxy.server.figures import NOTHING, clock, count, duration, figure, words
from sollol_proxy.server.links import request_href


class Tone(StrEnum):
    """How a figure or an outcome is drawn."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"
    QUIET = "quiet"
    """Nobody's fault on our side; not counted in the success ratio."""


TONES: Mapping[Outcome, Tone] = {
    Outcome.COMPLETED: Tone.OK,
    Outcome.CLIENT_GONE: Tone.QUIET,
    Outcome.REJECTED_BAD_REQUEST: Tone.QUIET,
    Outcome.UPSTREAM_REFUSED: Tone.QUIET,
    Outcome.NO_MODEL: Tone.QUIET,
    Outcome.DRAINING: Tone.QUIET,
    Outcome.REJECTED_QUEUE_FULL: Tone.WARN,
    Outcome.EXPIRED_IN_QUEUE: Tone.WARN,
    Outcome.NO_HOST: Tone.BAD,
    Outcome.UPSTREAM_FAILED: Tone.BAD,
    Outcome.UPSTREAM_BROKE: Tone.BAD,
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A name and a value."""

    label: str
    value: str


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A finished request in one line.

    score: the policy's score, or its cost, marked as such.
    failures: host and reason of each attempt that was given up for another.
    """

    id: str
    href: str
    at: str
    at_iso: str
    model: str
    task: str
    complexity: str
    priority: str
    host: str
    score: str
    attempts: str
    queued: str
    total: str
    outcome: str
    tone: Tone
    reason: str
    failures: tuple[Fact, ...]


def request_row(record: RequestRecord) -> RequestRow:
    """The line of one request."""
    decision = record.decision
    return RequestRow(
        id=record.id,
        href=request_href(record.id),
        at=clock(record.started_at),
        at_iso=record.started_at,
        model=record.model or NOTHING,
        task=record.task_type,
        complexity=record.complexity,
        priority=str(record.priority),
        host=decision.host_id if decision else NOTHING,
        score=price(decision.cost) if decision else NOTHING,
        attempts=count(record.attempts),
        queued=duration(record.queue_s),
        total=duration(record.total_s),
        outcome=words(record.outcome),
        tone=TONES[record.outcome],
        reason=(decision.reason if decision else "") or record.detail,
        failures=tuple(Fact(host, reason) for host, reason in record.failures),
    )


def price(cost: Cost) -> str:
    """The policy's score, or its cost, marked as such."""
    return f"cost {figure(cost.total)}" if cost.score is None else figure(cost.score)
