"""What a planner keeps of hosts between plans equals what it would find afresh.

Histories of real hosts with one memory: jobs begin and end, probes come back, speeds are learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.health import HealthRules
from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.memory import Memory
from sollol_proxy.core.policies.completion_time import CompletionTime
from sollol_proxy.core.policies.lanes import MAX_LANES, LaneBook, lane_key
from sollol_proxy.core.policies.outlook import PRICED_S, HostOutlook, Moment, Prices
from sollol_proxy.core.policies.scene import Views
from sollol_proxy.core.predict import load_s, size_bytes, soonest_s, work_of
from sollol_proxy.core.scheduler import Scheduler
from sollol_proxy.core.types import (
    AttemptResult,
    HostReport,
    InstalledModel,
    Job,
    JobKind,
    Observation,
    ResidentModel,
)
from tests.core.builders import dispatched, down, job, report, scheduler, spec

MODELS = ("a:1", "b:1", "c:1")
SIZES = {"a:1": 10**9, "b:1": 4 * 10**9, "c:1": 20 * 10**9}
OPTIONS = ("", "", "num_ctx=8192")
SLOT_KINDS = [kind for kind in JobKind if kind.takes_slot]
PRICES = Prices(1.5, 3.0, 4.0, 2.0)

seeds = st.integers(0, 2**32)

LANES = [
    job("of a lane", model=model, kind=kind, options_key=key, excluded=excluded, prefix=prefix)
    for model in MODELS
    for kind, key, excluded, prefix in (
        (JobKind.GENERATE, "", frozenset[str](), ()),
        (JobKind.GENERATE, "num_ctx=8192", frozenset[str](), (1,)),
        (JobKind.EMBED, "", frozenset({"h0"}), ()),
    )
]


class History:
    """What happens to hosts. jobs: in flight, with their hosts."""

    def __init__(self, seed: int, hosts: int, *, tells_progress: bool = True) -> None:
        self.rng = rng = Random(seed)
        self.now = 0.0
        self.memory = Memory()
        self.arrived = 0
        self.jobs: dict[str, HostEntry] = {}
        rules = HealthRules(eject_after=2, backoff_s=2.0)
        self.hosts = [
            HostEntry(
                spec(
                    f"h{number}",
                    slots=rng.choice([1, 1, 2, 3]),
                    max_models=rng.choice([1, 2, 3]),
                    model_slots=rng.choice([{}, {}, {"a:1": 2}]),
                    deny=rng.choice([(), (), ("c:*",)]),
                ),
                rules,
                0.0,
                memory=self.memory,
            )
            for number in range(hosts)
        ]
        self.doings: list[Callable[[HostEntry], None]] = [
            *[self.begin] * 6,
            *[self.end] * 5,
            *[self.probe] * 2,
            self.probe_down,
            self.drain,
            self.first_byte,
            *[self.progress] * (2 if tells_progress else 0),
        ]
        for host in self.hosts:
            self.probe(host)

    def step(self, seconds: float) -> None:
        """Time passes, and something happens."""
        self.now += seconds
        self.rng.choice(self.doings)(self.rng.choice(self.hosts))

    def begin(self, host: HostEntry) -> None:
        rng = self.rng
        self.arrived += 1
        key, prefix = rng.choice(OPTIONS), rng.choice([(), (1,), (1, 2)])
        new = job(
            f"j{self.arrived}",
            model=rng.choice(MODELS),
            kind=rng.choice(SLOT_KINDS),
            stream=rng.random() < 0.5,
            prompt_tokens_est=rng.randint(0, 4000),
            options_key=key,
            num_ctx=8192 if key else None,
            prefix=prefix,
            prefix_tokens=tuple(100 * (n + 1) for n in range(len(prefix))),
        )
        if host.is_eligible(new) and host.free_slots(new.model) > 0:
            host.begin(new, self.now)
            self.jobs[new.id] = host

    def end(self, host: HostEntry) -> None:
        job_id = self.one_of(host)
        if job_id is None:
            return
        result = self.rng.choice([AttemptResult.COMPLETED] * 5 + list(AttemptResult))
        told = None
        if result is AttemptResult.COMPLETED:
            rate = 10 ** self.rng.uniform(0.5, 2.5)
            told = Observation(
                1000,
                self.rng.randint(1, 1000),
                load_s=self.rng.choice([0.0, 0.0, 4.0, 30.0]),
                prefill_s=1000 / (rate * 20),
                decode_s=1000 / rate,
                total_s=1000 / (rate * 20) + 1000 / rate,
            )
        host.end(job_id, result, told, "x", self.now)
        del self.jobs[job_id]

    def probe(self, host: HostEntry) -> None:
        """Of now and then only a part of the models; in memory of a GPU, or of a CPU."""
        rng = self.rng
        names = rng.choice([MODELS, MODELS, MODELS[:2]])
        on_gpu = rng.random() < 0.7
        in_memory = rng.sample(names, rng.randint(0, len(names)))
        host.report(
            HostReport(
                host.spec.id,
                ok=True,
                round_trip_s=0.001,
                version="0.33.0",
                installed={name: InstalledModel(name, size_bytes=SIZES[name]) for name in names},
                resident={
                    name: ResidentModel(
                        name,
                        digest="d",
                        size_bytes=SIZES[name],
                        size_vram_bytes=SIZES[name] if on_gpu else 0,
                        context_length=rng.choice([0, 4096, 8192]),
                    )
                    for name in in_memory
                },
            ),
            self.now,
        )

    def probe_down(self, host: HostEntry) -> None:
        host.report(down(host.spec.id), self.now)

    def drain(self, host: HostEntry) -> None:
        """Whoever does so tells the pool, which tells the host."""
        host.health.is_draining = self.rng.random() < 0.3
        host.touch()

    def first_byte(self, host: HostEntry) -> None:
        job_id = self.one_of(host)
        if job_id is not None:
            host.first_byte(job_id, self.now)

    def progress(self, host: HostEntry) -> None:
        job_id = self.one_of(host)
        if job_id is not None:
            host.first_byte(job_id, self.now)
            host.progress(job_id, self.rng.randint(1, 500), self.now)

    def one_of(self, host: HostEntry) -> str | None:
        """A job in flight there."""
        here = [job_id for job_id, its in self.jobs.items() if its is host]
        return self.rng.choice(here) if here else None


def assert_rows_are_fresh(kept: LaneBook, hosts: Sequence[HostEntry], memory: Memory) -> None:
    fresh = LaneBook(memory)
    for asked in LANES:
        for host in hosts:
            for is_side in (False, True):
                row = kept.rates(asked).row(host, is_side=is_side)
                assert row == fresh.rates(asked).row(host, is_side=is_side)
                assert (row is not None) is host.is_eligible(asked)


@settings(max_examples=30)
@given(seed=seeds, hosts=st.integers(1, 5))
def test_kept_row_equals_a_fresh_one_after_any_history(seed: int, hosts: int) -> None:
    history = History(seed, hosts)
    kept = LaneBook(history.memory)
    for _ in range(100):
        history.step(history.rng.expovariate(1.0))
        assert_rows_are_fresh(kept, history.hosts, history.memory)
    assert history.arrived > 10


def test_row_is_of_what_was_learnt_of_others_for_a_host_that_was_never_measured() -> None:
    memory = Memory()
    history = History(1, 3)
    kept = LaneBook(history.memory)
    asked = job("j", model="a:1")
    measured, _, new = history.hosts
    for host in history.hosts:
        host.report(report(host.spec.id, *MODELS, resident=("a:1",)), 0.0)
    guessed = kept.rates(asked).row(new)
    assert guessed is not None
    measured.begin(job("r", model="a:1"), 0.0)
    told = Observation(1000, 1000, prefill_s=100.0, decode_s=1000.0)
    measured.end("r", AttemptResult.COMPLETED, told, "", 1100.0)
    learnt = kept.rates(asked).row(new)
    assert learnt is not None
    assert learnt.decode_s > 10 * guessed.decode_s
    assert learnt.decode_s == pytest.approx(1.0)
    assert memory.epoch == 0
    assert history.memory.epoch > 0


@pytest.mark.parametrize("forgets", [True, False], ids=["forget", "restore"])
def test_nothing_is_kept_beyond_what_the_memory_forgets(forgets: bool) -> None:
    """Neither speeds of lanes nor how hosts hold and load models."""
    history = History(7, 4)
    lanes, views = LaneBook(history.memory), Views(history.memory, PRICES)
    for _ in range(200):
        history.step(0.5)
        assert_rows_are_fresh(lanes, history.hosts, history.memory)
        for host in history.hosts:
            views.outlook(host, Moment(history.hosts, history.now))
    if forgets:
        history.memory.forget()
    else:
        history.memory.restore(Memory().export())
    assert_rows_are_fresh(lanes, history.hosts, history.memory)
    moment = Moment(history.hosts, history.now)
    for host in history.hosts:
        assert_outlook_is_fresh(views, host, moment)


def test_lanes_are_bounded_and_right_all_the_same() -> None:
    history = History(3, 2)
    kept = LaneBook(history.memory)
    for number in range(3 * MAX_LANES):
        asked = job("j", model=MODELS[number % 3], options_key=f"seed={number}")
        for host in history.hosts:
            assert kept.rates(asked).row(host) == LaneBook(history.memory).rates(asked).row(host)
        assert len(kept._lanes) <= MAX_LANES


@given(one=st.sampled_from(LANES), other=st.sampled_from(LANES), prompt=st.integers(0, 9000))
def test_jobs_of_a_lane_differ_in_their_lengths_only(one: Job, other: Job, prompt: int) -> None:
    longer = job(
        "longer",
        model=one.model,
        kind=one.kind,
        options_key=one.options_key,
        excluded=one.excluded,
        prefix=(5, 6) if one.prefix else (),
        prompt_tokens_est=prompt,
        priority=9,
        arrived_s=7.0,
    )
    assert lane_key(longer) == lane_key(one)
    assert (lane_key(one) == lane_key(other)) is (one is other)


# Outlooks


def assert_outlook_is_fresh(
    views: Views, host: HostEntry, moment: Moment, *, steps: bool = True
) -> None:
    """steps: what goes for a load as well."""
    # Twice: an end just worked out and the same one remembered differ by a rounding.
    views.outlook(host, moment)
    seen = views.outlook(host, moment)
    fresh = HostOutlook(host, host.memory, views.prices)
    fresh.look(host, moment)
    assert seen.held == fresh.held
    assert seen.ends_s == fresh.ends_s
    assert seen.is_on_trial is fresh.is_on_trial
    assert seen.is_loading is fresh.is_loading
    assert seen.free() == fresh.free()
    assert (seen.side() is None) is (fresh.side() is None)
    for model in MODELS:
        assert seen.loading_s(model) == fresh.loading_s(model)
    slots = [
        [(slot.states, slot.ready_s, slot.most) for slot in outlook.slots(0, 99)]
        for outlook in (seen, fresh)
    ]
    assert slots[0] == slots[1]
    if steps:
        for token in (*MODELS, "a:1\nnum_ctx=8192"):
            for held in (seen.held, (), seen.held[:1]):
                assert seen.step(held, token) == fresh.step(held, token)


@settings(max_examples=30)
@given(seed=seeds, hosts=st.integers(1, 4))
def test_kept_outlook_equals_a_fresh_one_once_prices_are_made_anew(seed: int, hosts: int) -> None:
    """Whatever other hosts have taught meanwhile of footprints, evictions and demand."""
    history = History(seed, hosts)
    views = Views(history.memory, PRICES)
    for _ in range(80):
        history.step(PRICED_S + 0.01 + history.rng.expovariate(1.0))
        moment = Moment(history.hosts, history.now)
        history.memory.demand.add(history.rng.choice(MODELS), history.now)
        for host in history.hosts:
            assert_outlook_is_fresh(views, host, moment)


@settings(max_examples=30)
@given(seed=seeds)
def test_kept_outlook_equals_a_fresh_one_at_any_moment_but_for_what_goes(seed: int) -> None:
    """Of several models in use, that which is free first goes first: that is kept for a while."""
    history = History(seed, 1)
    views, [host] = Views(history.memory, Prices(1.5, 3.0, 4.0, 0.0)), history.hosts
    for _ in range(150):
        history.step(history.rng.expovariate(4.0))
        moment = Moment(history.hosts, history.now)
        is_one = len(host.in_flight_by_model) < 2
        assert_outlook_is_fresh(views, host, moment, steps=is_one)


# Surveys of large pools


def seconds_on(history: History, host: HostEntry, asked: Job) -> float:
    """The wait, and the job alone, by the letter."""
    memory = history.memory
    prompt, tokens = work_of(memory, asked)
    pace = memory.pace(host.spec.id, asked.model, size_bytes(host, asked.model))
    own_s = prompt / pace.prefill + tokens / pace.decode
    if host.needs_load(asked):
        own_s += load_s(host, asked.model)
    if host.in_flight >= host.concurrency:
        own_s += soonest_s(memory, host, history.now)
    return own_s


def assert_best_are_chosen(history: History, kept: LaneBook, asked: Job, few: int) -> None:
    kept.survey.begin(history.hosts, history.now)
    prompt, tokens = work_of(history.memory, asked)
    chosen, leaves_out = kept.survey.promising(kept.rates(asked), few, prompt=prompt, tokens=tokens)
    could = [host for host in history.hosts if host.is_eligible(asked)]
    assert chosen <= {host.spec.id for host in could}
    for is_busy in (False, True):
        group = [
            (seconds_on(history, host, asked), host.spec.id in chosen)
            for host in could
            if (host.in_flight >= host.concurrency) is is_busy
        ]
        taken = [own_s for own_s, is_chosen in group if is_chosen]
        assert len(taken) == min(few, len(group))
        worst_s = max(taken, default=0.0)
        assert all(own_s >= worst_s - 1e-6 for own_s, is_chosen in group if not is_chosen)
        if not is_busy:
            assert leaves_out is (len(group) > few)


@settings(max_examples=12)
@given(seed=seeds, hosts=st.integers(60, 80), few=st.integers(1, 8))
def test_of_many_hosts_the_best_free_and_the_soonest_free_are_chosen_after_any_history(
    seed: int, hosts: int, few: int
) -> None:
    """An end once expected is kept until the host changes, however far its jobs have come."""
    history = History(seed, hosts, tells_progress=False)
    kept = LaneBook(history.memory)
    for _ in range(4 * hosts):
        history.begin(history.rng.choice(history.hosts))
    for _ in range(25):
        for _ in range(history.rng.randint(0, 8)):
            history.step(0.05)
        history.step(0.5)
        for asked in history.rng.sample(LANES, 3):
            assert_best_are_chosen(history, kept, asked, few)
    assert any(host.in_flight >= host.concurrency for host in history.hosts)


@settings(max_examples=15)
@given(seed=seeds, hosts=st.integers(1, 8), few=st.integers(1, 4))
def test_of_few_hosts_the_best_are_chosen_though_the_pool_changes(
    seed: int, hosts: int, few: int
) -> None:
    history = History(seed, hosts, tells_progress=False)
    kept = LaneBook(history.memory)
    everybody = history.hosts
    for _ in range(60):
        history.hosts = everybody
        history.step(0.5)
        history.hosts = [host for host in everybody if host.state.is_routable]
        if history.hosts:
            assert_best_are_chosen(history, kept, history.rng.choice(LANES), few)


# Who may take a job


HOSTS = 60


def drain(pool: Scheduler) -> None:
    pool.set_host_draining("h7", True, 1.0)


def eject(pool: Scheduler) -> None:
    for _ in range(5):
        pool.report(down("h7"), 1.0)


def unlist(pool: Scheduler) -> None:
    pool.report(report("h7", "b:1", "c:1"), 1.0)


def miss_the_model(pool: Scheduler) -> None:
    [_] = dispatched(pool.submit(job("r", model="a:1", only="h7", arrived_s=1.0), 1.0))
    pool.finish("r", AttemptResult.MODEL_MISSING, 1.0, detail="x")


def miss_the_route(pool: Scheduler) -> None:
    asked = job("r", model="a:1", only="h7", route="/api/chat", arrived_s=1.0)
    [_] = dispatched(pool.submit(asked, 1.0))
    pool.finish("r", AttemptResult.ROUTE_MISSING, 1.0, detail="x")


def have_an_older_copy(pool: Scheduler) -> None:
    for host in pool._pool:
        copy = InstalledModel(
            "a:1",
            digest="old" if host.spec.id == "h7" else "new",
            modified_ns=1 if host.spec.id == "h7" else 2,
            size_bytes=10**9,
        )
        told = HostReport(host.spec.id, ok=True, version=host.version, installed={"a:1": copy})
        pool.report(told, 1.0)


EVERYBODY = {f"h{number}" for number in range(HOSTS)}
ASKED = job("j", model="a:1", route="/api/chat", arrived_s=2.0)


def large_pool() -> Scheduler:
    """Hosts that have all models; that in question has another version."""
    specs = [spec(f"h{number}") for number in range(HOSTS)]
    pool = scheduler(*specs, policy="completion_time", up=False, keeps_newest=True)
    for each in specs:
        version = "0.12.0" if each.id == "h7" else "0.33.0"
        pool.report(report(each.id, *MODELS, resident=("a:1",), version=version), 0.0)
    return pool


def kept_of(pool: Scheduler) -> LaneBook:
    policy = pool._policy
    assert isinstance(policy, CompletionTime)
    return policy._kept().lanes


def said(pool: Scheduler) -> tuple[set[str], set[str]]:
    """Who may take the job by what the planner keeps: by host, and by the survey."""
    kept, hosts = kept_of(pool), pool._pool.routable()
    kept.survey.begin(hosts, 2.0)
    chosen, _ = kept.survey.promising(kept.rates(ASKED), HOSTS, prompt=1.0, tokens=1.0)
    return {host.spec.id for host, _ in kept.rows(ASKED, list(pool._pool))}, chosen


@pytest.mark.parametrize(
    "change", [drain, eject, unlist, miss_the_model, miss_the_route, have_an_older_copy]
)
def test_host_that_may_take_a_job_no_more_is_left_out_at_once(
    change: Callable[[Scheduler], None],
) -> None:
    """By what is kept of the lane, by the survey and by the plan."""
    pool = large_pool()
    assert said(pool) == (EVERYBODY, EVERYBODY)
    change(pool)
    assert said(pool) == (EVERYBODY - {"h7"}, EVERYBODY - {"h7"})
    # All others are sent a job; that in question would be the next.
    sent: dict[str, str] = {}
    for number in range(HOSTS):
        new = job(f"j{number}", model="a:1", route="/api/chat", arrived_s=2.0)
        sent |= dispatched(pool.submit(new, 2.0))
    assert set(sent.values()) == EVERYBODY - {"h7"}
    assert len(sent) == HOSTS - 1


def test_host_that_was_left_out_for_what_others_have_is_back_when_they_are_gone() -> None:
    """It changes nothing itself."""
    pool = large_pool()
    miss_the_route(pool)
    others = sorted(EVERYBODY - {"h7"})
    for host_id in others[1:]:
        pool.set_host_draining(host_id, True, 1.0)
    assert said(pool) == ({others[0]}, {others[0]})
    pool.set_host_draining(others[0], True, 1.0)
    assert said(pool) == ({"h7"}, {"h7"})
    assert dispatched(pool.submit(ASKED, 2.0)) == {"j": "h7"}


def test_host_that_is_back_is_seen_at_once() -> None:
    specs = [spec(f"h{number}") for number in range(HOSTS)]
    pool = scheduler(*specs, policy="completion_time", up=False)
    for each in specs[1:]:
        pool.report(report(each.id, "a:1", resident=("a:1",)), 0.0)
    pool.set_host_draining("h1", True, 0.0)
    for number in range(HOSTS - 2):
        assert len(dispatched(pool.submit(job(f"j{number}", model="a:1"), 0.0))) == 1
    assert dispatched(pool.submit(job("last", model="a:1"), 0.0)) == {}
    assert dispatched(pool.set_host_draining("h1", False, 0.0)) == {"last": "h1"}
    assert dispatched(pool.submit(job("more", model="a:1"), 0.0)) == {}
    assert dispatched(pool.report(report("h0", "a:1", resident=("a:1",)), 0.0)) == {"more": "h0"}
