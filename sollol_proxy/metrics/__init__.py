"""Prometheus metrics, with bounded labels.

Label values are routes of the table, hosts of the pool, or enums; never a model name or anything
else that a client can invent.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from sollol_proxy.core.snapshots import Snapshot
from sollol_proxy.core.types import Outcome, RequestRecord
from sollol_proxy.metrics.hosts import HostMetrics
from sollol_proxy.metrics.tallies import Histogram, Tally

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""From an embedding on a GPU to a long answer on a CPU."""

_RATIOS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4, 10)
"""Real ÷ predicted: the same distance either way of 1."""

_ERRORS_S = (-60, -30, -10, -5, -2, -1, -0.5, -0.1, 0.1, 0.5, 1, 2, 5, 10, 30, 60)
"""Real − predicted."""


class Metrics:
    """One application's metrics, in a registry of their own.

    The first three, and the first three of a host, carry the names of the founding documents.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "sollol_requests", "Requests by route and HTTP status", "endpoint", "status"
        )
        self._latency = self._histogram(
            "sollol_request_latency_seconds", "From arrival to the end of the answer", "endpoint"
        )
        self._active = Gauge(
            "sollol_active_requests", "Jobs in flight on all hosts", registry=self.registry
        )
        self._hosts = HostMetrics(self.registry)
        self._outcomes = self._counter(
            "sollol_outcomes", "Requests by how they ended", "endpoint", "outcome"
        )
        self._first_byte = self._histogram(
            "sollol_time_to_first_byte_seconds",
            "From arrival to the answer's first byte",
            "endpoint",
        )
        self._queue_wait = self._histogram(
            "sollol_queue_wait_seconds", "Time in the queue, all attempts together", "priority"
        )
        self._queue_depth = Gauge(
            "sollol_queue_depth", "Jobs that wait", ("priority",), registry=self.registry
        )
        self._attempts = self._counter(
            "sollol_attempts",
            "Attempts, and parts of requests to several hosts, by the host and how they ended",
            "host",
            "result",
        )
        self._total_ratio = self._histogram(
            "sollol_prediction_ratio",
            "Real time from dispatch to end, divided by what was predicted at dispatch",
            "host",
            buckets=_RATIOS,
        )
        self._wait_error = self._histogram(
            "sollol_prediction_wait_error_seconds",
            "Real time in the queue, less what was predicted on arrival",
            "host",
            buckets=_ERRORS_S,
        )
        self._tokens = self._counter(
            "sollol_tokens", "Tokens as hosts counted them", "host", "direction"
        )
        self._plan_faults = Counter(
            "sollol_plan_faults",
            "Times the policy raised, or named a host that may not take the job",
            registry=self.registry,
        )
        self._plan_faults_seen = 0

    def observe(self, record: RequestRecord) -> None:
        """Count one finished request."""
        route = record.route
        self._requests.add(1, route, str(record.status))
        # `_value_` is what `value` would find in two calls.
        self._outcomes.add(1, route, record.outcome._value_)
        self._latency.observe(record.total_s, route)
        if record.first_byte_s is not None:
            self._first_byte.observe(record.first_byte_s, route)
        if record.priority:
            self._queue_wait.observe(record.queue_s, str(record.priority))
        if record.failures or record.hosts:
            self._count_attempts(record)
        elif record.decision is not None and record.answered_by_host:
            self._attempts.add(1, record.decision.host_id, "answered")
        self._compare(record)
        if record.decision is not None and record.observation is not None:
            host_id = record.decision.host_id
            if record.observation.prompt_tokens:
                self._tokens.add(record.observation.prompt_tokens, host_id, "prompt")
            if record.observation.output_tokens:
                self._tokens.add(record.observation.output_tokens, host_id, "output")

    def _count_attempts(self, record: RequestRecord) -> None:
        failed = [host_id for host_id, _ in record.failures if host_id not in record.skipped]
        answered = set(record.hosts)
        if record.decision is not None and record.answered_by_host:
            answered.add(record.decision.host_id)
        for host_id in failed:
            self._attempts.add(1, host_id, "failed")
        for host_id in answered:
            self._attempts.add(1, host_id, "answered")

    def _compare(self, record: RequestRecord) -> None:
        """Count how near the predictions came."""
        if record.decision is None:
            return
        host_id = record.decision.host_id
        if (ratio := total_ratio(record)) is not None:
            self._total_ratio.observe(ratio, host_id)
        if (error_s := wait_error_s(record)) is not None:
            self._wait_error.observe(error_s, host_id)

    def render(self, snapshot: Snapshot) -> bytes:
        """The page, gauges set from a snapshot."""
        self._active.set(sum(host.in_flight for host in snapshot.hosts))
        self._plan_faults.inc(snapshot.plan_faults - self._plan_faults_seen)
        self._plan_faults_seen = snapshot.plan_faults
        for priority in range(1, 11):
            depth = snapshot.waiting_by_priority.get(priority, 0)
            self._queue_depth.labels(str(priority)).set(depth)
        for host in snapshot.hosts:
            self._hosts.tell(host)
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Tally:
        tally = Tally(name, text, labels)
        self.registry.register(tally)
        return tally

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: Sequence[float] = _SECONDS
    ) -> Histogram:
        histogram = Histogram(name, text, labels, buckets)
        self.registry.register(histogram)
        return histogram


def total_ratio(record: RequestRecord) -> float | None:
    """Real ÷ predicted time from dispatch to end; None where there is nothing to compare."""
    decision, seen = record.decision, record.observation
    if record.outcome is not Outcome.COMPLETED or decision is None or seen is None:
        return None
    if not decision.predicted_total_s or seen.total_s is None:
        return None
    return seen.total_s / decision.predicted_total_s


def wait_error_s(record: RequestRecord) -> float | None:
    """Real less predicted time in the queue; None where there is nothing to compare.

    A request that was tried twice has waited for reasons that nobody could foresee.
    """
    decision = record.decision
    if decision is None or decision.predicted_wait_s is None or record.attempts != 1:
        return None
    return decision.waited_s - decision.predicted_wait_s
