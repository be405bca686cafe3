"""Durations and sizes as people write them: `500ms`, `30s`, `5m`, `1h`; `64KiB`, `20MiB`, `24GB`.

Both ways are exact: what `format_…` writes, `parse_…` reads back as the same number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

_DURATION_UNITS_S = {
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}
_SIZE_UNITS_BYTES = {
    "TiB": 2**40,
    "TB": 10**12,
    "GiB": 2**30,
    "GB": 10**9,
    "MiB": 2**20,
    "MB": 10**6,
    "KiB": 2**10,
    "kB": 10**3,
    "B": 1,
}
_SIZE_UNITS_LOWER = {unit.lower(): size for unit, size in _SIZE_UNITS_BYTES.items()}
_QUANTITY = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")

# More than a year, or a disk larger than any host's memory, is a slip of the unit.
_LONGEST_S = 366 * 86400.0
_LARGEST_BYTES = 2**50
# A probe interval below this would be a busy loop.
_SHORTEST_S = 0.001


def parse_duration_s(value: Any) -> Any:
    """Seconds from a number or from text such as `500ms`; anything else is left for pydantic.

    Raises:
        ValueError: text that is no duration, without the text: it may come from `${NAME}`.
    """
    if isinstance(value, bool):
        raise ValueError("is not a duration; write seconds, or 500ms, 30s, 5m, 1h")
    if not isinstance(value, str):
        return value
    match = _QUANTITY.fullmatch(value)
    unit_s = _DURATION_UNITS_S.get(match[2].lower() or "s") if match else None
    if match is None or unit_s is None:
        raise ValueError("is not a duration; write seconds, or 500ms, 30s, 5m, 1h")
    return float(Decimal(match[1]) * unit_s)


def parse_size_bytes(value: Any) -> Any:
    """Bytes from a number or from text such as `20MiB`; anything else is left for pydantic.

    Raises:
        ValueError: text that is no size, without the text.
    """
    if isinstance(value, bool):
        raise ValueError("is not a size; write bytes, or 64KiB, 20MiB, 24GB")
    if not isinstance(value, str):
        return value
    match = _QUANTITY.fullmatch(value)
    unit_bytes = _SIZE_UNITS_LOWER.get(match[2].lower() or "b") if match else None
    if match is None or unit_bytes is None:
        raise ValueError("is not a size; write bytes, or 64KiB, 20MiB, 24GB")
    return int(Decimal(match[1]) * unit_bytes)


def format_duration(value_s: float) -> str:
    """The shortest exact text: `1h`, `90s`, `500ms`, `0.0123s`."""
    exact = Decimal(repr(value_s))
    for unit, unit_s in _DURATION_UNITS_S.items():
        if exact and exact % unit_s == 0:
            return f"{exact / unit_s:.0f}{unit}"
    return f"{exact.normalize():f}s"


def format_size(value_bytes: int) -> str | int:
    """The text in the largest unit that divides it; a plain number where none but bytes does."""
    for unit, unit_bytes in _SIZE_UNITS_BYTES.items():
        if value_bytes and unit_bytes > 1 and value_bytes % unit_bytes == 0:
            return f"{value_bytes // unit_bytes}{unit}"
    return value_bytes


def _not_bool(value: Any) -> Any:
    # pydantic would take true for 1.
    if isinstance(value, bool):
        raise ValueError("is not a number")
    return value


def _between(
    least: float, most: float, form: Callable[[Any], str | int]
) -> Callable[[float], float]:
    # Not pydantic's own bounds: their errors cannot name a unit.
    def check(value: float) -> float:
        if value < least:
            raise ValueError(f"is less than {form(least)}")
        if value > most:
            raise ValueError(f"is more than {form(most)}")
        return value

    return check


_AS_DURATION = PlainSerializer(format_duration, return_type=str, when_used="json")
_AS_SIZE = PlainSerializer(format_size, return_type=str | int, when_used="json")

Duration = Annotated[
    float,
    BeforeValidator(parse_duration_s),
    Field(allow_inf_nan=False),
    AfterValidator(_between(0.0, _LONGEST_S, format_duration)),
    _AS_DURATION,
]
PositiveDuration = Annotated[
    float,
    BeforeValidator(parse_duration_s),
    Field(allow_inf_nan=False),
    AfterValidator(_between(_SHORTEST_S, _LONGEST_S, format_duration)),
    _AS_DURATION,
]
Size = Annotated[
    int,
    BeforeValidator(parse_size_bytes),
    AfterValidator(_between(0, _LARGEST_BYTES, format_size)),
    _AS_SIZE,
]
PositiveSize = Annotated[
    int,
    BeforeValidator(parse_size_bytes),
    AfterValidator(_between(1, _LARGEST_BYTES, format_size)),
    _AS_SIZE,
]
WholeNumber = Annotated[int, BeforeValidator(_not_bool)]
Ratio = Annotated[float, BeforeValidator(_not_bool), Field(ge=0, le=1, allow_inf_nan=False)]
Priority = Annotated[WholeNumber, Field(ge=1, le=10)]
