"""What the ends of attempts and the reports of probes teach, and what they must not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.hosts import HostEntry
from sollol_proxy.core.lessons import learn_attempt, learn_residents
from sollol_proxy.core.running import Running
from sollol_proxy.core.types import AttemptResult, Job, JobKind, Observation, ResidentModel
from tests.core.builders import MODEL, entry, job, spec

GB = 10**9
PREFILL, DECODE = 200.0, 20.0

NO_LESSON = [
    result
    for result in AttemptResult
    if result not in (AttemptResult.COMPLETED, AttemptResult.CLIENT_GONE, AttemptResult.BROKE)
]
CUT_SHORT = [AttemptResult.CLIENT_GONE, AttemptResult.BROKE]

observations = st.builds(
    Observation,
    prompt_tokens=st.none() | st.integers(0, 5000),
    output_tokens=st.none() | st.integers(0, 5000),
    load_s=st.none() | st.floats(0.0, 60.0),
    prefill_s=st.none() | st.floats(0.0, 60.0),
    decode_s=st.none() | st.floats(0.0, 60.0),
    first_byte_s=st.none() | st.floats(0.0, 60.0),
    total_s=st.none() | st.floats(0.0, 120.0),
    cached_tokens=st.none() | st.integers(0, 5000),
)
few = settings(max_examples=30)


def usual(prompt: int = 1000, output: int = 100, **fields: Any) -> Observation:
    """An attempt at the usual speed."""
    given_: dict[str, Any] = {
        "prompt_tokens": prompt,
        "output_tokens": output,
        "load_s": 0.01,
        "prefill_s": prompt / PREFILL,
        "decode_s": output / DECODE,
        "total_s": prompt / PREFILL + output / DECODE,
        **fields,
    }
    return Observation(**given_)


def asked(**fields: Any) -> Job:
    return job("j", **{"prompt_tokens_est": 1000, **fields})


def taught() -> HostEntry:
    """A host of which the usual speed is known."""
    host = entry(spec("a", slots=4), MODEL, "b:1", "c:1")
    finish(host, usual())
    return host


def finish(
    host: HostEntry,
    observation: Observation | None,
    *,
    result: AttemptResult = AttemptResult.COMPLETED,
    of: Job | None = None,
    **running: Any,
) -> None:
    """An attempt is over."""
    learn_attempt(host, Running(of or asked(), 0.0, **running), result, observation)


def speeds(host: HostEntry) -> tuple[float | None, float | None]:
    known = host.known.speeds
    return known.prefill_of(MODEL), known.decode_of(MODEL)


def resident(*names: str) -> dict[str, ResidentModel]:
    return {name: ResidentModel(name, digest="d", size_bytes=GB) for name in names}


@few
@given(
    result=st.sampled_from(NO_LESSON),
    told=st.none() | observations,
    tokens=st.integers(0, 500),
    was_cold=st.booleans(),
)
def test_attempt_that_failed_or_was_refused_teaches_nothing(
    result: AttemptResult, told: Observation | None, tokens: int, was_cold: bool
) -> None:
    host = taught()
    before = host.memory.export()
    finish(host, told, result=result, tokens=tokens, was_cold=was_cold)
    assert host.memory.export() == before


@few
@given(
    result=st.sampled_from(CUT_SHORT), told=st.none() | observations, tokens=st.integers(0, 5000)
)
def test_attempt_cut_short_teaches_nothing_but_that_the_answer_would_have_been_longer(
    result: AttemptResult, told: Observation | None, tokens: int
) -> None:
    host, same = taught(), taught()
    finish(host, told, result=result, tokens=tokens)
    job_ = asked()
    same.memory.lengths.add_longer_than(job_.task_type, MODEL, job_.prompt_tokens_est, tokens)
    assert host.memory.export() == same.memory.export()


@few
@given(output=st.integers(8, 2000), limit=st.none() | st.integers(-2, 2000))
def test_answer_that_its_limit_ended_would_have_been_longer(output: int, limit: int | None) -> None:
    host, same = taught(), taught()
    finish(host, usual(output=output), of=asked(output_limit_tokens=limit))
    lengths = same.memory.lengths
    was_cut = limit is not None and 0 < limit <= output
    (lengths.add_longer_than if was_cut else lengths.add)(asked().task_type, MODEL, 1000, output)
    assert host.memory.lengths.export() == lengths.export()


@few
@given(kind=st.sampled_from([kind for kind in JobKind if not kind.takes_slot]), told=observations)
def test_job_without_a_slot_teaches_nothing(kind: JobKind, told: Observation) -> None:
    host = taught()
    before = host.memory.export()
    for result in AttemptResult:
        finish(host, told, result=result, of=asked(kind=kind), tokens=9)
    assert host.memory.export() == before


@few
@given(
    kind=st.sampled_from([kind for kind in JobKind if kind.takes_slot]),
    told=observations,
    stream=st.booleans(),
    was_cold=st.booleans(),
    matched=st.integers(0, 5000),
)
def test_speeds_stay_positive_whatever_a_completed_attempt_tells(
    kind: JobKind, told: Observation, stream: bool, was_cold: bool, matched: int
) -> None:
    host = taught()
    of = asked(kind=kind, stream=stream, prefix=(1, 2), prefix_tokens=(500, 1000))
    finish(host, told, of=of, was_cold=was_cold, matched_tokens=matched)
    pace = host.memory.pace("a", MODEL, GB)
    assert 0 < pace.prefill < float("inf")
    assert 0 < pace.decode < float("inf")
    assert 0 < host.known.speeds.load_s(MODEL, GB) < float("inf")


@few
@given(load_s=st.floats(0.5, 600.0), was_cold=st.booleans(), stream=st.booleans())
def test_load_is_no_slow_prompt(load_s: float, was_cold: bool, stream: bool) -> None:
    host = taught()
    total_s = load_s + 10.0
    for told in (
        usual(load_s=load_s, first_byte_s=load_s + 5.0, total_s=total_s),
        Observation(1000, 100, load_s=load_s, first_byte_s=load_s + 5.0, total_s=total_s),
    ):
        finish(host, told, of=asked(stream=stream), was_cold=was_cold)
    assert speeds(host) == pytest.approx((PREFILL, DECODE))
    assert host.known.speeds.load_s(MODEL, GB) == pytest.approx(load_s)


@few
@given(first_byte_s=st.floats(0.1, 600.0))
def test_first_byte_of_an_attempt_that_found_the_model_cold_is_no_slow_prompt(
    first_byte_s: float,
) -> None:
    host = taught()
    told = Observation(1000, 100, first_byte_s=first_byte_s, total_s=first_byte_s + 5.0)
    finish(host, told, of=asked(stream=True), was_cold=True)
    assert speeds(host)[0] == pytest.approx(PREFILL)


def test_load_beside_another_is_not_measured() -> None:
    host = taught()
    before = host.known.speeds.load_s(MODEL, GB)
    finish(host, usual(load_s=60.0), was_cold=True, beside_load=True)
    assert host.known.speeds.load_s(MODEL, GB) == before


@few
@given(cached=st.integers(0, 1000), times=st.integers(1, 10))
def test_prompt_that_the_host_says_it_had_is_no_fast_host(cached: int, times: int) -> None:
    host = taught()
    for _ in range(times):
        took = max(1000 - cached, 1) / PREFILL
        finish(host, usual(prefill_s=took, cached_tokens=cached))
    assert speeds(host)[0] == pytest.approx(PREFILL)


@few
@given(cached=st.integers(0, 1000), times=st.integers(1, 10))
def test_prompt_that_was_expected_in_the_cache_and_was_is_no_fast_host(
    cached: int, times: int
) -> None:
    host = taught()
    for _ in range(times):
        took = max(1000 - cached, 1) / PREFILL
        finish(host, usual(prefill_s=took), matched_tokens=cached)
    assert speeds(host)[0] == pytest.approx(PREFILL)


@few
@given(expected=st.integers(1, 1000))
def test_prompt_that_was_expected_in_the_cache_and_was_not_is_no_slow_host(expected: int) -> None:
    host = taught()
    finish(host, usual(), matched_tokens=expected)
    # Near to nothing expected, both readings are the same but for that little.
    assert PREFILL * (1 - expected / 1000 / 2) <= (speeds(host)[0] or 0) <= PREFILL * 1.0001


def test_cache_is_denied_when_the_prompt_took_as_long_as_without() -> None:
    host = taught()
    of = asked(prefix=(1, 2), prefix_tokens=(500, 900))
    follower = asked(prefix=(1,), prefix_tokens=(500,))
    finish(host, usual(output=0, decode_s=None), of=follower)
    assert host.memory.affinity.matched_tokens("a", of) == 500
    gone = asked(kind=JobKind.GENERATE, prefix=(1, 9), prefix_tokens=(500, 900))
    finish(host, usual(), of=gone, matched_tokens=900)
    assert host.memory.affinity.matched_tokens("a", gone) == 900  # it has read it now
    assert host.memory.affinity.matched_tokens("a", of) == 500


def test_first_prompt_teaches_no_speed_when_a_part_was_expected_in_the_cache() -> None:
    host = entry(spec("a"), MODEL)
    finish(host, usual(), matched_tokens=500)
    assert speeds(host)[0] is None
    assert speeds(host)[1] == pytest.approx(DECODE)


@few
@given(result=st.sampled_from([*NO_LESSON, *CUT_SHORT]))
def test_cache_is_not_expected_of_an_attempt_that_did_not_complete(result: AttemptResult) -> None:
    host = taught()
    of = asked(prefix=(1,), prefix_tokens=(64,))
    finish(host, usual(), of=of, result=result)
    assert host.memory.affinity.matched_tokens("a", of) == 0


def test_load_that_came_unforeseen_teaches_the_variant() -> None:
    host = taught()
    of = asked(options_key="num_ctx=8192", num_ctx=8192)
    finish(host, usual(load_s=3.0), of=of)
    assert host.known.variants.last(MODEL) == "num_ctx=8192"


def test_load_job_teaches_its_time_and_no_speed() -> None:
    host = entry(spec("a"), MODEL)
    finish(host, Observation(load_s=7.0, total_s=7.1), of=asked(kind=JobKind.LOAD), was_cold=True)
    assert host.known.speeds.load_s(MODEL, GB) == pytest.approx(7.0)
    assert speeds(host) == (None, None)
    assert host.memory.lengths.export() == {"by_task": [], "by_size": [], "by_model": []}


# Probes


names = st.sets(st.sampled_from([MODEL, "b:1", "c:1"])).map(lambda found: resident(*found))


@few
@given(before=names, after=names, begun=st.sets(st.sampled_from([MODEL, "b:1", "c:1"])))
def test_evictions_are_learnt_only_where_one_load_explains_them(
    before: dict[str, ResidentModel], after: dict[str, ResidentModel], begun: set[str]
) -> None:
    host = taught()
    learn_residents(host, before, after, begun)
    loaded = [name for name in after if name not in before and name in begun]
    gone = [name for name in before if name not in after]
    ranks = host.memory.victims.export()
    if len(loaded) != 1 or not gone:
        assert ranks == {}
        assert host.known.room.bursts_bytes is None
    else:
        assert all(ranks.get(name, 1.0) > 0.5 for name in gone)
        assert all(ranks.get(name, 0.0) < 0.5 for name in after)
        assert host.known.room.bursts_bytes == GB * len({*before, *after})
    assert host.known.room.holds(GB * len(after), None)


def test_busy_model_that_stayed_says_nothing_of_the_order() -> None:
    host = taught()
    host.begin(job("1", model="b:1"), 0.0)
    learn_residents(host, resident("b:1", "c:1"), resident("b:1", MODEL), {MODEL})
    assert host.memory.victims.export() == {}


def test_more_models_than_allowed_do_not_make_the_memory_small() -> None:
    host = entry(spec("a", max_models=2), MODEL, "b:1", "c:1")
    learn_residents(host, resident("b:1", "c:1"), resident("b:1", MODEL), {MODEL})
    assert host.known.room.bursts_bytes is None
    assert host.memory.victims.rank("c:1") > 0.5 > host.memory.victims.rank("b:1")


@pytest.mark.parametrize("is_busy", [False, True])
def test_cache_goes_with_the_model_unless_a_job_is_bringing_it_back(is_busy: bool) -> None:
    host = taught()
    of = asked(prefix=(1,), prefix_tokens=(64,))
    if is_busy:
        host.begin(job("1"), 0.0)
    finish(host, usual(), of=of)
    learn_residents(host, resident(MODEL), {}, set())
    assert (host.memory.affinity.matched_tokens("a", of) > 0) is is_busy


@few
@given(found=names)
def test_probe_that_finds_what_was_there_teaches_nothing_new(
    found: dict[str, ResidentModel],
) -> None:
    host = taught()
    learn_residents(host, {}, found, set())
    before = host.memory.export()
    learn_residents(host, found, found, set())
    assert host.memory.export() == before
