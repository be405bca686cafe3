"""Several hosts' lists as one, in Ollama's shape; and the lists as the core wants them.

A document that is odd costs nobody else anything: what has no usable name is left out, unknown
keys are kept. One host's document comes through unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import orjson

from sollol_proxy.core.types import InstalledModel, ResidentModel
from sollol_proxy.ollama.names import canonical, namespace, stored
from sollol_proxy.ollama.timestamps import instant_ns, unix_s

Entry: TypeAlias = dict[str, Any]

DEVELOPMENT_VERSION = "0.0.0"
"""What Ollama calls itself when it was built outside a release."""

_VERSION = re.compile(r"v?([0-9]{1,9}(?:\.[0-9]{1,9})*)(?:-([0-9A-Za-z.-]{1,64}))?(?:\+.*)?")
# Go's encoder escapes these so that the JSON can stand in HTML and in JavaScript.
_GO_ESCAPES = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)


def merge_tags(docs: Iterable[object]) -> Entry:
    """All hosts' `/api/tags` as one: each name once, newest `modified_at` first.

    Where hosts have different models under one name, the newest is listed. Like Ollama's own list
    it is ordered by whole seconds; within one second the hosts' order stays.
    """
    best: dict[str, Entry] = {}
    for doc in docs:
        for key, entry in _entries(doc):
            known = best.get(key)
            if known is None or _modified(entry) > _modified(known):
                best[key] = entry
    return {"models": sorted(best.values(), key=_newest_first("modified_at"))}


def merge_ps(docs: Iterable[object]) -> Entry:
    """All hosts' `/api/ps` as one: a row per name and digest, longest remaining first.

    A row of several hosts shows the sum of their memory, the latest expiry, and the shortest
    context, which is what a client can rely on wherever its request goes.
    """
    rows: dict[tuple[str, str], Entry] = {}
    for doc in docs:
        for key, entry in _entries(doc):
            row_key = (key, str(entry.get("digest", "")))
            known = rows.get(row_key)
            rows[row_key] = entry if known is None else _joined(known, entry)
    return {"models": sorted(rows.values(), key=_newest_first("expires_at"))}


def merge_versions(versions: Iterable[str]) -> str:
    """The lowest version: what every host can do. Pre-releases come before their release.

    Development builds say 0.0.0 and may be of any age, so they count only where nobody says
    more; so does what is no version. "0.0.0" when there is nothing at all.
    """
    said = [version for version in versions if version]
    released = [v for v in said if _VERSION.fullmatch(v) and _release(v) != _release("0.0.0")]
    if released:
        return min(released, key=_version_key)
    return DEVELOPMENT_VERSION if DEVELOPMENT_VERSION in said or not said else min(said)


def v1_models(tags_doc: object) -> Entry:
    """`GET /v1/models` from a `/api/tags` document; `data` is null without models, as Ollama's."""
    data = [_v1_entry(entry, _name(entry)) for _, entry in _entries(tags_doc)]
    return {"object": "list", "data": data or None}


def v1_model(tags_doc: object, name: str) -> Entry | None:
    """`GET /v1/models/:model`; None when no host has it. The id is spelt as asked."""
    wanted = canonical(name)
    for key, entry in _entries(tags_doc):
        if key == wanted:
            return _v1_entry(entry, name)
    return None


def encode(doc: object, *, newline: bool = False) -> bytes:
    """JSON as Go's encoder writes it: compact, and safe inside HTML.

    newline: end with one, as the handlers of `/v1` do.
    """
    try:
        text = orjson.dumps(doc)
    except orjson.JSONEncodeError:  # half a surrogate pair out of a URL
        compact = json.dumps(doc, ensure_ascii=False, separators=(",", ":"))
        text = compact.encode("utf-8", "replace")
    for plain, escaped in _GO_ESCAPES:
        text = text.replace(plain, escaped)
    return text + b"\n" if newline else text


def parse_tags(doc: object) -> dict[str, InstalledModel]:
    """A host's `/api/tags` by canonical name."""
    return {
        key: InstalledModel(
            name=key,
            digest=_text(entry, "digest"),
            size_bytes=_number(entry, "size"),
            capabilities=frozenset(
                item for item in _list(entry.get("capabilities")) if isinstance(item, str)
            ),
            spelling=_name(entry),
            modified_ns=instant_ns(entry.get("modified_at")) or 0,
            is_remote=bool(_text(entry, "remote_host")),
        )
        for key, entry in _entries(doc)
    }


def parse_ps(doc: object) -> dict[str, ResidentModel]:
    """A host's `/api/ps` by canonical name."""
    return {
        key: ResidentModel(
            name=key,
            digest=_text(entry, "digest"),
            size_bytes=_number(entry, "size"),
            size_vram_bytes=_number(entry, "size_vram"),
            context_length=_number(entry, "context_length"),
        )
        for key, entry in _entries(doc)
    }


def _entries(doc: object) -> Iterator[tuple[str, Entry]]:
    """Canonical name and entry of every model in a document that has one."""
    for entry in _list(doc.get("models") if isinstance(doc, dict) else None):
        if isinstance(entry, dict) and _name(entry):
            yield stored(_name(entry)), entry


def _name(entry: Entry) -> str:
    return _text(entry, "name") or _text(entry, "model")


def _text(entry: Entry, key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def _number(entry: Entry, key: str) -> int:
    value = entry.get(key)
    return max(value, 0) if isinstance(value, int) and not isinstance(value, bool) else 0


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _modified(entry: Entry) -> tuple[int, str]:
    """What decides between two entries of a name: age, then the digest so that order does not."""
    instant = instant_ns(entry.get("modified_at"))
    return (0 if instant is None else instant, _text(entry, "digest"))


def _newest_first(key: str) -> Callable[[Entry], int]:
    return lambda entry: -unix_s(entry.get(key))


def _latest(entry: Entry) -> tuple[bool, int]:
    """Sorts by expiry, an entry without a readable one first; Go's zero time is before 1970."""
    instant = instant_ns(entry.get("expires_at"))
    return instant is not None, instant or 0


def _joined(first: Entry, second: Entry) -> Entry:
    """One `/api/ps` row from the rows of two hosts; the first one's unknown keys."""
    row = dict(first)
    for key in ("size", "size_vram"):
        if key in first or key in second:
            row[key] = _number(first, key) + _number(second, key)
    if _latest(second) > _latest(first):
        row["expires_at"] = second["expires_at"]
    lengths = [_number(entry, "context_length") for entry in (first, second)]
    if any(lengths):
        row["context_length"] = min(length for length in lengths if length)
    return row


def _v1_entry(entry: Entry, id_: str) -> Entry:
    return {
        "id": id_,
        "object": "model",
        "created": unix_s(entry.get("modified_at")),
        "owned_by": namespace(_name(entry)),
    }


def _release(version: str) -> tuple[int, ...]:
    match = _VERSION.fullmatch(version)
    numbers = [int(number) for number in match[1].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _version_key(version: str) -> tuple[tuple[int, ...], bool, list[tuple[bool, int, str]], str]:
    """Sorts by release, pre-releases first, `rc2` before `rc10`."""
    match = _VERSION.fullmatch(version)
    suffix = (match[2] if match else None) or ""
    pieces = [
        (not piece.isdigit(), int(piece) if piece.isdigit() else 0, piece)
        for piece in re.findall(r"\d+|[^\d.]+", suffix)
    ]
    return _release(version), not suffix, pieces, version
