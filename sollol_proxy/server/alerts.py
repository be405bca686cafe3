"""Whether the pool takes jobs, and what is out of bounds.

These are two questions: a slow pool is still serving, and a pool without alerts may be draining.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sollol_proxy.config.schema import AlertsSection
from sollol_proxy.core.snapshots import HostSnapshot, Snapshot
from sollol_proxy.core.types import HostState
from sollol_proxy.server.figures import before, duration, percent, plural
from sollol_proxy.server.links import LINKS
from sollol_proxy.server.models_view import drifting

_NAMED_DRIFTS = 3


class Standing(StrEnum):
    """Whether the pool takes jobs. Says nothing about speed; that is what alerts are for."""

    SERVING = "serving"
    """Every host takes jobs, save those that were told to drain."""
    DEGRADED = "degraded"
    """Some hosts take jobs; others have failed or have not answered yet."""
    NO_HOST = "no_host"
    DRAINING = "draining"
    """The proxy itself is shutting down."""


class Severity(StrEnum):
    """How urgent an alert is, the most urgent first.

    A critical one means that hosts are out, not that they are slow; an info only that somebody
    should know.
    """

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


class AlertKind(StrEnum):
    """What an alert is about; stable, for machines."""

    NO_HOST = "no_host"
    HOST_EJECTED = "host_ejected"
    HOST_UNKNOWN = "host_unknown"
    FIRST_TOKEN = "first_token"
    SUCCESS_RATIO = "success_ratio"
    QUEUE_DEPTH = "queue_depth"
    QUEUE_WAIT = "queue_wait"
    PLAN_FAULTS = "plan_faults"
    DRIFT = "drift"


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that is out of bounds.

    subject: a host's id, `queue`, `policy` or `pool`.
    since: ISO 8601 UTC; when it began where that is known, else when it was seen.
    href: the page of ours that says more; empty = none.
    """

    severity: Severity
    kind: AlertKind
    subject: str
    message: str
    since: str
    href: str = ""


def standing(snapshot: Snapshot) -> Standing:
    """Whether the pool takes jobs."""
    if snapshot.is_draining:
        return Standing.DRAINING
    states = {host.state for host in snapshot.hosts}
    if not any(state.is_routable for state in states):
        return Standing.NO_HOST
    if states & {HostState.EJECTED, HostState.UNKNOWN}:
        return Standing.DEGRADED
    return Standing.SERVING


def alerts(snapshot: Snapshot, section: AlertsSection, now_iso: str) -> tuple[Alert, ...]:
    """Everything that is out of bounds, the most urgent first.

    A threshold that is reached counts as passed; a success ratio has to be below its own.
    """
    found = [*_pool_alerts(snapshot, section, now_iso)]
    for host in snapshot.hosts:
        found += _host_alerts(host, section, now_iso)
    order = list(Severity)
    return tuple(sorted(found, key=lambda alert: order.index(alert.severity)))


def states_in_words(snapshot: Snapshot) -> str:
    """How many hosts are in which state that takes no jobs, in words."""
    tally = Counter(host.state for host in snapshot.hosts if not host.state.is_routable)
    return ", ".join(f"{number} {state}" for state, number in tally.items())


def retry_in_words(host: HostSnapshot) -> str:
    """When an ejected host is tried again."""
    if host.retry_in_s is None:
        return "tried again soon"
    return f"tried again in {duration(host.retry_in_s)}" if host.retry_in_s > 0 else "tried now"


def _pool_alerts(snapshot: Snapshot, section: AlertsSection, now_iso: str) -> Iterable[Alert]:
    if not any(host.state.is_routable for host in snapshot.hosts):
        down_s = min((host.state_for_s for host in snapshot.hosts), default=0.0)
        text = f"no host takes jobs: {states_in_words(snapshot) or 'none is configured'}"
        yield Alert(Severity.CRITICAL, AlertKind.NO_HOST, "pool", text, before(now_iso, down_s))
    if snapshot.waiting_total >= section.queue_depth:
        text = f"{plural(snapshot.waiting_total, 'job')} waiting, threshold {section.queue_depth}"
        yield Alert(Severity.WARNING, AlertKind.QUEUE_DEPTH, "queue", text, now_iso)
    if snapshot.oldest_wait_s >= section.queue_wait:
        text = (
            f"the oldest job has waited {duration(snapshot.oldest_wait_s)}, "
            f"threshold {duration(section.queue_wait)}"
        )
        since = before(now_iso, snapshot.oldest_wait_s - section.queue_wait)
        yield Alert(Severity.WARNING, AlertKind.QUEUE_WAIT, "queue", text, since)
    if snapshot.plan_faults:
        text = (
            f"{plural(snapshot.plan_faults, 'plan')} of {snapshot.policy} refused since the start: "
            "it raised, or named a host that may not take the job"
        )
        yield Alert(Severity.WARNING, AlertKind.PLAN_FAULTS, "policy", text, now_iso)
    names = drifting(host for host in snapshot.hosts if host.state.is_routable)
    if names:
        text = f"different models under one name: {_first(names)}"
        yield Alert(Severity.INFO, AlertKind.DRIFT, "pool", text, now_iso, LINKS.models)


def _first(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_NAMED_DRIFTS])
    more = len(names) - _NAMED_DRIFTS
    return f"{shown} and {more} more" if more > 0 else shown


def _host_alerts(host: HostSnapshot, section: AlertsSection, now_iso: str) -> Iterable[Alert]:
    name, since = host.spec.id, before(now_iso, host.state_for_s)
    because = f": {host.detail}" if host.detail else ""
    if host.state is HostState.EJECTED:
        text = f"{name} is ejected{because}; {retry_in_words(host)}"
        yield Alert(Severity.CRITICAL, AlertKind.HOST_EJECTED, name, text, since)
    if host.state is HostState.UNKNOWN:
        text = f"{name} has not answered yet{because}"
        yield Alert(Severity.WARNING, AlertKind.HOST_UNKNOWN, name, text, since)
    if not host.state.is_routable:
        return
    if host.first_token_s is not None and host.first_token_s >= section.first_token:
        text = (
            f"{name} is expected to need {duration(host.first_token_s)} to its first token, "
            f"threshold {duration(section.first_token)}"
        )
        yield Alert(Severity.WARNING, AlertKind.FIRST_TOKEN, name, text, now_iso)
    if host.success_ratio is not None and host.success_ratio < section.success_ratio:
        text = (
            f"{percent(host.success_ratio)} of the attempts at {name} end well, "
            f"threshold {percent(section.success_ratio)}"
        )
        yield Alert(Severity.WARNING, AlertKind.SUCCESS_RATIO, name, text, now_iso)
