"""What the page of one request shows: what was decided and why, its time, its facts.

Pure, as `status` is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sollol_proxy.core.policies.completion_time import CompletionTime
from sollol_proxy.core.policies.scene import EQUAL_RATIO
from sollol_proxy.core.types import Cost, Decision, JobKind, RequestRecord, Term
from sollol_proxy.server.figures import NOTHING, count, duration, figure, share, size
from sollol_proxy.server.links import LINKS, Links
from sollol_proxy.server.request_row import (
    Fact,
    RequestRow,
    Tone,
    is_spread,
    parts_in_words,
    price,
    request_row,
)

_LONG_S = 10.0
"""Sums of seconds from here on are shown with two places, shorter ones with three."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a request's time. start, share: its place on the line, `0%` to `100%`."""

    name: str
    label: str
    text: str
    start: str
    share: str


@dataclass(frozen=True, slots=True)
class TermCell:
    """One part of a candidate's cost, with its reason."""

    name: str
    value: str
    text: str


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """A host that was considered. terms: in the order of the table's columns.

    share: how near it came to the best one, `0%` to `100%`.
    """

    host: str
    is_chosen: bool
    score: str
    share: str
    terms: tuple[TermCell, ...]


@dataclass(frozen=True, slots=True)
class PartRow:
    """What one of several hosts did. text: `done`, or why it did not."""

    host: str
    is_done: bool
    text: str


@dataclass(frozen=True, slots=True)
class RequestView:
    """Everything the page of one request shows.

    lead: in place of the chosen host, where there is none.
    candidates: the chosen host first. are_seconds: their terms are seconds that add up.
    despite: why another host may have a smaller sum than the chosen one; empty when none has.
    parts: where several hosts were to carry it out; those that did not come first.
    """

    is_running: bool
    version: str
    links: Links
    row: RequestRow
    heading: str
    took_label: str
    is_spread: bool
    lead: str
    request_line: str
    detail: str
    policy: str
    timeline: tuple[Segment, ...]
    facts: tuple[Fact, ...]
    columns: tuple[str, ...]
    candidates: tuple[CandidateRow, ...]
    are_seconds: bool
    despite: str
    parts: tuple[PartRow, ...]


def request_view(record: RequestRecord, version: str, *, is_running: bool = False) -> RequestView:
    """The page of one request.

    is_running: the record is what is known so far; its outcome is not.
    """
    decision = record.decision
    row = request_row(record)
    if is_running:
        reason = row.reason or _not_yet(record)
        row = replace(row, outcome="running", tone=Tone.QUIET, reason=reason)
    parts = _parts(record) if is_spread(record) else ()
    columns, candidates = _candidates(decision) if decision else ((), ())
    return RequestView(
        is_running=is_running,
        version=version,
        links=LINKS,
        row=row,
        heading=row.outcome.capitalize(),
        took_label="So far" if is_running else "Took",
        is_spread=is_spread(record),
        lead=_lead(record, is_running=is_running),
        request_line=f"{record.method} {record.path}",
        # Where neither a policy nor the parts give a reason the row has the detail as its own.
        detail=record.detail if decision or parts else "",
        policy=decision.policy if decision else NOTHING,
        timeline=_timeline(record, is_running=is_running),
        facts=_facts(record, is_running=is_running),
        columns=columns,
        candidates=candidates,
        are_seconds=decision is not None and _add_up(decision),
        despite=_despite(decision) if decision is not None and _add_up(decision) else "",
        parts=parts,
    )


def _not_yet(record: RequestRecord) -> str:
    if record.kind is JobKind.MANAGE:
        return "Under way. Which hosts have done it is told at the end."
    return "Not yet: the request is being read, or waits in the queue."


def _lead(record: RequestRecord, *, is_running: bool) -> str:
    if is_spread(record) and (record.hosts or record.failures):
        return parts_in_words(record).capitalize()
    if is_running:
        return "No host yet"
    return "No host was asked" if is_spread(record) else "No host was chosen"


def _parts(record: RequestRecord) -> tuple[PartRow, ...]:
    failed = [PartRow(host, False, reason) for host, reason in record.failures]
    return (*failed, *(PartRow(host, True, "done") for host in record.hosts))


def _candidates(decision: Decision) -> tuple[tuple[str, ...], tuple[CandidateRow, ...]]:
    priced = _priced(decision)
    columns = tuple(dict.fromkeys(term.name for _, cost in priced for term in cost.terms))
    best = max((_worth(cost) for _, cost in priced), default=0.0)
    places: int | None = None
    if _add_up(decision):
        places = 3 if max(cost.total for _, cost in priced) < _LONG_S else 2
    return columns, tuple(
        CandidateRow(
            host=host,
            is_chosen=place == 0,
            score=price(cost) if places is None else _seconds(_shown_sum(cost, places), places),
            share=share(_worth(cost), best),
            terms=_term_cells(cost, columns, places),
        )
        for place, (host, cost) in enumerate(priced)
    )


def _priced(decision: Decision) -> list[tuple[str, Cost]]:
    others = [(other.host_id, other.cost) for other in decision.runners_up]
    return [(decision.host_id, decision.cost), *others]


def _add_up(decision: Decision) -> bool:
    """Whether costs are seconds, and each the sum of its terms."""
    return decision.predicted_total_s is not None and all(
        cost.score is None
        and cost.terms
        and math.isclose(sum(term.value for term in cost.terms), cost.total, abs_tol=1e-6)
        for _, cost in _priced(decision)
    )


