"""What the proxy owes each recorded exchange of `http.jsonl`: one table for every kind of pool."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from typing import Any

from sollol_proxy.ollama.names import canonical
from tests.support import RunningProxy
from tests.wire.recordings import Exchange, end_to_end, http_exchanges, replayable
from tests.wire.replay import Document, RawAnswer, ReplayHost, SeenRequest


class Owed(StrEnum):
    """What the proxy owes a recorded exchange."""

    EQUAL = "equal"
    """One host is asked and its answer comes through: body to the byte, status, reason, headers."""
    MERGED = "merged"
    """Answered from what the probes know: the union of what the hosts say."""
    BROADCAST = "broadcast"
    """Every host concerned carries it out, and it is answered once."""
    LOCAL = "local"
    """Answered by the proxy as Ollama would: who may call, preflights."""
    OURS = "ours"
    """A path that is ours and not Ollama's."""
    CUT = "cut"
    """The host cut its stream: the client has to notice."""
    RETRIED = "retried"
    """The host failed before its first byte: another one is asked, and the last one's word counts.

    Where that is none at all, the proxy refuses in its own words.
    """


_MERGED_PREFIXES = ("root-", "version-", "tags-", "ps-", "v1-models-")
_RETRIED_PREFIXES = ("crash-first-",)

_EQUAL = ("v1-models-one-slash", "options-no-origin")
_MERGED = (
    *("query-string", "http10", "http10-keepalive", "connection-close"),
    *("pipeline-1", "pipeline-3", "slot-wait-3", "slot-wait-4"),
    *("origin-ok", "origin-same", "host-local-name"),
)
_BROADCAST = (
    *("blob-head-404", "blob-head-200", "blob-head-bad-digest"),
    *("blob-post-201", "blob-post-existing", "blob-post-mismatch", "blob-post-bad-digest"),
    *("blob-post-model", "blob-post-existing-large", "blob-chunked-post"),
    *("blob-expect-100", "blob-expect-existing", "blob-expect-mismatch-name"),
    *("create-files-stream", "create-files-nostream"),
    *("create-from-stream", "create-from-nostream"),
    *("create-neither", "create-missing-blob", "create-from-unknown"),
    *("copy", "delete", "pull-offline", "pull-offline-nostream"),
    *("generate-unload", "chat-unload"),
)
_LOCAL = (
    *("options-no-origin-name", "options-origin", "options-origin-unknown-path"),
    *("options-origin-bad", "origin-bad", "origin-null", "origin-bad-404"),
    *("host-foreign", "host-foreign-ip", "no-host"),
)
_RETRIED = (*(f"queue-full-{number}" for number in range(3, 10)), "server-term-before-headers")

BY_ID: dict[str, Owed] = {
    **dict.fromkeys(_EQUAL, Owed.EQUAL),
    **dict.fromkeys(_MERGED, Owed.MERGED),
    **dict.fromkeys(_BROADCAST, Owed.BROADCAST),
    **dict.fromkeys(_LOCAL, Owed.LOCAL),
    **dict.fromkeys(_RETRIED, Owed.RETRIED),
    "metrics-404": Owed.OURS,
    "server-term": Owed.CUT,
}


def _owed(id_: str) -> Owed:
    if id_ in BY_ID:
        return BY_ID[id_]
    if id_.startswith(_MERGED_PREFIXES):
        return Owed.MERGED
    return Owed.RETRIED if id_.startswith(_RETRIED_PREFIXES) else Owed.EQUAL


RECORDED = {id_: replayable(exchange) for id_, exchange in http_exchanges().items()}
CASES = {id_: _owed(id_) for id_ in RECORDED}


def cases(wanted: Owed) -> list[str]:
    return [id_ for id_, what in CASES.items() if what is wanted]


ASKED_ONCE = frozenset({"blob-post-bad-digest", "create-missing-blob"})
"""Broadcasts that no host can carry out: one of them says so in its own words."""

ALREADY_THERE = frozenset({"blob-head-200", "blob-post-existing", "blob-expect-existing"}) | {
    "blob-post-existing-large"
}
"""Recorded when the host had the blob."""

TAGS: Document = json.loads(http_exchanges()["tags-many"].answer)


def tags_of(names: Iterable[str]) -> Document:
    """An `/api/tags` document with these models, which share the digest of one recorded."""
    template = TAGS["models"][0]
    listed = (canonical(name) for name in names)
    return {"models": [{**template, "name": name, "model": name} for name in listed]}


