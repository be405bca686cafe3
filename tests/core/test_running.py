"""What is known of a job in flight."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.running import OWN_RATE_S, OWN_RATE_TOKENS, Beside, Running
from sollol_proxy.core.speeds import Sharing
from tests.core.builders import MODEL, job

instants = st.floats(0.0, 1e4)
told = st.lists(st.tuples(st.integers(0, 1000), instants), max_size=20)
beside = st.lists(
    st.tuples(st.integers(1, 8), st.integers(1, 4), st.floats(0.0, 100.0)), min_size=1, max_size=20
)
few = settings(max_examples=30)


@few
@given(history=told)
def test_progress_never_goes_back_whatever_is_told_late(history: list[tuple[int, float]]) -> None:
    running = Running(job("j"), 0.0)
    for tokens, now in history:
        tokens_before, told_before = running.tokens, running.told_s
        running.progress(tokens, now)
        assert running.tokens >= tokens_before
        assert told_before is None or (running.told_s or 0.0) >= told_before


@few
@given(history=told, tokens=st.integers(0, 1000), now=instants)
def test_progress_told_again_or_late_changes_nothing(
    history: list[tuple[int, float]], tokens: int, now: float
) -> None:
    running = Running(job("j"), 0.0)
    for each, at_s in [*history, (tokens, now)]:
        running.progress(each, at_s)
    running.expected = now, now + 1.0
    before = running.tokens, running.told_s, running.expected
    running.progress(running.tokens, 1e6)
    if running.told_s:
        running.progress(running.tokens + 1, running.told_s / 2)
    assert (running.tokens, running.told_s, running.expected) == before


@few
@given(now=instants)
def test_progress_makes_the_expected_end_be_worked_out_anew(now: float) -> None:
    running = Running(job("j"), 0.0, expected=(now, now + 1.0))
    running.progress(1, now)
    assert running.expected is None


@few
@given(tokens=st.integers(1, 1000), first_byte_s=instants, seconds=st.floats(0.0, 100.0))
def test_own_speed_is_tokens_by_time_once_there_are_enough_of_both(
    tokens: int, first_byte_s: float, seconds: float
) -> None:
    running = Running(job("j"), 0.0, first_byte_s=first_byte_s)
    running.progress(tokens, first_byte_s + seconds)
    elapsed_s = first_byte_s + seconds - first_byte_s
    if tokens >= OWN_RATE_TOKENS and elapsed_s >= OWN_RATE_S:
        assert running.tokens_per_s == pytest.approx(tokens / elapsed_s)
    else:
        assert running.tokens_per_s is None


@few
@given(tokens=st.integers(0, 1000), first_byte_s=instants, late_s=instants)
def test_own_speed_is_unknown_when_its_times_are_out_of_order(
    tokens: int, first_byte_s: float, late_s: float
) -> None:
    running = Running(job("j"), 0.0, first_byte_s=first_byte_s + late_s)
    running.progress(tokens, first_byte_s)
    assert running.tokens_per_s is None


def test_own_speed_is_unknown_before_the_answer_begins() -> None:
    running = Running(job("j"), 0.0)
    assert running.tokens_per_s is None
    running.progress(1000, 100.0)
    assert running.tokens_per_s is None


def ran_beside(begun_s: float, parts: list[tuple[int, int, float]]) -> tuple[Beside, Running]:
    """A job that ran, in each part, as one of so many of its model beside other models."""
    host = Beside()
    host.passes(begun_s, {"other:1": 3, MODEL: 2})
    running = Running(job("j"), begun_s, areas=host.areas(MODEL))
    now = begun_s
    for streams, runners, seconds in parts:
        now += seconds
        host.passes(now, {MODEL: streams, **{f"other:{n}": 1 for n in range(runners - 1)}})
    return host, running


@few
@given(begun_s=instants, parts=beside)
def test_sharing_lies_between_the_least_and_the_most_that_ran_beside(
    begun_s: float, parts: list[tuple[int, int, float]]
) -> None:
    host, running = ran_beside(begun_s, parts)
    sharing = host.sharing(running)
    weighed = [part for part in parts if part[2] > 0] or [(1, 1, 0.0)]
    for mean, index in ((sharing.streams, 0), (sharing.runners, 1)):
        ran = [1, *(part[index] for part in weighed)]
        assert min(ran) <= mean <= max(ran) * (1 + 1e-4)


@few
@given(parts=beside)
def test_sharing_is_the_mean_over_time(parts: list[tuple[int, int, float]]) -> None:
    host, running = ran_beside(1.0, parts)
    passed_s = sum(seconds for _, _, seconds in parts)
    if passed_s > 1e-3:
        sharing = host.sharing(running)
        for mean, index in ((sharing.streams, 0), (sharing.runners, 1)):
            area = sum(part[index] * part[2] for part in parts)
            assert mean == pytest.approx(area / passed_s, rel=1e-4)


@few
@given(parts=beside, late_s=st.floats(0.0, 1.0))
def test_sharing_is_not_changed_by_what_is_told_late_or_at_the_same_instant(
    parts: list[tuple[int, int, float]], late_s: float
) -> None:
    host, running = ran_beside(1.0, parts)
    now = 1.0
    for _, _, seconds in parts:
        now += seconds
    before = host.sharing(running)
    host.passes(now, {MODEL: 100})
    host.passes(now * late_s, {MODEL: 100})
    assert host.sharing(running) == before


def test_areas_of_a_model_that_nobody_runs_are_forgotten() -> None:
    host = Beside()
    host.passes(1.0, {MODEL: 2})
    host.passes(2.0, {MODEL: 2})
    assert host.areas(MODEL) == (4.0, 2.0)
    host.stops(MODEL)
    assert host.areas(MODEL) == (0.0, 2.0)


def test_job_was_alone_as_long_as_no_time_has_passed() -> None:
    host = Beside()
    assert host.sharing(Running(job("j"), 5.0)) == Sharing(1.0, 1.0)
    assert Running(job("j"), 5.0).sharing == Sharing(1.0, 1.0)
