"""What a scrape tells of each host."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from sollol_proxy.core.snapshots import HostSnapshot
from sollol_proxy.core.types import HostState
from sollol_proxy.metrics.tallies import Tally

_FIRST_TOKEN = "Expected first token of a 256-token prompt"


class HostMetrics:
    """Gauges by host, and a count of failures that is known by its sum."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, ("host", *labels), registry=registry)

        self._latency_ms = gauge("sollol_host_latency_ms", _FIRST_TOKEN)
        self._success = gauge(
            "sollol_host_success_rate", "Decayed share of attempts that ended well"
        )
        self._failures = Tally(
            "sollol_worker_failures", "Attempts that failed by the host's fault", ("host",)
        )
        registry.register(self._failures)
        self._first_token = gauge("sollol_host_first_token_seconds", _FIRST_TOKEN)
        self._state = gauge("sollol_host_state", "1 for the state a host is in", "state")
        self._in_flight = gauge("sollol_in_flight", "Jobs in flight")
        self._slots = gauge("sollol_host_slots", "Jobs one model runs at once")
        self._resident = gauge("sollol_resident_models", "Models in memory")
        self._failures_seen: dict[str, int] = {}

    def tell(self, host: HostSnapshot) -> None:
        """How the host stands now."""
        host_id = host.spec.id
        self._in_flight.labels(host_id).set(host.in_flight)
        self._slots.labels(host_id).set(host.spec.slots)
        self._resident.labels(host_id).set(len(host.resident))
        if host.success_ratio is not None:
            self._success.labels(host_id).set(host.success_ratio)
        if host.first_token_s is not None:
            self._first_token.labels(host_id).set(host.first_token_s)
            self._latency_ms.labels(host_id).set(host.first_token_s * 1000)
        for state in HostState:
            self._state.labels(host_id, state.value).set(1 if host.state is state else 0)
        counted = self._failures_seen.get(host_id, 0)
        self._failures.add(host.failures - counted, host_id)
        self._failures_seen[host_id] = host.failures
