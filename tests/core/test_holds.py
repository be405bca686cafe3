"""How long a job may be held beside a free slot."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.holds import MAX_HOLD_S, Holds
from sollol_proxy.core.queue import Lane, lane_of
from tests.core.builders import job

LANE = lane_of(job("j"))
OTHER = lane_of(job("j", model="other:latest"))

instants = st.floats(0.0, 1e4)
durations = st.floats(0.0, 1e6)
begins = st.lists(
    st.tuples(st.sampled_from([LANE, OTHER]), st.sampled_from("abcd"), durations, instants),
    min_size=1,
    max_size=20,
)
few = settings(max_examples=30)


@few
@given(idle_s=durations, now=instants)
def test_hold_lasts_as_long_as_the_job_would_need_and_never_longer_than_the_most(
    idle_s: float, now: float
) -> None:
    holds = Holds()
    holds.begin(LANE, "a", idle_s, now)
    assert holds.bound_s(LANE, "a") == now + min(idle_s, MAX_HOLD_S)


@pytest.mark.parametrize("idle_s", [nan, -inf, -1.0])
def test_time_that_is_none_holds_nobody(idle_s: float) -> None:
    holds = Holds()
    holds.begin(LANE, "a", idle_s, 7.0)
    assert (holds.due(LANE, 7.0), holds.next_bound_s()) == (["a"], 7.0)
    assert not holds.put_off(LANE, "a", idle_s, 7.0)


@few
@given(idle_s=durations, now=instants, replans=st.lists(st.tuples(durations, instants)))
def test_hold_is_never_moved_by_a_later_plan(
    idle_s: float, now: float, replans: list[tuple[float, float]]
) -> None:
    holds = Holds()
    holds.begin(LANE, "a", idle_s, now)
    bound_s = holds.bound_s(LANE, "a")
    for again_s, later in replans:
        holds.begin(LANE, "a", again_s, later)
        assert holds.bound_s(LANE, "a") == bound_s
    assert holds.count(LANE) == 1


@few
@given(idle_s=durations, again_s=durations, now=instants, later_s=durations)
def test_hold_is_put_off_to_what_is_needed_now_counted_from_its_beginning(
    idle_s: float, again_s: float, now: float, later_s: float
) -> None:
    holds = Holds()
    holds.begin(LANE, "a", idle_s, now)
    before_s, later = holds.bound_s(LANE, "a"), now + later_s
    put_off_s = now + min(again_s, MAX_HOLD_S)
    assert holds.put_off(LANE, "a", again_s, later) is (put_off_s > later)
    assert holds.bound_s(LANE, "a") == (put_off_s if put_off_s > later else before_s)
    assert holds.next_bound_s() == holds.bound_s(LANE, "a")
    holds.begin(LANE, "a", 0.0, later)
    assert holds.next_bound_s() == (put_off_s if put_off_s > later else before_s)


@few
@given(begun=begins, now=instants)
def test_due_are_exactly_those_past_their_bound_and_the_first_due_comes_first(
    begun: list[tuple[Lane, str, float, float]], now: float
) -> None:
    holds = Holds()
    for lane, job_id, idle_s, at_s in begun:
        holds.begin(lane, job_id, idle_s, at_s)
    for lane in (LANE, OTHER):
        bounds = {
            job_id: bound_s
            for job_id in "abcd"
            if (bound_s := holds.bound_s(lane, job_id)) is not None
        }
        due = holds.due(lane, now)
        assert set(due) == {job_id for job_id, bound_s in bounds.items() if bound_s <= now}
        assert [bounds[job_id] for job_id in due] == sorted(bounds[job_id] for job_id in due)


@few
@given(begun=begins)
def test_next_bound_is_the_first_of_all_lanes(
    begun: list[tuple[Lane, str, float, float]],
) -> None:
    holds = Holds()
    for lane, job_id, idle_s, at_s in begun:
        holds.begin(lane, job_id, idle_s, at_s)
    bounds = [holds.bound_s(lane, job_id) for lane in (LANE, OTHER) for job_id in "abcd"]
    assert holds.next_bound_s() == min(bound_s for bound_s in bounds if bound_s is not None)


@few
@given(begun=begins, by_lane=st.booleans())
def test_nothing_is_left_when_all_holds_have_ended(
    begun: list[tuple[Lane, str, float, float]], by_lane: bool
) -> None:
    holds = Holds()
    for lane, job_id, idle_s, at_s in begun:
        holds.begin(lane, job_id, idle_s, at_s)
    for lane in (LANE, OTHER):
        if by_lane:
            holds.end_lane(lane)
        for job_id in "abcd":
            holds.end(lane, job_id)
            assert not holds.has(lane, job_id)
    assert holds.lanes() == []
    assert holds.next_bound_s() is None


def test_hold_of_one_lane_ends_without_the_others() -> None:
    holds = Holds()
    for lane in (LANE, OTHER):
        holds.begin(lane, "a", 1.0, 0.0)
        holds.begin(lane, "b", 1.0, 0.0)
    holds.end(LANE, "a")
    assert (holds.has(LANE, "a"), holds.has(LANE, "b"), holds.has(OTHER, "a")) == (
        False,
        True,
        True,
    )
    holds.end_lane(LANE)
    assert holds.lanes() == [OTHER]
    assert holds.count(OTHER) == 2


def test_holds_are_empty_at_first() -> None:
    holds = Holds()
    holds.end(LANE, "a")
    holds.end_lane(LANE)
    assert holds.lanes() == []
    assert holds.due(LANE, 1e9) == []
    assert holds.count(LANE) == 0
    assert holds.bound_s(LANE, "a") is None
    assert holds.next_bound_s() is None
