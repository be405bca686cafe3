"""How fast one host is thought to be."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.estimate import CACHE_HIT_FACTOR, LOAD_THRESHOLD_S
from sollol_proxy.core.speeds import (
    DEFAULT_ALPHA,
    DEFAULT_LOAD_BYTES_PER_S,
    DEFAULT_LOAD_FIXED_S,
    MAX_ALPHA,
    MIN_DECODE_TOKENS,
    MIN_PREFILL_TOKENS,
    SIZE_EXPONENT,
    UNKNOWN_LOAD_S,
    Sharing,
    Speeds,
)
from sollol_proxy.core.types import JobKind, Observation

CLOSE = 1 + 1e-9
GB = 10**9

seconds = st.floats(0.01, 1000.0)
counts = st.integers(MIN_PREFILL_TOKENS, 10_000)
rates = st.floats(1.0, 10_000.0)
sharings = st.builds(Sharing, st.floats(1.0, 8.0), st.floats(1.0, 3.0))
models = st.sampled_from("abc")
sizes = st.integers(0, 20).map(lambda size: size * GB)
rubbish = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
few = settings(max_examples=30)


def seen(prefill: float | None = None, decode: float | None = None) -> Observation:
    """A completed attempt at these speeds."""
    return Observation(
        prompt_tokens=None if prefill is None else 1000,
        prefill_s=None if prefill is None else 1000 / prefill,
        output_tokens=None if decode is None else 100,
        decode_s=None if decode is None else 100 / decode,
    )


learnt = st.lists(
    st.tuples(models, rates, rates, sharings, sizes, st.floats(0.0, 60.0)), max_size=12
)


def speeds_of(history: list[tuple[str, float, float, Sharing, int, float]]) -> Speeds:
    speeds = Speeds()
    for model, prefill, decode, sharing, size, load_s in history:
        speeds.learn_load(model, load_s, size)
        speeds.learn(model, seen(prefill, decode), size_bytes=size, sharing=sharing)
        speeds.learn_whole(JobKind.TRANSCRIBE, model, load_s)
    return speeds


@few
@given(given_=st.lists(rates, min_size=1, max_size=20))
def test_speeds_lie_within_their_samples_when_jobs_ran_alone(given_: list[float]) -> None:
    speeds = Speeds()
    for rate in given_:
        speeds.learn("a", seen(rate, rate))
    low, high = min(given_) / CLOSE, max(given_) * CLOSE
    assert low <= (speeds.prefill_of("a") or 0) <= high
    assert low <= (speeds.decode_of("a") or 0) <= high


@few
@given(alone=rates, alpha=st.floats(0.0, MAX_ALPHA), parts=st.lists(sharings, max_size=20))
def test_what_was_measured_beside_others_is_brought_to_what_a_job_alone_would_see(
    alone: float, alpha: float, parts: list[Sharing]
) -> None:
    speeds = Speeds()
    speeds.learn("a", seen(decode=alone))
    for sharing in parts:
        slowed = sharing.runners * (1 + alpha * (sharing.streams - 1))
        speeds.learn("a", seen(decode=alone / slowed), sharing=sharing)
    # Until the slow-down is measured it is taken for the default.
    worst = max((1 + DEFAULT_ALPHA * 7) / 1.0, 1 + MAX_ALPHA * 0.3)
    assert alone / worst <= (speeds.decode_of("a") or 0) <= alone * worst


@few
@given(alone=rates, alpha=st.floats(0.0, MAX_ALPHA), streams=st.floats(1.5, 8.0))
def test_slow_down_by_sharing_is_learnt_from_the_first_sample_beside_others(
    alone: float, alpha: float, streams: float
) -> None:
    speeds = Speeds()
    speeds.learn("a", seen(decode=alone))
    slowed = 1 + alpha * (streams - 1)
    speeds.learn("a", seen(decode=alone / slowed), sharing=Sharing(streams))
    assert speeds.alpha == pytest.approx(alpha, abs=1e-6)
    assert speeds.decode_of("a") == pytest.approx(alone)


@few
@given(history=learnt, few_streams=st.floats(0.0, 8.0), many_streams=st.floats(0.0, 8.0))
def test_share_is_at_least_1_and_does_not_fall_with_streams(
    history: list[tuple[str, float, float, Sharing, int, float]],
    few_streams: float,
    many_streams: float,
) -> None:
    speeds = speeds_of(history)
    low, high = sorted((few_streams, many_streams))
    assert 1.0 <= speeds.share(low) <= speeds.share(high)
    assert 0.0 <= speeds.alpha <= MAX_ALPHA


@few
@given(usual=rates, factor=st.floats(CACHE_HIT_FACTOR * 1.01, 1000.0))
def test_prompt_from_the_cache_is_no_fast_host(usual: float, factor: float) -> None:
    speeds = Speeds()
    speeds.learn("a", seen(usual))
    speeds.learn("a", seen(usual * factor))
    assert speeds.prefill_of("a") == pytest.approx(usual)


@few
@given(usual=rates, cached=st.integers(0, 1000))
def test_prefill_counts_only_what_was_not_in_the_cache(usual: float, cached: int) -> None:
    speeds = Speeds()
    speeds.learn("a", seen(usual))
    new = 1000 - cached
    told = Observation(prompt_tokens=1000, prefill_s=max(new, 1) / usual)
    speeds.learn("a", told, new_tokens=new)
    assert speeds.prefill_of("a") == pytest.approx(usual)


@few
@given(usual=rates, tokens=st.integers(0, MIN_DECODE_TOKENS - 1), took=seconds)
def test_few_tokens_measure_no_speed(usual: float, tokens: int, took: float) -> None:
    speeds = Speeds()
    speeds.learn("a", seen(usual, usual))
    before = speeds.export()
    speeds.learn("a", Observation(tokens, tokens, prefill_s=took, decode_s=took))
    assert speeds.export() == before


@few
@given(load_s=seconds, size=sizes)
def test_load_moves_no_other_speed(load_s: float, size: int) -> None:
    speeds = Speeds()
    speeds.learn("a", seen(100.0, 10.0), size_bytes=GB)
    speeds.learn_load("a", load_s, size)
    assert (speeds.prefill_of("a"), speeds.decode_of("a")) == pytest.approx((100.0, 10.0))


@few
@given(loads=st.lists(seconds, min_size=1, max_size=10), size=sizes)
def test_load_time_lies_within_its_samples_and_short_ones_are_none(
    loads: list[float], size: int
) -> None:
    speeds = Speeds()
    for load_s in loads:
        speeds.learn_load("a", load_s, size)
    real = [load_s for load_s in loads if load_s >= LOAD_THRESHOLD_S]
    if real:
        assert min(real) / CLOSE <= speeds.load_s("a", size) <= max(real) * CLOSE
    else:
        assert speeds.load_s("a", size) == Speeds().load_s("a", size)


@few
@given(load_s=st.floats(LOAD_THRESHOLD_S, 600.0), size=st.integers(1, 20), other=st.integers(1, 20))
def test_load_time_of_another_model_goes_by_its_size(load_s: float, size: int, other: int) -> None:
    speeds = Speeds()
    speeds.learn_load("a", load_s, size * GB)
    assert speeds.load_s("b", other * GB) == pytest.approx(load_s * other / size)


@few
@given(size=sizes)
def test_load_time_is_a_default_when_nothing_was_learnt(size: int) -> None:
    by_size = size / DEFAULT_LOAD_BYTES_PER_S + DEFAULT_LOAD_FIXED_S
    assert Speeds().load_s("a", size) == (by_size if size else UNKNOWN_LOAD_S)


@few
@given(given_=st.lists(seconds, min_size=1, max_size=10), kind=st.sampled_from(JobKind))
def test_whole_time_lies_within_its_samples(given_: list[float], kind: JobKind) -> None:
    speeds = Speeds()
    assert speeds.whole_s(kind, "a") is None
    for took in given_:
        speeds.learn_whole(kind, "a", took)
    speeds.learn_whole(kind, "a", 0.0)
    speeds.learn_whole(kind, "a", -1.0)
    assert min(given_) / CLOSE <= (speeds.whole_s(kind, "a") or 0) <= max(given_) * CLOSE
    assert speeds.whole_s(kind, "b") is None


@few
@given(rate=rates, size=st.integers(1, 20), other=st.integers(1, 20))
def test_speed_of_another_model_is_scaled_by_size(rate: float, size: int, other: int) -> None:
    speeds = Speeds()
    speeds.learn("a", seen(rate, rate), size_bytes=size * GB)
    ratio = size / other
    assert speeds.prefill_tokens_per_s("b", other * GB) == pytest.approx(rate * ratio)
    assert speeds.decode_tokens_per_s("b", other * GB) == pytest.approx(rate * ratio**SIZE_EXPONENT)
    assert speeds.prefill_of("b") is None
    assert speeds.decode_of("b") is None


def test_speed_of_another_model_is_taken_from_the_one_most_like_it() -> None:
    speeds = Speeds()
    speeds.learn("small", seen(900.0), size_bytes=GB)
    speeds.learn("large", seen(100.0), size_bytes=10 * GB)
    assert speeds.prefill_tokens_per_s("new", GB) == pytest.approx(900.0)
    assert speeds.prefill_tokens_per_s("new", 10 * GB) == pytest.approx(100.0)


@few
@given(history=learnt, prompt=st.integers(0, 10_000), model=st.sampled_from("abcd"), size=sizes)
def test_speeds_are_positive_and_finite_whatever_was_learnt(
    history: list[tuple[str, float, float, Sharing, int, float]], prompt: int, model: str, size: int
) -> None:
    speeds = speeds_of(history)
    assert 0.0 < speeds.load_s(model, size) < float("inf")
    for told in (
        speeds.prefill_tokens_per_s(model, size),
        speeds.decode_tokens_per_s(model, size),
        speeds.first_token_s(model, prompt),
    ):
        assert (told is None) == (not history)
        assert told is None or 0.0 < told < float("inf")


@few
@given(history=learnt, model=st.sampled_from("abcd"), size=sizes, streams=st.floats(0.0, 8.0))
def test_speeds_are_the_same_after_json(
    history: list[tuple[str, float, float, Sharing, int, float]],
    model: str,
    size: int,
    streams: float,
) -> None:
    speeds = speeds_of(history)
    restored = Speeds.restored(json.loads(json.dumps(speeds.export())))
    assert restored.export() == speeds.export()
    for each in (speeds, restored):
        assert (
            each.prefill_tokens_per_s(model, size),
            each.decode_tokens_per_s(model, size),
            each.load_s(model, size),
            each.whole_s(JobKind.TRANSCRIBE, model),
            each.share(streams),
        ) == (
            speeds.prefill_tokens_per_s(model, size),
            speeds.decode_tokens_per_s(model, size),
            speeds.load_s(model, size),
            speeds.whole_s(JobKind.TRANSCRIBE, model),
            speeds.share(streams),
        )


KEYS = ("prefill", "decode", "load_s", "whole_s", "sizes", "load_rate", "alpha")
tables = rubbish | st.dictionaries(models, rubbish, max_size=2)


@few
@given(given_=rubbish | st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, tables)))
def test_speeds_restored_from_rubbish_raise_value_error_or_stay_in_range(given_: object) -> None:
    try:
        speeds = Speeds.restored(given_)
    except ValueError:
        return
    assert 0.0 <= speeds.alpha <= MAX_ALPHA
    assert all((speeds.prefill_of(model) or 1.0) > 0 for model in "abc")
