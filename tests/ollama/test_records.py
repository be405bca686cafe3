from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import JobKind, Observation
from sollol_proxy.ollama.describe import describe
from sollol_proxy.ollama.records import TAIL_BYTES, BodyFormat, BodyWatch, Ending, body_format
from sollol_proxy.ollama.replies import error_record
from sollol_proxy.ollama.routes import ROUTES, Plan, find
from tests.wire.recordings import Exchange, all_exchanges, http_exchanges

HTTP = http_exchanges()
ANSWERED = [
    e
    for e in all_exchanges()
    if e.status == 200
    and e.body is not None
    and e.ended != "client-closed"
    and find(e.method, e.raw_path).plan is Plan.BALANCE
]
NOT_COMPLETE = {
    "crash-generate": Ending.ERROR_RECORD,
    "crash-chat": Ending.ERROR_RECORD,
    "crash-v1-chat": Ending.UNFINISHED,
    "crash-v1-completions": Ending.UNFINISHED,
    "crash-v1-responses": Ending.UNFINISHED,
    "crash-v1-messages": Ending.UNFINISHED,
    "runaway-generate": Ending.UNFINISHED,
    "runaway-chat": Ending.UNFINISHED,
    "runaway-chat-nostream": Ending.UNFINISHED,
    "runaway-v1-chat": Ending.UNFINISHED,
    "server-term": Ending.UNFINISHED,
    "ollama-python/generate-stream-runaway#0": Ending.UNFINISHED,
    "ollama-js/generate-stream-runaway#0": Ending.UNFINISHED,
    "openai-python/chat-stream-crash#0": Ending.UNFINISHED,
}
GENERATE, CHAT, V1_CHAT = "/api/generate", "/api/chat", "/v1/chat/completions"


def watch_of(exchange: Exchange, chunks: int | None = None) -> BodyWatch:
    route = find(exchange.method, exchange.raw_path)
    facts = describe(route, exchange.body or b"", content_type=exchange.header("Content-Type"))
    watch = BodyWatch(route, facts.kind, body_format(exchange.answer_header("Content-Type")))
    for chunk in exchange.chunks[:chunks]:
        watch.feed(chunk)
    return watch


def fed(path: str, fmt: BodyFormat, *chunks: bytes, kind: JobKind | None = None) -> BodyWatch:
    route = find("POST", path)
    watch = BodyWatch(route, route.kind if kind is None else kind, fmt)
    for chunk in chunks:
        watch.feed(chunk)
    return watch


# --- the recordings ---------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", ANSWERED, ids=lambda exchange: exchange.id)
def test_ending_of_a_recorded_answer(exchange: Exchange) -> None:
    watch = watch_of(exchange)
    assert watch.ending() is NOT_COMPLETE.get(exchange.id, Ending.COMPLETE)
    assert watch.bytes_seen == len(exchange.answer)


@pytest.mark.parametrize("exchange", ANSWERED, ids=lambda exchange: exchange.id)
def test_recorded_stream_ends_on_a_record_boundary(exchange: Exchange) -> None:
    is_stream = body_format(exchange.answer_header("Content-Type")) in ("ndjson", "sse")
    assert watch_of(exchange).at_record_boundary is is_stream


def test_recordings_hold_every_ending_that_is_not_complete() -> None:
    assert NOT_COMPLETE.keys() <= {exchange.id for exchange in ANSWERED}


@pytest.mark.parametrize(
    ("id_", "expected"),
    [
        ("generate-stream", Observation(32, 33, 0.000904335, 0.143416, 4.091942)),
        ("generate-nostream", Observation(6, 33, 0.000950284, 0.143729, 4.013253)),
        ("generate-load", Observation()),
        ("crash-chat", Observation()),
        ("embed-single", Observation(7, None, 0.776406151)),
        ("embeddings", Observation()),
        ("v1-chat-stream", Observation(output_tokens=28)),  # it says nothing: records, counted
        ("v1-chat-stream-usage", Observation(6, 4)),
        ("v1-chat-nostream", Observation(6, 33)),
        ("v1-completions-stream", Observation(6, 4)),
        ("v1-embeddings-float", Observation(6)),
        ("v1-responses", Observation(6, 33)),
        ("v1-responses-stream", Observation(6, 4)),
        ("v1-messages", Observation(6, 6)),
        ("v1-messages-stream", Observation(6, 6)),
        ("crash-v1-messages", Observation()),
    ],
)
def test_observation_of_a_recorded_answer(id_: str, expected: Observation) -> None:
    assert watch_of(HTTP[id_]).observation() == expected