def _despite(decision: Decision) -> str:
    """Why the smallest sum did not decide, in words; empty where the chosen host has it."""
    if decision.policy != CompletionTime.name:  # a policy of somebody else's
        return ""
    total_s = decision.cost.total
    least_s = min((other.cost.total for other in decision.runners_up), default=total_s)
    if least_s >= total_s:
        return ""
    if total_s <= least_s * EQUAL_RATIO:
        return "Hosts that are within a tenth of each other take turns."
    return (
        "The smallest sum is not all that counts: waiting weighs more than work, and requests "
        "that wait are placed together, so that what is a little worse for one may be better for "
        "all."
    )


def _shown_sum(cost: Cost, places: int) -> float:
    """Of the terms as they are shown, so that whoever adds them up comes to the same."""
    return sum(round(term.value, places) for term in cost.terms)


def _seconds(value: float, places: int) -> str:
    return f"{value:,.{places}f} s"


def _worth(cost: Cost) -> float:
    """A figure of which more is better; costs below a thousandth count as equally good."""
    return 1 / max(cost.total, 1e-3) if cost.score is None else cost.score


def _term_cells(cost: Cost, columns: Sequence[str], places: int | None) -> tuple[TermCell, ...]:
    """places: of seconds; None = the terms are none."""

    def value(term: Term) -> str:
        return figure(term.value) if places is None else _seconds(term.value, places)

    terms = {term.name: term for term in cost.terms}
    return tuple(
        TermCell(name, value(terms[name]), terms[name].text)
        if name in terms
        else TermCell(name, NOTHING, "")
        for name in columns
    )


def _timeline(record: RequestRecord, *, is_running: bool) -> tuple[Segment, ...]:
    """Queue, then until the first byte, then the answer; several hosts need no queue."""
    marks = _marks(record, is_running=is_running)
    whole = max(mark for mark in marks if not math.isnan(mark))
    names = ("queue", "first", "answer")
    labels = ("in the queue", "to the first byte", "answer")
    segments = tuple(
        Segment(
            name=name,
            label=label,
            text=duration(end - start),
            start=share(start, whole),
            share=share(end - start, whole),
        )
        for name, label, start, end in zip(names, labels, marks, marks[1:], strict=False)
    )
    return segments[1:] if is_spread(record) else segments


def _marks(record: RequestRecord, *, is_running: bool) -> list[float]:
    """Where the stretches begin and the last one ends, seconds since arrival.

    What a running request has not reached yet begins now.
    """
    # A record is told of its time in the queue when that is over.
    queue_s = record.total_s if is_running and record.decision is None else record.queue_s
    first_s = record.first_byte_s
    if first_s is None:
        first_s = record.total_s if is_running else queue_s
    return [0.0, queue_s, max(first_s, queue_s), record.total_s]


def _facts(record: RequestRecord, *, is_running: bool) -> tuple[Fact, ...]:
    seen = record.observation
    hosts = "the hosts" if is_spread(record) else "the host"
    answered_by = hosts if record.answered_by_host else NOTHING if is_running else "the proxy"
    no_status = "none yet" if is_running else "client left before one"
    facts = [
        Fact("Model", record.model or NOTHING),
        Fact("Kind", record.kind),
        *_scheduling_facts(record),
        *_predicted_facts(record),
        Fact("Status", str(record.status) if record.status else no_status),
        Fact("Answered by", answered_by),
        Fact("Streamed", "yes" if record.stream else "no"),
        Fact("Hosts asked" if is_spread(record) else "Attempts", count(record.attempts)),
        Fact("Body in", size(record.body_bytes_in)),
        # Counted when the answer has ended.
        Fact("Body out", NOTHING if is_running else size(record.body_bytes_out)),
    ]
    if seen is None:
        return tuple(facts)
    speed = seen.output_tokens / seen.decode_s if seen.output_tokens and seen.decode_s else None
    return (
        *facts,
        Fact("Prompt tokens", NOTHING if seen.prompt_tokens is None else count(seen.prompt_tokens)),
        Fact("Output tokens", NOTHING if seen.output_tokens is None else count(seen.output_tokens)),
        Fact("Loading", duration(seen.load_s)),
        Fact("Prompt", duration(seen.prefill_s)),
        Fact("Output", duration(seen.decode_s)),
        Fact("At the host", duration(seen.total_s)),
        Fact("Speed", NOTHING if speed is None else f"{figure(speed)} tokens/s"),
    )


def _scheduling_facts(record: RequestRecord) -> tuple[Fact, ...]:
    """What a policy went by; nothing where there was none to ask."""
    if record.kind.is_passed:
        return ()
    return (
        Fact("Task type", record.task_type),
        Fact("Complexity", record.complexity),
        Fact("Priority", str(record.priority)),
    )


def _predicted_facts(record: RequestRecord) -> tuple[Fact, ...]:
    """What is to be compared with the time in the queue and at the host; nothing without it."""
    decision = record.decision
    if decision is None or decision.predicted_total_s is None:
        return ()
    return (
        Fact("Predicted wait", duration(decision.predicted_wait_s)),
        Fact("Predicted at the host", duration(decision.predicted_total_s)),
    )
