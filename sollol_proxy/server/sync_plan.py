"""What a host would have to pull to be up to date. Pure.

A pull brings what the registry has now, not what another host has: it can lead forwards only. So a
host whose own copy is the newer one keeps it, whatever the other one has.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sollol_proxy.config.schema import Config
from sollol_proxy.core.types import HostSpec, InstalledModel
from sollol_proxy.server.models_view import PoolModel, PoolModels, age_key

MAY_NOT_SERVE = "the host may not serve it (hosts: models: allow, deny)"
PLACED_ELSEWHERE = "the configuration places it on other hosts (models: hosts)"
STUB = "a stub: it runs elsewhere, and nothing is there to pull"
OWN_IS_NEWER = "another copy, and the host's own is the newer one"


class Reason(StrEnum):
    """Why a model is pulled."""

    MISSING = "missing"
    DIFFERS = "differs"


@dataclass(frozen=True, slots=True)
class Pull:
    """A model to pull. model: canonical. spelling: as the host that has it writes it."""

    model: str
    spelling: str
    reason: Reason
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """pulls: small ones first. left: models that are not pulled although the hosts differ, why."""

    pulls: tuple[Pull, ...]
    left: tuple[tuple[str, str], ...]


def sync_plan(pool: PoolModels, config: Config, host: HostSpec, source_id: str) -> SyncPlan:
    """What `host` lacks, or has in an older copy.

    source_id: the host it is compared with; "" = what the configuration places on it, and of the
        models that it places nowhere, what any host of the pool has.
    """
    pulls: list[Pull] = []
    left: list[tuple[str, str]] = []
    for model in pool.models:
        copies = {copy.host.spec.id: copy.model for copy in model.copies}
        wanted = copies.get(source_id) if source_id else model.newest
        reason = _reason(copies.get(host.id), wanted)
        if reason is None or (source_id and wanted is None):
            continue
        obstacle = _obstacle(model, wanted, copies.get(host.id), host, config)
        if obstacle is None:
            pulls.append(_pull(model, wanted, reason))
        elif source_id or obstacle not in (MAY_NOT_SERVE, PLACED_ELSEWHERE):
            # Compared with the whole pool, what is not meant for a host needs no mention.
            left.append((model.name, obstacle))
    pulls.sort(key=lambda pull: (pull.size_bytes, pull.model))
    return SyncPlan(tuple(pulls), tuple(left))


def _reason(own: InstalledModel | None, wanted: InstalledModel | None) -> Reason | None:
    """Why to pull; None where the copies are equal, or nothing says that they differ."""
    if own is None:
        return Reason.MISSING
    if wanted is None or not own.digest or not wanted.digest or own.digest == wanted.digest:
        return None
    return Reason.DIFFERS


def _obstacle(
    model: PoolModel,
    wanted: InstalledModel | None,
    own: InstalledModel | None,
    host: HostSpec,
    config: Config,
) -> str | None:
    """Why not to pull; None where nothing speaks against it."""
    placed = config.placed(model.name)
    if not host.may_serve(model.name):
        return MAY_NOT_SERVE
    if placed is not None and host.id not in placed:
        return PLACED_ELSEWHERE
    if wanted is None:
        return None
    if wanted.is_remote and placed is None:
        return STUB
    if own is not None and age_key(own) >= age_key(wanted):
        return OWN_IS_NEWER
    return None


def _pull(model: PoolModel, wanted: InstalledModel | None, reason: Reason) -> Pull:
    if wanted is None:
        return Pull(model.name, model.name, reason, 0)
    return Pull(model.name, wanted.spelling or model.name, reason, wanted.size_bytes)
