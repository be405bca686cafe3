"""What a scrape shows of our own counters, with prometheus_client's as the judge."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sollol_proxy.metrics.tallies import Distribution, Tally

BOUNDS = (-1, 0, 0.5, 1, 2.5, 60)
labels = st.tuples(st.sampled_from(["/api/chat", 'a "b"\n']), st.sampled_from(["200", "503"]))


def page(registry: CollectorRegistry) -> str:
    """The scrape without the moments at which things were first seen."""
    return re.sub(r"(_created\{.*\}) .*", r"\1", generate_latest(registry).decode())


@given(st.lists(st.tuples(labels, st.integers(0, 10**6))))
def test_tally_shows_what_a_counter_shows(events: list[tuple[tuple[str, str], int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("sollol_requests", "Requests", ("endpoint", "status"), ours)
    counter = Counter("sollol_requests", "Requests", ("endpoint", "status"), registry=theirs)
    for named, amount in events:
        tally.add(named, amount)
        counter.labels(*named).inc(amount)
    assert page(ours) == page(theirs)


@given(st.lists(st.tuples(labels, st.floats(-100, 100) | st.sampled_from(BOUNDS))))
def test_distribution_shows_what_a_histogram_shows(
    events: list[tuple[tuple[str, str], float]],
) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    names = ("endpoint", "status")
    distribution = Distribution("sollol_wait", "Wait", names, ours, BOUNDS)
    histogram = Histogram("sollol_wait", "Wait", names, registry=theirs, buckets=BOUNDS)
    for named, value in events:
        distribution.observe(named, value)
        histogram.labels(*named).observe(value)
    assert page(ours) == page(theirs)
    families = list(text_string_to_metric_families(generate_latest(ours).decode()))
    assert len(families[0].samples) == len({named for named, _ in events}) * (len(BOUNDS) + 2)


def test_name_is_taken_once() -> None:
    registry = CollectorRegistry()
    Tally("sollol_requests", "Requests", (), registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Distribution("sollol_requests", "Requests", (), registry, BOUNDS)
