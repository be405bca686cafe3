"""What an answer's last bytes say: whether it ended as its dialect ends, and what was measured.

`feed` is on the hot path and only counts and keeps a tail; everything is read once, at the end.
A key such as `"total_duration":` in the tail is always a key: inside a JSON string its closing
quote would have a backslash before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any

import orjson

from sollol_proxy.core.types import JobKind, Observation
from sollol_proxy.ollama.routes import Dialect, Route

TAIL_BYTES = 16 * 1024
"""Kept of an answer: the last record but for the `context` or the text in front of its metrics."""

STREAM_TAIL_BYTES = 2 * 1024
"""Kept of what precedes the last record of a stream: usage comes in a record of its own."""

_UNREAD_CHUNKS = 16
"""Chunks that are looked at together, which costs as much as one does."""

_UNREAD_BYTES = 4 * 1024


class BodyFormat(StrEnum):
    """How an answer's body is cut into records."""

    NDJSON = "ndjson"
    SSE = "sse"
    JSON = "json"
    OTHER = "other"


class Ending(StrEnum):
    """How an answer with status 200 ended, its HTTP framing aside."""

    COMPLETE = "complete"
    ERROR_RECORD = "error_record"
    """Its last record is an error: Ollama's way to fail after the status is out."""
    UNFINISHED = "unfinished"
    """No last record: the host gave up without a word."""


_FORMATS = {
    "application/x-ndjson": BodyFormat.NDJSON,
    "text/event-stream": BodyFormat.SSE,
    "application/json": BodyFormat.JSON,
    "application/json; charset=utf-8": BodyFormat.JSON,  # as Ollama writes it
}

_SEPARATORS = {BodyFormat.NDJSON: b"\n", BodyFormat.SSE: b"\n\n"}

_GENERATING = frozenset({"/api/generate", "/api/chat"})
_PROGRESSING = frozenset({"/api/pull", "/api/push", "/api/create"})

_METRIC = re.compile(
    rb'"(total_duration|load_duration|prompt_eval_count|prompt_eval_duration|eval_count'
    rb'|eval_duration)":(\d{1,19})(?=[,}])'
)
_NATIVE_KEYS = (
    "prompt_eval_count",
    "eval_count",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
)
_METRICS = frozenset({"total_duration", *_NATIVE_KEYS})
# Named events have their type in the data, which quotes cannot fake; `[DONE]` is a whole line.
_DONE_LINES = (b"data: [DONE]", b"data:[DONE]")
_LAST_TYPES: Mapping[str, bytes] = {
    "/v1/messages": b'"type":"message_stop"',
    "/v1/responses": b'"type":"response.completed"',
}
# What a `/v1` answer in one piece has when its run came to an end. Within a text the quotes would
# have backslashes before them.
_REASONS: Mapping[str, bytes] = {
    "/v1/chat/completions": b'"finish_reason":"',
    "/v1/completions": b'"finish_reason":"',
    "/v1/messages": b'"stop_reason":"',
    # Its status is "completed" in any case; but what has called a function was not cut short.
    "/v1/responses": b'"type":"function_call"',
}
# What each record of a stream has that brings something of the answer, about one token, and no
# other record; within a text it would be written otherwise.
_CONTENT: Mapping[str, bytes] = {
    "/api/generate": b'"done":false',
    "/api/chat": b'"done":false',
    "/v1/chat/completions": b'"finish_reason":null',
    "/v1/completions": b'"finish_reason":null',
    "/v1/messages": b'"type":"content_block_delta"',
    "/v1/responses": b".delta\ndata:",
}
_VECTORS_ONLY = (b'{"embedding":[', b'{"object":"list",')
_VECTORS_AND_COUNTS = b'{"model":'
_VECTORS_BYTES = 1024
_DONE_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions"})
_USAGE_KEYS = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
_ENDS_WITH_A_WORD = _GENERATING | _PROGRESSING | _REASONS.keys()
"""Routes whose JSON answers say themselves that they are whole."""
_ERROR_STARTS = (b'data: {"error":', b"event: error\n", b"event: response.failed\n")


