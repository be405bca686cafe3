from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.ollama.timestamps import instant_ns, unix_s


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.000000001Z", 1_000_000_001),
        ("1970-01-01T02:00:00.5+02:00", 500_000_000),
        ("1969-12-31T23:59:59.25Z", -750_000_000),
        ("2319-03-06T01:44:26.83719659Z", 11_018_857_466_837_196_590),
    ],
)
def test_instant_is_exact(text: str, expected: int) -> None:
    assert instant_ns(text) == expected


@pytest.mark.parametrize(
    "text", ["", "soon", "2026-13-01T00:00:00Z", "2026-01-01", None, 5, "2026-01-01T00:00:00+99:99"]
)
def test_instant_is_none_for_what_is_no_timestamp(text: object) -> None:
    assert instant_ns(text) is None
    assert unix_s(text) == 0


@given(
    st.datetimes(timezones=st.just(UTC)),
    st.integers(0, 999),
    st.integers(-14 * 60, 14 * 60),
)
def test_instant_does_not_depend_on_the_zone(
    moment: datetime, nanoseconds: int, offset_minutes: int
) -> None:
    try:
        local = moment.astimezone(timezone(timedelta(minutes=offset_minutes)))
    except OverflowError:
        return
    fraction = f".{moment.microsecond:06d}{nanoseconds:03d}"
    here = f"{moment:%H:%M:%S}{fraction}Z"
    there = f"{local:%H:%M:%S}{fraction}{local.isoformat()[-6:]}"
    expected = instant_ns(f"{moment.date().isoformat()}T{here}")
    assert expected is not None
    assert instant_ns(f"{local.date().isoformat()}T{there}") == expected
    assert expected % 1000 == nanoseconds


def test_unix_s_rounds_down() -> None:
    assert unix_s("1970-01-01T00:00:01.999999999Z") == 1
    assert unix_s("1969-12-31T23:59:59.1Z") == -1
