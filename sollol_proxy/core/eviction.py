"""What a host has to let go of to load a model: the same guess for plans and for the books."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sollol_proxy.core.memory import HostMemory, Memory
from sollol_proxy.core.types import HostSpec, InstalledModel, ResidentModel


class Holder(Protocol):
    """What a guess needs of a host."""

    @property
    def spec(self) -> HostSpec:
        """What the configuration says."""

    @property
    def installed(self) -> Mapping[str, InstalledModel]:
        """Models on disk by canonical name."""

    @property
    def resident(self) -> Mapping[str, ResidentModel]:
        """Models in memory by canonical name."""

    @property
    def known(self) -> HostMemory:
        """What was learnt of this host."""


def evicted(
    host: Holder, memory: Memory, held: Sequence[str], model: str, busy: Mapping[str, float]
) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Names in memory once the model is loaded, those that go for it, whether it is sure to fit.

    Where it is not, a load beside models in use may have to wait for these, and everything else
    that needs a load waits behind it.

    held: in memory before. busy: those in use, by how long; the less busy go first, then those
    that were seen to go first, then by name, so that the order of `held` does not matter.
    """
    keep = [name for name in held if name != model]
    if not keep:
        return (model,), (), True
    sizes = {name: _size(host, memory, name) for name in keep}
    total = sum(sizes.values()) + _size(host, memory, model)
    room, most, room_bytes = host.known.room, host.spec.max_models, host.spec.memory_bytes
    gone: list[str] = []
    if len(keep) >= most or not room.holds(total, room_bytes):
        rank = memory.victims.rank
        for victim in sorted(keep, key=lambda name: (busy.get(name, 0.0), -rank(name), name)):
            keep.remove(victim)
            gone.append(victim)
            total -= sizes[victim]
            if len(keep) < most and room.holds(total, room_bytes):
                break
    return (*keep, model), tuple(gone), room.surely_holds(total, room_bytes)


def _size(host: Holder, memory: Memory, name: str) -> int:
    resident = host.resident.get(name)
    if resident is not None and resident.digest and resident.size_bytes:
        return resident.size_bytes
    return memory.footprint_bytes(name, host.installed.get(name))