# --- cut tails and misleading text ------------------------------------------------------------

METRICS = {
    "total_duration": 10_000_000_000,
    "load_duration": 1_000_000_000,
    "prompt_eval_count": 7,
    "prompt_eval_duration": 2_000_000_000,
    "eval_count": 9,
    "eval_duration": 3_000_000_000,
}
SEEN = Observation(7, 9, 1.0, 2.0, 3.0)
TRAP = '{"done":true},"total_duration":5,"eval_count":5}\n\ndata: [DONE]\n\n"usage":{"a":1}'


def compact(doc: object) -> bytes:
    return json.dumps(doc, separators=(",", ":")).encode()


@pytest.mark.parametrize("newline", [b"\n", b""])
def test_record_is_read_when_its_context_is_longer_than_the_tail(newline: bytes) -> None:
    last = {"response": "", "done": True, "context": [229] * TAIL_BYTES, **METRICS}
    fmt = BodyFormat.NDJSON if newline else BodyFormat.JSON
    whole = b'{"response":"a","done":false}\n' * bool(newline) + compact(last) + newline
    pieces = [whole[at : at + 1000] for at in range(0, len(whole), 1000)]
    watch = fed(GENERATE, fmt, *pieces)
    assert watch.ending() is Ending.COMPLETE
    assert watch.observation() == SEEN


def test_long_answer_without_metrics_is_unfinished() -> None:
    cut = {"response": TRAP * 2000, "done": False}
    watch = fed(GENERATE, BodyFormat.JSON, compact(cut))
    assert watch.ending() is Ending.UNFINISHED
    assert watch.observation() == Observation()


def test_long_v1_answer_is_complete_with_its_usage() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 9}
    body = compact({"choices": [{"message": {"content": TRAP * 2000}}], "usage": usage})
    watch = fed(V1_CHAT, BodyFormat.JSON, body)
    assert (watch.ending(), watch.observation()) == (Ending.COMPLETE, Observation(7, 9))


@pytest.mark.parametrize(
    ("path", "fmt", "body"),
    [
        (GENERATE, BodyFormat.NDJSON, compact({"response": TRAP, "done": False}) + b"\n"),
        (V1_CHAT, BodyFormat.SSE, b"data: " + compact({"delta": TRAP}) + b"\n\n"),
        (V1_CHAT, BodyFormat.SSE, b"data: " + compact({"delta": "data: [DONE]"}) + b"\n\n"),
        ("/v1/messages", BodyFormat.SSE, b"data: " + compact('"type":"message_stop"') + b"\n\n"),
        ("/v1/responses", BodyFormat.SSE, b"data: " + compact('"type":"response.completed"')),
    ],
)
def test_ending_is_not_fooled_by_text(path: str, fmt: BodyFormat, body: bytes) -> None:
    assert fed(path, fmt, body).ending() is Ending.UNFINISHED


@given(st.text())
def test_ending_is_unfinished_whatever_the_text_when_nothing_is_done(text: str) -> None:
    line = compact({"response": text, "done": False}) + b"\n"
    assert fed(GENERATE, BodyFormat.NDJSON, line).ending() is Ending.UNFINISHED
    event = b"data: " + compact({"choices": [{"delta": {"content": text}}]}) + b"\n\n"
    assert fed(V1_CHAT, BodyFormat.SSE, event).ending() is Ending.UNFINISHED


# --- answers of a stopped runner, in one piece ------------------------------------------------

V1_COMPLETIONS, MESSAGES, RESPONSES = "/v1/completions", "/v1/messages", "/v1/responses"
RECORDED_WHOLE = {
    V1_CHAT: "v1-chat-nostream",
    V1_COMPLETIONS: "v1-completions",
    MESSAGES: "v1-messages",
    RESPONSES: "v1-responses",
}
JULY = " july" * 30


