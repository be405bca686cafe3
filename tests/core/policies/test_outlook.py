"""What a plan knows of hosts and jobs: slots, loads, speeds and prices."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.explain import Price, price_on
from sollol_proxy.core.policies.lanes import LaneBook
from sollol_proxy.core.policies.outlook import CROWDED, PRICED_S, HostOutlook, Moment, Prices
from sollol_proxy.core.policies.scene import Options, Scene, Views
from sollol_proxy.core.policies.slots import Step
from sollol_proxy.core.predict import load_s
from sollol_proxy.core.types import HostState, Job, JobKind, ResidentModel
from tests.core.builders import job
from tests.core.planning import (
    MODELS,
    NOW,
    Row,
    host_of,
    pool_of,
    rows,
    slot_kinds,
    speeds,
    templates,
)

PRICES = Prices(wait=1.5, full_wait=3.0, load=4.0, eviction=2.0)
LENGTH_TOKENS = 128.0
"""What an answer is expected to take as long as none was seen."""

some = settings(max_examples=150)
times = st.floats(0.0, 90.0)


def outlook(host: HostEntry, *others: HostEntry) -> HostOutlook:
    """The host beside others, at `NOW`."""
    seen = HostOutlook(host, host.memory, PRICES)
    seen.look(host, Moment([host, *others], NOW))
    return seen


def load_price(*hosts: HostEntry) -> float:
    """Of a second of a load at `NOW`, for the jobs in flight and the one that is planned."""
    jobs = 1 + sum(host.in_flight for host in hosts)
    crowd = jobs / sum(host.concurrency for host in hosts)
    return PRICES.of_load(crowd, PRICES.of_waiting(jobs / len(hosts)))


def price(host: HostEntry, asked: Job) -> Price:
    """As the next job of the host."""
    seen, row = outlook(host), LaneBook(host.memory).rates(asked).row(host)
    assert row is not None
    slots = seen.slots(0, 99)
    wait_s = slots[0].states[0][0] if slots else max(seen.ends_s, default=0.0)
    return price_on(seen, asked, row, wait_s, host.memory)


@some
@given(row=rows)
def test_host_has_a_slot_for_each_unit_of_its_concurrency_and_the_first_free_come_first(
    row: Row,
) -> None:
    host = host_of("h", row, Memory())
    slots = outlook(host).slots(3, 99)
    if host.state is HostState.PROBATION:
        assert [slot.most for slot in slots] == [1] * (1 - host.in_flight)
        return
    at_s = [slot.states[0][0] for slot in slots]
    assert len(slots) == host.concurrency
    assert at_s == sorted(at_s)
    assert sum(each == 0 for each in at_s) == max(host.concurrency - host.in_flight, 0)
    assert all(slot.host == 3 and not slot.wishes for slot in slots)


@some
@given(row=rows, token=st.sampled_from(MODELS), data=st.data())
def test_step_brings_the_runner_in_within_the_bound_on_models_whatever_the_order(
    row: Row, token: str, data: st.DataObject
) -> None:
    host = host_of("h", replace(row, models=MODELS), Memory())
    seen = outlook(host)
    held = tuple(data.draw(st.lists(st.sampled_from(MODELS), unique=True)))
    step = seen.step(held, token)
    again = outlook(host).step(tuple(data.draw(st.permutations(held))), token)
    assert token in step.held
    assert len(step.held) == len(set(step.held)) <= max(row.max_models, 1)
    assert set(step.held) <= {*held, token}
    assert set(again.held) == set(step.held)
    assert again[1:] == pytest.approx(step[1:])
    loading_s = max((seen.loading_s(model) for model in MODELS), default=0.0)
    assert step.load_s == pytest.approx(load_s(host, token) + loading_s)
    blocking_s = step.price_s - step.eviction_s
    assert blocking_s == pytest.approx((load_price(host) - 1) * load_s(host, token))
    assert step.eviction_s >= 0
    gone = set(held) - set(step.held)
    assert step.drain_s <= max(seen.ends_s, default=0.0)
    if not host.in_flight:
        assert step.drain_s == 0
    for model in gone & set(host.in_flight_by_model):
        ends_s = [end for end in seen.ends_s if end <= step.drain_s]
        assert len(ends_s) >= host.in_flight_by_model[model]


def test_load_counts_once_in_an_empty_pool_and_in_full_in_a_crowded_one() -> None:
    prices = [PRICES.of_load(jobs * CROWDED / 8, PRICES.wait) for jobs in range(17)]
    assert prices[0] == 1
    assert all(before < after for before, after in pairwise(prices[:9]))
    assert set(prices[8:]) == {PRICES.load}


def test_waiting_counts_more_from_a_job_a_host_on_and_in_full_from_two() -> None:
    prices = [PRICES.of_waiting(jobs / 8) for jobs in range(33)]
    assert set(prices[:9]) == {PRICES.wait}
    assert all(before < after for before, after in pairwise(prices[8:17]))
    assert set(prices[16:]) == {PRICES.full_wait}


@given(crowd=st.floats(0.0, 3.0), waiting=st.floats(0.1, 10.0))
def test_load_is_the_dearer_the_dearer_waiting_is(crowd: float, waiting: float) -> None:
    plain = PRICES.of_load(crowd, PRICES.wait)
    assert PRICES.of_load(crowd, waiting) == pytest.approx(plain * waiting / PRICES.wait)
    assert PRICES._replace(wait=0.0).of_load(crowd, waiting) == plain


@some
@given(busy=st.integers(0, 4), waiting=st.integers(1, 9))
def test_crowd_is_what_runs_and_waits_for_each_slot(busy: int, waiting: int) -> None:
    memory, idle = Memory(), Row(slots=2)
    works = replace(idle, running=(("a:1", JobKind.GENERATE, 3.0),))
    hosts = [host_of(f"h{n}", works if n < busy else idle, memory) for n in range(4)]
    moment = Moment(hosts, NOW, waiting)
    assert moment.crowd == (busy + waiting) / 8
    assert moment.jobs_a_host == (busy + waiting) / 4
    assert moment.waiting(PRICES) == PRICES.of_waiting((busy + waiting) / 4)
    assert moment.loading(PRICES) == PRICES.of_load(moment.crowd, moment.waiting(PRICES))


@some
@given(row=rows, wanted=st.integers(0, 20), holders=st.integers(1, 4))
def test_eviction_is_priced_by_what_will_be_asked_for_again(
    row: Row, wanted: int, holders: int
) -> None:
    memory = Memory()
    row = replace(row, models=MODELS, resident=("a:1",), max_models=1, running=(), on_trial=False)
    host = host_of("h", row, memory)
    for _ in range(wanted):
        memory.demand.add("a:1", NOW)
    others = [host_of(f"o{number}", row, memory) for number in range(holders - 1)]
    step = outlook(host, *others).step(("a:1",), "b:1")
    again = min(1.0, wanted / holders)
    assert step.held == ("b:1",)
    assert step.eviction_s == pytest.approx(PRICES.eviction * again * load_s(host, "a:1"))
    blocking_s = (load_price(host, *others) - 1) * load_s(host, "b:1")
    assert step.price_s == pytest.approx(blocking_s + step.eviction_s)


def looks_anew(seen: HostOutlook, host: HostEntry, now: float) -> Step:
    """What it takes to load `c:1`, once no price is kept any more."""
    seen.look(host, Moment([host], now))
    return seen.step(("a:1", "b:1"), "c:1")


@given(row=rows)
def test_who_leaves_is_guessed_again_after_a_lesson_on_who_leaves_first_or_how_large_it_is(
    row: Row,
) -> None:
    memory = Memory()
    resident = ("a:1", "b:1")
    row = replace(row, models=MODELS, resident=resident, max_models=2, running=(), on_trial=False)
    host = host_of("h", row, memory)
    seen = outlook(host)
    assert "a:1" not in seen.step(resident, "c:1").held
    memory.victims.learn(["b:1"], ["a:1"])
    assert "b:1" not in looks_anew(seen, host, NOW + PRICED_S + 0.1).held
    host.known.room.burst(10**9)
    memory.see_footprints([ResidentModel("c:1", digest="d", size_bytes=10**12)])
    assert looks_anew(seen, host, NOW + 2 * PRICED_S + 0.2).held == ("c:1",)


@some
@given(row=rows, asked=templates)
def test_token_is_held_exactly_where_the_job_needs_no_load(row: Row, asked: Job) -> None:
    host = host_of("h", row, Memory())
    told = LaneBook(host.memory).rates(asked).row(host)
    assert (told is not None) is host.is_eligible(asked)
    if told is not None:
        assert (told.token in outlook(host).held) is not host.needs_load(asked)
        assert (told.load_s > 0) is host.needs_load(asked)


@some
@given(pool=st.lists(rows, min_size=1, max_size=4), asked=templates)
def test_layout_and_explanation_say_the_same_seconds(pool: list[Row], asked: Job) -> None:
    memory = Memory()
    hosts = pool_of(pool, memory)
    for host in hosts[::2]:
        memory.affinity.add(host.spec.id, asked, answer_tokens=50, context_tokens=8192)
    views = Views(memory, PRICES)
    scene = Scene(views, [asked], hosts, NOW, turn_of=lambda _: 0, options=Options())
    [wish] = scene.wishes
    prices = scene.prices(wish)
    eligible = {host.spec.id for host in hosts if host.is_eligible(asked)}
    assert {scene.hosts[index].view.spec.id for index in prices} == eligible
    for index, told in prices.items():
        seen = scene.hosts[index]
        own_s, felt_s = wish.own_s[index], wish.felt_s[index]
        assert own_s is not None
        assert felt_s is not None
        assert felt_s >= own_s
        if wish.tokens[index] in seen.held:
            assert wish.loads_s[index] == told.blocking_s == told.eviction_s == 0
            assert own_s == pytest.approx(told.own_s)
        else:
            assert wish.loads_s[index] == pytest.approx(
                load_price(*hosts) * load_s(seen.view, asked.model)
            )
            step = seen.step(seen.held, wish.tokens[index])
            assert told.load_s == pytest.approx(step.load_s)
            assert told.blocking_s + told.eviction_s == pytest.approx(step.price_s)
            assert told.wait_s >= step.drain_s
            assert wish.loads_s[index] <= step.load_s + step.price_s + 1e-9


def loading_host(memory: Memory, slots: int) -> HostEntry:
    """A minute's load for a first job has just begun."""
    host = host_of("h", Row(resident=(), slots=slots, load_s=60.0), memory)
    host.begin(job("r", model="a:1"), NOW)
    return host


