"""Simulated hosts for the tests under stress, and looking at them."""

from __future__ import annotations

from typing import Any

from sollol_proxy.core.snapshots import HostSnapshot, Snapshot
from sollol_proxy.lab.simhost import SimModel, SimSpec
from tests.chaos.asking import MODEL


def host_spec(host_id: str, **changes: Any) -> SimSpec:
    """A host with the model in memory, whose streams do not slow each other down."""
    defaults: dict[str, Any] = {"alpha": 0.0, "time_scale": 100, "models": (SimModel(MODEL),)}
    return SimSpec(**{"id": host_id, "resident": (MODEL,), **defaults, **changes})


def of_host(snapshot: Snapshot, host_id: str) -> HostSnapshot:
    """One host's part of a snapshot."""
    return next(host for host in snapshot.hosts if host.spec.id == host_id)
