"""The hosts together: what shows only when they are compared.

A host by itself says whether it suits a job (`HostEntry.suits`). Beside others it may still be
left out: it has an older copy of the model than they have (`drift`), or its version lacks the
route and theirs does not (`missing`). Never so that nobody is left who suits: the newest copy is
one that may serve, and where all lack the route any of them may say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from sollol_proxy.core.drift import Drift
from sollol_proxy.core.health import HealthRules
from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.memory import Memory
from sollol_proxy.core.missing import MissingRoutes
from sollol_proxy.core.queue import MAX_LANES_KEPT, Lane, lane_of
from sollol_proxy.core.types import AttemptResult, HostSpec, InstalledModel, Job, JobKind


class Pool:
    """All hosts, in the order of the configuration.

    Whoever changes an entry calls `note` afterwards.

    is_all_up: every host may be given jobs. False also after a change until somebody asks which.
    """

    def __init__(
        self,
        specs: Sequence[HostSpec],
        rules: HealthRules,
        now: float,
        *,
        keeps_newest: bool,
        memory: Memory | None = None,
    ) -> None:
        # Asked for each host and job, so it is kept: mostly there is nothing to compare.
        self._compares = keeps_newest
        bars = self._bars if keeps_newest else None
        self._hosts = {spec.id: HostEntry(spec, rules, now, bars, memory) for spec in specs}
        self._keeps_newest = keeps_newest
        self._drift = Drift(self._hosts.values())
        self._missing = MissingRoutes()
        self._known_elsewhere: dict[Lane, bool] = {}
        self._routable: list[HostEntry] | None = None
        self.is_all_up = False
        self._seen: dict[str, tuple[bool, str, Mapping[str, InstalledModel]]] = {}

    def __iter__(self) -> Iterator[HostEntry]:
        return iter(self._hosts.values())

    def __len__(self) -> int:
        return len(self._hosts)

    def __getitem__(self, host_id: str) -> HostEntry:
        return self._hosts[host_id]

    def get(self, host_id: str) -> HostEntry | None:
        """A host, if there is one of that id."""
        return self._hosts.get(host_id)

    def routable(self) -> Sequence[HostEntry]:
        """Those that may be given jobs; made anew when `note` hears of a change."""
        if self._routable is None:
            self._routable = [host for host in self if host.state.is_routable]
            self.is_all_up = len(self._routable) == len(self._hosts)
        return self._routable

    def out(self) -> Sequence[HostEntry]:
        """The others: new, ejected, draining. Mostly there are none."""
        if len(self.routable()) == len(self._hosts):
            return ()
        return [host for host in self if not host.state.is_routable]

    def probes_due(self) -> list[float]:
        """When hosts that are out want to be asked again; only those do."""
        return [host.health.probe_at_s for host in self.out() if host.health.probe_at_s is not None]

    def eligible(self, job: Job) -> list[HostEntry]:
        """Those that may take the job, now or when a slot is free."""
        return [host for host in self if host.is_eligible(job)]

    def any_eligible(self, job: Job) -> bool:
        """Whether there is one."""
        return any(host.is_eligible(job) for host in self)

    def has_alternative(self, job: Job, host_id: str) -> bool:
        """Whether a routable host other than this one and the excluded could do the job.

        One whose version lacks the route could not: its 404 is no better than what there is.
        """
        others = replace(job, excluded=job.excluded | {host_id})
        return any(
            host.is_eligible(others) and not self._missing.has(host, job.route) for host in self
        )

    def first_copy(self, model: str) -> InstalledModel | None:
        """The model as the first host that has it lists it."""
        for host in self._hosts.values():
            copy = host.installed.get(model)
            if copy is not None:
                return copy
        return None

    def is_remote(self, model: str) -> bool:
        """Whether routable hosts list the model, and all of them as one that runs elsewhere."""
        is_listed = False
        for host in self.routable():
            copy = host.installed.get(model)
            if copy is not None:
                if not copy.is_remote:
                    return False
                is_listed = True
        return is_listed

    def inventory(self) -> Mapping[str, Mapping[str, InstalledModel]]:
        """What every host had when it was last asked: host id → canonical name → model."""
        return {host_id: host.installed for host_id, host in self._hosts.items()}

    # What is left out, and why

    def left_out(self, job: Job) -> list[tuple[str, str]]:
        """Host id and reason of the routable hosts that suit the job and do not get it."""
        if not self._compares:
            return []
        return [
            (host.spec.id, self._why_barred(host, job))
            for host in self.routable()
            if host.suits(job) and self._bars(host, job)
        ]

    def is_missing_everywhere(self, job: Job) -> bool:
        """Whether every host that may take the job is known to lack its route."""
        return self._compares and all(
            self._missing.has(host, job.route) for host in self.eligible(job)
        )

    # Changes

    def note(self, host: HostEntry) -> None:
        """The host may have changed: what follows from how it was is forgotten."""
        seen, is_routable = self._seen.get(host.spec.id), host.health.is_routable
        # The inventory by identity: an entry replaces it when it changes, and only then.
        if (
            seen is not None
            and seen[0] is is_routable
            and seen[1] == host.version
            and seen[2] is host.installed
        ):
            return
        self._seen[host.spec.id] = is_routable, host.version, host.installed
        self._routable, self.is_all_up = None, False
        self._drift.forget()
        self._missing.retain(self)
        self._missing_changed()

    def learn_route(self, host: HostEntry, job: Job, result: AttemptResult) -> None:
        """What the end of a job says of its route: that the host lacks it, or has it after all."""
        if not job.route:
            return
        if result is AttemptResult.ROUTE_MISSING:
            self._missing.add(host, job.route)
            self._missing.retain(self)  # the host may be out by now
        elif result is AttemptResult.COMPLETED and self._missing.has(host, job.route):
            # An update that no probe had noticed yet.
            self._missing.discard(host, job.route)
        else:
            return
        self._missing_changed()

    # Inside

    def _bars(self, host: HostEntry, job: Job) -> bool:
        """Whether a host that suits the job is left out for what others have.

        Not where the job names its host: it is asked for what this one has.
        """
        if job.only:
            return False
        return self._is_outdated(host, job) or (
            self._missing.has(host, job.route) and self._is_known_elsewhere(job)
        )

    def _missing_changed(self) -> None:
        self._known_elsewhere.clear()
        self._compares = self._keeps_newest or len(self._missing) > 0
        for host in self:
            host.bars = self._bars if self._compares else None
            host.touch()

    def _is_outdated(self, host: HostEntry, job: Job) -> bool:
        # An old copy in memory has to be unloaded like any other.
        if not self._keeps_newest or not job.kind.needs_model or job.kind is JobKind.UNLOAD:
            return False
        return self._drift.is_outdated(host, job.model)

    def _is_known_elsewhere(self, job: Job) -> bool:
        lane = lane_of(job)
        known = self._known_elsewhere.get(lane)
        if known is None:
            known = any(
                host.suits(job)
                and not self._is_outdated(host, job)
                and not self._missing.has(host, job.route)
                for host in self.routable()
            )
            if len(self._known_elsewhere) >= MAX_LANES_KEPT:
                self._known_elsewhere.clear()
            self._known_elsewhere[lane] = known
        return known

    def _why_barred(self, host: HostEntry, job: Job) -> str:
        if self._is_outdated(host, job):
            return "older copy"
        return f"{host.version or 'its version'} lacks {job.route}"
