"""Numbers and instants as a person reads them. Pure; whatever comes in, a text comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

NOTHING = "–"
"""Shown where there is no number."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def duration(seconds: float | None) -> str:
    """`840 ms`, `4.2 s`, `42 s`, `3 min 20 s`, `5 h 12 min`, `3 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds <= 0:
        return "0 s"
    if seconds < 0.001:
        return "< 1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two_units(whole, (60, "min"), (1, "s"))
    if whole < 48 * 3600:
        return _two_units(whole, (3600, "h"), (60, "min"))
    return _two_units(whole, (86400, "d"), (3600, "h"))


def size(size_bytes: int) -> str:
    """Decimal units as Ollama prints them: `812 MB`, `4.9 GB`, `24 GB`."""
    return _scaled(max(0, size_bytes), ("B", "kB", "MB", "GB", "TB"))


def percent(ratio: float | None) -> str:
    """Rounded down, so that 100 % means every one: `98.2 %`, `100 %`."""
    if ratio is None or not math.isfinite(ratio):
        return NOTHING
    # The small addend keeps 0.29 from becoming 28.9 by way of its binary form.
    tenths = math.floor(min(1.0, max(0.0, ratio)) * 1000 + 1e-9)
    return f"{tenths / 10:.1f} %" if 0 < tenths < 1000 else f"{tenths // 10} %"


def count(number: int) -> str:
    """`940`, `12,400`, `482 k`, `3.1 M`."""
    return f"{number:,}" if number < 100_000 else _scaled(number / 1000, ("k", "M", "G"))


def figure(value: float | None) -> str:
    """A number of unknown size: whole from 1000 on, else the three digits that matter."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def clock(iso: str) -> str:
    """The time of day of an ISO 8601 instant, UTC; the text itself if it is none."""
    moment = instant(iso)
    return iso if moment is None else f"{moment:%H:%M:%S}"


def share(part: float, whole: float) -> str:
    """A width for the drawing, `0%` to `100%`."""
    return f"{100 * min(1.0, max(0.0, part / whole)):.1f}%" if whole > 0 else "0%"


def plural(number: int, noun: str) -> str:
    """`1 job`, `12 jobs`."""
    return f"{count(number)} {noun}" + ("" if number == 1 else "s")


def words(label: str) -> str:
    """A machine's label as words: `client gone` for `client_gone`."""
    return label.replace("_", " ")


def instant(iso: str) -> datetime | None:
    """An ISO 8601 instant in UTC; None when the text is none."""
    try:
        moment = datetime.fromisoformat(iso)
        # Without an offset it is UTC: the process knows no other wall time.
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def instant_iso(since_1970_ns: int) -> str | None:
    """An instant as ISO 8601 UTC, to the second; None for what is unknown: zero, or no date."""
    if since_1970_ns <= 0:
        return None
    try:
        moment = _EPOCH + timedelta(seconds=since_1970_ns // 10**9)
    except OverflowError:
        return None
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def before(now_iso: str, seconds: float) -> str:
    """The instant `seconds` before now, ISO 8601 UTC; now itself where there is none."""
    now = instant(now_iso)
    if now is None or not math.isfinite(seconds):
        return now_iso
    try:
        then = now - timedelta(seconds=max(0.0, seconds))
    except OverflowError:
        return now_iso
    return then.isoformat(timespec="seconds").replace("+00:00", "Z")


def _two_units(whole: int, big: tuple[int, str], small: tuple[int, str]) -> str:
    rest = whole % big[0] // small[0]
    return f"{whole // big[0]} {big[1]}" + (f" {rest} {small[1]}" if rest else "")


def _scaled(value: float, units: Sequence[str]) -> str:
    step = 0
    while value >= 999.5 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    digits = 1 if value < 9.95 and round(value, 1) % 1 else 0
    return f"{value:,.{digits}f} {units[step]}"
