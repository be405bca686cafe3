"""One host's health: a table of states, moved by probes and by attempts.

    unknown ──probe ok──────────────▶ healthy
    unknown ──probe failed──────────▶ ejected
    healthy ──failures in a row, no connection, probes failed──▶ ejected
    ejected ──probe ok, and back-off over where it answered badly──▶ probation
    probation ──a trial's first byte──▶ healthy (a failure before a whole answer ejects again)
    probation ──a trial failed, no connection, probes failed──▶ ejected, back-off doubled

Draining is laid over the table by the operator and hides the state below until it is lifted.

A host that was unreachable is back as soon as a probe reaches it (a restart is the usual cause),
so it is probed again soon, at doubling distances. A host that answers probes and fails jobs has
to sit out its back-off first, or it would draw traffic by failing fast.

Invariants: an ejected host gets nothing; probation has one trial at a time; the back-off grows
by doubling to its cap and starts afresh only after a whole answer; failures of attempts
that began before the ejection change nothing (a host that dies under 64 streams fails once).
"""

from __future__ import annotations

from dataclasses import dataclass

from sollol_proxy.core.types import HostState

PROBES_TO_EJECT = 2
"""Failed probes in a row that take a host out: one lost answer on a busy host is no death."""

FIRST_PROBE_GAP_S = 0.25
LAST_PROBE_GAP_S = 4.0
"""Extra probes of an ejected host, the distance doubling from the first to the last; after that
the regular rounds are enough."""


@dataclass(frozen=True, slots=True)
class HealthRules:
    """Bounds of the table. Seconds; see `config.schema.RetriesSection`."""

    eject_after: int = 3
    backoff_s: float = 1.0
    backoff_max_s: float = 60.0


@dataclass(slots=True)
class Health:
    """The state of one host; `now` never goes back between calls."""

    rules: HealthRules
    since_s: float
    base: HostState = HostState.UNKNOWN
    is_draining: bool = False
    detail: str = ""
    trial_at_s: float = 0.0
    probe_at_s: float | None = None
    trial: str | None = None
    _failures: int = 0
    _failed_probes: int = 0
    _backoff_s: float = 0.0
    _probe_gap_s: float = FIRST_PROBE_GAP_S

    @property
    def is_silent(self) -> bool:
        """Out, and probes go unanswered: whatever runs there may never come to an end."""
        return self.base is HostState.EJECTED and self._failed_probes >= PROBES_TO_EJECT

    @property
    def is_routable(self) -> bool:
        """Whether the host may be given jobs: what `state` says, in one call."""
        return self.base.is_routable and not self.is_draining

    @property
    def state(self) -> HostState:
        """What pages and policies see."""
        return HostState.DRAINING if self.is_draining else self.base

    def probe_succeeded(self, now: float) -> None:
        """The host answered a probe."""
        self._failed_probes = 0
        if self.base is HostState.UNKNOWN:
            self._move(HostState.HEALTHY, now, "")
        elif self.base is HostState.EJECTED and now >= self.trial_at_s:
            self.trial = None
            self._move(HostState.PROBATION, now, self.detail)

    def probe_failed(self, detail: str, now: float) -> None:
        """The host did not answer a probe."""
        self._failed_probes += 1
        if self.base is HostState.UNKNOWN or (
            self.base.is_routable and self._failed_probes >= PROBES_TO_EJECT
        ):
            self._eject(detail, now, sits_out=False)
        elif self.base is HostState.EJECTED:
            self.detail = detail
            self._probe_again(now)

    def trial_answers(self, job_id: str, now: float) -> None:
        """A job got its first byte; if it is the trial, others may follow before it has ended.

        Only an answer that ends well clears the host: one more that breaks off ejects it again.
        """
        if self.base is HostState.PROBATION and self.trial == job_id:
            self._failures = self.rules.eject_after - 1
            self._move(HostState.HEALTHY, now, "")

    def attempt_completed(self) -> None:
        """A job that holds a slot ended well."""
        self._failures = 0
        if self.base is HostState.HEALTHY:
            self._backoff_s = 0.0

    def attempt_failed(self, detail: str, now: float, *, is_unreachable: bool) -> None:
        """An attempt failed by the host's fault."""
        if not self.base.is_routable:
            return
        self._failures += 1
        if (
            is_unreachable
            or self.base is HostState.PROBATION
            or self._failures >= self.rules.eject_after
        ):
            on_trial = self.base is HostState.PROBATION
            self._eject(detail, now, sits_out=on_trial or not is_unreachable)

    def begin_trial(self, job_id: str) -> None:
        """A job goes to the host; in probation it is the trial."""
        if self.base is HostState.PROBATION:
            self.trial = job_id

    def end_trial(self, job_id: str) -> None:
        """The job is over, whichever way; another trial may follow."""
        if self.trial == job_id:
            self.trial = None

    def _eject(self, detail: str, now: float, *, sits_out: bool) -> None:
        self._failures = 0
        self.trial = None
        self._probe_gap_s = FIRST_PROBE_GAP_S
        if sits_out:
            doubled_s = max(self._backoff_s * 2, self.rules.backoff_s)
            self._backoff_s = min(doubled_s, self.rules.backoff_max_s)
            self.trial_at_s = self.probe_at_s = now + self._backoff_s
        else:
            self.trial_at_s = now
            self._probe_again(now)
        self._move(HostState.EJECTED, now, detail)

    def _probe_again(self, now: float) -> None:
        if self._probe_gap_s > LAST_PROBE_GAP_S:
            self.probe_at_s = None
            return
        self.probe_at_s = max(now + self._probe_gap_s, self.trial_at_s)
        self._probe_gap_s *= 2

    def retry_in_s(self, now: float) -> float | None:
        """Seconds until an ejected host may be tried or is asked again; None when not ejected."""
        if self.base is not HostState.EJECTED:
            return None
        return max(self.trial_at_s, self.probe_at_s or 0.0, now) - now

    def _move(self, state: HostState, now: float, detail: str) -> None:
        if state is not HostState.EJECTED:
            self.probe_at_s = None
        self.base, self.since_s, self.detail = state, now, detail
