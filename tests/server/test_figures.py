"""Numbers and instants as a person reads them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.server import figures
from tests.server.samples import GB


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (-3.0, "0 s"),
        (0.0, "0 s"),
        (0.0004, "< 1 ms"),
        (0.0005, "< 1 ms"),
        (0.001, "1 ms"),
        (0.0031, "3 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (4.23, "4.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (72.4, "1 min 12 s"),
        (3599.7, "1 h"),
        (11_500.0, "3 h 11 min"),
        (172_799.0, "47 h 59 min"),
        (172_800.0, "2 d"),
        (277_200.0, "3 d 5 h"),
    ],
)
def test_duration_reads_as_a_person_would_say_it(seconds: float | None, text: str) -> None:
    assert figures.duration(seconds) == text


@given(st.floats())
def test_duration_never_overruns_its_unit(seconds: float) -> None:
    text = figures.duration(seconds)
    assert re.fullmatch(
        r"–|< 1 ms|[1-9]\d{0,2} ms|\d\.\d s|[1-5]?\d s|[1-5]?\d min( [1-5]?\d s)?"
        r"|[1-4]?\d h( [1-5]?\d min)?|\d+ d( [12]?\d h)?",
        text,
    )


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (-1, "0 B"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (812_000_000, "812 MB"),
        (4_920_000_000, "4.9 GB"),
        (24 * GB, "24 GB"),
        (3_400 * GB, "3.4 TB"),
        (5_000_000 * GB, "5,000 TB"),
    ],
)
def test_size_uses_decimal_units(size_bytes: int, text: str) -> None:
    assert figures.size(size_bytes) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0 %"),
        (0.0004, "0 %"),
        (0.29, "29.0 %"),
        (0.8999, "89.9 %"),
        (0.9, "90.0 %"),
        (0.99999, "99.9 %"),
        (1.0, "100 %"),
        (1.7, "100 %"),
    ],
)
def test_percent_rounds_down(ratio: float | None, text: str) -> None:
    assert figures.percent(ratio) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (940, "940"),
        (12_400, "12,400"),
        (99_999, "99,999"),
        (100_000, "100 k"),
        (999_700, "1 M"),
        (3_140_000, "3.1 M"),
    ],
)
def test_count_shortens_only_large_numbers(number: int, text: str) -> None:
    assert figures.count(number) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (1.0, "1"), (0.5714, "0.571"), (124.7, "125"), (12_345.6, "12,346")],
)
def test_figure_keeps_three_digits(value: float | None, text: str) -> None:
    assert figures.figure(value) == text


@pytest.mark.parametrize(
    ("iso", "text"),
    [
        ("2026-03-01T12:03:04.567+00:00", "12:03:04"),
        ("2026-03-01T12:03:04Z", "12:03:04"),
        ("2026-03-01T12:03:04+02:00", "10:03:04"),
        ("2026-03-01T12:03:04", "12:03:04"),
        ("yesterday", "yesterday"),
    ],
)
def test_clock_shows_utc(iso: str, text: str) -> None:
    assert figures.clock(iso) == text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, None),
        (-62_135_596_800 * 10**9, None),
        (1, "1970-01-01T00:00:00Z"),
        (1_772_366_399_999_999_999, "2026-03-01T11:59:59Z"),
        (10**30, None),
    ],
)
def test_instant_iso_is_utc_or_nothing(nanoseconds: int, text: str | None) -> None:
    assert figures.instant_iso(nanoseconds) == text
