"""What is learnt, and what must not be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.estimate import (
    CACHE_HITS_BELIEVED,
    DecayedMean,
    Rate,
    RunningSpread,
    phases,
)
from sollol_proxy.core.speeds import Speeds
from sollol_proxy.core.types import JobKind, Observation

positive = st.floats(1e-3, 1e6, allow_nan=False)
samples = st.lists(positive, min_size=1, max_size=60)
CLOSE = 1 + 1e-9


@given(samples=samples)
def test_mean_lies_between_its_samples(samples: list[float]) -> None:
    mean = DecayedMean()
    for sample in samples:
        mean.add(sample)
    assert mean.value is not None
    assert min(samples) / CLOSE <= mean.value <= max(samples) * CLOSE


@given(samples=samples)
def test_rate_lies_between_its_samples(samples: list[float]) -> None:
    rate = Rate()
    for sample in samples:
        rate.add(sample)
    assert rate.value is not None
    assert min(samples) / CLOSE <= rate.value <= max(samples) * CLOSE


@given(samples=samples)
def test_spread_counts_and_bounds_its_samples(samples: list[float]) -> None:
    spread = RunningSpread()
    for sample in samples:
        spread.add(sample)
    frozen = spread.freeze()
    assert frozen.count == len(samples)
    assert (frozen.min_s, frozen.max_s) == (min(samples), max(samples))
    assert frozen.mean_s == pytest.approx(sum(samples) / len(samples))
    assert frozen.min_s <= frozen.mean_s <= frozen.max_s


def test_estimators_say_nothing_before_the_first_sample() -> None:
    assert DecayedMean().value is None
    assert Rate().value is None
    assert Speeds().first_token_s("m", 100) is None


def test_mean_forgets_so_that_a_changed_host_is_believed() -> None:
    mean = DecayedMean()
    for _ in range(1000):
        mean.add(1.0)
    for _ in range(100):
        mean.add(0.0)
    assert mean.value is not None
    assert mean.value < 0.1


def test_prefill_ignores_a_cache_hit_and_believes_a_lasting_change() -> None:
    rate = Rate()
    rate.add_unless_cache_hit(100.0)
    rate.add_unless_cache_hit(5000.0)
    assert rate.value == 100.0
    for _ in range(CACHE_HITS_BELIEVED - 1):
        rate.add_unless_cache_hit(5000.0)
    assert rate.value is not None
    assert rate.value > 100.0


def test_speeds_fall_back_on_other_models_of_the_host() -> None:
    speeds = Speeds()
    speeds.learn("m", Observation(prompt_tokens=100, prefill_s=1.0, output_tokens=20, decode_s=2.0))
    assert speeds.first_token_s("m", 50) == pytest.approx(0.5 + 0.1)
    assert speeds.first_token_s("other", 50) == pytest.approx(0.6)


@pytest.mark.parametrize(
    "observation",
    [
        Observation(),
        Observation(prompt_tokens=5, prefill_s=0.1),
        Observation(output_tokens=3, decode_s=0.1),
        Observation(prompt_tokens=100, prefill_s=0.0),
        Observation(prompt_tokens=100),
    ],
)
def test_speeds_learn_nothing_from_too_little(observation: Observation) -> None:
    speeds = Speeds()
    speeds.learn("m", observation)
    assert speeds.first_token_s("m", 100) is None
    assert speeds.decode_tokens_per_s("m") is None


def test_phases_come_from_the_proxys_clock_where_the_answer_has_none() -> None:
    seen = Observation(output_tokens=40, first_byte_s=0.5, total_s=2.5)
    filled = phases(
        seen, kind=JobKind.GENERATE, prompt_tokens_est=100, is_stream=True, was_resident=True
    )
    assert (filled.prompt_tokens, filled.prefill_s, filled.decode_s) == (100, 0.5, 2.0)


@pytest.mark.parametrize(
    ("is_stream", "was_resident", "prefill_s"),
    [(False, True, None), (True, False, None), (True, True, 0.25)],
)
def test_phases_leave_alone_what_the_clock_cannot_tell_apart(
    is_stream: bool, was_resident: bool, prefill_s: float | None
) -> None:
    seen = Observation(prefill_s=prefill_s, first_byte_s=0.5, total_s=2.5)
    kept = phases(
        seen,
        kind=JobKind.GENERATE,
        prompt_tokens_est=9,
        is_stream=is_stream,
        was_resident=was_resident,
    )
    assert kept is seen