def test_load_that_is_under_way_is_in_the_price() -> None:
    asked = job("j", model="a:1", prompt_tokens_est=1)
    told = price(loading_host(Memory(), slots=2), asked)
    assert told.wait_s == 0
    assert told.load_s == pytest.approx(60.0)
    assert told.blocking_s == told.eviction_s == 0


def test_load_that_will_be_over_at_the_jobs_turn_is_not_in_the_price_again() -> None:
    """The slot is that of the job for which the host loads."""
    asked = job("j", model="a:1", prompt_tokens_est=1)
    told = price(loading_host(Memory(), slots=1), asked)
    assert told.wait_s > 60.0
    assert told.load_s == 0


def test_load_that_is_under_way_counts_once_where_another_has_to_follow() -> None:
    """With other options the model has to be loaded again, behind the load and who waits for it."""
    memory = Memory()
    host = loading_host(memory, slots=2)
    asked = job("j", model="a:1", prompt_tokens_est=1, options_key="num_ctx=8192", num_ctx=8192)
    scene = Scene(
        Views(memory, PRICES), [asked], [host], NOW, turn_of=lambda _: 0, options=Options()
    )
    [wish] = scene.wishes
    told = scene.prices(wish)[0]
    decode_s = LENGTH_TOKENS / 30.0
    assert told.load_s == pytest.approx(60.0 + 60.0)
    assert wish.own_s[0] == pytest.approx(told.prefill_s + told.decode_s)
    assert told.decode_s >= decode_s


