"""What the next minute may bring, from the arrivals of the last."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.demand import MAX_MODELS, TIME_CONSTANT_S, Demand

instants = st.floats(0.0, 1e4)
arrivals = st.lists(instants, min_size=1, max_size=30)
few = settings(max_examples=30)


def demand_of(times: list[float], model: str = "m") -> Demand:
    demand = Demand()
    for now in times:
        demand.add(model, now)
    return demand


@few
@given(times=arrivals, now=instants)
def test_demand_lies_between_nothing_and_all_arrivals_in_whatever_order_they_are_told(
    times: list[float], now: float
) -> None:
    assert 0.0 <= demand_of(times).next_minute("m", now) <= len(times) * (1 + 1e-9)


@few
@given(times=arrivals, later=st.floats(0.0, 1e3))
def test_demand_is_the_decayed_count_even_when_arrivals_are_told_late(
    times: list[float], later: float
) -> None:
    now = max(times) + later
    expected = sum(exp((at_s - now) / TIME_CONSTANT_S) for at_s in times)
    assert demand_of(times).next_minute("m", now) == pytest.approx(expected, rel=1e-6)


@few
@given(times=arrivals, earlier=instants, later=instants)
def test_demand_never_rises_by_waiting(times: list[float], earlier: float, later: float) -> None:
    demand = demand_of(times)
    first, second = sorted((earlier, later))
    assert demand.next_minute("m", second) <= demand.next_minute("m", first)


@few
@given(times=arrivals, late=instants)
def test_demand_never_falls_by_an_arrival(times: list[float], late: float) -> None:
    now = max(*times, late)
    before = demand_of(times).next_minute("m", now)
    assert demand_of([*times, late]).next_minute("m", now) >= before * (1 - 1e-9)


@few
@given(now=instants, count=st.integers(1, 50))
def test_arrivals_at_one_instant_all_count(now: float, count: int) -> None:
    assert demand_of([now] * count).next_minute("m", now) == pytest.approx(count)


@few
@given(times=arrivals, now=instants)
def test_demand_of_a_model_says_nothing_of_another(times: list[float], now: float) -> None:
    assert demand_of(times).next_minute("other", now) == 0.0


def test_demand_is_nothing_before_the_first_arrival() -> None:
    assert Demand().next_minute("m", 0.0) == 0.0


def test_demand_forgets_the_model_asked_for_the_longest_ago_when_there_are_too_many() -> None:
    demand = Demand()
    for index in range(MAX_MODELS):
        demand.add(f"m{index}", float(index))
    demand.add("m0", float(MAX_MODELS))
    demand.add("new", float(MAX_MODELS))
    now = float(MAX_MODELS)
    assert demand.next_minute("m1", now) == 0.0
    assert all(demand.next_minute(f"m{index}", now) > 0 for index in range(2, MAX_MODELS))
    assert demand.next_minute("m0", now) > 0
    assert demand.next_minute("new", now) > 0