def recorded_whole(path: str) -> dict[str, Any]:
    doc: dict[str, Any] = json.loads(HTTP[RECORDED_WHOLE[path]].answer)
    return doc


def stopped(path: str, text: str = JULY) -> dict[str, Any]:
    """The recorded answer as Ollama sends it when it has stopped the run."""
    doc = recorded_whole(path)
    doc["usage"] = {
        key: 0 if isinstance(value, int) else value for key, value in doc["usage"].items()
    }
    if path == MESSAGES:
        del doc["stop_reason"]
        doc["content"] = [{"type": "text", "text": text}]
    elif path == RESPONSES:
        assert doc["status"] == "completed"
        doc["output"][0]["content"][0]["text"] = text
    else:
        choice = doc["choices"][0]
        choice["finish_reason"] = None
        if path == V1_CHAT:
            choice["message"]["content"] = text
        else:
            choice["text"] = text
    return doc


@pytest.mark.parametrize("text", ["", JULY, TRAP * 2000, '"finish_reason":"stop"' * 9])
@pytest.mark.parametrize("path", RECORDED_WHOLE)
def test_answer_of_a_stopped_run_is_unfinished(path: str, text: str) -> None:
    watch = fed(path, BodyFormat.JSON, compact(stopped(path, text)))
    assert watch.ending() is Ending.UNFINISHED
    assert watch.observation() == Observation()


@pytest.mark.parametrize("path", RECORDED_WHOLE)
def test_answer_with_a_count_or_a_reason_is_complete(path: str) -> None:
    whole = recorded_whole(path)
    counted = {**stopped(path), "usage": whole["usage"]}
    assert fed(path, BodyFormat.JSON, compact(counted)).ending() is Ending.COMPLETE
    without_usage = {key: value for key, value in stopped(path).items() if key != "usage"}
    assert fed(path, BodyFormat.JSON, compact(without_usage)).ending() is Ending.COMPLETE
    if path != RESPONSES:
        reasoned = {**whole, "usage": stopped(path)["usage"]}
        assert fed(path, BodyFormat.JSON, compact(reasoned)).ending() is Ending.COMPLETE