@some
@given(
    speed=speeds,
    prompt=st.integers(1, 20_000),
    cached=st.integers(0, 20_000),
    beside=st.integers(0, 3),
    loads=st.booleans(),
)
def test_price_can_be_worked_out_by_hand(
    speed: tuple[float, float], prompt: int, cached: int, beside: int, loads: bool
) -> None:
    memory = Memory()
    row = Row(speed, resident=() if loads else ("a:1",), slots=4, load_s=7.0)
    host = host_of("h", row, memory)
    asked = job("j", model="a:1", prompt_tokens_est=prompt, prefix=(1,), prefix_tokens=(prompt,))
    memory.affinity.add(
        "h", replace(asked, prefix_tokens=(cached,)), answer_tokens=0, context_tokens=10**6
    )
    known = replace(asked, prefix_tokens=(min(cached, prompt),)) if cached else asked
    for number in range(0 if loads else beside):
        host.begin(job(f"r{number}", model="a:1"), NOW)
    told = price(host, known)
    streams = 1 if loads else 1 + beside
    slowed = 1 + 0.15 * (streams - 1)
    matched = 0 if loads else known.prefix_tokens[0]
    prefill, decode = speed
    assert told.wait_s == 0
    assert told.blocking_s == pytest.approx((load_price(host) - 1) * told.load_s)
    assert told.eviction_s == 0
    assert told.load_s == (pytest.approx(7.0) if loads else 0)
    assert told.prefill_s == pytest.approx(max(prompt - matched, 1) / prefill * slowed)
    assert told.decode_s == pytest.approx(LENGTH_TOKENS / decode * slowed)
    assert told.own_s == pytest.approx(told.load_s + told.prefill_s + told.decode_s)
    assert told.total_s == pytest.approx(told.wait_s + told.own_s + told.blocking_s)


