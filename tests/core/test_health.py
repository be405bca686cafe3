"""The table of host states."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sollol_proxy.core.health import Health, HealthRules
from sollol_proxy.core.types import HostState

RULES = HealthRules(eject_after=3, backoff_s=1.0, backoff_max_s=8.0)


def healthy() -> Health:
    health = Health(RULES, since_s=0.0)
    health.probe_succeeded(0.0)
    return health


def state_of(health: Health) -> HostState:
    return health.state


def fail(health: Health, times: int, now: float, *, is_unreachable: bool = False) -> None:
    for _ in range(times):
        health.attempt_failed("boom", now, is_unreachable=is_unreachable)


def test_health_begins_unknown_and_takes_nothing() -> None:
    health = Health(RULES, since_s=0.0)
    assert state_of(health) == HostState.UNKNOWN
    assert not health.state.is_routable


def test_health_ejects_after_failures_in_a_row() -> None:
    health = healthy()
    fail(health, 2, 1.0)
    assert state_of(health) == HostState.HEALTHY
    health.attempt_completed()
    fail(health, 2, 2.0)
    assert state_of(health) == HostState.HEALTHY
    fail(health, 1, 2.0)
    assert state_of(health) == HostState.EJECTED
    assert health.detail == "boom"


def test_health_ejects_at_once_when_there_is_no_connection() -> None:
    health = healthy()
    fail(health, 1, 1.0, is_unreachable=True)
    assert state_of(health) == HostState.EJECTED


def test_health_ejects_after_two_lost_probes() -> None:
    health = healthy()
    health.probe_failed("silent", 1.0)
    assert state_of(health) == HostState.HEALTHY
    health.probe_succeeded(2.0)
    health.probe_failed("silent", 3.0)
    assert state_of(health) == HostState.HEALTHY
    health.probe_failed("silent", 4.0)
    assert state_of(health) == HostState.EJECTED


def test_health_tries_again_at_once_when_an_unreachable_host_answers() -> None:
    health = healthy()
    fail(health, 1, 10.0, is_unreachable=True)
    assert health.probe_at_s is not None
    assert 10.0 < health.probe_at_s < 11.0
    health.probe_succeeded(10.1)
    assert state_of(health) == HostState.PROBATION


def test_health_sits_out_its_backoff_when_the_host_answers_badly() -> None:
    health = healthy()
    fail(health, 3, 10.0)
    health.probe_succeeded(10.5)
    assert state_of(health) == HostState.EJECTED
    assert health.retry_in_s(10.5) == 0.5
    health.probe_succeeded(11.0)
    assert state_of(health) == HostState.PROBATION


def test_health_doubles_the_backoff_to_its_cap_and_forgets_it_after_success() -> None:
    health = healthy()
    fail(health, 3, 0.0)
    now = 0.0
    waits = []
    for _ in range(6):
        wait_s = health.retry_in_s(now)
        assert wait_s is not None
        waits.append(wait_s)
        now += wait_s
        health.probe_succeeded(now)
        assert state_of(health) == HostState.PROBATION
        health.begin_trial("t")
        fail(health, 1, now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    now += 8.0
    health.probe_succeeded(now)
    health.begin_trial("t")
    health.trial_answers("t", now)
    assert state_of(health) == HostState.HEALTHY
    health.attempt_completed()
    fail(health, 3, now)
    assert health.retry_in_s(now) == 1.0


def test_health_ejects_again_when_the_trials_answer_breaks_off() -> None:
    health = healthy()
    fail(health, 3, 0.0)
    health.probe_succeeded(1.0)
    health.begin_trial("t")
    health.trial_answers("t", 1.0)
    assert state_of(health) == HostState.HEALTHY
    fail(health, 1, 2.0)
    assert state_of(health) == HostState.EJECTED
    assert health.retry_in_s(2.0) == 2.0


def test_health_counts_a_death_under_many_streams_once() -> None:
    health = healthy()
    fail(health, 64, 5.0)
    assert health.retry_in_s(5.0) == 1.0


def test_health_is_not_mended_by_a_stream_that_began_before_the_trial() -> None:
    health = healthy()
    fail(health, 1, 1.0, is_unreachable=True)
    health.probe_succeeded(2.0)
    health.trial_answers("old stream", 2.0)
    health.attempt_completed()
    assert state_of(health) == HostState.PROBATION


def test_health_probes_again_at_growing_distances_and_then_leaves_it_to_the_rounds() -> None:
    health = healthy()
    fail(health, 1, 0.0, is_unreachable=True)
    gaps = []
    now = 0.0
    while health.probe_at_s is not None:
        gaps.append(health.probe_at_s - now)
        now = health.probe_at_s
        health.probe_failed("still down", now)
    assert gaps == [0.25, 0.5, 1.0, 2.0, 4.0]


class HealthMachine(RuleBasedStateMachine):
    """Only the transitions of the table, whatever happens in whatever order."""

    ALLOWED = frozenset(
        {
            (HostState.UNKNOWN, HostState.HEALTHY),
            (HostState.UNKNOWN, HostState.EJECTED),
            (HostState.HEALTHY, HostState.EJECTED),
            (HostState.EJECTED, HostState.PROBATION),
            (HostState.PROBATION, HostState.HEALTHY),
            (HostState.PROBATION, HostState.EJECTED),
        }
    )

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.health = Health(RULES, since_s=0.0)
        self.seen = self.health.base

    @rule(elapsed_s=st.floats(0, 5))
    def time_passes(self, elapsed_s: float) -> None:
        self.now += elapsed_s

    @rule()
    def probe_ok(self) -> None:
        self.health.probe_succeeded(self.now)

    @rule()
    def probe_lost(self) -> None:
        self.health.probe_failed("lost", self.now)

    @rule(is_unreachable=st.booleans())
    def failed(self, is_unreachable: bool) -> None:
        self.health.attempt_failed("failed", self.now, is_unreachable=is_unreachable)

    @rule(job_id=st.sampled_from("ab"))
    def begins(self, job_id: str) -> None:
        self.health.begin_trial(job_id)

    @rule(job_id=st.sampled_from("ab"))
    def answers(self, job_id: str) -> None:
        self.health.trial_answers(job_id, self.now)

    @rule()
    def completes(self) -> None:
        self.health.attempt_completed()

    @rule(job_id=st.sampled_from("ab"))
    def ends(self, job_id: str) -> None:
        self.health.end_trial(job_id)

    @invariant()
    def table(self) -> None:
        if self.health.base is not self.seen:
            assert (self.seen, self.health.base) in self.ALLOWED
            self.seen = self.health.base

    @invariant()
    def backoff_is_bounded(self) -> None:
        wait_s = self.health.retry_in_s(self.now)
        assert (wait_s is not None) is (self.health.base is HostState.EJECTED)
        assert wait_s is None or 0 <= wait_s <= RULES.backoff_max_s

    @invariant()
    def trials_belong_to_probation(self) -> None:
        if self.health.base in (HostState.EJECTED, HostState.UNKNOWN):
            assert self.health.trial is None


TestTable = HealthMachine.TestCase
TestTable.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
