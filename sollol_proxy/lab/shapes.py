"""How answers look on Ollama's native routes, and what all dialects have in common.

A shape turns tokens and a `Result` into the bytes of one request's answer. The order of keys is
the recorded server's.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from sollol_proxy.lab.ask import CHAT, Ask

JSON_TYPE = "application/json; charset=utf-8"

_ERROR_TYPES_OPENAI = {400: "invalid_request_error", 404: "not_found_error"}
_ERROR_TYPES_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}

BROKEN = "an error was encountered while running the model: unexpected EOF"


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of a finished answer; durations in seconds.

    done_reason: `stop`, `length`, `load` or `unload`.
    context: the tokens of prompt and answer, as `/api/generate` reports them.
    """

    done_reason: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    total_s: float = 0.0
    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    context: tuple[int, ...] | None = None

    def metrics(self) -> dict[str, int]:
        """The native fields, nanoseconds; zeros are left out as Ollama leaves them out."""
        fields = {
            "total_duration": _nanoseconds(self.total_s),
            "load_duration": _nanoseconds(self.load_s),
            "prompt_eval_count": self.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(self.prefill_s),
            "eval_count": self.output_tokens,
            "eval_duration": _nanoseconds(self.decode_s),
        }
        return {name: value for name, value in fields.items() if value}


class Shape(Protocol):
    """The bytes of one answer. One object for one request."""

    content_type: str
    json_type: str

    def head(self) -> list[bytes]:
        """What comes before the first token, one chunk each."""

    def token(self, text: str) -> bytes:
        """One output token."""

    def end(self, result: Result) -> list[bytes]:
        """What comes after the last token, one chunk each."""

    def broken(self) -> bytes:
        """What a stream shows of an error of the runner; empty where the dialect loses it."""

    def whole(self, text: str, result: Result | None) -> bytes:
        """The answer without streaming; None = it ended without an end."""


class NativeShape:
    """NDJSON of `/api/generate` and `/api/chat`."""

    content_type = "application/x-ndjson"
    json_type = JSON_TYPE

    def __init__(self, ask: Ask, remote: Mapping[str, str] | None = None) -> None:
        """remote: what the answer says of another host that gave it."""
        self._head: dict[str, Any] = {"model": ask.model, **(remote or {})}
        self._is_chat = ask.path == CHAT

    def head(self) -> list[bytes]:
        """Nothing."""
        return []

    def token(self, text: str) -> bytes:
        """A record."""
        return encode_line(self._record(text) | {"done": False})

    def end(self, result: Result) -> list[bytes]:
        """The last record."""
        return [encode_line(self._record("") | self._last(result))]

    def broken(self) -> bytes:
        """An error record."""
        return encode_line({"error": BROKEN})

    def whole(self, text: str, result: Result | None) -> bytes:
        """One object."""
        last = {"done": False} if result is None else self._last(result)
        return encode(self._record(text) | last)

    def _record(self, text: str) -> dict[str, Any]:
        record = self._head | {"created_at": timestamp()}
        if self._is_chat:
            return record | {"message": {"role": "assistant", "content": text}}
        return record | {"response": text}

    def _last(self, result: Result) -> dict[str, Any]:
        last: dict[str, Any] = {"done": True, "done_reason": result.done_reason}
        if result.context is not None and not self._is_chat:
            last["context"] = result.context
        return last | result.metrics()


def error_body(path: str, status: int, message: str) -> bytes:
    """An error in the shape of the path's dialect."""
    if path.startswith("/v1/messages"):
        error = {"type": _ERROR_TYPES_ANTHROPIC.get(status, "api_error"), "message": message}
        return encode_line(
            {"type": "error", "error": error, "request_id": f"req_{secrets.token_hex(12)}"}
        )
    if path.startswith("/v1/"):
        kind = _ERROR_TYPES_OPENAI.get(status, "api_error")
        return encode_line(
            {"error": {"message": message, "type": kind, "param": None, "code": None}}
        )
    return encode({"error": message})


def error_type(path: str) -> str:
    """The content type of `error_body`."""
    return "application/json" if path.startswith("/v1/") else JSON_TYPE


def encode(document: Mapping[str, Any]) -> bytes:
    """Compact JSON with `<`, `>` and `&` escaped, as Go writes it."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_GO_ESCAPES).encode()


def encode_line(document: Mapping[str, Any]) -> bytes:
    """`encode` and a newline."""
    return encode(document) + b"\n"


def encode_event(document: Mapping[str, Any], name: str = "") -> bytes:
    """A server-sent event, with an `event:` line where it has a name."""
    prefix = f"event: {name}\n".encode() if name else b""
    return prefix + b"data: " + encode(document) + b"\n\n"


def timestamp(moment: datetime | None = None) -> str:
    """RFC 3339 in UTC; now, or the moment given."""
    return (moment or datetime.now(UTC)).isoformat().replace("+00:00", "Z")


_GO_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
