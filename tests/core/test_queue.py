"""Order, places and deadlines of the waiting room."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.queue import FEW, Queue, Shift
from tests.core.builders import job

AGEING_S = 60.0

arrivals = st.lists(
    st.tuples(st.integers(0, 3600), st.integers(1, 10), st.sampled_from("abc")),
    min_size=1,
    max_size=40,
)


def filled(rows: list[tuple[int, int, str]]) -> Queue:
    queue = Queue(AGEING_S)
    for number, (arrived_s, priority, model) in enumerate(rows):
        queue.add(
            job(f"j{number}", arrived_s=float(arrived_s), priority=priority, model=model),
            float(arrived_s),
        )
    return queue


def effective_priority(priority: int, arrived_s: float, now: float) -> float:
    """The founding formula: one level for each minute waited."""
    return priority + (now - arrived_s) / AGEING_S


@given(rows=arrivals, later_s=st.integers(0, 7200))
def test_queue_orders_by_effective_priority_whenever_it_is_asked(
    rows: list[tuple[int, int, str]], later_s: int
) -> None:
    queue = filled(rows)
    now = 3600.0 + later_s
    effective = [effective_priority(j.priority, j.arrived_s, now) for j in queue]
    assert all(a >= b - 1e-9 for a, b in pairwise(effective))


@given(rows=arrivals, limit=st.integers(0, 50))
def test_window_is_the_beginning_of_the_order(rows: list[tuple[int, int, str]], limit: int) -> None:
    queue = filled(rows)
    assert queue.window(limit) == list(queue)[:limit]


@given(rows=arrivals, shut=st.sampled_from("abc"))
def test_window_skips_closed_lanes_and_nothing_else(
    rows: list[tuple[int, int, str]], shut: str
) -> None:
    queue = filled(rows)
    window = queue.window(100, lambda lane: lane.model != shut)
    assert window == [j for j in queue if j.model != shut]


@given(rows=arrivals, data=st.data())
def test_queue_keeps_the_order_of_the_rest_when_some_are_removed(
    rows: list[tuple[int, int, str]], data: st.DataObject
) -> None:
    queue = filled(rows)
    before = list(queue)
    leaving = data.draw(st.sets(st.sampled_from([j.id for j in before])))
    for job_id in leaving:
        removed = queue.remove(job_id)
        assert removed is not None
        assert removed.id == job_id
    assert list(queue) == [j for j in before if j.id not in leaving]
    assert len(queue) == len(before) - len(leaving)


@pytest.mark.parametrize(
    ("older", "newer", "first"),
    [
        # The founding examples: priority 3 after two minutes is level with 5, and older.
        ((3, 0.0), (5, 120.0), "older"),
        ((2, 0.0), (5, 180.0), "older"),
        ((3, 0.0), (5, 119.0), "newer"),
        ((5, 0.0), (5, 0.0), "older"),
        ((1, 0.0), (10, 540.0), "older"),
        ((1, 0.0), (10, 539.0), "newer"),
    ],
)
def test_queue_ages_by_one_level_a_minute(
    older: tuple[int, float], newer: tuple[int, float], first: str
) -> None:
    queue = Queue(AGEING_S)
    for name, (priority, arrived_s) in (("older", older), ("newer", newer)):
        queue.add(job(name, priority=priority, arrived_s=arrived_s), arrived_s)
    assert next(iter(queue)).id == first


shifted = st.lists(
    st.tuples(
        st.integers(0, 600),
        st.integers(1, 4),
        st.sampled_from("abc"),
        st.floats(-300.0, 0.0),
        st.floats(-100.0, 0.0),
    ),
    min_size=1,
    max_size=30,
)


@given(rows=shifted)
def test_shifts_order_within_a_priority_and_bound_who_goes_before_whom(
    rows: list[tuple[int, int, str, float, float]],
) -> None:
    queue = Queue(AGEING_S)
    keys = {}
    for number, (arrived_s, priority, model, within, across) in enumerate(rows):
        name = f"j{number}"
        queue.add(
            job(name, arrived_s=float(arrived_s), priority=priority, model=model),
            float(arrived_s),
            Shift(within, across),
        )
        keys[name] = (arrived_s + within, number)
    ordered = list(queue)
    assert sorted(each.id for each in ordered) == sorted(keys)
    for priority in range(1, 5):
        own = [keys[each.id] for each in ordered if each.priority == priority]
        assert own == sorted(own)
    for place, later in enumerate(ordered):
        for earlier in ordered[:place]:
            levels = earlier.priority - later.priority
            bound_s = 300.0 if not levels else 300.0 + 100.0 + levels * AGEING_S
            assert earlier.arrived_s <= later.arrived_s + bound_s + 1e-6


@given(rows=shifted)
def test_places_of_a_queue_and_of_its_lanes_agree(
    rows: list[tuple[int, int, str, float, float]],
) -> None:
    queue = Queue(AGEING_S)
    for number, (arrived_s, priority, model, within, across) in enumerate(rows):
        asked = job(f"j{number}", arrived_s=float(arrived_s), priority=priority, model=model)
        queue.add(asked, 0.0, Shift(within, across))
    assert list(queue) == queue.window(len(rows))
    for lane in queue.lanes():
        alone = queue.window(len(rows), lane.__eq__)
        assert queue.in_lane(lane) == alone
        assert queue.first_in(lane) is alone[0]
        assert queue.count_in(lane) == len(alone)
    for waiting in list(queue):
        assert queue.remove(waiting.id) is waiting
    assert (len(queue), queue.lanes(), list(queue)) == (0, [], [])


OVERTAKING_S = 200.0


@given(rows=shifted, data=st.data())
def test_who_has_waited_for_long_is_overtaken_by_none_of_its_priority(
    rows: list[tuple[int, int, str, float, float]], data: st.DataObject
) -> None:
    queue, kept = Queue(AGEING_S, OVERTAKING_S), Queue(AGEING_S)
    rows.sort(key=lambda row: row[0])
    for number, (arrived_s, priority, model, within, across) in enumerate(rows):
        queue.settle(float(arrived_s))
        name = f"j{number}"
        asked = job(name, arrived_s=float(arrived_s), priority=priority, model=model)
        for each in (queue, kept):
            each.add(asked, float(arrived_s), Shift(within, across))
        if number and data.draw(st.booleans()):
            # One goes, and comes back as it was or in the lane of another model.
            back = job(f"j{number - 1}", arrived_s=float(rows[number - 1][0]), model="z")
            for each in (queue, kept):
                each.replace(back)
    now = rows[-1][0] + data.draw(st.floats(0.0, 2 * OVERTAKING_S))
    queue.settle(now)
    late = {each.id for each in queue if each.arrived_s + OVERTAKING_S <= now}
    for priority in {each.priority for each in queue}:
        file = [each for each in queue if each.priority == priority]
        ahead = [each for each in file if each.id in late]
        assert file[: len(ahead)] == ahead
        assert [each.arrived_s for each in ahead] == sorted(each.arrived_s for each in ahead)
        # All others stand as if nobody had moved.
        others = [each.id for each in kept if each.priority == priority and each.id not in late]
        assert [each.id for each in file[len(ahead) :]] == others
    for lane in queue.lanes():
        assert queue.in_lane(lane) == queue.window(len(rows), lane.__eq__)
    for waiting in list(queue):
        assert queue.remove(waiting.id) is waiting
    assert (len(queue), queue.lanes()) == (0, [])


def test_job_that_comes_again_under_an_old_name_is_not_taken_for_the_first() -> None:
    queue = Queue(AGEING_S, OVERTAKING_S)
    queue.add(job("a"), 0.0)
    queue.remove("a")
    queue.add(job("b", arrived_s=150.0), 150.0)
    queue.add(job("a", arrived_s=190.0), 190.0)
    queue.settle(200.0)
    assert [each.id for each in queue] == ["b", "a"]
    queue.add(job("short", arrived_s=210.0), 210.0, Shift(-300.0, 0.0))
    queue.settle(389.9)
    assert [each.id for each in queue] == ["b", "short", "a"]
    queue.settle(390.0)
    assert [each.id for each in queue] == ["b", "a", "short"]


def test_what_is_kept_of_those_who_have_gone_is_bounded() -> None:
    queue = Queue(AGEING_S, OVERTAKING_S)
    queue.add(job("long"), 0.0)
    for number in range(1000):
        queue.add(job(f"j{number}"), 0.0)
        queue.remove(f"j{number}")
    assert len(queue._arrivals) <= 2 * len(queue) + FEW + 1
    queue.add(job("short", arrived_s=1.0), 1.0, Shift(-300.0, 0.0))
    assert [each.id for each in queue] == ["short", "long"]
    queue.settle(OVERTAKING_S)
    assert [each.id for each in queue] == ["long", "short"]


def test_short_job_stands_before_long_ones_of_its_own_priority_alone() -> None:
    queue = Queue(AGEING_S)
    queue.add(job("long", priority=5), 0.0)
    queue.add(job("urgent", priority=6), 0.0)
    queue.add(job("short", priority=5, arrived_s=10.0), 10.0, Shift(-200.0, -40.0))
    assert [each.id for each in queue] == ["urgent", "short", "long"]
    queue.remove("short")
    queue.add(job("short", priority=5, arrived_s=10.0), 10.0, Shift(-200.0, -80.0))
    assert [each.id for each in queue] == ["short", "urgent", "long"]


def test_queue_is_overdue_at_the_deadline_and_not_before() -> None:
    queue = Queue(AGEING_S)
    queue.add(job("a", deadline_s=10.0), 0.0)
    queue.add(job("b", deadline_s=5.0), 0.0)
    queue.add(job("c"), 0.0)
    assert queue.next_deadline_s() == 5.0
    assert queue.overdue(4.999) == []
    assert [j.id for j in queue.overdue(5.0)] == ["b"]
    queue.remove("b")
    assert queue.next_deadline_s() == 10.0
    queue.remove("a")
    assert queue.next_deadline_s() is None
    assert queue.overdue(1e9) == []


def test_queue_keeps_the_time_waited_when_a_job_is_replaced() -> None:
    queue = Queue(AGEING_S)
    queue.add(job("a"), 3.0)
    queue.replace(job("a", model="other:1"))
    assert queue.waited_s("a", 10.0) == 7.0
    assert [lane.model for lane in queue.lanes()] == ["other:1"]


def test_queue_refuses_a_job_that_waits_already() -> None:
    queue = Queue(AGEING_S)
    queue.add(job("a"), 0.0)
    with pytest.raises(ValueError, match="waits already"):
        queue.add(job("a"), 1.0)


def test_job_that_came_back_is_overdue_once() -> None:
    queue = Queue(AGEING_S)
    queue.add(job("j", deadline_s=5.0), 0.0)
    queue.remove("j")
    queue.add(job("j", deadline_s=5.0), 1.0)
    assert [each.id for each in queue.overdue(5.0)] == ["j"]
    queue.replace(job("j", deadline_s=5.0, priority=9))
    assert [each.priority for each in queue.overdue(5.0)] == [9]
