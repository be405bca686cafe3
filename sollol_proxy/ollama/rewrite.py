"""JSON request bodies with one value exchanged and every other byte as the client sent it.

Nothing is done to a body that cannot be told apart for certain: two readers of one text may differ
where it is odd, so each result is read again, and has to be what was meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sollol_proxy.ollama import gojson
from sollol_proxy.ollama.options import NUM_CTX, whole

_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_MEMBER = re.compile(rb"[ \t\r\n,]*(" + _STRING + rb")[ \t\r\n]*:[ \t\r\n]*", re.DOTALL)
_SIMPLE = re.compile(_STRING + rb"|[^ \t\r\n,}\]]*", re.DOTALL)
_EMPTY = re.compile(rb"[ \t\r\n]*}")
_TOKEN = re.compile(_STRING + rb"|[{}\[\]]", re.DOTALL)


class Unclear(Exception):
    """A body that hosts may read in another way than we do, or refuse."""


@dataclass(frozen=True, slots=True)
class _Span:
    """A value's place in a body, and the key in front of it."""

    key: str
    start: int
    end: int


def with_model(body: bytes, name: str) -> bytes | None:
    """The body with another model's name where Ollama's decoder takes it from.

    That is the last of the keys that match `model` whatever their case and escapes. None when
    the body is no readable object, or that key is missing or holds no string.
    """
    before = gojson.first_object(body)
    if before is None or not isinstance(before.get("model"), str):
        return None
    spans = [span for span in _members(body) if span.key.lower() == "model"]
    if not spans:
        return None
    rewritten = _spliced(body, spans[-1].start, spans[-1].end, json.dumps(name))
    return rewritten if gojson.first_object(rewritten) == {**before, "model": name} else None


def num_ctx_of(body: bytes) -> int | None:
    """The context length that a native request asks for; None = none.

    As Go reads it: `options` given twice are one object, and a later `null` empties it; within
    them keys match by case.

    Raises:
        Unclear: the body, or what it says of this, is not what a host takes.
    """
    _readable(body)
    found = _merged_options(body).get(NUM_CTX)
    number = whole(found)
    if found is not None and number is None:
        raise Unclear(NUM_CTX)
    return number


def with_num_ctx(body: bytes, num_ctx: int) -> bytes:
    """The body of a native request that asks for this context length.

    Raises:
        Unclear: see `num_ctx_of`.
    """
    before = _readable(body)
    wanted = {**_merged_options(body), NUM_CTX: num_ctx}
    rewritten = _with_num_ctx(body, num_ctx)
    after = _readable(rewritten)
    if {**before, "options": None} != {**after, "options": None}:
        raise Unclear("body")
    if _merged_options(rewritten) != wanted:
        raise Unclear("options")
    return rewritten


def _with_num_ctx(body: bytes, num_ctx: int) -> bytes:
    member = f'"{NUM_CTX}":{num_ctx}'
    options = [span for span in _members(body) if span.key.lower() == "options"]
    if not options:
        return _inserted(body, body.find(b"{") + 1, f'"options":{{{member}}}')
    last = options[-1]
    if body[last.start : last.start + 1] == b"{":
        inside = [span for span in _members(body, last.start) if span.key == NUM_CTX]
        if inside:
            return _spliced(body, inside[-1].start, inside[-1].end, str(num_ctx))
        return _inserted(body, last.start + 1, member)
    # It is null. One that has emptied another has to stay.
    kept = "" if len(options) == 1 else 'null,"options":'
    return _spliced(body, last.start, last.end, f"{kept}{{{member}}}")


def _readable(body: bytes) -> gojson.Object:
    value = gojson.first_object(body)
    if value is None:
        raise Unclear("body")
    return value


def _merged_options(body: bytes) -> Mapping[str, Any]:
    """What Go makes of all the `options` of a readable body.

    Raises:
        Unclear: one of them is neither an object nor null.
    """
    merged: dict[str, Any] = {}
    for span in _members(body):
        if span.key.lower() != "options":
            continue
        try:
            value = json.loads(body[span.start : span.end].decode("utf-8", "replace"))
        except (ValueError, RecursionError) as error:
            raise Unclear("options") from error
        if value is None:
            merged = {}
        elif isinstance(value, dict):
            merged |= value
        else:
            raise Unclear("options")
    return merged


def _spliced(body: bytes, start: int, end: int, text: str) -> bytes:
    return body[:start] + text.encode() + body[end:]


def _inserted(body: bytes, start: int, member: str) -> bytes:
    """The body with a member more at the start of an object's inside."""
    is_empty = _EMPTY.match(body, start) is not None
    return _spliced(body, start, start, member if is_empty else f"{member},")


def _members(body: bytes, start: int = 0) -> Iterator[_Span]:
    """The members of the first object from `start` on, a valid one, in order."""
    position = body.find(b"{", start) + 1
    while member := _MEMBER.match(body, position):
        position = _end_of_value(body, member.end())
        key = json.loads(member[1].decode("utf-8", "replace"))
        yield _Span(key, member.end(), position)


def _end_of_value(body: bytes, start: int) -> int:
    if body[start : start + 1] in (b"{", b"["):
        depth = 0
        for token in _TOKEN.finditer(body, start):
            first = body[token.start()]
            depth += (first in b"{[") - (first in b"}]")
            if not depth:
                return token.end()
    simple = _SIMPLE.match(body, start)
    return simple.end() if simple else start
