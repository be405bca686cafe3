"""Which hosts carry a management request out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sollol_proxy.errors import NoHost, NoModel
from sollol_proxy.ollama.commands import Command
from sollol_proxy.server.services import Services


@dataclass(frozen=True, slots=True)
class Targets:
    """The hosts to ask, in the order of the pool.

    skipped: (host id, reason) of those that should take part and cannot.
    """

    hosts: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()


async def routable(services: Services) -> list[str]:
    """The hosts that are up, once every host has had its first chance to say so.

    Raises:
        NoHost: there is none.
    """
    up = services.dispatcher.routable()
    if not up:
        # Just started: the first round of probes is on its way.
        await services.probes.first_round(services.config.queue.no_host_wait)
        up = services.dispatcher.routable()
    if not up:
        raise NoHost(
            f"none of {len(services.hosts)} hosts is up"
            if services.hosts
            else "the pool has no hosts"
        )
    return up


async def for_model(services: Services, model: str) -> Targets:
    """The hosts that are to hold a model: those that `models` in the configuration names, or all.

    Hosts that are down are left out; where the configuration names them, they count as skipped.

    Raises:
        NoModel: the configuration lets no host hold it.
        NoHost: none of them is up.
    """
    up = await routable(services)
    placed = services.config.placed(model)
    wanted = [
        host_id
        for host_id, spec in services.hosts.items()
        if spec.may_serve(model) and (placed is None or host_id in placed)
    ]
    if not wanted:
        raise NoModel("no host may hold this model (hosts: models: allow, deny; models: hosts)")
    hosts = tuple(host_id for host_id in wanted if host_id in up)
    if not hosts:
        raise NoHost(f"no host that is to hold this model is up ({', '.join(wanted)})")
    missing = [host_id for host_id in wanted if placed is not None and host_id not in up]
    return Targets(hosts, tuple((host_id, "is not up") for host_id in missing))


async def having(services: Services, model: str) -> Targets:
    """The hosts that are up and have a model; where nobody has it, one host, for its own words.

    Hosts that are down and had it when they were last seen count as skipped.

    Raises:
        NoHost: no host is up.
    """
    up = await routable(services)
    await services.probes.refresh_inventory()
    holders = [
        host_id
        for host_id in services.dispatcher.holders(model)
        if services.hosts[host_id].may_serve(model)
    ]
    if not holders:
        return Targets((up[0],))
    return Targets(tuple(holders), tuple(_down_with(services, model, up)))


def _down_with(services: Services, model: str, up: Iterable[str]) -> list[tuple[str, str]]:
    inventory = services.dispatcher.inventory()
    return [
        (host_id, "is not up")
        for host_id in services.hosts
        if host_id not in up and model in inventory.get(host_id, {})
    ]


async def for_create(services: Services, command: Command) -> Targets:
    """The hosts that are to hold a new model and have the one that it is made from.

    A host without it would begin to download it. Where no host has it, all do, as Ollama would.

    Raises:
        NoModel, NoHost: see `for_model`.
    """
    targets = await for_model(services, command.model)
    if not command.source:
        return targets
    await services.probes.refresh_inventory()
    holders = set(services.dispatcher.holders(command.source))
    hosts = tuple(host_id for host_id in targets.hosts if host_id in holders)
    if not hosts:
        return targets
    lacking = [host_id for host_id in targets.hosts if host_id not in holders]
    explicit = services.config.placed(command.model) is not None
    skipped = [(host_id, f"does not have {command.source}") for host_id in lacking if explicit]
    return Targets(hosts, targets.skipped + tuple(skipped))
