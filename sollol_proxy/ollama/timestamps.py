"""Go's timestamps: RFC 3339 with up to nine fractional digits, in any zone."""

from __future__ import annotations

import re
from datetime import UTC, datetime

NANOSECONDS = 10**9

_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant_ns(text: object) -> int | None:
    """Nanoseconds since 1970, exactly; None for what is no timestamp.

    `datetime` alone would drop the last three digits, by which Ollama's own order can differ.
    """
    match = _RFC3339.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    zone = "+00:00" if match[3] in "Zz" else match[3]
    try:
        whole = datetime.fromisoformat(f"{match[1].upper()}{zone}") - _EPOCH
    except ValueError:
        return None
    seconds = whole.days * 86_400 + whole.seconds
    return seconds * NANOSECONDS + int((match[2] or "0").ljust(9, "0"))


def unix_s(text: object) -> int:
    """Whole seconds since 1970, rounded down; 0 for what is no timestamp."""
    instant = instant_ns(text)
    return 0 if instant is None else instant // NANOSECONDS
