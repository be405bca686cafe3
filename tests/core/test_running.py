"""What is known of a job in flight."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.running import OWN_RATE_S, OWN_RATE_TOKENS, Running
from sollol_proxy.core.speeds import Sharing
from tests.core.builders import job

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


@few
@given(begun_s=instants, parts=beside)
def test_sharing_lies_between_the_least_and_the_most_that_ran_beside(
    begun_s: float, parts: list[tuple[int, int, float]]
) -> None:
    running, now = Running(job("j"), begun_s), begun_s
    for streams, runners, seconds in parts:
        now += seconds
        running.weigh(streams, runners, now)
    sharing = running.sharing()
    weighed = [part for part in parts if part[2] > 0] or [(1, 1, 0.0)]
    for mean, index in ((sharing.streams, 0), (sharing.runners, 1)):
        ran = [part[index] for part in weighed] + [1] * (now == begun_s)
        assert min(ran) * (1 - 1e-6) <= mean <= max(ran) * (1 + 1e-6)


@few
@given(parts=beside)
def test_sharing_is_the_mean_over_time(parts: list[tuple[int, int, float]]) -> None:
    begun_s = 1.0
    running, now, area = Running(job("j"), begun_s), begun_s, 0.0
    for streams, runners, seconds in parts:
        running.weigh(streams, runners, now + seconds)
        area += streams * (now + seconds - now)
        now += seconds
    expected = area / (now - begun_s) if now > begun_s else 1.0
    assert running.sharing().streams == pytest.approx(expected, rel=1e-6)


@few
@given(parts=beside, late_s=st.floats(0.0, 1.0))
def test_sharing_is_not_changed_by_what_is_told_late_or_at_the_same_instant(
    parts: list[tuple[int, int, float]], late_s: float
) -> None:
    running, now = Running(job("j"), 1.0), 1.0
    for streams, runners, seconds in parts:
        now += seconds
        running.weigh(streams, runners, now)
    before = running.sharing()
    running.weigh(100, 100, now)
    running.weigh(100, 100, now * late_s)
    assert running.sharing() == before


def test_job_was_alone_as_long_as_nothing_was_weighed() -> None:
    assert Running(job("j"), 5.0).sharing() == Sharing(1.0, 1.0)