def test_answer_that_stopped_at_its_limit_is_complete() -> None:
    doc = recorded_whole(RESPONSES)
    doc.update(status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    doc["max_output_tokens"] = 1
    doc["usage"].update(output_tokens=0)
    assert fed(RESPONSES, BodyFormat.JSON, compact(doc)).ending() is Ending.COMPLETE


@pytest.mark.parametrize("path", [V1_CHAT, MESSAGES, RESPONSES])
def test_call_of_a_function_is_complete_though_nothing_was_counted(path: str) -> None:
    doc = stopped(path, "")
    if path == MESSAGES:
        doc["content"] = [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]
        doc["stop_reason"] = "tool_use"
    elif path == RESPONSES:
        doc["output"] = [{"type": "function_call", "name": "f", "arguments": "{}"}]
    else:
        doc["choices"][0]["message"]["tool_calls"] = [{"function": {"name": "f"}}]
        doc["choices"][0]["finish_reason"] = "tool_calls"
    assert fed(path, BodyFormat.JSON, compact(doc)).ending() is Ending.COMPLETE


@pytest.mark.parametrize("path", RECORDED_WHOLE)
def test_rendered_prompt_and_load_are_complete_though_nothing_was_counted(path: str) -> None:
    body = compact({**stopped(path, ""), "_debug_info": {"rendered_template": "x"}})
    assert fed(path, BodyFormat.JSON, body).ending() is Ending.COMPLETE
    loaded = fed(path, BodyFormat.JSON, compact(stopped(path, "")), kind=JobKind.LOAD)
    assert loaded.ending() is Ending.COMPLETE


# --- rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fmt", "body", "ending"),
    [
        (GENERATE, BodyFormat.NDJSON, b"", Ending.UNFINISHED),
        (GENERATE, BodyFormat.JSON, b"", Ending.UNFINISHED),
        (GENERATE, BodyFormat.OTHER, b"", Ending.COMPLETE),
        (GENERATE, BodyFormat.NDJSON, b'{"done":true}', Ending.COMPLETE),
        (GENERATE, BodyFormat.NDJSON, b'{"done":false}\n{"done":tr', Ending.UNFINISHED),
        (GENERATE, BodyFormat.JSON, b'{"done":false,"_debug_info":{}}', Ending.COMPLETE),
        (V1_CHAT, BodyFormat.SSE, b"data: {}\r\n\r\ndata: [DONE]\r\n\r\n", Ending.COMPLETE),
        (V1_CHAT, BodyFormat.SSE, b'data: {"error":{"message":"x"}}\n\n', Ending.ERROR_RECORD),
        ("/v1/messages", BodyFormat.SSE, b"event: error\ndata: {}\n\n", Ending.ERROR_RECORD),
        ("/v1/responses", BodyFormat.SSE, b"event: response.failed\ndata: {}\n\n",
         Ending.ERROR_RECORD),
        ("/v1/responses", BodyFormat.JSON, b'{"error":null,"usage":{}}', Ending.COMPLETE),
        ("/api/pull", BodyFormat.NDJSON, b'{"status":"success"}\n', Ending.COMPLETE),
        ("/api/pull", BodyFormat.NDJSON, b'{"status":"pulling"}\n', Ending.UNFINISHED),
        ("/api/pull", BodyFormat.NDJSON, b'{"error":"no"}\n', Ending.ERROR_RECORD),
        ("/api/signout", BodyFormat.JSON, b"null", Ending.COMPLETE),
        ("/nope", BodyFormat.SSE, b"data: x\n\n", Ending.COMPLETE),
        ("/v1/audio/transcriptions", BodyFormat.OTHER, b"hello", Ending.COMPLETE),
    ],
)  # fmt: skip
def test_ending_of_a_body(path: str, fmt: BodyFormat, body: bytes, ending: Ending) -> None:
    assert fed(path, fmt, *filter(None, [body])).ending() is ending


@pytest.mark.parametrize("kind", [JobKind.LOAD, JobKind.UNLOAD])
def test_load_and_unload_are_complete_with_their_one_object(kind: JobKind) -> None:
    for fmt in (BodyFormat.JSON, BodyFormat.SSE):
        assert fed("/v1/completions", fmt, b'{"x":1}', kind=kind).ending() is Ending.COMPLETE
    assert fed(CHAT, BodyFormat.JSON, b'{"model":"m"}', kind=kind).ending() is Ending.COMPLETE


@pytest.mark.parametrize("fmt", [BodyFormat.NDJSON, BodyFormat.SSE])
@pytest.mark.parametrize("path", [CHAT, V1_CHAT, "/v1/messages", "/v1/responses"])
def test_error_record_of_ours_is_recognised_as_one(path: str, fmt: BodyFormat) -> None:
    record = error_record(fmt, find("POST", path).dialect, "host a broke off")
    assert record is not None
    watch = fed(path, fmt, b"data: {}\n\n" if fmt is BodyFormat.SSE else b"{}\n", record)
    assert watch.ending() is Ending.ERROR_RECORD
    assert watch.at_record_boundary


@pytest.mark.parametrize(
    ("fmt", "body", "expected"),
    [
        (BodyFormat.NDJSON, b"", True),
        (BodyFormat.NDJSON, b"{}\n", True),
        (BodyFormat.NDJSON, b"{}", False),
        (BodyFormat.SSE, b"data: x\n\n", True),
        (BodyFormat.SSE, b"data: x\n", False),
        (BodyFormat.JSON, b"", True),
        (BodyFormat.JSON, b"{}\n", False),
        (BodyFormat.OTHER, b"x\n\n", False),
    ],
)
def test_at_record_boundary(fmt: BodyFormat, body: bytes, expected: bool) -> None:
    assert fed(CHAT, fmt, *filter(None, [body])).at_record_boundary is expected


