"""The scheduler's promises, one by one."""

from __future__ import annotations

import pytest

from sollol_proxy.core.scheduler import Scheduler
from sollol_proxy.core.types import (
    AttemptResult,
    Effect,
    HostState,
    JobKind,
    Observation,
    ProbeNow,
    Recall,
)
from tests.core.builders import MODEL, dispatched, down, job, refused, report, scheduler, spec


def states(made: Scheduler, now: float = 0.0) -> dict[str, HostState]:
    return {host.spec.id: host.state for host in made.snapshot(now).hosts}


def test_job_is_dispatched_at_once_when_a_slot_is_free() -> None:
    made = scheduler(spec("a"))
    assert dispatched(made.submit(job("1"), 0.0)) == {"1": "a"}


def test_job_waits_for_the_slot_and_gets_it_when_the_body_ends() -> None:
    made = scheduler(spec("a"))
    made.submit(job("1"), 0.0)
    assert made.submit(job("2"), 1.0) == []
    effects = made.finish("1", AttemptResult.COMPLETED, 4.0)
    assert dispatched(effects) == {"2": "a"}
    [dispatch] = effects
    assert getattr(dispatch, "decision").waited_s == 3.0  # noqa: B009 - narrows the union


def test_waiting_jobs_go_in_the_order_of_priority_and_age() -> None:
    made = scheduler(spec("a"))
    made.submit(job("running"), 0.0)
    made.submit(job("low", priority=2, arrived_s=0.0), 0.0)
    made.submit(job("high", priority=8, arrived_s=1.0), 1.0)
    made.submit(job("middle", priority=5, arrived_s=1.0), 1.0)
    order = []
    running = "running"
    for _ in range(3):
        [(running, _)] = dispatched(made.finish(running, AttemptResult.COMPLETED, 2.0)).items()
        order.append(running)
    assert order == ["high", "middle", "low"]


def test_a_busy_model_does_not_hide_jobs_for_an_idle_one() -> None:
    made = scheduler(spec("a"), max_waiting=1000)
    made.report(report("a", MODEL, "small:1"), 0.0)
    made.submit(job("0"), 0.0)
    for number in range(100):
        made.submit(job(f"w{number}", priority=10), 0.0)
    assert dispatched(made.submit(job("x", model="small:1", priority=1), 0.0)) == {"x": "a"}


def test_models_in_flight_on_a_host_are_bounded() -> None:
    made = scheduler(spec("a", max_models=2))
    made.report(report("a", "x:1", "y:1", "z:1"), 0.0)
    for name in ("x:1", "y:1"):
        assert dispatched(made.submit(job(name, model=name), 0.0)) == {name: "a"}
    assert made.submit(job("z:1", model="z:1"), 0.0) == []
    assert dispatched(made.finish("x:1", AttemptResult.COMPLETED, 1.0)) == {"z:1": "a"}


def test_resident_host_is_preferred_over_one_that_would_load() -> None:
    for policy in ("least_in_flight", "round_robin", "seven_factor"):
        made = scheduler(spec("cold"), spec("warm"), policy=policy)
        made.report(report("warm", resident=(MODEL,)), 0.0)
        assert dispatched(made.submit(job("1"), 0.0)) == {"1": "warm"}


def test_model_being_loaded_counts_as_resident_for_the_next_job() -> None:
    made = scheduler(spec("a", slots=2), spec("b", slots=2))
    [(_, first)] = dispatched(made.submit(job("1"), 0.0)).items()
    assert dispatched(made.submit(job("2"), 0.0)) == {"2": first}
    assert made.snapshot(0.0).hosts[0 if first == "a" else 1].loading == (MODEL,)


def test_full_queue_refuses_with_a_time_to_come_back() -> None:
    made = scheduler(spec("a"), max_waiting=1)
    made.submit(job("1"), 0.0)
    assert made.submit(job("2"), 0.0) == []
    effects = made.submit(job("3"), 0.0)
    assert refused(effects) == {"3": "rejected_queue_full"}
    assert 1.0 <= getattr(effects[0], "retry_after_s") <= 60.0  # noqa: B009


def test_full_queue_takes_a_job_that_need_not_wait() -> None:
    made = scheduler(spec("a"), max_waiting=0)
    made.report(report("a", MODEL, "small:1"), 0.0)
    made.submit(job("1"), 0.0)
    assert refused(made.submit(job("2"), 0.0)) == {"2": "rejected_queue_full"}
    assert dispatched(made.submit(job("3", model="small:1"), 0.0)) == {"3": "a"}


def test_retry_keeps_its_place_and_is_never_refused_for_a_full_queue() -> None:
    made = scheduler(spec("a"), spec("b"), max_waiting=1)
    [(_, first)] = dispatched(made.submit(job("1"), 0.0)).items()
    made.submit(job("2"), 0.0)
    made.submit(job("3", arrived_s=0.0), 0.0)
    made.finish("1", AttemptResult.FAILED, 1.0, detail="boom")
    again = job("1", attempt=2, excluded=frozenset({first}))
    assert refused(made.submit(again, 1.0)) == {}


