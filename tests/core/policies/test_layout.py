"""Laying out jobs over slots, against walks from scratch, calculus and every other layout.

`Memory` stands for a host's: runners that fit, what a load takes, what is in use and how long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, permutations, product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.policies.layout import TIE_RATIO, Layout
from sollol_proxy.core.policies.slots import Held, Slot, Step, Wish

TOKENS = ("a", "b", "c")
PRICE, POWER = 1.75, 1.2
PRICES = st.sampled_from([1.0, PRICE, 3.0])
POWERS = st.sampled_from([1.0, POWER, 1.7])

seconds = st.floats(0.01, 100.0)


def step_of(fits: int, load_s: float, price_s: float, drain_s: float) -> Callable[..., Step]:
    """A host whose memory holds so many runners; the oldest goes."""

    def step(held: Held, token: str) -> Step:
        others = tuple(other for other in held if other != token)
        kept = others[len(others) - fits + 1 :] if len(others) >= fits else others
        gone = len(others) - len(kept)
        return Step((*kept, token), load_s, price_s * gone, drain_s if gone else 0.0)

    return step


def no_step(held: Held, token: str) -> Step:
    raise AssertionError("nothing has to be loaded")


@st.composite
def slots(draw: st.DrawFn, *, loads: bool = True, most: int = 4) -> list[Slot]:
    """Slots of up to `most` hosts, one each or two alike."""
    made = []
    for host in range(draw(st.integers(1, most))):
        held: Held = TOKENS
        step: Callable[..., Step] = no_step
        ready_s: dict[str, float] = {}
        if loads:
            held = tuple(draw(st.lists(st.sampled_from(TOKENS), unique=True, max_size=2)))
            step = step_of(2, draw(seconds), draw(seconds), draw(st.floats(0.0, 50.0)))
            ready_s = draw(st.dictionaries(st.sampled_from(TOKENS), st.floats(0.0, 50.0)))
        for _ in range(draw(st.integers(1, 2))):
            at_s = draw(st.just(0.0) | st.floats(0.0, 50.0))
            limit = draw(st.sampled_from([1, 1 << 30, 1 << 30]))
            made.append(Slot(host, at_s, held, step, ready_s, limit if loads else 1 << 30))
    return made


def least_load_s(token: str, places: Sequence[Slot], host: int) -> float:
    """What a load of the runner adds at least to what is felt there, whatever stands before."""
    held, step = next((slot.states[0][1], slot.step) for slot in places if slot.host == host)
    return 0.0 if token in held else step((), token).load_s


@st.composite
def wishes_for(
    draw: st.DrawFn, places: Sequence[Slot], *, most: int = 8, everywhere: bool = False
) -> list[Wish]:
    """Jobs in queue order that may go to some of the hosts."""
    hosts = 1 + max(slot.host for slot in places)
    made = []
    for order in range(draw(st.integers(1, most))):
        own_s = [draw(seconds if everywhere else st.just(math.inf) | seconds) for _ in range(hosts)]
        felt_s = [own * draw(st.floats(1.0, 3.0)) for own in own_s]
        token = draw(st.sampled_from(TOKENS))
        loads_s = [least_load_s(token, places, host) for host in range(hosts)]
        weight, age_s = draw(st.floats(0.1, 8.0)), draw(seconds)
        wish = Wish(order, weight, age_s, own_s, felt_s, [token] * hosts, loads_s)
        wish.slots = [slot for slot in places if own_s[slot.host] < math.inf]
        made.append(wish)
    return made


@st.composite
def scenes(
    draw: st.DrawFn, *, loads: bool = True, everywhere: bool = False
) -> tuple[list[Slot], list[Wish]]:
    places = draw(slots(loads=loads))
    return places, draw(wishes_for(places, everywhere=everywhere))


def walk(slot: Slot, price: float, power: float) -> list[tuple[float, Held, float, float, float]]:
    """By the letter: behind each job the moment, what is held and the costs; its turn and cost."""
    at_s, held, total = slot.states[0]
    rows = []
    for wish in slot.wishes:
        token, host = wish.tokens[slot.host], slot.host
        own_s, felt_s = wish.own_s[host], wish.felt_s[host]
        turn_s, load_s, load_price_s = at_s, 0.0, 0.0
        if token not in held:
            step = slot.step(held, token)
            held, load_s, load_price_s = step.held, step.load_s, step.price_s
            turn_s = max(turn_s, step.drain_s)
        turn_s = max(turn_s, slot.ready_s.get(token, 0.0))
        cost = wish.weight * (wish.age_s + price * turn_s + load_s + felt_s + load_price_s) ** power
        at_s, total = turn_s + load_s + own_s, total + cost
        rows.append((at_s, held, total, turn_s, cost))
    return rows


def assert_walked(slot: Slot, price: float, power: float) -> None:
    rows = walk(slot, price, power)
    assert len(slot.states) == len(slot.slopes) == len(slot.bends) == len(slot.wishes) + 1
    for index, (at_s, held, total, turn_s, _) in enumerate(rows):
        state = slot.states[index + 1]
        assert state[0] == pytest.approx(at_s)
        assert state[1] == held
        assert state[2] == pytest.approx(total)
        assert slot.turn_s(index) == pytest.approx(turn_s)
        assert slot.end_s(index) == pytest.approx(at_s)
    slope = 0.0
    for index in range(len(rows) - 1, -1, -1):
        # d/dt w·f^p where f grows by `price` each second of delay.
        cost, wish = rows[index][4], slot.wishes[index]
        felt_s = (cost / wish.weight) ** (1 / power)
        slope += power * price * cost / felt_s
        assert slot.slopes[~index] == pytest.approx(slope, rel=1e-5)
    tokens = [wish.tokens[slot.host] for wish in slot.wishes]
    assert slot.ends == {
        token: places
        for token in tokens
        if (
            places := tuple(n for n in range(1, len(tokens)) if tokens[n - 1] == token != tokens[n])
        )
    }
    assert slot.slopes[0] == slot.bends[0] == 0.0
    assert (slot.slope, slot.bend) == (slot.slopes[-1], slot.bends[-1])


@settings(max_examples=150)
@given(scene=scenes(), price=PRICES, power=POWERS, data=st.data())
def test_states_equal_a_walk_from_scratch_whatever_was_put_in_and_taken_out(
    scene: tuple[list[Slot], list[Wish]], price: float, power: float, data: st.DataObject
) -> None:
    places, wishes = scene
    layout = Layout(price, power)
    for wish in data.draw(st.lists(st.sampled_from(wishes), max_size=12)):
        if layout.slot_of(wish) is None:
            layout._put(wish)
        else:
            layout._take_out(wish)
            assert layout.slot_of(wish) is None
        for slot in places:
            assert_walked(slot, price, power)


@settings(max_examples=100)
@given(tokens=st.lists(st.sampled_from("ab"), min_size=2, max_size=9), data=st.data())
def test_walk_from_any_job_on_says_what_one_from_the_first_would(
    tokens: list[str], data: st.DataObject
) -> None:
    """Runs of few runners, split and joined anywhere."""
    slot, layout = Slot(0, 0.0, TOKENS, no_step, {}, 1 << 30), Layout(PRICE, POWER)
    for order, token in enumerate(tokens):
        index = data.draw(st.integers(0, len(slot.wishes)))
        slot.wishes.insert(index, Wish(order, 1.0, 0.0, [2.0], [2.0], [token], [0.0]))
        slot.placed.insert(index, (2.0, 2.0, 1.0, token))
        layout._walk(slot, index)
        assert_walked(slot, PRICE, POWER)
    while slot.wishes:
        index = data.draw(st.integers(0, len(slot.wishes) - 1))
        del slot.wishes[index], slot.placed[index]
        layout._walk(slot, index)
        assert_walked(slot, PRICE, POWER)


@settings(max_examples=150)
@given(scene=scenes(), improve=st.booleans())
def test_layout_has_each_job_once_where_it_may_go_and_leaves_nobody_out_who_has_a_place(
    scene: tuple[list[Slot], list[Wish]], improve: bool
) -> None:
    places, wishes = scene
    layout = Layout(PRICE, POWER)
    layout.fill(wishes, improve=improve)
    laid = [wish.order for slot in places for wish in slot.wishes]
    assert len(laid) == len(set(laid))
    for slot in places:
        assert len(slot.wishes) <= slot.most
        for wish in slot.wishes:
            assert wish.own_s[slot.host] < math.inf
            assert layout.slot_of(wish) is slot
    for wish in wishes:
        if wish.order not in laid:
            assert layout.slot_of(wish) is None
            assert all(len(slot.wishes) == slot.most for slot in wish.slots)


@settings(max_examples=150)
@given(scene=scenes())
def test_jobs_of_a_slot_that_uses_one_runner_keep_the_order_of_the_queue(
    scene: tuple[list[Slot], list[Wish]],
) -> None:
    places, wishes = scene
    Layout(PRICE, POWER).fill(wishes, improve=False)
    for slot in places:
        if len({wish.tokens[slot.host] for wish in slot.wishes}) == 1:
            orders = [wish.order for wish in slot.wishes]
            assert orders == sorted(orders)


@settings(max_examples=150)
@given(scene=scenes(loads=False, everywhere=True), price=PRICES, power=POWERS, data=st.data())
def test_slopes_and_bends_err_by_less_than_half_the_power_beyond_1_times_the_relative_delay(
    scene: tuple[list[Slot], list[Wish]], price: float, power: float, data: st.DataObject
) -> None:
    """With nothing to load: |estimate − growth| ≤ (power − 1) ÷ 2 · x · growth of those behind.

    x = price · delay ÷ least seconds that one of them feels. Both lie between the tangent and
    Taylor's second term, whose share of the first is at most that.
    """
    places, wishes = scene
    newcomer = wishes.pop()
    layout = Layout(price, power)
    layout.fill(wishes, improve=False)
    slot = data.draw(st.sampled_from(places))
    index = data.draw(st.integers(0, len(slot.wishes)))
    own_s, felt_s = newcomer.own_s[slot.host], newcomer.felt_s[slot.host]
    estimate = (slot.slopes[~index] + slot.bends[~index] * own_s) * own_s
    its_own = newcomer.weight * (newcomer.age_s + price * slot.states[index][0] + felt_s) ** power
    exact = layout.growth(slot, newcomer, index) - its_own
    behind = list(zip(slot.wishes, walk(slot, price, power), strict=True))[index:]
    felts = [(row[4] / wish.weight) ** (1 / power) for wish, row in behind]
    delay = price * own_s / min(felts, default=1.0)
    assert abs(estimate - exact) <= (power - 1) / 2 * delay * exact + 1e-6 * (exact + its_own)
    assert slot.slopes[~index] * own_s <= exact + 1e-6 * (exact + its_own)


@settings(max_examples=150)
@given(scene=scenes(), data=st.data())
def test_growth_is_what_the_value_of_a_slot_grows_by(
    scene: tuple[list[Slot], list[Wish]], data: st.DataObject
) -> None:
    places, wishes = scene
    newcomer = wishes.pop()
    layout = Layout(PRICE, POWER)
    layout.fill(wishes, improve=True)
    slot = data.draw(st.sampled_from(places))
    if newcomer.own_s[slot.host] == math.inf:
        return
    index = data.draw(st.integers(0, len(slot.wishes)))
    before = slot.states[-1][2]
    grows = layout.growth(slot, newcomer, index)
    slot.wishes.insert(index, newcomer)
    after = walk(slot, PRICE, POWER)[-1][2]
    assert after - before == pytest.approx(grows, rel=1e-9, abs=1e-9 * after)


@settings(max_examples=100)
@given(scene=scenes(loads=False, everywhere=True), data=st.data())
def test_job_goes_where_the_sum_grows_least(
    scene: tuple[list[Slot], list[Wish]], data: st.DataObject
) -> None:
    """Nothing to load: of the places that its key allows, none is better by more than the bound."""
    places, wishes = scene
    newcomer = wishes.pop(data.draw(st.integers(0, len(wishes) - 1)))
    layout = Layout(PRICE, 1.0)  # where slopes are exact
    layout.fill(wishes, improve=False)
    growths = []
    for slot in places:
        behind = (n for n, wish in enumerate(slot.wishes) if wish.order > newcomer.order)
        index = next(behind, len(slot.wishes))
        growths.append(layout.growth(slot, newcomer, index))
    before = sum(slot.states[-1][2] for slot in places)
    layout._put(newcomer)
    grown = sum(slot.states[-1][2] for slot in places) - before
    assert grown <= min(growths) / TIE_RATIO + 1e-6 * before


@settings(max_examples=150)
@given(scene=scenes(), improve=st.booleans())
def test_what_is_passed_over_for_its_load_would_not_have_been_chosen(
    scene: tuple[list[Slot], list[Wish]], improve: bool
) -> None:
    """Nothing changes when the least that a load adds is not known beforehand."""
    places, wishes = scene
    layouts = []
    for knows in (True, False):
        fresh = [
            Slot(s.host, s.states[0][0], s.states[0][1], s.step, s.ready_s, s.most) for s in places
        ]
        twins = []
        for wish in wishes:
            loads_s = wish.loads_s if knows else [0.0] * len(wish.loads_s)
            twin = Wish(
                wish.order, wish.weight, wish.age_s, wish.own_s, wish.felt_s, wish.tokens, loads_s
            )
            twin.slots = [slot for slot in fresh if wish.own_s[slot.host] < math.inf]
            twins.append(twin)
        Layout(PRICE, POWER).fill(twins, improve=improve)
        layouts.append([[wish.order for wish in slot.wishes] for slot in fresh])
    assert layouts[0] == layouts[1]


@settings(max_examples=100)
@given(
    sizes=st.lists(seconds, min_size=2, max_size=8),
    slots_at=st.lists(st.floats(0.0, 50.0), min_size=1, max_size=4),
    twins=st.integers(2, 4),
)
def test_of_jobs_that_are_alike_the_earlier_begins_no_later(
    sizes: list[float], slots_at: list[float], twins: int
) -> None:
    places = [Slot(n, at_s, TOKENS, no_step, {}, 1 << 30) for n, at_s in enumerate(slots_at)]
    hosts = len(places)
    kinds = sizes + [sizes[0]] * (twins - 1)
    wishes = [
        Wish(order, 1.0, 5.0, [own_s] * hosts, [own_s] * hosts, ["a"] * hosts, [0.0] * hosts)
        for order, own_s in enumerate(sorted(kinds))
    ]
    for wish in wishes:
        wish.slots = places
    layout = Layout(PRICE, POWER)
    layout.fill(wishes, improve=False)
    alike = [wish for wish in wishes if wish.own_s[0] == sizes[0]]
    for first, second in pairwise(alike):
        slot = layout.slot_of(first)
        assert slot is not None
        if slot is layout.slot_of(second):
            assert slot.wishes.index(first) < slot.wishes.index(second)


def best_sum(wishes: Sequence[Wish], at_s: Sequence[float], *, any_order: bool) -> float:
    """The least sum over all assignments of jobs to slots and, if wanted, all orders in a slot."""

    def value(line: Sequence[Wish], slot: int) -> float:
        now_s, total = at_s[slot], 0.0
        for wish in line:
            own_s = wish.own_s[slot]
            total += wish.weight * (wish.age_s + PRICE * now_s + own_s) ** POWER
            now_s += own_s
        return total

    best = math.inf
    for assigned in product(range(len(at_s)), repeat=len(wishes)):
        total = 0.0
        for slot in range(len(at_s)):
            line = [wish for wish, its in zip(wishes, assigned, strict=True) if its == slot]
            orders = permutations(line) if any_order else [line]
            total += min(value(order, slot) for order in orders)
        best = min(best, total)
    return best


def small_case(rng: Random) -> tuple[list[Wish], list[Slot], list[float]]:
    """Up to three jobs and slots of hosts of different speeds, all of which hold the model."""
    hosts, jobs = rng.randint(1, 3), rng.randint(1, 3)
    slow = [10 ** rng.uniform(-0.5, 0.5) for _ in range(hosts)]
    at_s = [rng.choice([0.0, 10 ** rng.uniform(-1, 2)]) for _ in range(hosts)]
    places = [Slot(n, at_s[n], TOKENS, no_step, {}, 1 << 30) for n in range(hosts)]
    wishes = []
    for order in range(jobs):
        size_s, age_s = 10 ** rng.uniform(-1, 2), rng.choice([0.0, 10 ** rng.uniform(-1, 2)])
        own_s = [size_s * each for each in slow]
        weight = 1.5 ** rng.randint(-4, 5)
        wish = Wish(order, weight, age_s, own_s, own_s, ["a"] * hosts, [0.0] * hosts)
        wish.slots = places
        wishes.append(wish)
    return wishes, places, at_s


def ratio_to_best(seed: int, *, sorted_by_time: bool, improve: bool) -> float:
    """The layout's sum ÷ the best one, of a random small case."""
    wishes, places, at_s = small_case(Random(seed))
    if sorted_by_time:
        in_order = sorted(wishes, key=lambda wish: (wish.own_s[0] or 0.0) / wish.weight)
        for order, wish in enumerate(in_order):
            wish.order = order
        wishes = in_order
    Layout(PRICE, POWER).fill(wishes, improve=improve)
    laid = sum(slot.states[-1][2] for slot in places)
    return laid / best_sum(wishes, at_s, any_order=sorted_by_time)


