"""What is counted of a request, that it reads as the library's metrics do, and what it costs."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from math import inf
from types import FrameType
from typing import Any

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sollol_proxy.core.types import Outcome
from sollol_proxy.metrics import Metrics
from sollol_proxy.metrics.tallies import Histogram, Tally
from tests.server.samples import RECORD, pool

CALLS_A_REQUEST = 21
"""Python's and C's together: what was counted and two more."""

BOUNDS = (0.005, 0.5, 1, 30)
LABELS = ("endpoint", "status")
CREATED = re.compile(rb"(_created\{.*\}) [-+.e0-9]+$", re.MULTILINE)

labels = st.tuples(st.sampled_from(["/api/chat", 'a"b\\c\n', ""]), st.sampled_from(["200", "400"]))
numbers = st.floats(min_value=-100, max_value=100) | st.sampled_from([*BOUNDS, inf, 0])


def page(registry: CollectorRegistry) -> bytes:
    """The page, less the times at which series began."""
    return CREATED.sub(rb"\1 then", generate_latest(registry))


@given(counted=st.lists(st.tuples(labels, st.floats(min_value=0, max_value=1e12))))
def test_counter_reads_as_the_librarys(counted: list[tuple[tuple[str, str], float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("sollol_things", "Things", LABELS)
    ours.register(tally)
    counter = prometheus_client.Counter("sollol_things", "Things", LABELS, registry=theirs)
    for names, amount in counted:
        tally.add(amount, *names)
        counter.labels(*names).inc(amount)
    assert page(ours) == page(theirs)


@pytest.mark.parametrize("bounds", [BOUNDS, (-1, 0.5, 1)])
@given(seen=st.lists(st.tuples(labels, numbers)))
def test_histogram_reads_as_the_librarys(
    bounds: tuple[float, ...], seen: list[tuple[tuple[str, str], float]]
) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("sollol_seconds", "How long", LABELS, bounds)
    ours.register(histogram)
    reference = prometheus_client.Histogram(
        "sollol_seconds", "How long", LABELS, registry=theirs, buckets=bounds
    )
    for names, value in seen:
        histogram.observe(value, *names)
        reference.labels(*names).observe(value)
    assert page(ours) == page(theirs)


def test_registry_refuses_a_name_that_is_taken() -> None:
    registry = CollectorRegistry()
    registry.register(Tally("sollol_things", "Things", LABELS))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(Tally("sollol_things", "Others", LABELS))


def test_series_say_since_when_unless_the_environment_forbids_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = CollectorRegistry()
    tally = Tally("sollol_things", "Things", LABELS)
    registry.register(tally)
    tally.add(1, "a", "b")
    assert b"sollol_things_created{" in generate_latest(registry)
    monkeypatch.setenv("PROMETHEUS_DISABLE_CREATED_SERIES", "True")
    assert b"_created" not in generate_latest(registry)


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """What has been counted, by name and values of labels."""
    text = metrics.render(pool()).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.value and not sample.name.endswith("_created")
    }


def test_attempts_are_counted_by_host_and_how_they_ended() -> None:
    metrics = Metrics()
    metrics.observe(replace(RECORD, failures=(), attempts=1))
    metrics.observe(replace(RECORD, failures=(("attic", "gone"), ("idle", "-")), skipped=("idle",)))
    metrics.observe(
        replace(
            RECORD,
            outcome=Outcome.PARTIAL,
            decision=None,
            hosts=("gpu-box", "mac"),
            failures=(("attic", "no space left"),),
        )
    )
    counted = {
        key[1:]: n for key, n in samples(metrics).items() if key[0] == "sollol_attempts_total"
    }
    assert counted == {
        ("gpu-box", "answered"): 3,
        ("mac", "answered"): 1,
        ("attic", "failed"): 2,
    }


def test_request_costs_a_bounded_number_of_calls() -> None:
    assert RECORD.decision is not None
    assert RECORD.observation is not None
    decision = replace(RECORD.decision, predicted_total_s=3.0, predicted_wait_s=1.0, waited_s=1.0)
    seen = replace(RECORD.observation, total_s=4.0)
    record = replace(RECORD, failures=(), attempts=1, decision=decision, observation=seen)
    metrics = Metrics()
    metrics.observe(record)  # whatever is kept is kept by now
    calls: list[str] = []

    def note(frame: FrameType, event: str, what: Any) -> None:
        if event in ("call", "c_call"):
            calls.append(what.__name__ if event == "c_call" else frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        metrics.observe(record)
    finally:
        sys.setprofile(before)
    assert calls.count("observe") == 1 + 5, "every histogram has seen it"
    assert len(calls) <= CALLS_A_REQUEST, calls
