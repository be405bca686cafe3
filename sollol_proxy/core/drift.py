"""Different models under one name: whose copy counts where only the newest may serve.

The newest is chosen as `/api/tags` of the whole pool is merged: latest `modified_at`, then the
digest, so that what a client sees in the list is what answers it.
"""

from __future__ import annotations

from collections.abc import Iterable

from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.types import InstalledModel


class Drift:
    """Compares the copies of a model; what it found is kept until `forget`."""

    def __init__(self, hosts: Iterable[HostEntry]) -> None:
        self._hosts = hosts
        self._newest: dict[str, InstalledModel | None] = {}

    def is_outdated(self, host: HostEntry, model: str) -> bool:
        """Whether a host that can be given jobs has a newer and different copy of the model.

        A copy without a digest is nobody's older one: nothing says that it differs.
        """
        copy = host.installed.get(model)
        if copy is None or not copy.digest:
            return False
        newest = self._newest_of(model)
        return (
            newest is not None
            and copy.digest != newest.digest
            and _age_key(copy) < _age_key(newest)
        )

    def forget(self) -> None:
        """What some host has, or whether it may be given jobs, is no longer what it was."""
        self._newest.clear()

    def _newest_of(self, model: str) -> InstalledModel | None:
        if model not in self._newest:
            # Without those that may not serve it: else nobody might be left who does.
            copies = (
                copy
                for host in self._hosts
                if host.state.is_routable
                and (copy := host.installed.get(model)) is not None
                and copy.digest
                and host.spec.may_serve(model)
            )
            self._newest[model] = max(copies, key=_age_key, default=None)
        return self._newest[model]


def _age_key(copy: InstalledModel) -> tuple[int, str]:
    return copy.modified_ns, copy.digest
