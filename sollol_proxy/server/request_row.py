"""One request in a line, as the status page lists it and its own page sums it up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sollol_proxy.core.types import Cost, JobKind, Outcome, RequestRecord
from sollol_proxy.server.figures import NOTHING, clock, count, duration, figure, plural, words
from sollol_proxy.server.links import request_href

_NAMED_HOSTS = 3
_NAMED_FAILURES = 3


class Tone(StrEnum):
    """How a figure or an outcome is drawn."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"
    QUIET = "quiet"
    """Nobody's fault on our side; not counted in the success ratio."""


TONES: Mapping[Outcome, Tone] = {
    Outcome.COMPLETED: Tone.OK,
    Outcome.PARTIAL: Tone.WARN,
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

    about: task type and complexity; the request itself where nothing was chosen by them.
    host: who answered; where several were asked, those that did their part.
    score: the policy's score, or its cost, marked as such.
    failures: each attempt that was given up for another, and each host that did not do its part.
    failures_more: what a list of a few of them leaves out, in words; empty when nothing.
    """

    id: str
    href: str
    at: str
    at_iso: str
    model: str
    about: str
    priority: str
    host: str
    score: str
    attempts: str
    queued: str
    total: str
    outcome: str
    tone: Tone
    reason: str
    failures: tuple[str, ...]
    failures_more: str

    @property
    def first_failures(self) -> tuple[str, ...]:
        """The few that a list has room for."""
        return self.failures[:_NAMED_FAILURES]


def request_row(record: RequestRecord) -> RequestRow:
    """The line of one request."""
    decision = record.decision
    is_passed = record.kind.is_passed
    more = len(record.failures) - _NAMED_FAILURES
    return RequestRow(
        id=record.id,
        href=request_href(record.id),
        at=clock(record.started_at),
        at_iso=record.started_at,
        model=record.model or NOTHING,
        about=f"{record.method} {record.route}"
        if is_passed
        else f"{record.task_type}, {record.complexity}",
        priority=NOTHING if is_passed else str(record.priority),
        host=_who(record),
        score=price(decision.cost) if decision and not is_passed else NOTHING,
        attempts=count(record.attempts),
        queued=duration(record.queue_s),
        total=duration(record.total_s),
        outcome=words(record.outcome),
        tone=TONES[record.outcome],
        reason=_why(record),
        failures=_failures(record),
        failures_more=f"and {plural(more, 'more host')}" if more > 0 else "",
    )


def is_spread(record: RequestRecord) -> bool:
    """Whether several hosts were to carry it out: then no policy chose one of them."""
    if record.decision is not None:
        return False
    unloaded = record.kind is JobKind.UNLOAD and bool(record.failures)
    return record.kind is JobKind.MANAGE or bool(record.hosts) or unloaded


def parts_in_words(record: RequestRecord) -> str:
    """How many of the hosts that were to do their part did it."""
    done = len(record.hosts)
    total = done + len({host for host, _ in record.failures} - set(record.hosts))
    if done == total:
        return f"done on {'all ' if total > 1 else ''}{plural(total, 'host')}"
    return f"done on {count(done)} of {plural(total, 'host')}"


def _failures(record: RequestRecord) -> tuple[str, ...]:
    if is_spread(record):
        return tuple(f"not on {host}: {reason}" for host, reason in record.failures)
    return tuple(f"{host} failed: {reason}" for host, reason in record.failures)


def _who(record: RequestRecord) -> str:
    if record.decision is not None:
        return record.decision.host_id
    if len(record.hosts) > _NAMED_HOSTS:
        return plural(len(record.hosts), "host")
    return ", ".join(record.hosts) or NOTHING


def _why(record: RequestRecord) -> str:
    if record.decision is not None and record.decision.reason:
        return record.decision.reason
    if is_spread(record) and (record.hosts or record.failures):
        return parts_in_words(record)
    return record.detail


def price(cost: Cost) -> str:
    """The policy's score, or its cost, marked as such."""
    return f"cost {figure(cost.total)}" if cost.score is None else figure(cost.score)
