from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.config.units import (
    format_duration,
    format_size,
    parse_duration_s,
    parse_size_bytes,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("5m", 300), ("1h", 3600), ("1.5 H", 5400), ("30", 30)],
)
def test_duration_is_read_in_each_unit(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("64KiB", 65536), ("20 mib", 20 * 2**20), ("24GB", 24 * 10**9), ("1.5kB", 1500)],
)
def test_size_is_read_in_each_unit(text: str, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s s", "1d", "1e3s", "٣s", "9" * 21, True])
def test_duration_is_refused_when_it_is_none(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration_s(text)


@pytest.mark.parametrize("text", ["", "B", "-1B", "1XB", "1s", "9" * 21, True])
def test_size_is_refused_when_it_is_none(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size_bytes(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.5, "500ms"), (90, "90s"), (60, "1m"), (7200, "2h"), (0.0125, "0.0125s")],
)
def test_duration_is_written_in_the_largest_unit_that_is_exact(seconds: float, text: str) -> None:
    assert format_duration(float(seconds)) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, 0), (1023, 1023), (2**28, "256MiB"), (24 * 10**9, "24GB")]
)
def test_size_is_written_in_the_largest_unit_that_is_exact(size: int, text: str | int) -> None:
    assert format_size(size) == text


@given(st.floats(0, 366 * 86400))
def test_duration_comes_back_exactly_when_written_and_read(seconds: float) -> None:
    assert parse_duration_s(format_duration(seconds)) == seconds


@given(st.integers(0, 2**50))
def test_size_comes_back_exactly_when_written_and_read(size: int) -> None:
    assert parse_size_bytes(format_size(size)) == size