def test_layout_in_queue_order_by_time_and_weight_is_near_the_best_of_all_layouts() -> None:
    """Jobs stand in the queue as `key_shift` and priorities put them, short and heavy ones first.

    Over these 10,000 cases: at most 1.57 × the best sum over all assignments and orders, 1.19 × in
    99 of 100, within a thousandth in 89, mean 1.007; with a second pass 1.50, 1.07, 95, 1.002.
    """
    for improve, most, common, at_best in ((False, 1.75, 1.25, 0.87), (True, 1.65, 1.12, 0.93)):
        ratios = sorted(
            ratio_to_best(seed, sorted_by_time=True, improve=improve) for seed in range(10_000)
        )
        assert ratios[0] >= 1 - 1e-9, "the best was not the best"
        assert ratios[-1] <= most
        assert ratios[9_900] <= common
        assert sum(ratio <= 1.001 for ratio in ratios) >= at_best * len(ratios)


def test_layout_in_any_queue_order_is_mostly_the_best_of_that_order() -> None:
    """Where a long light job stands before short heavy ones, slopes mislead now and then.

    Over these 10,000 cases, against the best assignment with slots in queue order: mean 1.04,
    2.1 × in 99 of 100, within a thousandth in 90, at most 7.1 ×.
    """
    ratios = sorted(
        ratio_to_best(seed, sorted_by_time=False, improve=True) for seed in range(10_000)
    )
    assert ratios[0] >= 1 - 1e-9, "the best was not the best"
    assert ratios[-1] <= 8.5
    assert ratios[9_900] <= 2.4
    assert sum(ratios) / len(ratios) <= 1.06
    assert sum(ratio <= 1.001 for ratio in ratios) >= 0.87 * len(ratios)