def test_record_boundary_is_seen_when_its_newlines_come_in_two_chunks() -> None:
    assert fed(CHAT, BodyFormat.SSE, b"data: x\n", b"\n").at_record_boundary


@pytest.mark.parametrize(
    ("content_type", "fmt"),
    [
        ("application/x-ndjson", BodyFormat.NDJSON),
        ("Application/JSON; charset=utf-8", BodyFormat.JSON),
        ("text/event-stream", BodyFormat.SSE),
        ("text/plain", BodyFormat.OTHER),
        ("", BodyFormat.OTHER),
    ],
)
def test_body_format_of_a_content_type(content_type: str, fmt: BodyFormat) -> None:
    assert body_format(content_type) is fmt


@given(
    st.sampled_from(ROUTES),
    st.sampled_from(JobKind),
    st.sampled_from(BodyFormat),
    st.lists(st.binary(max_size=200) | st.sampled_from([b"{", b'"usage":{', b"\n\n", b"x" * 9000])),
)
def test_watch_never_raises_and_counts_all(
    route: object, kind: JobKind, fmt: BodyFormat, chunks: list[bytes]
) -> None:
    assert isinstance(route, type(ROUTES[0]))
    watch = BodyWatch(route, kind, fmt)
    for chunk in chunks:
        watch.feed(chunk)
    assert watch.ending() in Ending
    assert isinstance(watch.observation(), Observation)
    assert watch.bytes_seen == sum(map(len, chunks))


STREAMS = {
    "generate-stream": 28,
    "v1-chat-stream": 28,
    "v1-chat-stream-usage": 4,
    "v1-completions-stream": 4,
    "v1-responses-stream": 4,
    "v1-messages-stream": 6,
    "generate-nostream": 0,
    "v1-chat-nostream": 0,
    "embed-single": 0,
}


@pytest.mark.parametrize("id_", STREAMS)
def test_records_of_an_answer_are_counted_while_it_streams(id_: str) -> None:
    watch = watch_of(HTTP[id_])
    assert watch.records_seen == STREAMS[id_]


@pytest.mark.parametrize("path", [GENERATE, V1_CHAT, MESSAGES, RESPONSES])
def test_records_are_not_counted_in_their_text(path: str) -> None:
    text = '"done":false "finish_reason":null "type":"content_block_delta" .delta\ndata:'
    for fmt in (BodyFormat.SSE, BodyFormat.NDJSON):
        event = b"data: " + compact({"delta": {"content": text}}) + b"\n\n"
        assert fed(path, fmt, event).records_seen == 0


@given(st.sampled_from(list(STREAMS)), st.integers(1, 3000))
def test_nothing_depends_on_chunk_borders(id_: str, size: int) -> None:
    exchange = HTTP[id_]
    whole = watch_of(exchange)
    watch = BodyWatch(
        find(exchange.method, exchange.raw_path),
        JobKind.GENERATE,
        body_format(exchange.answer_header("Content-Type")),
    )
    for at in range(0, len(exchange.answer), size):
        watch.feed(exchange.answer[at : at + size])
    assert watch.observation() == whole.observation()
    assert watch.records_seen == whole.records_seen


class Teller:
    """Tells of whole records by and by, and only of the last three of them."""

    def __init__(self, watch: BodyWatch) -> None:
        self.watch = watch
        self.chunks: list[bytes] = []

    def chunk(self, piece: bytes) -> None:
        if (self.chunks or self.watch.is_between) and piece.endswith(self.watch.separator or b"?"):
            self.chunks.append(piece)
        else:
            self.tell()
            self.watch.feed(piece)

    def tell(self) -> None:
        content = self.watch.content
        chunks, self.chunks = self.chunks, []
        if chunks:
            self.watch.whole_chunks(
                [None, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in chunks[-3:])],
                sum(map(len, chunks)),
                sum(piece.count(content) for piece in chunks) if content else 0,
            )


