"""Reading learnt facts back from JSON that may have been written by anybody.

Every function raises ValueError where the value is not what it has to be, so that one `except`
tells a good file from a bad one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, TypeVar

T = TypeVar("T")


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, not {type(value).__name__}")
    return value


def rows(value: object, width: int) -> list[list[Any]]:
    """A list of lists of `width` values."""
    if not isinstance(value, list):
        raise ValueError(f"expected a list, not {type(value).__name__}")
    for row in value:
        if not isinstance(row, list) or len(row) != width:
            raise ValueError(f"expected rows of {width} values")
    return value


def text(value: object) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError(f"expected a text, not {type(value).__name__}")
    return value


def number(value: object) -> float:
    """A finite number ≥ 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, not {type(value).__name__}")
    try:
        result = float(value)
    except OverflowError:
        raise ValueError("expected a number that is not that large") from None
    if not isfinite(result) or result < 0:
        raise ValueError(f"expected a finite number of at least 0, not {value}")
    return result


def positive(value: object) -> float:
    """A finite number > 0."""
    result = number(value)
    if not result:
        raise ValueError("expected a number above 0")
    return result


def whole(value: object) -> int:
    """A whole number, of either sign."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, not {type(value).__name__}")
    return value


def values_of(value: object, read: Callable[[object], T]) -> dict[str, T]:
    """A JSON object with every value read by `read`."""
    return {text(key): read(item) for key, item in mapping(value).items()}
