"""Which models the pool has, on which hosts, in which copies, and who lacks what. Pure.

A host is to hold a model if the configuration places it there (`models`), or places it nowhere and
some host has it; in both cases only if the host may serve it. A model that is nowhere more than a
stub of one that runs elsewhere is missing on no host unless the configuration places it.

A host that has not answered yet is left out: nobody knows what it lacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sollol_proxy.config.schema import Config
from sollol_proxy.core.snapshots import HostSnapshot, Snapshot
from sollol_proxy.core.types import InstalledModel, ResidentModel
from sollol_proxy.ollama.names import canonical


@dataclass(frozen=True, slots=True)
class Copy:
    """A model as one host has it on its disk.

    is_newest: it has the digest of the newest copy, or says no digest to compare.
    """

    host: HostSnapshot
    model: InstalledModel
    resident: ResidentModel | None
    is_newest: bool

    @property
    def in_flight(self) -> int:
        """Jobs that run on it."""
        return self.host.in_flight_by_model.get(self.model.name, 0)


@dataclass(frozen=True, slots=True)
class PoolModel:
    """A name and its copies, in the order of the pool.

    newest: the copy whose figures stand for the model; None where no host has it.
    missing_on: ids of hosts that are to hold it and do not.
    """

    name: str
    copies: tuple[Copy, ...]
    newest: InstalledModel | None
    missing_on: tuple[str, ...]

    @property
    def digests(self) -> tuple[str, ...]:
        """The different models under this name."""
        return tuple(dict.fromkeys(copy.model.digest for copy in self.copies if copy.model.digest))

    @property
    def has_drift(self) -> bool:
        """Whether the name means different models on different hosts."""
        return len(self.digests) > 1

    @property
    def size_bytes(self) -> int:
        """Of the newest copy."""
        return self.newest.size_bytes if self.newest else 0

    @property
    def disk_bytes(self) -> int:
        """Of all copies."""
        return sum(copy.model.size_bytes for copy in self.copies)


@dataclass(frozen=True, slots=True)
class HostModels:
    """What one host has.

    is_known: False until it has answered for the first time.
    lacks: names that it is to hold and does not. differs: names of which it has another copy than
        the newest one.
    """

    host: HostSnapshot
    is_known: bool
    lacks: tuple[str, ...]
    differs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PoolModels:
    """The models of the pool by name, and its hosts in its order."""

    models: tuple[PoolModel, ...]
    hosts: tuple[HostModels, ...]


def pool_models(snapshot: Snapshot, config: Config) -> PoolModels:
    """Everything that is known about who has what."""
    inventory = {
        host.spec.id: {model.name: model for model in host.installed} for host in snapshot.hosts
    }
    names = {name for installed in inventory.values() for name in installed}
    models = tuple(
        _pool_model(name, snapshot.hosts, inventory, config)
        for name in sorted(names | placed_names(config))
    )
    return PoolModels(models, _by_host(snapshot.hosts, models))


def placed_names(config: Config) -> frozenset[str]:
    """Canonical names that the configuration places on hosts, patterns left out."""
    named = (canonical(key) for key in config.models if not _WILDCARDS & set(key))
    return frozenset(name for name in named if config.placed(name) is not None)


def drifting(hosts: Iterable[HostSnapshot]) -> list[str]:
    """Names that mean different models on different hosts of these, in their order."""
    digests: dict[str, set[str]] = {}
    for host in hosts:
        for model in host.installed:
            if model.digest:
                digests.setdefault(model.name, set()).add(model.digest)
    return sorted(name for name, different in digests.items() if len(different) > 1)


def disk_bytes(host: HostSnapshot) -> int:
    """What the host's models take; several names of one model count once, shared layers do not."""
    sizes = {model.digest or model.name: model.size_bytes for model in host.installed}
    return sum(sizes.values())


def is_known(host: HostSnapshot) -> bool:
    """Whether the host has ever said what it has: its version comes with its first list."""
    return bool(host.version or host.installed)


def age_key(model: InstalledModel) -> tuple[int, str]:
    """What decides which of two copies is the newer one, as in the merged `/api/tags`."""
    return model.modified_ns, model.digest


_WILDCARDS = frozenset("*?[")


def _pool_model(
    name: str,
    hosts: Iterable[HostSnapshot],
    inventory: Mapping[str, Mapping[str, InstalledModel]],
    config: Config,
) -> PoolModel:
    having = [host for host in hosts if name in inventory[host.spec.id]]
    newest = _newest(having, name, inventory)
    copies = tuple(_copy(host, inventory[host.spec.id][name], newest) for host in having)
    placed = config.placed(name)
    is_stub = bool(copies) and all(copy.model.is_remote for copy in copies)
    wanted = [
        host
        for host in hosts
        if is_known(host)
        and host.spec.may_serve(name)
        and (not is_stub if placed is None else host.spec.id in placed)
    ]
    missing = tuple(host.spec.id for host in wanted if name not in inventory[host.spec.id])
    return PoolModel(name, copies, newest, missing)


def _copy(host: HostSnapshot, model: InstalledModel, newest: InstalledModel | None) -> Copy:
    resident = next((found for found in host.resident if found.name == model.name), None)
    is_newest = newest is None or not model.digest or model.digest == newest.digest
    return Copy(host, model, resident, is_newest)


def _newest(
    having: Iterable[HostSnapshot],
    name: str,
    inventory: Mapping[str, Mapping[str, InstalledModel]],
) -> InstalledModel | None:
    """The copy that counts: of the hosts that may be asked for it, else of any."""
    every = [inventory[host.spec.id][name] for host in having]
    asked = [
        inventory[host.spec.id][name]
        for host in having
        if host.state.is_routable and host.spec.may_serve(name)
    ]
    told = [model for model in asked if model.digest]
    return max(told or asked or every, key=age_key, default=None)


def _by_host(hosts: Iterable[HostSnapshot], models: Iterable[PoolModel]) -> tuple[HostModels, ...]:
    lacks: dict[str, list[str]] = {}
    differs: dict[str, list[str]] = {}
    for model in models:
        for host_id in model.missing_on:
            lacks.setdefault(host_id, []).append(model.name)
        for copy in model.copies:
            if not copy.is_newest:
                differs.setdefault(copy.host.spec.id, []).append(model.name)
    return tuple(
        HostModels(
            host=host,
            is_known=is_known(host),
            lacks=tuple(lacks.get(host.spec.id, ())),
            differs=tuple(differs.get(host.spec.id, ())),
        )
        for host in hosts
    )
