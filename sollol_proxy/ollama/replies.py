"""Answers that the proxy gives itself, worded as Ollama words them in each dialect."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from sollol_proxy.ollama.merge import encode
from sollol_proxy.ollama.names import display
from sollol_proxy.ollama.records import BodyFormat
from sollol_proxy.ollama.routes import Dialect, Route

JSON = "application/json"
JSON_UTF8 = "application/json; charset=utf-8"
PLAIN = "text/plain"
PLAIN_UTF8 = "text/plain; charset=utf-8"

QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"
"""Ollama's text for a full queue, two blanks included: clients compare it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. content_type: None = no such header, as on Ollama's empty bodies."""

    status: int
    body: bytes = b""
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


ROOT = Reply(200, b"Ollama is running", PLAIN_UTF8)

_OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def error_reply(dialect: Dialect, status: int, message: str) -> Reply:
    """An error as a handler of Ollama's would send it: before any stream has begun."""
    if dialect is Dialect.NATIVE:
        return Reply(status, encode({"error": message}), JSON_UTF8)
    doc = _openai(status, message) if dialect is Dialect.OPENAI else _anthropic(status, message)
    return Reply(status, encode(doc, newline=True), JSON)


def model_not_found(route: Route, model_as_written: str) -> Reply:
    """404 for `GET /v1/models/:model` and `/api/show`, which name the canonical spelling."""
    return error_reply(route.dialect, 404, f"model '{display(model_as_written)}' not found")


def error_record(fmt: BodyFormat, dialect: Dialect, message: str) -> bytes | None:
    """A record that tells a client its stream has failed; None where the format has none.

    To be written on a record boundary only. Ollama itself does so on its native routes; on
    `/v1` its streams just stop, while the vendors' own servers send what is sent here.
    """
    if fmt is BodyFormat.NDJSON:
        return encode({"error": message}, newline=True)
    if fmt is not BodyFormat.SSE:
        return None
    if dialect is Dialect.ANTHROPIC:
        return b"event: error\ndata: " + encode(_anthropic(500, message)) + b"\n\n"
    return b"data: " + encode(_openai(500, message)) + b"\n\n"


def _openai(status: int, message: str) -> dict[str, object]:
    kind = _OPENAI_TYPES.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _anthropic(status: int, message: str) -> dict[str, object]:
    return {
        "type": "error",
        "error": {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": message},
        "request_id": _request_id(status, message),
    }


def _request_id(status: int, message: str) -> str:
    """`req_` and 24 hex digits, as Ollama's. Equal errors have equal ids, so this stays pure."""
    return f"req_{sha256(f'{status} {message}'.encode('utf-8', 'replace')).hexdigest()[:24]}"
