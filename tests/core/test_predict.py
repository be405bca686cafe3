"""Seconds that a job would take, and what is left of those that run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.policies.base import HostView
from sollol_proxy.core.predict import (
    DEFAULT_TRANSCRIPTION_S,
    KEPT_S,
    MIN_REST_S,
    load_s,
    output_tokens,
    phases,
    rest_s,
    size_bytes,
    slow_down,
)
from sollol_proxy.core.running import Running
from sollol_proxy.core.types import Job, JobKind, Observation, TaskType
from tests.core.builders import MODEL, entry, job, spec

TASK = TaskType.GENERATION
CLOSE = 1 + 1e-9

instants = st.floats(0.0, 1e4)
rates = st.floats(1.0, 5000.0)
slot_kinds = st.sampled_from([kind for kind in JobKind if kind.takes_slot])
jobs = st.builds(
    lambda kind, prompt, limit, stream: job(
        "j", kind=kind, prompt_tokens_est=prompt, output_limit_tokens=limit, stream=stream
    ),
    slot_kinds,
    st.integers(0, 20_000),
    st.none() | st.integers(-2, 5000),
    st.booleans(),
)
few = settings(max_examples=30)


def host_of(prefill: float = 100.0, decode: float = 10.0, *lengths: int) -> HostEntry:
    """A host that is so fast and whose answers were so long."""
    host = entry(spec("a", slots=4), MODEL, "b:1")
    told = Observation(1000, 100, prefill_s=1000 / prefill, decode_s=100 / decode)
    host.known.speeds.learn(MODEL, told, size_bytes=10**9)
    for length in lengths:
        host.memory.lengths.add(TASK, MODEL, 100, length)
    return host


def share(host: HostView, streams: float) -> float:
    """How many times slower one of so many streams runs there."""
    return host.known.speeds.share(streams)


hosts = st.builds(
    lambda prefill, decode, lengths: host_of(prefill, decode, *lengths),
    rates,
    rates,
    st.lists(st.integers(1, 5000), max_size=5),
)
runnings = st.builds(
    lambda each, begun_s, was_cold, matched, first_s, tokens, told_s: Running(
        each,
        begun_s,
        was_cold=was_cold,
        matched_tokens=matched,
        first_byte_s=first_s,
        tokens=tokens if told_s is not None else 0,
        told_s=told_s,
    ),
    jobs,
    instants,
    st.booleans(),
    st.integers(0, 30_000),
    st.none() | instants,
    st.integers(1, 20_000),
    st.none() | instants,
)


@few
@given(host=hosts, asked=jobs, needs_load=st.booleans(), matched=st.integers(0, 30_000))
def test_phases_are_never_negative_and_finite(
    host: HostEntry, asked: Job, needs_load: bool, matched: int
) -> None:
    took = phases(host.memory, asked, host, needs_load=needs_load, matched_tokens=matched)
    assert all(0.0 <= seconds < float("inf") for seconds in took)
    assert (took.load_s > 0) == needs_load
    assert sum(took) > 0 or asked.kind is JobKind.LOAD


@few
@given(host=hosts, asked=jobs, matched=st.tuples(*[st.integers(0, 30_000)] * 2))
def test_more_of_a_prompt_in_the_cache_never_makes_it_slower(
    host: HostEntry, asked: Job, matched: tuple[int, int]
) -> None:
    less, more = (
        phases(host.memory, asked, host, needs_load=False, matched_tokens=tokens)
        for tokens in sorted(matched)
    )
    assert more.prefill_s <= less.prefill_s
    assert (more.load_s, more.decode_s) == (less.load_s, less.decode_s)


@few
@given(host=hosts, asked=jobs)
def test_load_comes_on_top_and_changes_no_other_phase(host: HostEntry, asked: Job) -> None:
    warm = phases(host.memory, asked, host, needs_load=False)
    cold = phases(host.memory, asked, host, needs_load=True)
    assert cold[1:] == warm[1:]
    assert cold.load_s == load_s(host, MODEL)


def test_phases_are_tokens_by_speed() -> None:
    host = host_of(100.0, 10.0, *[50] * 200)
    asked = job("j", prompt_tokens_est=120)
    host.memory.learn_prompt(asked, Observation(prompt_tokens=240))
    took = phases(host.memory, asked, host, needs_load=False, matched_tokens=20)
    assert took == pytest.approx((0.0, 100 * 2 / 100, 5.0), rel=0.01)


@pytest.mark.parametrize(
    ("kind", "has_prefill", "has_decode"),
    [(JobKind.LOAD, False, False), (JobKind.EMBED, True, False), (JobKind.GENERATE, True, True)],
)
def test_phases_are_those_of_the_kind(kind: JobKind, has_prefill: bool, has_decode: bool) -> None:
    host = host_of()
    asked = job("j", kind=kind, prompt_tokens_est=100)
    took = phases(host.memory, asked, host, needs_load=False)
    assert (took.prefill_s > 0, took.decode_s > 0) == (has_prefill, has_decode)


def test_transcription_takes_what_others_took_or_a_default() -> None:
    host, asked = host_of(), job("j", kind=JobKind.TRANSCRIBE)
    before = phases(host.memory, asked, host, needs_load=False)
    assert sum(before) == DEFAULT_TRANSCRIPTION_S
    host.known.speeds.learn_whole(JobKind.TRANSCRIBE, MODEL, 12.0)
    assert sum(phases(host.memory, asked, host, needs_load=False)) == pytest.approx(12.0)


@few
@given(host=hosts, asked=jobs, beyond=st.floats(0.0, 50_000.0))
def test_output_is_longer_than_written_and_within_the_limit(
    host: HostEntry, asked: Job, beyond: float
) -> None:
    tokens = output_tokens(host.memory, asked, beyond)
    if asked.kind is not JobKind.GENERATE:
        assert tokens == 0.0
        return
    assert tokens > beyond
    limit = asked.output_limit_tokens
    if limit is not None and limit > 0:
        assert tokens <= max(limit, beyond + 1)
    else:  # -1 and -2 mean no limit
        unlimited = replace(asked, output_limit_tokens=None)
        assert tokens == output_tokens(host.memory, unlimited, beyond)


@few
@given(host=hosts, running=runnings, now=instants)
def test_rest_is_finite_and_never_below_the_least_whatever_the_times(
    host: HostEntry, running: Running, now: float
) -> None:
    assert MIN_REST_S <= rest_s(host.memory, running, host, now) < float("inf")


@few
@given(host=hosts, running=runnings, now=instants, passed=st.floats(0.0, KEPT_S * 0.99))
def test_expected_end_is_kept_for_a_moment(
    host: HostEntry, running: Running, now: float, passed: float
) -> None:
    rest = rest_s(host.memory, running, host, now)
    later = rest_s(host.memory, running, host, now + passed)
    assert later == pytest.approx(max(rest - passed, MIN_REST_S), rel=1e-6, abs=1e-6)


@few
@given(host=hosts, running=runnings, now=instants, late_s=instants)
def test_expected_end_is_not_harmed_by_a_late_question(
    host: HostEntry, running: Running, now: float, late_s: float
) -> None:
    rest_s(host.memory, running, host, now)
    kept = running.expected
    if late_s <= now:
        rest_s(host.memory, running, host, late_s)
        assert running.expected == kept


@few
@given(host=hosts, first=st.floats(1.0, 10.0), tokens=st.integers(1, 5000), more=st.integers(1, 9))
def test_expected_end_is_worked_out_anew_when_the_job_is_heard_of(
    host: HostEntry, first: float, tokens: int, more: int
) -> None:
    running = Running(job("j", prompt_tokens_est=100, stream=True), 0.0, first_byte_s=first)
    running.progress(tokens, first)
    rest_s(host.memory, running, host, first)
    running.progress(tokens + more, first + KEPT_S / 2)
    rest = rest_s(host.memory, running, host, first + KEPT_S / 2)
    asked = output_tokens(host.memory, running.job, tokens + more) - tokens - more
    pace = host.memory.pace("a", MODEL, 10**9).decode
    assert rest == pytest.approx(max(asked / pace, MIN_REST_S))


@few
@given(host=hosts, prompt=st.integers(1, 5000), was_cold=st.booleans())
def test_rest_of_a_job_that_has_just_begun_is_all_its_phases(
    host: HostEntry, prompt: int, was_cold: bool
) -> None:
    asked = job("j", prompt_tokens_est=prompt, stream=True)
    took = phases(host.memory, asked, host, needs_load=was_cold)
    rest = rest_s(host.memory, Running(asked, 7.0, was_cold=was_cold), host, 7.0)
    assert rest == pytest.approx(max(sum(took), MIN_REST_S), rel=1e-6, abs=MIN_REST_S)


def test_rest_of_an_answer_that_outlasts_all_others_does_not_run_out() -> None:
    host = host_of(100.0, 10.0, 50, 50, 50)
    running = Running(job("j", prompt_tokens_est=100, stream=True), 0.0, first_byte_s=1.0)
    rests = []
    for written in (40, 100, 400, 1600):
        running.progress(written, 1.0 + written / 10)
        rests.append(rest_s(host.memory, running, host, 1.0 + written / 10))
    assert rests[0] < rests[1] < rests[2] < rests[3]
    assert rests[3] == pytest.approx((0.5 * 1600 + 128) / 10, rel=0.01)


def test_rest_goes_by_the_streams_own_speed_once_that_is_known() -> None:
    host = host_of(100.0, 10.0)
    running = Running(
        job("j", prompt_tokens_est=100, output_limit_tokens=300, stream=True), 0.0, first_byte_s=1.0
    )
    running.progress(200, 2.0)
    rest = rest_s(host.memory, running, host, 2.0)
    assert rest <= 100 / 200.0


@few
@given(counts=st.dictionaries(st.sampled_from([MODEL, "b:1", "c:1"]), st.integers(1, 4)))
def test_slow_down_is_at_least_1_and_never_less_for_one_more(counts: dict[str, int]) -> None:
    host = entry(spec("a", slots=9, max_models=9), MODEL, "b:1", "c:1")
    for model, count in counts.items():
        for index in range(count):
            host.begin(job(f"{model}{index}", model=model), 0.0)
    for model in (MODEL, "b:1", "c:1"):
        there = slow_down(host, model)
        assert 1.0 <= there <= slow_down(host, model, joins=True)


def test_slow_down_counts_streams_of_the_model_and_busy_models() -> None:
    host = entry(spec("a", slots=9), MODEL, "b:1")
    assert slow_down(host, MODEL) == 1.0
    assert slow_down(host, MODEL, joins=True) == 1.0
    host.begin(job("1"), 0.0)
    assert slow_down(host, MODEL) == 1.0
    assert slow_down(host, MODEL, joins=True) == share(host, 2)
    assert slow_down(host, "b:1", joins=True) == 2.0
    host.begin(job("2", model="b:1"), 0.0)
    assert slow_down(host, MODEL, joins=True) == 2 * share(host, 2)


def test_size_of_a_model_that_is_not_there_is_unknown() -> None:
    host = host_of()
    assert size_bytes(host, MODEL) == 10**9
    assert size_bytes(host, "not there") == 0
