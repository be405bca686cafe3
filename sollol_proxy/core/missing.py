"""Routes that some versions of Ollama lack, learnt from their own answers.

What one host says holds for every host of its version. Hosts that name no version, or that of
builds outside a release, may be of any age, so each of them is known by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sollol_proxy.core.hosts import HostEntry

_DATELESS = frozenset({"", "0.0.0"})
"""Versions that say nothing about age; 0.0.0 is what builds outside a release call themselves."""


class _Build(NamedTuple):
    """A version, or a single host where its version says nothing."""

    version: str
    host_id: str


class MissingRoutes:
    """What is known to be missing. Bounded by versions of the pool × labels of the API table."""

    def __init__(self) -> None:
        self._by_route: dict[str, set[_Build]] = {}

    def __len__(self) -> int:
        return len(self._by_route)

    def has(self, host: HostEntry, route: str) -> bool:
        """Whether the host's version is known to lack the route."""
        builds = self._by_route.get(route)
        return builds is not None and _build(host) in builds

    def add(self, host: HostEntry, route: str) -> None:
        """The host has said that it does not know the route."""
        self._by_route.setdefault(route, set()).add(_build(host))

    def discard(self, host: HostEntry, route: str) -> None:
        """The host has answered the route."""
        if self.has(host, route):
            self._by_route[route].discard(_build(host))
            self._drop_empty()

    def retain(self, hosts: Iterable[HostEntry]) -> None:
        """Forget versions that none of these hosts has.

        A host without a telling version is forgotten while it is out: it may come back newer.
        """
        present = {
            _build(host)
            for host in hosts
            if host.version not in _DATELESS or host.state.is_routable
        }
        for builds in self._by_route.values():
            builds &= present
        self._drop_empty()

    def _drop_empty(self) -> None:
        self._by_route = {route: builds for route, builds in self._by_route.items() if builds}


def _build(host: HostEntry) -> _Build:
    if host.version in _DATELESS:
        return _Build("", host.spec.id)
    return _Build(host.version, "")
