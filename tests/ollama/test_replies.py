from __future__ import annotations

import json
import re

import pytest

from sollol_proxy.ollama.records import BodyFormat
from sollol_proxy.ollama.replies import (
    QUEUE_FULL,
    ROOT,
    Reply,
    error_record,
    error_reply,
    model_not_found,
)
from sollol_proxy.ollama.routes import Dialect, find
from tests.wire.recordings import Exchange, http_exchanges

HTTP = http_exchanges()
# Words of a handler; what Ollama's converter finds itself is framed differently and not ours.
HANDLER_ERRORS = [
    *(HTTP[f"queue-full-{number}"] for number in range(3, 10)),
    HTTP["v1-chat-missing-model"],
    HTTP["v1-messages-missing"],
    HTTP["generate-missing-model"],
    HTTP["crash-first-chat-nostream"],
]


def without_id(body: bytes) -> bytes:
    return re.sub(rb"req_[0-9a-f]{24}", b"req_", body)


def check_like_the_recording(reply: Reply, exchange: Exchange) -> None:
    assert reply.status == exchange.status
    assert without_id(reply.body) == without_id(exchange.answer)
    assert reply.content_type == exchange.answer_header("Content-Type")
    assert len(reply.body) == int(exchange.answer_header("Content-Length"))


@pytest.mark.parametrize("exchange", HANDLER_ERRORS, ids=lambda exchange: exchange.id)
def test_error_reply_is_worded_as_recorded(exchange: Exchange) -> None:
    error = json.loads(exchange.answer)["error"]
    message = error if isinstance(error, str) else error["message"]
    dialect = find(exchange.method, exchange.raw_path).dialect
    assert exchange.status is not None
    check_like_the_recording(error_reply(dialect, exchange.status, message), exchange)


def test_queue_full_is_ollamas_text() -> None:
    reply = error_reply(Dialect.NATIVE, 503, QUEUE_FULL)
    check_like_the_recording(reply, HTTP["queue-full-3"])


def test_root_is_the_recorded_one() -> None:
    check_like_the_recording(ROOT, HTTP["root-get"])


@pytest.mark.parametrize(
    ("id_", "written"), [("v1-models-one-missing", "nosuch"), ("show-missing", "library/nosuch")]
)
def test_model_not_found_names_the_canonical_spelling(id_: str, written: str) -> None:
    exchange = HTTP[id_]
    reply = model_not_found(find(exchange.method, exchange.raw_path), written)
    check_like_the_recording(reply, exchange)


@pytest.mark.parametrize(
    ("status", "openai", "anthropic"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (404, "not_found_error", "not_found_error"),
        (413, "api_error", "request_too_large"),
        (429, "api_error", "rate_limit_error"),
        (500, "api_error", "api_error"),
        (503, "api_error", "overloaded_error"),
    ],
)
def test_error_reply_has_the_type_of_its_status(status: int, openai: str, anthropic: str) -> None:
    for dialect, expected in (Dialect.OPENAI, openai), (Dialect.ANTHROPIC, anthropic):
        doc = json.loads(error_reply(dialect, status, "x").body)
        assert doc["error"]["type"] == expected


@pytest.mark.parametrize(
    ("fmt", "dialect", "pattern"),
    [
        (BodyFormat.NDJSON, Dialect.NATIVE, rb'\{"error":"a \\u003c b"\}\n'),
        (BodyFormat.SSE, Dialect.OPENAI, rb'data: \{"error":\{"message":"a \\u003c b".*\}\n\n'),
        (
            BodyFormat.SSE,
            Dialect.ANTHROPIC,
            rb'event: error\ndata: \{"type":"error","error":\{.*"message":"a \\u003c b"\}.*\}\n\n',
        ),
    ],
)
def test_error_record_is_one_record(fmt: BodyFormat, dialect: Dialect, pattern: bytes) -> None:
    record = error_record(fmt, dialect, "a < b")
    assert record is not None
    assert re.fullmatch(pattern, record)


@pytest.mark.parametrize("fmt", [BodyFormat.JSON, BodyFormat.OTHER])
@pytest.mark.parametrize("dialect", Dialect)
def test_error_record_is_none_where_the_format_has_no_records(
    fmt: BodyFormat, dialect: Dialect
) -> None:
    assert error_record(fmt, dialect, "x") is None
