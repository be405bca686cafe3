"""What the status page shows: a snapshot in words, its numbers formatted for people.

Pure: no HTTP, no clock, no HTML. Every text that came from outside is passed on as it is, and the
templates escape it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sollol_proxy.config.schema import AlertsSection
from sollol_proxy.core.snapshots import Snapshot
from sollol_proxy.core.types import HostState, RequestRecord
from sollol_proxy.server.alerts import Severity, Standing, alerts, standing, states_in_words
from sollol_proxy.server.calibration import CalibrationRow
from sollol_proxy.server.figures import (
    NOTHING,
    clock,
    count,
    duration,
    figure,
    plural,
    share,
    words,
)
from sollol_proxy.server.links import LINKS, Links, request_href
from sollol_proxy.server.request_row import RequestRow, request_row
from sollol_proxy.server.status_hosts import Bar, HostCard, host_card
from sollol_proxy.server.status_tiles import Tile, tiles

_RECENT_ROWS = 15
_WAITING_ROWS = 12
_LEARNT_ROWS = 25
_ALERT_ROWS = 8
_MOST_CARDS = 6
"""A larger pool shows its healthy hosts as rows; the others keep their cards."""


@dataclass(frozen=True, slots=True)
class WaitingRow:
    """A job in the queue. reason: what it waits for."""

    href: str
    model: str
    task: str
    priority: str
    waited: str
    reason: str


@dataclass(frozen=True, slots=True)
class LearntView:
    """What was learnt of a task type and model."""

    task: str
    model: str
    count: str
    mean: str
    minimum: str
    maximum: str
    first_byte: str
    tokens: str


@dataclass(frozen=True, slots=True)
class AlertRow:
    """An alert and the time of day it began. href: the page that says more; empty = none."""

    severity: Severity
    message: str
    href: str
    since: str
    since_iso: str


@dataclass(frozen=True, slots=True)
class PageView:
    """Everything the status page shows.

    cards, rows: every host is in one of them. alerts_more, waiting_more: what is not listed, in
    words; empty when all is listed.
    """

    version: str
    policy: str
    base_url: str
    links: Links
    now: str
    now_iso: str
    standing: Standing
    standing_word: str
    sentence: str
    alerts: tuple[AlertRow, ...]
    alerts_more: str
    tiles: tuple[Tile, ...]
    cards: tuple[HostCard, ...]
    rows: tuple[HostCard, ...]
    levels: tuple[Bar, ...]
    waiting: tuple[WaitingRow, ...]
    waiting_more: str
    requests: tuple[RequestRow, ...]
    learnt: tuple[LearntView, ...]


def view(
    snapshot: Snapshot,
    records: Sequence[RequestRecord],
    config_alerts: AlertsSection,
    now_iso: str,
    version: str,
    base_url: str,
    calibration: Sequence[CalibrationRow] = (),
) -> PageView:
    """The status page.

    records: newest first. now_iso: wall time, ISO 8601 UTC.
    base_url: the address that people are told to give their clients, without a slash at its end.
        Links do not use it.
    """
    found = alerts(snapshot, config_alerts, now_iso)
    by_host = {row.host_id: row for row in calibration}
    cards = tuple(host_card(host, by_host.get(host.spec.id)) for host in snapshot.hosts)
    few = len(cards) <= _MOST_CARDS
    word = standing(snapshot)
    shown = min(len(snapshot.waiting), _WAITING_ROWS)
    return PageView(
        version=version,
        policy=snapshot.policy,
        base_url=base_url,
        links=LINKS,
        now=clock(now_iso),
        now_iso=now_iso,
        standing=word,
        standing_word=words(word).capitalize(),
        sentence=_sentence(snapshot, word),
        alerts=tuple(
            AlertRow(alert.severity, alert.message, alert.href, clock(alert.since), alert.since)
            for alert in found[:_ALERT_ROWS]
        ),
        alerts_more=_more(len(found) - _ALERT_ROWS, "alert"),
        tiles=tiles(snapshot, records, config_alerts, now_iso, calibration),
        cards=tuple(card for card in cards if few or card.state is not HostState.HEALTHY),
        rows=tuple(card for card in cards if not few and card.state is HostState.HEALTHY),
        levels=_levels(snapshot),
        waiting=_waiting(snapshot),
        waiting_more=_more(snapshot.waiting_total - shown, "job"),
        requests=tuple(request_row(record) for record in records[:_RECENT_ROWS]),
        learnt=_learnt(snapshot),
    )


def _sentence(snapshot: Snapshot, word: Standing) -> str:
    total = len(snapshot.hosts)
    if word is Standing.DRAINING:
        running = sum(host.in_flight for host in snapshot.hosts)
        return f"Finishing {plural(running, 'job')} in flight, taking nothing new."
    if not total:
        return "No host is named yet."
    up = sum(host.state.is_routable for host in snapshot.hosts)
    if up == total:
        return "The host takes jobs." if total == 1 else f"All {total} hosts take jobs."
    subject = f"{up} of {plural(total, 'host')} " + ("takes" if up == 1 else "take")
    return f"{subject if up else 'No host takes'} jobs: {states_in_words(snapshot)}."


def _more(number: int, noun: str) -> str:
    return f"and {plural(number, f'more {noun}')}" if number > 0 else ""


def _levels(snapshot: Snapshot) -> tuple[Bar, ...]:
    waiting = snapshot.waiting_by_priority
    most = max(waiting.values(), default=0)
    return tuple(
        Bar(str(level), count(waiting.get(level, 0)), share(waiting.get(level, 0), most))
        for level in range(10, 0, -1)
    )


def _waiting(snapshot: Snapshot) -> tuple[WaitingRow, ...]:
    return tuple(
        WaitingRow(
            href=request_href(entry.job.id),
            model=entry.job.model or NOTHING,
            task=entry.job.task_type,
            priority=str(entry.job.priority),
            waited=duration(entry.waited_s),
            reason=entry.reason or NOTHING,
        )
        for entry in snapshot.waiting[:_WAITING_ROWS]
    )


def _learnt(snapshot: Snapshot) -> tuple[LearntView, ...]:
    often = sorted(snapshot.learnt, key=lambda row: -row.total.count)
    return tuple(
        LearntView(
            task=row.task_type,
            model=row.model,
            count=count(row.total.count),
            mean=duration(row.total.mean_s),
            minimum=duration(row.total.min_s),
            maximum=duration(row.total.max_s),
            first_byte=duration(row.first_byte_s_mean),
            tokens=figure(row.output_tokens_mean),
        )
        for row in often[:_LEARNT_ROWS]
    )