def test_deadline_refuses_a_waiting_job() -> None:
    made = scheduler(spec("a"))
    made.submit(job("1"), 0.0)
    made.submit(job("2", deadline_s=5.0), 0.0)
    assert made.next_timer_s() == 5.0
    assert made.tick(4.9) == []
    assert refused(made.tick(5.0)) == {"2": "expired_in_queue"}


def test_job_waits_for_a_restart_and_is_refused_after_it() -> None:
    made = scheduler(spec("a"), no_host_wait_s=2.0)
    for _ in range(2):
        made.report(down("a"), 10.0)
    assert states(made) == {"a": HostState.EJECTED}
    assert made.submit(job("1", arrived_s=10.0), 10.0) == []
    assert refused(made.tick(11.9)) == {}
    assert refused(made.tick(12.0)) == {"1": "no_host"}


def test_job_is_dispatched_when_its_host_comes_back_in_time() -> None:
    made = scheduler(spec("a"), no_host_wait_s=2.0)
    for _ in range(2):
        made.report(down("a"), 10.0)
    made.submit(job("1", arrived_s=10.0), 10.0)
    assert dispatched(made.report(report("a"), 11.0)) == {"1": "a"}


def test_ejected_host_is_asked_again_when_its_backoff_is_over() -> None:
    made = scheduler(spec("a"))
    made.submit(job("1"), 0.0)
    made.finish("1", AttemptResult.UNREACHABLE, 1.0, detail="refused")
    at_s = made.next_timer_s()
    assert at_s is not None
    assert made.tick(at_s) == [ProbeNow("a")]
    assert made.next_timer_s() is None


def test_empty_pool_refuses_at_once() -> None:
    made = scheduler()
    assert refused(made.submit(job("1"), 0.0)) == {"1": "no_host"}


def test_unknown_model_is_asked_of_some_host_without_a_slot() -> None:
    made = scheduler(spec("a"))
    made.submit(job("busy"), 0.0)
    assert dispatched(made.submit(job("1", model="nowhere:1"), 0.0)) == {"1": "a"}


def test_model_of_a_host_that_is_out_waits_for_it_instead() -> None:
    made = scheduler(spec("a"), spec("b"), no_host_wait_s=2.0)
    made.report(report("b", "big:1"), 0.0)
    for _ in range(2):
        made.report(down("b"), 1.0)
    assert made.submit(job("1", model="big:1", arrived_s=1.0), 1.0) == []
    assert refused(made.tick(3.0)) == {"1": "no_host"}


def test_host_that_never_answered_does_not_keep_an_unknown_model_from_its_404() -> None:
    made = scheduler(spec("a"), spec("dead"), up=False)
    made.report(report("a"), 0.0)
    made.report(down("dead"), 0.0)
    assert dispatched(made.submit(job("1", model="nowhere:1"), 0.0)) == {"1": "a"}


def test_job_from_before_the_first_probe_is_asked_anywhere_when_nobody_has_its_model() -> None:
    made = scheduler(spec("a"), up=False)
    assert made.submit(job("1", model="nowhere:1"), 0.0) == []
    assert dispatched(made.report(report("a"), 0.5)) == {"1": "a"}


def test_denied_model_is_refused_as_missing() -> None:
    made = scheduler(spec("a", deny=("llama*",)))
    assert refused(made.submit(job("1"), 0.0)) == {"1": "no_model"}


def test_excluded_host_is_not_used_again() -> None:
    made = scheduler(spec("a"), spec("b"))
    excluded = job("1", excluded=frozenset({"a"}), attempt=2)
    assert dispatched(made.submit(excluded, 0.0)) == {"1": "b"}
    assert not made.has_alternative(excluded, "b")


def test_missing_model_is_taken_off_the_inventory() -> None:
    made = scheduler(spec("a"), spec("b"))
    [(_, first)] = dispatched(made.submit(job("1"), 0.0)).items()
    made.finish("1", AttemptResult.MODEL_MISSING, 0.0)
    other = "b" if first == "a" else "a"
    assert dispatched(made.submit(job("2"), 0.0)) == {"2": other}
    assert states(made) == {"a": HostState.HEALTHY, "b": HostState.HEALTHY}


@pytest.mark.parametrize("kind", [JobKind.SHOW, JobKind.UNLOAD, JobKind.OTHER, JobKind.PASS])
def test_jobs_without_a_slot_do_not_wait_for_one(kind: JobKind) -> None:
    made = scheduler(spec("a"))
    made.submit(job("1"), 0.0)
    assert dispatched(made.submit(job("2", kind=kind), 0.0)) == {"2": "a"}


def test_passed_jobs_go_to_the_first_of_the_pool_or_to_who_has_the_model() -> None:
    made = scheduler(spec("a"), spec("b"))
    made.report(report("b", "mine:1"), 0.0)
    assert dispatched(made.submit(job("1", kind=JobKind.PASS, model=""), 0.0)) == {"1": "a"}
    assert dispatched(made.submit(job("2", kind=JobKind.PASS, model="mine:1"), 0.0)) == {"2": "b"}
    assert dispatched(made.submit(job("3", kind=JobKind.PASS, model="new:1"), 0.0)) == {"3": "a"}