def test_place_that_saves_a_load_is_kept_before_one_that_is_only_not_worse() -> None:
    """A growth below nothing is not beaten by one that was given up at the same value."""
    step = step_of(1, 50.0, 200.0, 0.0)
    saving, other = (Slot(host, 0.0, ("b",), step, {}, 1 << 30) for host in range(2))

    def wish(order: int, weight: float, token: str, hosts: Sequence[Slot]) -> Wish:
        made = Wish(order, weight, 0.0, [1.0, 1.0], [1.0, 1.0], [token] * 2, [0.0, 0.0])
        made.slots = hosts
        return made

    layout = Layout(PRICE, POWER)
    layout.fill([wish(2, 1.0, "b", [other])], improve=False)
    layout.fill([wish(1, 8.0, "a", [saving])], improve=False)
    light = wish(0, 0.01, "a", [saving, other])
    assert layout.growth(saving, light, 0) < 0
    layout.fill([light], improve=False)
    assert layout.slot_of(light) is saving


@settings(max_examples=150)
@given(scene=scenes(), price=PRICES, power=POWERS)
def test_growth_behind_all_others_is_exact_where_a_load_comes_first(
    scene: tuple[list[Slot], list[Wish]], price: float, power: float
) -> None:
    _, (last, *wishes) = scene
    layout = Layout(price, power)
    layout.fill(wishes, improve=False)
    for slot in last.slots:
        index, token = len(slot.wishes), last.tokens[slot.host]
        held = slot.states[index][1]
        if token not in held:
            step = slot.step(held, token)
            growth = layout._growth_with_load(slot, last, index, step, math.inf)
            assert growth == pytest.approx(layout.growth(slot, last, index))