def put_in_place(host: ReplayHost, exchange: Exchange) -> None:
    """Give a host what the recorded one had when it was asked."""
    is_empty = exchange.id in ("tags-empty", "tags-empty-head", "v1-models-empty")
    host.tags = {"models": []} if is_empty else TAGS
    if exchange.id == "delete":
        host.tags = {"models": [*TAGS["models"], *tags_of(["det-copy"])["models"]]}
    if exchange.path == "/api/ps" and exchange.status == 200:
        host.ps = json.loads(exchange.answer)
    if exchange.id in ALREADY_THERE:
        host.blobs.add(exchange.path.removeprefix("/api/blobs/"))
    if exchange.path == "/api/create":
        files = json.loads(exchange.body or b"{}").get("files", {})
        host.blobs |= set(files.values()) if exchange.id != "create-missing-blob" else set()


def as_host_says(exchange: Exchange) -> Exchange:
    """What a host answers when the client gets this: a pull is a stream to it in any case."""
    if exchange.path != "/api/pull" or b'"stream": false' not in spaced(exchange.body):
        return exchange
    fields = json.loads(exchange.body or b"")
    body = json.dumps({key: value for key, value in fields.items() if key != "stream"}).encode()
    streamed = http_exchanges()["pull-offline"]
    return replace(streamed, id=exchange.id, body=body)


def spaced(body: bytes | None) -> bytes:
    """A JSON body as Python writes it; another body as it is."""
    try:
        return json.dumps(json.loads(body or b"")).encode()
    except ValueError:
        return body or b""


TIES = frozenset({"tags-many", "v1-models-many"})
"""Lists with several models of one second."""

COURSE = "X-Course"
"""A header of the client's that hosts see on whatever is asked of them for its request."""


def marked(exchange: Exchange) -> Exchange:
    """The exchange, known again at the hosts it leads to."""
    return replace(exchange, headers=(*exchange.headers, (COURSE, exchange.id)))


def asked_of(host: ReplayHost, exchange: Exchange) -> list[SeenRequest]:
    """The requests that a host got because of this one."""
    return [seen for seen in host.seen if seen.header(COURSE) == exchange.id]


def same_request(host: ReplayHost, exchange: Exchange) -> list[SeenRequest]:
    """Those of them that are the client's own."""
    key = (exchange.method, exchange.path)
    return [seen for seen in asked_of(host, exchange) if (seen.method, seen.path) == key]


def at_proxy(exchange: Exchange, proxy: RunningProxy) -> tuple[Exchange, dict[str, Any]]:
    """The exchange as it has to be for the proxy's own address, and arguments to ask it with."""
    if exchange.id == "host-local-name":
        return exchange, {"host_header": "foo.local"}
    if exchange.id == "options-no-origin-name":
        return exchange, {"host_header": f"localhost:{proxy.port}"}
    if exchange.id == "origin-same":
        own = ("Origin", f"http://127.0.0.1:{proxy.port}")
        others = tuple(pair for pair in exchange.headers if pair[0] != "Origin")
        return replace(exchange, headers=(*others, own)), {}
    return exchange, {}


def assert_equal(answer: RawAnswer, exchange: Exchange) -> None:
    """The answer is the recorded one, but for headers of the connection and those of ours."""
    assert (answer.status, answer.reason) == (exchange.status, exchange.reason)
    assert answer.body == exchange.answer
    assert answer.ended == exchange.ended
    passed = [pair for pair in answer.headers if not pair[0].lower().startswith("x-sollol-")]
    is_chunked = any(name.lower() == "transfer-encoding" for name, _ in answer.headers)
    with_length = is_chunked == (exchange.framing == "chunked")
    assert end_to_end(tuple(passed), with_length=with_length) == end_to_end(
        exchange.answer_headers, with_length=with_length
    )


def assert_equal_but_for_ties(answer: RawAnswer, exchange: Exchange) -> None:
    """The answer is the recorded list: models of one second have no fixed order in it."""
    in_order = replace(exchange, chunks=(_in_order(exchange.answer),))
    assert_equal(replace(answer, body=_in_order(answer.body)), in_order)


def _in_order(body: bytes) -> bytes:
    """A list of models, newest second first, by name within a second."""
    document = json.loads(body)
    for key, name, time in (("models", "name", "modified_at"), ("data", "id", "created")):
        if document.get(key):
            document[key].sort(key=lambda model: model[name])
            document[key].sort(key=lambda model: str(model[time])[:SECONDS], reverse=True)
    return json.dumps(document).encode()


SECONDS = len("2026-11-24T01:56:53")
