"""Small records for tests of the core, with defaults that matter to nobody."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.policies import POLICIES
from sollol_proxy.core.policies.base import Policy
from sollol_proxy.core.scheduler import Scheduler, SchedulerRules
from sollol_proxy.core.types import (
    Dispatch,
    Effect,
    HostReport,
    HostSpec,
    InstalledModel,
    Job,
    JobKind,
    Refuse,
    ResidentModel,
)

MODEL = "llama3:latest"


def spec(host_id: str, **fields: Any) -> HostSpec:
    """A host's configuration."""
    return HostSpec(id=host_id, url=f"http://{host_id}:11434", **fields)


def job(job_id: str, **fields: Any) -> Job:
    """A job for `MODEL` that arrived at 0."""
    given: dict[str, Any] = {
        "kind": JobKind.GENERATE,
        "model": MODEL,
        "priority": 5,
        "arrived_s": 0.0,
        **fields,
    }
    return Job(id=job_id, **given)


def report(
    host_id: str, *models: str, resident: tuple[str, ...] = (), version: str = "0.33.0"
) -> HostReport:
    """A good probe: these models on disk, those in memory."""
    names = models or (MODEL,)
    return HostReport(
        host_id,
        ok=True,
        round_trip_s=0.001,
        version=version,
        installed={name: InstalledModel(name, size_bytes=10**9) for name in names},
        resident={name: ResidentModel(name, digest="d", size_bytes=10**9) for name in resident},
    )


def holding(host_id: str, *copies: InstalledModel, version: str = "0.33.0") -> HostReport:
    """A good probe: exactly these copies on disk."""
    return replace(report(host_id, version=version), installed={copy.name: copy for copy in copies})


def copy(digest: str, modified_ns: int = 1, name: str = MODEL, **fields: Any) -> InstalledModel:
    """A copy of `MODEL`."""
    return InstalledModel(name, digest=digest, modified_ns=modified_ns, **fields)


def reasons(effects: list[Effect]) -> dict[str, str]:
    """Job id → reason of the decisions, and detail of the refusals, among effects."""
    said = {e.decision.job_id: e.decision.reason for e in effects if isinstance(e, Dispatch)}
    return said | {e.job_id: e.detail for e in effects if isinstance(e, Refuse)}


def down(host_id: str) -> HostReport:
    """A failed probe."""
    return HostReport(host_id, ok=False, detail="refused")


def scheduler(
    *specs: HostSpec,
    policy: str | Policy = "least_in_flight",
    up: bool = True,
    **rules: Any,
) -> Scheduler:
    """A scheduler over hosts that are up and have `MODEL`."""
    rng = Random(7)
    made = POLICIES[policy](rng) if isinstance(policy, str) else policy
    result = Scheduler(specs, made, SchedulerRules(**rules), rng=rng, now=0.0)
    if up:
        for host in specs:
            result.report(report(host.id), 0.0)
    return result


def dispatched(effects: list[Effect]) -> dict[str, str]:
    """Job id → host id of the dispatches among effects."""
    return {
        effect.decision.job_id: effect.decision.host_id
        for effect in effects
        if isinstance(effect, Dispatch)
    }


def refused(effects: list[Effect]) -> dict[str, str]:
    """Job id → outcome of the refusals among effects."""
    return {effect.job_id: effect.outcome.value for effect in effects if isinstance(effect, Refuse)}


def entry(host: HostSpec, *models: str, now: float = 0.0) -> HostEntry:
    """A host that is up."""
    made = HostEntry(host, SchedulerRules().health, now)
    made.report(report(host.id, *models), now)
    return made