def test_draining_host_takes_nothing_new_and_keeps_what_it_has() -> None:
    made = scheduler(spec("a"), spec("b"))
    made.set_host_draining("a", True, 0.0)
    assert dispatched(made.submit(job("1"), 0.0)) == {"1": "b"}
    assert made.submit(job("2"), 0.0) == []
    assert dispatched(made.set_host_draining("a", False, 1.0)) == {"2": "a"}


def test_draining_proxy_refuses_new_jobs_and_lets_retries_finish() -> None:
    made = scheduler(spec("a"))
    made.drain()
    assert refused(made.submit(job("1"), 0.0)) == {"1": "draining"}
    assert dispatched(made.submit(job("2", attempt=2), 0.0)) == {"2": "a"}


def test_withdrawn_job_gives_its_place_to_the_next() -> None:
    made = scheduler(spec("a"))
    made.submit(job("1"), 0.0)
    made.submit(job("2"), 0.0)
    made.submit(job("3"), 0.0)
    made.withdraw("2", 1.0)
    assert dispatched(made.finish("1", AttemptResult.COMPLETED, 2.0)) == {"3": "a"}


def test_equal_hosts_share_evenly() -> None:
    for policy in ("least_in_flight", "round_robin", "seven_factor"):
        made = scheduler(spec("a"), spec("b"), spec("c"), policy=policy)
        for host in ("a", "b", "c"):
            made.report(report(host, resident=(MODEL,)), 0.0)
        counts = dict.fromkeys("abc", 0)
        for number in range(300):
            [(job_id, host)] = dispatched(made.submit(job(f"{number}"), 0.0)).items()
            counts[host] += 1
            made.finish(job_id, AttemptResult.COMPLETED, 0.0, observation=Observation(total_s=1.0))
        assert min(counts.values()) >= 70, (policy, counts)


def test_same_calls_give_the_same_effects() -> None:
    def run() -> list[object]:
        made = scheduler(spec("a"), spec("b"), spec("c"), policy="seven_factor")
        effects: list[object] = []
        for number in range(30):
            effects += made.submit(job(f"{number}"), float(number))
            if number % 3 == 2:
                running = [host for host in made.snapshot(0.0).hosts if host.in_flight]
                assert running
        return effects

    assert run() == run()


def test_learnt_table_tells_count_mean_min_and_max() -> None:
    made = scheduler(spec("a"))
    for number, total_s in enumerate((1.0, 2.0, 6.0)):
        made.submit(job(f"{number}"), 0.0)
        made.finish(
            f"{number}",
            AttemptResult.COMPLETED,
            0.0,
            observation=Observation(total_s=total_s, output_tokens=10),
        )
    [row] = made.snapshot(0.0).learnt
    total = row.total
    assert (total.count, total.mean_s, total.min_s, total.max_s) == (3, 3.0, 1.0, 6.0)
    assert row.output_tokens_mean == pytest.approx(10)


def test_snapshot_says_what_a_job_waits_for() -> None:
    made = scheduler(spec("a"))
    made.submit(job("1"), 0.0)
    made.submit(job("2"), 0.0)
    [waiting] = made.snapshot(3.0).waiting
    assert waiting.waited_s == 3.0
    assert waiting.reason == "for a slot on a"


def recalled(effects: list[Effect]) -> set[str]:
    return {effect.job_id for effect in effects if isinstance(effect, Recall)}


def test_jobs_of_a_silent_host_are_taken_back_when_another_could_do_them() -> None:
    made = scheduler(spec("a", slots=9), spec("b", slots=9))
    for name in ("a", "b"):
        made.report(report(name, resident=(MODEL,)), 0.0)
    hosts: dict[str, str] = {}
    for number in range(6):
        hosts |= dispatched(made.submit(job(f"{number}"), 0.0))
    on_a = {job_id for job_id, host in hosts.items() if host == "a"}
    assert on_a
    answered = min(on_a)
    made.first_byte(answered, 1.0)
    assert recalled(made.report(down("a"), 5.0)) == set()
    assert recalled(made.report(down("a"), 10.0)) == on_a - {answered}
    # Until the shell has obeyed, each silent probe says it again.
    assert recalled(made.report(down("a"), 15.0)) == on_a - {answered}
    assert recalled(made.report(report("a"), 20.0)) == set()


def test_jobs_of_a_silent_host_stay_when_no_other_host_could_do_them() -> None:
    made = scheduler(spec("a"))
    made.submit(job("1"), 0.0)
    for now in (5.0, 10.0, 15.0):
        assert recalled(made.report(down("a"), now)) == set()


def test_passed_request_is_not_taken_back() -> None:
    made = scheduler(spec("a"), spec("b"))
    made.submit(job("1", kind=JobKind.PASS, model=""), 0.0)
    for now in (5.0, 10.0):
        assert recalled(made.report(down("a"), now)) == set()
