"""How much a host can hold, and who leaves first."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.room import MAX_MODELS, Room, Victims, footprint_bytes

sizes = st.integers(1, 100)
configured = st.none() | st.integers(0, 100)
seen = st.lists(st.tuples(st.booleans(), sizes), max_size=20)
names = st.sampled_from("abcd")
evictions = st.lists(
    st.tuples(st.lists(names, max_size=2), st.lists(names, max_size=2)), max_size=20
)
rubbish = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
few = settings(max_examples=30)


def room_of(history: list[tuple[bool, int]]) -> Room:
    """After models of these sizes fitted (True) or made one leave (False)."""
    room = Room()
    for fitted, total in history:
        if fitted:
            room.seen_together(total)
        else:
            room.burst(total)
    return room


@few
@given(history=seen, total=sizes, limit=configured)
def test_what_was_together_fits_whatever_is_configured(
    history: list[tuple[bool, int]], total: int, limit: int | None
) -> None:
    room = room_of(history)
    room.seen_together(total)
    assert room.holds(total, limit)
    assert room.surely_holds(total, limit)


@few
@given(history=seen, total=sizes, limit=configured)
def test_what_made_a_model_leave_does_not_fit_whatever_is_configured(
    history: list[tuple[bool, int]], total: int, limit: int | None
) -> None:
    room = room_of(history)
    room.burst(total)
    assert not room.holds(total, limit)
    assert not room.surely_holds(total, limit)


@few
@given(history=seen, total=sizes, less=sizes, limit=configured)
def test_what_is_smaller_fits_where_the_larger_does(
    history: list[tuple[bool, int]], total: int, less: int, limit: int | None
) -> None:
    room = room_of(history)
    small, large = sorted((total, less))
    assert room.holds(small, limit) or not room.holds(large, limit)
    assert room.surely_holds(small, limit) or not room.surely_holds(large, limit)


@few
@given(history=seen, total=sizes, limit=configured)
def test_what_surely_fits_fits(
    history: list[tuple[bool, int]], total: int, limit: int | None
) -> None:
    room = room_of(history)
    assert room.holds(total, limit) or not room.surely_holds(total, limit)


@few
@given(history=seen)
def test_known_to_fit_stays_below_known_not_to(history: list[tuple[bool, int]]) -> None:
    room = room_of(history)
    assert room.bursts_bytes is None or room.fits_bytes < room.bursts_bytes


@pytest.mark.parametrize(
    ("total", "limit", "holds", "surely"),
    [(50, None, True, False), (50, 0, True, False), (50, 50, True, True), (51, 50, False, False)],
)
def test_configured_size_decides_where_nothing_was_learnt(
    total: int, limit: int | None, holds: bool, surely: bool
) -> None:
    assert Room().holds(total, limit) is holds
    assert Room().surely_holds(total, limit) is surely


@few
@given(history=seen)
def test_room_is_the_same_after_json(history: list[tuple[bool, int]]) -> None:
    room = room_of(history)
    assert Room.restored(json.loads(json.dumps(room.export()))) == room


@few
@given(given_=rubbish | st.fixed_dictionaries({"fits_bytes": rubbish, "bursts_bytes": rubbish}))
def test_room_restored_from_rubbish_raises_value_error_or_works(given_: object) -> None:
    try:
        room = Room.restored(given_)
    except ValueError:
        return
    room.holds(1, None)
    room.surely_holds(1, 2)


def victims_of(history: list[tuple[list[str], list[str]]]) -> Victims:
    victims = Victims()
    for gone, stayed in history:
        victims.learn(gone, stayed)
    return victims


@few
@given(history=evictions)
def test_rank_stays_between_0_and_1_and_is_the_middle_when_unknown(
    history: list[tuple[list[str], list[str]]],
) -> None:
    victims = victims_of(history)
    assert all(0.0 <= victims.rank(name) <= 1.0 for name in "abcd")
    assert victims.rank("never seen") == 0.5


@few
@given(history=evictions)
def test_rank_orders_by_who_went_once_that_was_seen_often_enough(
    history: list[tuple[list[str], list[str]]],
) -> None:
    victims = victims_of(history)
    for _ in range(5):
        victims.learn(["a"], ["b"])
    assert victims.rank("a") > victims.rank("b")


@pytest.mark.parametrize(("gone", "stayed"), [([], ["a"]), (["a"], []), ([], [])])
def test_rank_learns_nothing_when_there_was_no_choice(gone: list[str], stayed: list[str]) -> None:
    victims = Victims()
    victims.learn(gone, stayed)
    assert victims.export() == {}


def test_ranks_are_bounded_and_known_ones_go_on_being_learnt() -> None:
    victims = Victims()
    victims.learn([f"m{index}" for index in range(2 * MAX_MODELS)], ["last"])
    assert len(victims.export()) == MAX_MODELS
    before = victims.rank("m0")
    victims.learn(["m0"], ["last"])
    assert victims.rank("m0") > before


@few
@given(history=evictions)
def test_ranks_are_the_same_after_json(history: list[tuple[list[str], list[str]]]) -> None:
    victims = victims_of(history)
    restored = Victims.restored(json.loads(json.dumps(victims.export())))
    assert [restored.rank(name) for name in "abcde"] == [victims.rank(name) for name in "abcde"]


@few
@given(given_=rubbish | st.dictionaries(names, rubbish))
def test_ranks_restored_from_rubbish_raise_value_error_or_stay_in_range(given_: object) -> None:
    try:
        victims = Victims.restored(given_)
    except ValueError:
        return
    assert all(0.0 <= victims.rank(name) <= 1.0 for name in "abcd")


@few
@given(small=sizes, large=sizes)
def test_footprint_is_more_than_the_file_and_unknown_when_that_is(small: int, large: int) -> None:
    small, large = sorted((small, large))
    assert small < footprint_bytes(small) <= footprint_bytes(large)
    assert footprint_bytes(0) == 0
