"""The founding formulas, with the corrected worked example as test vectors."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.policies.seven_factor import (
    Measured,
    Request,
    SevenFactor,
    duration_factor,
    factors,
    gpu_factor,
    latency_factor,
    load_factor,
    preference_factor,
    score,
    task_factor,
)
from sollol_proxy.core.types import (
    AttemptResult,
    Complexity,
    Cost,
    Observation,
    ResidentModel,
    TaskType,
)
from tests.core.builders import MODEL, entry, job, spec

WORKED = Request(TaskType.GENERATION, Complexity.COMPLEX, 7, requires_gpu=True, duration_ms=8000)
A = Measured(16_000, 0.99, 80, 0.2, priority=0, prefers_task=True)
B = Measured(2_000, 0.95, 200, 0.7, priority=1, prefers_task=False)
C = Measured(0, 0.98, 100, 0.1, priority=2, prefers_task=False)


def request(**fields: Any) -> Request:
    given: dict[str, Any] = {
        "task_type": TaskType.GENERATION,
        "complexity": Complexity.SIMPLE,
        "priority": 5,
        "requires_gpu": False,
        "duration_ms": None,
        **fields,
    }
    return Request(**given)


def measured(**fields: Any) -> Measured:
    given: dict[str, Any] = {
        "free_mb": None,
        "success_ratio": 1.0,
        "latency_ms": None,
        "load": 0.0,
        "priority": 1,
        "prefers_task": False,
        **fields,
    }
    return Measured(**given)


@pytest.mark.parametrize(("host", "expected"), [(A, 276.15), (B, 4.875), (C, 16.752)])
def test_score_of_the_worked_example(host: Measured, expected: float) -> None:
    assert score(WORKED, host) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("host", "steps"),
    [
        (A, [200.0, 198.0, 174.30, 141.62, 212.42, 276.15, 276.15]),
        (B, [100.0, 95.0, 21.591, 6.965, 6.965, 6.965, 4.875]),
        (C, [20.0, 19.6, 16.752, 16.752, 16.752, 16.752, 16.752]),
    ],
)
def test_each_step_of_the_worked_example(host: Measured, steps: list[float]) -> None:
    value = 100.0
    for factor, expected in zip(factors(WORKED, host), steps, strict=True):
        value *= factor.multiplier
        assert value == pytest.approx(expected, rel=1e-3), factor.name


@pytest.mark.parametrize(
    ("free_mb", "multiplier"),
    [
        (0, 0.2),
        (1, 0.5),
        (1999, 0.5),
        (2000, 1.0),
        (4000, 1.0),
        (4001, 1.5),
        (8000, 1.5),
        (8001, 2.0),
        (None, 1.0),
    ],
)
def test_gpu_ladder(free_mb: float | None, multiplier: float) -> None:
    host = measured(free_mb=free_mb)
    assert gpu_factor(request(requires_gpu=True), host).multiplier == multiplier
    assert gpu_factor(request(requires_gpu=False), host).multiplier == 1.0


@pytest.mark.parametrize(
    ("priority", "latency_ms", "divisor"),
    [(5, 199, 1.2985), (5, 200, 4.0), (7, 199, 1.3383), (7, 200, 4.4), (5, 5000, 76.0)],
)
def test_latency_penalty(priority: int, latency_ms: float, divisor: float) -> None:
    factor = latency_factor(request(priority=priority), measured(latency_ms=latency_ms))
    assert 1 / factor.multiplier == pytest.approx(divisor, rel=1e-3)


def test_unknown_latency_is_neutral() -> None:
    assert latency_factor(request(), measured()).multiplier == 1.0


@pytest.mark.parametrize(
    ("complexity", "priority", "load", "multiplier"),
    [
        (Complexity.COMPLEX, 7, 0.85, 0.3 / 3.55),
        (Complexity.COMPLEX, 5, 0.2, 1.3 / 1.3),
        (Complexity.COMPLEX, 5, 0.5, 1 / 1.75),
        (Complexity.SIMPLE, 5, 0.5, 1 / 1.75),
        (Complexity.SIMPLE, 9, 0.2, 1 / 1.6),
        (Complexity.SIMPLE, 9, 0.8, 1 / 3.4),
    ],
)
def test_load(complexity: Complexity, priority: int, load: float, multiplier: float) -> None:
    factor = load_factor(request(complexity=complexity, priority=priority), measured(load=load))
    assert factor.multiplier == pytest.approx(multiplier)


@pytest.mark.parametrize(
    ("host_priority", "priority", "multiplier"), [(0, 7, 1.5), (0, 6, 1.2), (1, 10, 1.0)]
)
def test_preference(host_priority: int, priority: int, multiplier: float) -> None:
    host = measured(priority=host_priority)
    assert preference_factor(request(priority=priority), host).multiplier == multiplier


def test_task_preference() -> None:
    assert task_factor(request(), measured(prefers_task=True)).multiplier == 1.3
    assert task_factor(request(), measured()).multiplier == 1.0


@pytest.mark.parametrize(
    ("duration_ms", "load", "multiplier"),
    [(5001, 0.61, 0.7), (5000, 0.61, 1.0), (5001, 0.6, 1.0), (None, 1.0, 1.0)],
)
def test_duration(duration_ms: float | None, load: float, multiplier: float) -> None:
    factor = duration_factor(request(duration_ms=duration_ms), measured(load=load))
    assert factor.multiplier == multiplier


@given(low=st.floats(0, 1), high=st.floats(0, 1), priority=st.integers(1, 10))
def test_more_load_never_raises_the_score(low: float, high: float, priority: int) -> None:
    low, high = sorted((low, high))
    for complexity in Complexity:
        asked = request(priority=priority, complexity=complexity, duration_ms=9000)
        assert score(asked, measured(load=low)) >= score(asked, measured(load=high))


def cost_of(host: Any, others: list[Any], **fields: Any) -> Cost:
    return SevenFactor(Random(0)).cost(job("x", **fields), host, others, 0.0)


def teach(host: Any, prefill_tokens_per_s: float) -> None:
    host.begin(job("teacher"), 0.0)
    seen = Observation(prompt_tokens=1000, prefill_s=1000 / prefill_tokens_per_s)
    host.end("teacher", AttemptResult.COMPLETED, seen, "", 0.0)


def test_unmeasured_host_counts_as_the_median_of_the_measured() -> None:
    slow, middle, fast, fresh = (entry(spec(name)) for name in ("slow", "mid", "fast", "fresh"))
    for host, speed in ((slow, 100.0), (middle, 1000.0), (fast, 10_000.0)):
        teach(host, speed)
    pool = [slow, middle, fast, fresh]
    totals = {h.spec.id: cost_of(h, pool, prompt_tokens_est=400).total for h in pool}
    assert totals["fresh"] == pytest.approx(totals["mid"])
    assert totals["fast"] < totals["mid"] < totals["slow"]


def test_hosts_of_nearly_the_same_speed_take_turns() -> None:
    one, two, far = (entry(spec(name, slots=99)) for name in ("one", "two", "far"))
    for host, speed in ((one, 1000.0), (two, 1070.0), (far, 300.0)):
        teach(host, speed)
    policy = SevenFactor(Random(0))
    chosen = []
    for number in range(6):
        [decision] = policy.plan([job(f"{number}", prompt_tokens_est=200)], [one, two, far], 0.0)
        chosen.append(decision.host_id)
    assert sorted(chosen[:2]) == ["one", "two"]
    assert chosen[:2] == chosen[2:4] == chosen[4:]


def test_memory_that_other_models_use_is_not_free() -> None:
    host = entry(spec("a", memory_bytes=24 * 10**9))
    other = ResidentModel("other:1", "d", 20 * 10**9, 20 * 10**9)
    own = ResidentModel(MODEL, "d", 15 * 10**9, 15 * 10**9)

    def gpu_term() -> float:
        return cost_of(host, [host], requires_gpu=True).terms[0].value

    host.resident = {own.name: own}
    assert gpu_term() == 2.0
    host.resident = {other.name: other}
    assert gpu_term() == 1.0
    host.resident = {other.name: other, own.name: own}
    assert gpu_term() == 1.0


def test_host_whose_models_have_no_vram_has_no_gpu() -> None:
    host = entry(spec("cpu"))
    host.resident = {MODEL: ResidentModel(MODEL, "d", 10**9, 0)}
    assert cost_of(host, [host], requires_gpu=True).terms[0].value == 0.2


def test_cost_is_the_inverse_of_the_score_and_explains_all_seven() -> None:
    host = entry(spec("a", priority=0))
    cost = cost_of(host, [host], priority=8)
    assert cost.score == pytest.approx(150.0)
    assert cost.total == pytest.approx(100 / 150)
    assert [term.name for term in cost.terms] == [
        "gpu",
        "success",
        "latency",
        "load",
        "preference",
        "task",
        "duration",
    ]
