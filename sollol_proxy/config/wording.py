"""Mistakes in plain English: what pydantic found, said to whoever wrote the configuration."""

from __future__ import annotations

import json
import re
from typing import Any, get_args, get_origin

from pydantic_core import ErrorDetails

from sollol_proxy.config.document import Path
from sollol_proxy.config.hints import hint
from sollol_proxy.config.schema import Config, Section

_LONGEST_SHOWN = 60
_USERINFO = re.compile(r'[^/\s"]*@')

_NO_NUMBER = "is not a number"
_NO_WHOLE_NUMBER = "is not a whole number"
_NO_GROUP = "is not a group of `key: value` lines"
_CLAIMS = {
    "string_type": "is not text; put it in quotes if it is meant so",
    "string_unicode": "holds a character that cannot be written",
    "int_parsing": _NO_WHOLE_NUMBER,
    "int_type": _NO_WHOLE_NUMBER,
    "int_from_float": _NO_WHOLE_NUMBER,
    "int_parsing_size": _NO_WHOLE_NUMBER,
    "float_parsing": _NO_NUMBER,
    "float_type": _NO_NUMBER,
    "finite_number": _NO_NUMBER,
    "model_type": _NO_GROUP,
    "model_attributes_type": _NO_GROUP,
    "dict_type": _NO_GROUP,
    "tuple_type": "is not a list",
    "greater_than_equal": "is less than {ge}",
    "less_than_equal": "is more than {le}",
}


def dotted(path: Path) -> str:
    """`hosts[2].slots`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def describe(error: ErrorDetails, value: Any) -> str:
    """What is wrong, for one of pydantic's errors.

    value: as the user wrote it, which may be `${NAME}`; never what a variable holds.
    """
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        section = section_at(error["loc"][:-1])
        return f"unknown key{hint(str(error['loc'][-1]), section.model_fields)}"
    if kind in ("literal_error", "enum"):
        words = re.findall(r"'([^']*)'", context["expected"])
        return f"{quoted(value)} is not known here{hint(str(value), words)}"
    if kind == "value_error":
        return f"{quoted(value)} {context['error']}"
    claim = _CLAIMS.get(kind, "does not fit here").format_map(context)
    return f"{quoted(value)} {claim}"


def quoted(value: Any) -> str:
    """A value as a message shows it: short, on one line, without a password."""
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "a group of keys"
    text = _USERINFO.sub("***@", json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def printable(text: str) -> str:
    """The text with line ends and the like as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def section_at(path: Path) -> type[Section]:
    """The section that holds the keys below `path`: `("hosts", 2)` → HostSection."""
    section: type[Section] = Config
    parts = iter(path)
    for part in parts:
        if isinstance(part, str):
            annotation = section.model_fields[part].annotation
            section = next(kind for kind in (annotation, *get_args(annotation)) if is_section(kind))
            if get_origin(annotation) is dict:
                next(parts, None)  # The user's own word, such as a model's name.
    return section


def is_section(kind: Any) -> bool:
    """Whether a field's type is a section of the schema."""
    return isinstance(kind, type) and issubclass(kind, Section)