def body_format(content_type: str) -> BodyFormat:
    """The format that a `Content-Type` header announces."""
    known = _FORMATS.get(content_type)
    if known is not None:
        return known
    return _FORMATS.get(content_type.partition(";")[0].strip().lower(), BodyFormat.OTHER)


class BodyWatch:
    """Watches one answer's body go by.

    separator: between two records; None where they are not told apart.
    content: what every record has, and no other, that brings something of the answer; may be empty.
    lagging: called before anything is told here, for whoever counts whole records on its own and
        then tells by `whole_chunks`.
    """

    __slots__ = (
        "_bytes_seen",
        "_ending",
        "_format",
        "_kind",
        "_record",
        "_records_seen",
        "_route",
        "_tail",
        "_unread",
        "content",
        "lagging",
        "separator",
    )

    def __init__(self, route: Route, kind: JobKind, fmt: BodyFormat) -> None:
        self._route = route
        self._kind = kind
        self._format = fmt
        self._tail = bytearray()
        self.separator = _SEPARATORS.get(fmt)
        self.content = _CONTENT.get(route.path, b"") if self.separator else b""
        self._bytes_seen = 0
        self._records_seen = 0
        self._ending: Ending | None = None
        self._record: Mapping[str, Any] | None = None
        self._unread: list[bytes] = []
        """Chunks that were seen and not yet looked at."""
        self.lagging: Callable[[], None] | None = None

    @property
    def bytes_seen(self) -> int:
        """Bytes of the body so far."""
        if self._unread or self.lagging is not None:
            self.settle()
        return self._bytes_seen

    @property
    def records_seen(self) -> int:
        """Records so far that brought something of the answer; 0 where it does not stream."""
        self.settle()
        return self._records_seen

    def feed(self, chunk: bytes) -> None:
        """Count a chunk and remember its end. No parsing, and memory stays bounded."""
        unread = self._unread
        unread.append(chunk)
        if len(unread) >= _UNREAD_CHUNKS or len(chunk) > _UNREAD_BYTES:
            self.settle()

    def whole_chunks(self, last: Iterable[bytes | None], size: int, records: int) -> None:
        """Count chunks that each were whole records, though not all of them are known here.

        Args:
            last: some of them up to the last one, in their framing; enough for what ends a stream.
            size: payload of all of them, in bytes.
            records: those of them that brought something of the answer.
        """
        self._look_at_unread()
        self._ending = None
        self._bytes_seen += size
        self._records_seen += records
        tail = self._tail
        tail += self.separator or b""  # others that are not known came before, whole as well
        for raw in last:
            if raw is not None:
                tail += raw[raw.find(b"\r\n") + 2 : -2]
        if len(tail) > 2 * STREAM_TAIL_BYTES:
            self._shorten(tail)

    @property
    def is_between(self) -> bool:
        """Whether a new record is due; False where that cannot be told at a glance."""
        if self.separator is None:
            return False
        return (self._unread[-1] if self._unread else self._tail).endswith(self.separator)

    def settle(self) -> None:
        """Look at what is unread."""
        if self.lagging is not None:
            self.lagging()
        self._look_at_unread()

    def _look_at_unread(self) -> None:
        unread = self._unread
        if not unread:
            return
        new = unread[0] if len(unread) == 1 else b"".join(unread)
        unread.clear()
        self._ending = None
        self._bytes_seen += len(new)
        tail = self._tail
        before = len(tail)
        tail += new
        if self.content:  # which may lie across two chunks
            start = max(before - len(self.content) + 1, 0)
            self._records_seen += tail.count(self.content, start)
        if len(tail) > 2 * STREAM_TAIL_BYTES:
            self._shorten(tail)

    def _shorten(self, tail: bytearray) -> None:
        """Forget what no last record can need."""
        if self.separator:
            # Where the last record begins, as far as can be told: it may have just ended.
            begins = tail.rfind(self.separator, 0, len(tail) - len(self.separator))
            if begins > STREAM_TAIL_BYTES:
                del tail[: begins - STREAM_TAIL_BYTES]
        if len(tail) > 2 * TAIL_BYTES:
            del tail[:-TAIL_BYTES]

    @property
    def at_record_boundary(self) -> bool:
        """Whether a further record could be written here: after a whole one, or at the start."""
        self.settle()
        if not self._bytes_seen:
            return True
        if self._format is BodyFormat.NDJSON:
            return self._tail.endswith(b"\n")
        return self._format is BodyFormat.SSE and self._tail.endswith((b"\n\n", b"\r\n\r\n"))

    def ending(self) -> Ending:
        """How the body ended. To be asked once its HTTP framing said that it is complete."""
        if self._unread or self.lagging is not None:
            self.settle()
        if self._ending is None:
            self._ending = self._read_ending()
        return self._ending

    def _read_ending(self) -> Ending:
        if self._format is BodyFormat.OTHER:
            return Ending.COMPLETE
        if not self._bytes_seen:
            return Ending.UNFINISHED
        if self._format is BodyFormat.SSE:
            return self._sse_ending()
        record = self._without_vectors()
        if record is None:
            record = self._last_record()
        self._record = record
        if record is not None and record.get("error"):
            return Ending.ERROR_RECORD
        return Ending.COMPLETE if self._is_last(record) else Ending.UNFINISHED

    def observation(
        self,
        *,
        first_byte_s: float | None = None,
        total_s: float | None = None,
        body_s: float | None = None,
    ) -> Observation:
        """The measured facts in the last record; empty where the body did not end well.

        A stream that does not say how many tokens it had is as long as it had records.

        Args:
            first_byte_s: as the proxy saw it, and so is `total_s`.
            total_s: see `Observation`.
            body_s: how long a stream took to pass, for one whose dialect tells no durations.
        """
        if self.ending() is not Ending.COMPLETE:
            return Observation()
        load_s = prefill_s = decode_s = None
        if self._route.dialect is Dialect.NATIVE:
            prompt_tokens, output_tokens, load_ns, prefill_ns, decode_ns = _counts(
                self._metrics(self._record)
            )
            load_s = None if load_ns is None else load_ns / 1e9
            prefill_s = None if prefill_ns is None else prefill_ns / 1e9
            decode_s = None if decode_ns is None else decode_ns / 1e9
        else:
            usage = self._usage()
            prompt_tokens = _count(usage, "prompt_tokens", "input_tokens")
            output_tokens = _count(usage, "completion_tokens", "output_tokens")
            if output_tokens is None:
                output_tokens = self._records_seen or None
        is_timed = body_s is not None and decode_s is None and bool(output_tokens)
        return Observation(
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            load_s=load_s,
            prefill_s=prefill_s,
            decode_s=body_s if is_timed else decode_s,
            first_byte_s=first_byte_s,
            total_s=total_s,
            is_timed=is_timed,
        )

    def _is_last(self, record: Mapping[str, Any] | None) -> bool:
        """Whether a JSON record ends its answer. record: None = its start is not in the tail."""
        if self._route.path not in _ENDS_WITH_A_WORD:
            return True
        if self._route.path in _PROGRESSING:
            return record is not None and record.get("status") == "success"
        if self._answers_with_one_object:
            return True
        if self._route.path in _REASONS:
            return not self._ran_away()
        # `_debug_render_only` answers with the prompt, and says "done":false.
        has_said_done = record is not None and (record.get("done") or "_debug_info" in record)
        return bool(has_said_done) or "total_duration" in self._metrics(record)

    def _ran_away(self) -> bool:
        """Whether a `/v1` answer in one piece comes of a runner that was stopped or fell silent.

        Ollama then says 200 as always, but not why the answer ends, and its usage is all zeros:
        a whole answer has counted its prompt at least.
        """
        if b'"_debug_info":' in self._tail:  # `_debug_render_only`: a prompt, and no run at all
            return False
        usage = self._usage()
        counts = [usage[key] for key in _USAGE_KEYS if key in usage]
        return bool(counts) and not any(counts) and _REASONS[self._route.path] not in self._tail

    @property
    def _answers_with_one_object(self) -> bool:
        return self._kind in (JobKind.LOAD, JobKind.UNLOAD)

    def _sse_ending(self) -> Ending:
        event = self._last_event()
        if event.startswith(_ERROR_STARTS):
            return Ending.ERROR_RECORD
        path = self._route.path
        if path in _DONE_ROUTES and not self._answers_with_one_object:
            is_last = event.startswith(_DONE_LINES)
        else:
            is_last = _LAST_TYPES.get(path, b"") in event
        return Ending.COMPLETE if is_last else Ending.UNFINISHED

    def _last_event(self) -> bytes:
        text = bytes(self._tail).replace(b"\r\n", b"\n").strip(b"\n")
        return text.rpartition(b"\n\n")[2]

    def _last_line(self) -> bytes:
        text = bytes(self._tail).rstrip(b"\r\n")
        return text[text.rfind(b"\n") + 1 :] if self._format is BodyFormat.NDJSON else text

    def _last_record(self) -> Mapping[str, Any] | None:
        """The last JSON record; None when its start is gone, or it is no JSON object."""
        try:
            record = orjson.loads(self._last_line())
        except orjson.JSONDecodeError:
            return None
        return record if isinstance(record, dict) else None

    def _without_vectors(self) -> Mapping[str, Any] | None:
        """What stands behind the numbers of an embedding; None where it does not look like one.

        Reading some thousand floats to find one count took longer than relaying them.
        """
        is_large = self._kind is JobKind.EMBED and self._bytes_seen > _VECTORS_BYTES
        if not is_large or self._format is not BodyFormat.JSON:
            return None
        if self._tail.startswith(_VECTORS_ONLY):
            return {}
        if not self._tail.startswith(_VECTORS_AND_COUNTS):
            return None
        # `],"key":…}`: without its first two bytes it is an object's inside.
        try:
            rest: dict[str, Any] = orjson.loads(b"{" + self._tail[self._tail.rfind(b"]") + 2 :])
        except orjson.JSONDecodeError:
            return None
        return None if _METRICS.isdisjoint(rest) else rest

    def _is_cut(self) -> bool:
        """Whether the last record is longer than what was kept of it."""
        kept = bytes(self._tail).rstrip(b"\r\n")
        return self._bytes_seen > len(self._tail) and len(self._last_line()) == len(kept)

    def _metrics(self, record: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """The counts and durations: from the record, or from the end of one that was cut."""
        if record is not None:
            return record
        if not self._is_cut():
            return {}
        return {key.decode(): int(number) for key, number in _METRIC.findall(self._last_line())}

    def _usage(self) -> Mapping[str, Any]:
        """The last `usage` object of a `/v1` answer, which every shape has behind its text."""
        start = self._tail.rfind(b'"usage":{')
        if start < 0:
            return {}
        text = self._tail[start + len(b'"usage":') :].decode("utf-8", "replace")
        try:
            usage, _ = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            return {}
        return usage if isinstance(usage, dict) else {}


def _counts(metrics: Mapping[str, Any]) -> list[int | None]:
    """What stands under each of `_NATIVE_KEYS`; None where that is no count."""
    # A boolean is an `int` too, but not of that class.
    return [
        value if value.__class__ is int and value >= 0 else None
        for value in map(metrics.get, _NATIVE_KEYS)
    ]


def _count(values: Mapping[str, Any], *keys: str) -> int | None:
    """The first of the keys that holds a count."""
    for key in keys:
        value = values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None