@some
@given(row=rows, asked=templates, more=st.integers(1, 5000))
def test_longer_prompt_is_never_cheaper(row: Row, asked: Job, more: int) -> None:
    """Answers being as long: what was learnt of them may say otherwise."""
    host = host_of("h", replace(row, models=MODELS), Memory())
    asked = replace(asked, prefix=(), prefix_tokens=())
    longer = replace(asked, prompt_tokens_est=asked.prompt_tokens_est + more)
    assert price(host, longer).total_s >= price(host, asked).total_s * (1 - 1e-9)


@some
@given(row=rows, asked=templates, factor=st.floats(1.0, 10.0), data=st.data())
def test_slower_host_is_never_cheaper(
    row: Row, asked: Job, factor: float, data: st.DataObject
) -> None:
    """What runs there has just begun: of what has come far, more may be left on a faster host."""
    begun = tuple((model, kind, 0.0) for model, kind, _ in row.running)
    row = replace(row, models=MODELS, running=begun)
    prefill, decode = row.speed
    which = data.draw(st.sampled_from(["prefill", "decode", "load"]))
    slow = replace(
        row,
        speed=(
            prefill / factor if which == "prefill" else prefill,
            decode / factor if which == "decode" else decode,
        ),
        load_s=row.load_s * factor if which == "load" else row.load_s,
    )
    usual, slowed = (price(host_of("h", each, Memory()), asked) for each in (row, slow))
    assert slowed.total_s >= usual.total_s * (1 - 1e-9)


@some
@given(
    row=rows,
    asked=templates,
    more=st.lists(st.tuples(slot_kinds, times), min_size=1, max_size=3),
)
def test_job_is_never_cheaper_beside_more_of_its_own_model(
    row: Row, asked: Job, more: list[tuple[JobKind, float]]
) -> None:
    alike = tuple(("a:1", kind, ago_s) for _, kind, ago_s in row.running)
    row = replace(row, models=MODELS, resident=MODELS, max_models=3, running=alike, on_trial=False)
    asked = replace(asked, model="a:1")
    host = host_of("h", row, Memory())
    before = price(host, asked).total_s
    for number, (kind, ago_s) in enumerate(more):
        if host.free_slots("a:1") > 0:
            host.begin(job(f"more {number}", model="a:1", kind=kind), NOW - ago_s)
            after = price(host, asked).total_s
            assert after >= before * (1 - 1e-9)
            before = after


@some
@given(
    row=rows,
    asked=templates,
    more=st.lists(st.tuples(slot_kinds, times), min_size=1, max_size=3),
)
def test_job_is_never_cheaper_beside_more_of_another_model(
    row: Row, asked: Job, more: list[tuple[JobKind, float]]
) -> None:
    """Whether a slot is left for it or not: at its turn all but one of them still run."""
    host = host_of(
        "h",
        replace(row, models=MODELS, resident=MODELS, running=(), on_trial=False, max_models=3),
        Memory(),
    )
    asked = replace(asked, model="a:1")
    before = price(host, asked).total_s
    for number, (kind, ago_s) in enumerate(more):
        if host.free_slots("b:1") > 0:
            host.begin(job(f"more {number}", model="b:1", kind=kind), NOW - ago_s)
            after = price(host, asked).total_s
            assert after >= before * (1 - 1e-9)
            before = after


def test_model_with_fewer_slots_than_its_host_waits_for_one_of_its_own() -> None:
    memory = Memory()
    host = host_of("h", Row(slots=1), memory)
    host.spec = replace(host.spec, model_slots={"b:1": 3})
    host.concurrency = 3
    host.begin(job("r", model="a:1"), NOW - 1.0)
    [free, _, busy] = outlook(host).slots(0, 99)
    end_s = outlook(host).ends_s[0]
    assert free.ready_s == {"a:1": pytest.approx(end_s)}
    assert busy.states[0][0] == pytest.approx(end_s)


@some
@given(pool=st.lists(rows, max_size=6))
def test_holders_are_counted(pool: list[Row]) -> None:
    hosts = pool_of(pool, Memory())
    moment = Moment(hosts, NOW)
    for model in (*MODELS, "nowhere:1"):
        assert moment.holders(model) == sum(model in host.resident for host in hosts)


@given(slots=st.integers(1, 2000), running=st.integers(0, 4), most=st.integers(1, 40))
def test_host_of_many_slots_shows_as_many_as_jobs_could_use(
    slots: int, running: int, most: int
) -> None:
    host = host_of("h", Row(resident=("a:1",), slots=slots), Memory())
    for number in range(min(running, slots)):
        host.begin(job(f"r{number}", model="a:1"), NOW)
    seen = outlook(host)
    every, shown = ([slot.states[0][0] for slot in seen.slots(0, limit)] for limit in (slots, most))
    assert shown == sorted(every)[:most]
