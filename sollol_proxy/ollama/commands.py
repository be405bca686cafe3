"""What a management request asks: pull, push, create, copy and delete, read as a host reads it.

Pull and delete ask for a model; create, copy and push name one as it lies on disk, so blanks and
source suffixes are read differently (see `names`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sollol_proxy.ollama import gojson, names
from sollol_proxy.ollama.gojson import Object, WrongType
from sollol_proxy.ollama.routes import Route

PULL = "/api/pull"
PUSH = "/api/push"
CREATE = "/api/create"
COPY = "/api/copy"
DELETE = "/api/delete"

_BLOBS = ("files", "adapters", "draft_files")

# Members whose type a host checks before it does anything, by route.
_REGISTRY_TEXTS = ("model", "name", "username", "password")
_TEXTS = {
    PULL: _REGISTRY_TEXTS,
    PUSH: _REGISTRY_TEXTS,
    CREATE: (
        *("model", "name", "from", "remote_host", "template", "system", "quantize"),
        *("quantization", "draft_quantize", "renderer", "parser", "requires"),
    ),
    COPY: ("source", "destination"),
    DELETE: ("model", "name"),
}
_FLAGS = {PULL: ("insecure", "stream"), PUSH: ("insecure", "stream"), CREATE: ("stream",)}
_OBJECTS = {CREATE: (*_BLOBS, "parameters", "info")}
_ARRAYS = {CREATE: ("messages",)}

# Both spellings name one file on a host.
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")

_BLANKS_AND_COMMAS = re.compile(r"[ \t\r\n,]*")
_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Command:
    """A management request. All but `stream` and `is_valid` are empty where it is unreadable.

    model: key of what is pulled, pushed, created or deleted, or of a copy's destination.
    written: the same as the client wrote it.
    source: key of what is copied or created from; "" where there is none.
    digests: of the blobs that a creation uses, each once, spelt `sha256:…`.
    is_cloud: whether it concerns a model that runs elsewhere, so a host's account or a stub.
    is_valid: False for what a host refuses unread: odd bodies, wrong types, names that are none.
    """

    model: str = ""
    written: str = ""
    source: str = ""
    digests: tuple[str, ...] = ()
    stream: bool = False
    insecure: bool = False
    is_cloud: bool = False
    is_valid: bool = False


def read_command(route: Route, body: bytes) -> Command:
    """What a body asks of a management route. Never raises, whatever the bytes are."""
    unreadable = Command(stream=route.streams_by_default)
    if route.path not in _TEXTS:
        return unreadable
    value = gojson.first_object(body)
    if value is None:
        return unreadable
    try:
        _check_types(route.path, value)
        return _command(route, value)
    except WrongType:
        return unreadable


def streaming_body(body: bytes) -> bytes:
    """The same JSON without `stream`, however it is spelt, so that a host streams its answer.

    Other members keep their bytes; what follows the JSON, which no host reads, goes. A body that
    is no readable object, or does not say `stream`, comes back as it is.
    """
    value = gojson.first_object(body)
    if value is None or "stream" not in value:
        return body
    text = body.decode("utf-8", "surrogateescape")
    try:
        kept = [written for key, written in _members(text) if key.lower() != "stream"]
    except (ValueError, RecursionError):  # the two decoders differ: leave it to the host
        return body
    return f"{{{','.join(kept)}}}".encode("utf-8", "surrogateescape")


def _check_types(path: str, value: Object) -> None:
    for key in _TEXTS[path]:
        gojson.text(value, key)
    for key in _FLAGS.get(path, ()):
        gojson.flag(value, key, False)
    for key in _OBJECTS.get(path, ()):
        gojson.members(value, key)
    for key in _ARRAYS.get(path, ()):
        gojson.items(value, key)


def _command(route: Route, value: Object) -> Command:
    """The command in a body whose members have the right types."""
    path = route.path
    copies, creates, asks = path == COPY, path == CREATE, path in (PULL, DELETE)
    if copies:
        written = gojson.text(value, "destination")
    else:
        # The CLI sends both keys, one of them empty.
        written = gojson.text(value, "model") or gojson.text(value, "name")
    source = gojson.text(value, "source" if copies else "from") if copies or creates else ""
    is_valid = names.is_valid(written) if asks else names.is_storable(written)
    if copies:
        is_valid = is_valid and names.is_storable(source)
    elif source:
        is_valid = is_valid and names.is_valid(source)
    return Command(
        model=names.canonical(written) if asks else names.stored(written),
        written=written,
        source=names.stored(source) if copies else names.canonical(source),
        digests=_digests(value) if creates else (),
        stream=gojson.flag(value, "stream", route.streams_by_default),
        insecure=path in (PULL, PUSH) and gojson.flag(value, "insecure", False),
        is_cloud=(
            names.is_cloud(written)
            or names.is_cloud(source)
            or (creates and bool(gojson.text(value, "remote_host")))
        ),
        is_valid=is_valid,
    )


def _digests(value: Object) -> tuple[str, ...]:
    digests: dict[str, None] = {}
    for key in _BLOBS:
        files = gojson.members(value, key)
        matches = (_DIGEST.fullmatch(gojson.text(files, path)) for path in files)
        digests |= {f"sha256:{match[1]}": None for match in matches if match}
    return tuple(digests)


def _members(text: str) -> Iterator[tuple[str, str]]:
    """The members of the first value of a text, an object: (key, member as written).

    Raises:
        ValueError, RecursionError: it is none.
    """
    position = text.index("{") + 1
    while True:
        start = _end(_BLANKS_AND_COMMAS, text, position)
        if text[start : start + 1] == "}":
            return
        key, key_end = _DECODER.raw_decode(text, start)
        _, position = _DECODER.raw_decode(text, _end(_COLON, text, key_end))
        yield key, text[start:position]


def _end(gap: re.Pattern[str], text: str, position: int) -> int:
    match = gap.match(text, position)
    return match.end() if match else position