@given(
    st.sampled_from(list(STREAMS)), st.lists(st.integers(0, 40), min_size=1), st.integers(1, 300)
)
def test_nothing_depends_on_how_a_chunk_is_told(id_: str, ways: list[int], size: int) -> None:
    exchange = HTTP[id_]
    whole, watch = watch_of(exchange), watch_of(exchange, chunks=0)
    teller = Teller(watch)
    watch.lagging = teller.tell
    for at, record in enumerate(exchange.chunks):
        way = ways[at % len(ways)]
        step = size if way < 5 else len(record)
        for begin in range(0, len(record), step):
            teller.chunk(record[begin : begin + step])
        if way == 40:
            assert watch.records_seen <= whole.records_seen
            assert watch.bytes_seen == sum(map(len, exchange.chunks[: at + 1]))
    assert watch.ending() is whole.ending()
    assert watch.observation() == whole.observation()
    assert watch.records_seen == whole.records_seen
    assert watch.bytes_seen == whole.bytes_seen
    assert watch.at_record_boundary == whole.at_record_boundary


vectors = st.lists(st.floats(-1, 1, width=32), min_size=200, max_size=900)


@given(vector=vectors, count=st.integers(0, 10**6), load_ns=st.integers(0, 10**12), at=st.data())
def test_counts_behind_vectors_are_found_without_reading_them(
    vector: list[float], count: int, load_ns: int, at: st.DataObject
) -> None:
    document = {"model": "m]", "embeddings": [vector, vector], "total_duration": load_ns + 1}
    document |= {"load_duration": load_ns, "prompt_eval_count": count}
    body = at.draw(st.sampled_from([compact(document), json.dumps(document).encode()]))
    cut = at.draw(st.integers(0, len(body)))
    watch = fed("/api/embed", BodyFormat.JSON, body[:cut], body[cut:])
    assert watch.ending() is Ending.COMPLETE
    assert watch.observation() == Observation(prompt_tokens=count, load_s=load_ns / 1e9)


@pytest.mark.parametrize("behind", [b"", b" ", b"\n", b',"done":true', b',"x":[1]', b',"x":"]"'])
@pytest.mark.parametrize("error", [b"", b'"error":"no",'])
def test_embedding_is_read_whole_where_nothing_is_told_behind_it(
    error: bytes, behind: bytes
) -> None:
    vector = compact([0.5] * 500)
    body = b'{"model":"m",%b"prompt_eval_count":7,"embeddings":[%b]%b}' % (error, vector, behind)
    watch = fed("/api/embed", BodyFormat.JSON, body)
    assert watch.ending() is (Ending.ERROR_RECORD if error else Ending.COMPLETE)
    if not error:
        assert watch.observation() == Observation(prompt_tokens=7)


ANY_NUMBER = st.integers(-3, 10**18) | st.floats(0, 5) | st.booleans() | st.none() | st.text()


@given(found=st.tuples(*[ANY_NUMBER] * 5), times=st.tuples(*[st.floats(0, 9) | st.none()] * 3))
def test_observation_has_the_counts_of_the_last_record_and_the_times_it_is_told(
    found: tuple[Any, ...], times: tuple[float | None, ...]
) -> None:
    prompt, output, load, prefill, decode = (
        value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
        for value in found
    )
    record = {"done": True, "prompt_eval_count": found[0], "eval_count": found[1]}
    record |= {"load_duration": found[2], "prompt_eval_duration": found[3]}
    watch = fed("/api/generate", BodyFormat.NDJSON, compact(record | {"eval_duration": found[4]}))
    first_byte_s, total_s, body_s = times
    is_timed = body_s is not None and decode is None and bool(output)
    assert watch.observation(
        first_byte_s=first_byte_s, total_s=total_s, body_s=body_s
    ) == Observation(
        prompt_tokens=prompt,
        output_tokens=output,
        load_s=None if load is None else load / 1e9,
        prefill_s=None if prefill is None else prefill / 1e9,
        decode_s=body_s if is_timed else None if decode is None else decode / 1e9,
        first_byte_s=first_byte_s,
        total_s=total_s,
        is_timed=is_timed,
    )


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings", "/v1/embeddings"])
def test_long_error_in_place_of_an_embedding_is_an_error(path: str) -> None:
    watch = fed(path, BodyFormat.JSON, compact({"error": "x" * 5000}))
    assert watch.ending() is Ending.ERROR_RECORD
