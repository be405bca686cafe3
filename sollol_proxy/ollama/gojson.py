"""JSON request bodies as Go's decoder reads them, which is how a host will read them.

The first value of the body counts and what follows is ignored; keys match whatever their case;
of keys that match alike the last one wins; `null` stands for a missing key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import orjson

Object: TypeAlias = Mapping[str, Any]

_T = TypeVar("_T")

_BLANKS = " \t\r\n"


class WrongType(Exception):
    """A member has a type at which a host's decoder would stop."""


def first_object(body: bytes) -> Object | None:
    """The body's first value with lower-case keys; None when it is no readable object."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _slow_first_object(body)
    if not isinstance(value, dict):
        return None
    folded = folded_keys(value)
    # Two keys that differ in case only: their order in the text decides, which a dict forgets
    # when one of them is repeated.
    return folded if len(folded) == len(value) else _slow_first_object(body)


def folded_keys(value: Object) -> Object:
    """The object with lower-case keys; itself where it has no others."""
    for key in value:
        if key != key.lower():
            return {key.lower(): item for key, item in value.items()}
    return value


def text(value: Object, key: str) -> str:
    """A string member, "" when absent.

    Raises:
        WrongType: it is something else.
    """
    return _typed(value, key, "")


def flag(value: Object, key: str, default: bool) -> bool:
    """A boolean member.

    Raises:
        WrongType: it is something else.
    """
    return _typed(value, key, default)


def items(value: Object, key: str) -> list[Any]:
    """An array member, empty when absent.

    Raises:
        WrongType: it is something else.
    """
    return _typed(value, key, [])


def members(value: Object, key: str) -> dict[str, Any]:
    """An object member with its keys as written, empty when absent.

    Raises:
        WrongType: it is something else.
    """
    return _typed(value, key, {})


def _typed(value: Object, key: str, default: _T) -> _T:
    found = value.get(key)
    if found is None:
        return default
    if not isinstance(found, type(default)):
        raise WrongType(key)
    return found


def _slow_first_object(body: bytes) -> Object | None:
    """For what the fast decoder refuses and Go takes: trailing text, broken UTF-8, odd escapes."""
    decoder = json.JSONDecoder(object_pairs_hook=_last_wins, parse_constant=_refuse)
    try:
        value, _ = decoder.raw_decode(body.decode("utf-8", "replace").lstrip(_BLANKS))
    except (ValueError, RecursionError):
        return None
    return folded_keys(value) if isinstance(value, dict) else None


def _last_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which only the last of the keys that match alike is left, as written."""
    last = {key.lower(): (key, value) for key, value in pairs}
    return dict(last.values())


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
