"""Reads an inference request as Ollama does: what it asks for, or the error it deserves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sollol_proxy.ollama.names import is_valid

GENERATE = "/api/generate"
CHAT = "/api/chat"
EMBED = "/api/embed"
EMBEDDINGS = "/api/embeddings"
V1_CHAT = "/v1/chat/completions"
V1_COMPLETIONS = "/v1/completions"
V1_EMBEDDINGS = "/v1/embeddings"
V1_RESPONSES = "/v1/responses"
V1_MESSAGES = "/v1/messages"

EMBEDDING_PATHS = frozenset({EMBED, EMBEDDINGS, V1_EMBEDDINGS})
INFERENCE_PATHS = EMBEDDING_PATHS | {
    GENERATE,
    CHAT,
    V1_CHAT,
    V1_COMPLETIONS,
    V1_RESPONSES,
    V1_MESSAGES,
}

# An empty prompt on these brings the model into memory and says nothing.
_LOADING_PATHS = EMBEDDING_PATHS - {V1_EMBEDDINGS} | {GENERATE, CHAT, V1_COMPLETIONS}
_NAME_IS_REQUIRED = frozenset({CHAT, EMBEDDINGS, V1_RESPONSES, V1_MESSAGES})
_DURATION_UNITS_S = {
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(h|ms|us|µs|ns|m|s)")


class AskError(Exception):
    """A request that Ollama answers with an error of this status and text.

    extra: members beside the text. is_native: in native shape whatever the route's dialect.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        extra: Mapping[str, str] | None = None,
        is_native: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.extra = extra or {}
        self.is_native = is_native


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for.

    model: as the client wrote it. prompt: all text the model reads, in order.
    inputs: one text for each vector wanted. limit_tokens: None = until the model stops.
    keep_alive_s: None = not said; < 0 = for ever.
    is_load: no prompt; the model is only to be brought into memory, or out of it.
    """

    path: str
    model: str
    prompt: str = ""
    inputs: tuple[str, ...] = ()
    stream: bool = False
    limit_tokens: int | None = None
    num_ctx: int | None = None
    keep_alive_s: float | None = None
    is_load: bool = False
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_unload(self) -> bool:
        """Whether the model is to leave the memory."""
        return self.is_load and self.keep_alive_s == 0 and self.path in (GENERATE, CHAT)

    @property
    def is_embedding(self) -> bool:
        """Whether the answer is vectors."""
        return self.path in EMBEDDING_PATHS


def read_ask(path: str, body: bytes) -> Ask:
    """What the body of an inference route asks for.

    Raises:
        AskError: Ollama refuses it before it looks for the model.
    """
    fields = read_fields(path, body)
    model = str(fields.get("model") or "").strip()
    if not model:
        if path in _NAME_IS_REQUIRED:
            raise AskError(400, "model is required")
        raise AskError(404, "model '' not found")
    refuse_two_sources(model)
    if not is_valid(model):
        raise AskError(400, "invalid model name")
    _check_required(path, fields)
    inputs = _inputs(path, fields)
    prompt = "".join(inputs) if path in EMBEDDING_PATHS else _prompt(path, fields)
    options = _mapping(fields.get("options"))
    return Ask(
        path=path,
        model=model,
        prompt=prompt,
        inputs=inputs,
        stream=_stream(path, fields),
        limit_tokens=_limit(fields, options),
        num_ctx=_integer(options, "num_ctx"),
        keep_alive_s=_keep_alive_s(fields.get("keep_alive")) if path.startswith("/api/") else None,
        is_load=not prompt and path in _LOADING_PATHS,
        body=fields,
    )


def read_fields(path: str, body: bytes) -> dict[str, Any]:
    """The object in a request's body; keys in lower case, as Go does not tell case.

    Raises:
        AskError: there is none.
    """
    if not body.strip():
        raise AskError(400, "EOF" if path.startswith("/v1/") else "missing request body")
    try:
        # Only the first value counts, as with Go's decoder.
        fields, _ = json.JSONDecoder().raw_decode(body.decode(errors="replace").lstrip())
    except ValueError as error:
        raise AskError(400, str(error)) from error
    if not isinstance(fields, dict):
        raise AskError(400, "json: cannot unmarshal value into Go value of type api.Request")
    return {name.lower(): value for name, value in fields.items()}


def refuse_two_sources(name: str) -> None:
    """Refuse a name that wants a model both from here and from the cloud.

    Raises:
        AskError: it does.
    """
    if {"cloud", "local"} <= set(name.strip().lower().split(":")[1:]):
        raise AskError(400, f"use either :local or :cloud, not both: {json.dumps(name)}")


def duration_s(text: str) -> float:
    """Seconds of a Go duration: `10m`, `1h30m`, `-1.5s`, `0`.

    Raises:
        AskError: Go would not take it.
    """
    digits = text.lstrip("+-")
    sign = -1.0 if text.startswith("-") else 1.0
    if digits == "0":
        return 0.0
    total_s, position = 0.0, 0
    while part := _DURATION_PART.match(digits, position):
        total_s += float(part[1]) * _DURATION_UNITS_S[part[2]]
        position = part.end()
    if not digits or position < len(digits) or len(text) - len(digits) > 1:
        raise AskError(400, f"time: invalid duration {json.dumps(text)}")
    return sign * total_s


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or a list of parts that may hold some."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return ""


def _check_required(path: str, fields: Mapping[str, Any]) -> None:
    if path == V1_MESSAGES:
        limit = fields.get("max_tokens")
        if not isinstance(limit, int) or limit <= 0:
            raise AskError(400, "max_tokens is required and must be positive")
        if not fields.get("messages"):
            raise AskError(400, "messages is required")
    elif path == V1_CHAT and not fields.get("messages"):
        raise AskError(400, "[] is too short - 'messages'")
    elif path == V1_EMBEDDINGS and not fields.get("input"):
        raise AskError(400, "invalid input")


def _inputs(path: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    if path not in EMBEDDING_PATHS:
        return ()
    value = fields.get("prompt" if path == EMBEDDINGS else "input")
    if not value and not isinstance(value, int | float):
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise AskError(400, "invalid input type")
    return tuple(texts)


def _prompt(path: str, fields: Mapping[str, Any]) -> str:
    if path in (GENERATE, V1_COMPLETIONS):
        prompt = text_of(fields.get("prompt"))
        return str(fields.get("system") or "") + prompt if prompt else ""
    if path == V1_RESPONSES:
        asked = fields.get("input")
        turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        head = text_of(fields.get("instructions"))
    else:
        turns = fields.get("messages")
        head = text_of(fields.get("system"))
    if not isinstance(turns, list | None):
        raise AskError(400, "json: cannot unmarshal value into Go struct field")
    messages = [turn for turn in turns or () if isinstance(turn, dict)]
    if not messages:
        return ""
    # Ends so that the next turn of a conversation begins with this one and its answer.
    lines = [f"{message.get('role')}:{text_of(message.get('content'))}\n" for message in messages]
    return f"{head}\n{''.join(lines)}assistant:"


def _stream(path: str, fields: Mapping[str, Any]) -> bool:
    if path in EMBEDDING_PATHS:
        return False
    stream = fields.get("stream")
    return bool(path.startswith("/api/") if stream is None else stream)


def _limit(fields: Mapping[str, Any], options: Mapping[str, Any]) -> int | None:
    for value in (
        _integer(options, "num_predict"),
        fields.get("max_tokens"),
        fields.get("max_output_tokens"),
    ):
        if isinstance(value, int) and value > 0:
            return value
    return None


def _integer(options: Mapping[str, Any], name: str) -> int | None:
    value = options.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        # Ollama's own choice of status: a client error in a server error's dress.
        raise AskError(500, f'option "{name}" must be of type integer')
    return int(value)


def _keep_alive_s(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        return duration_s(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AskError(400, f"Unsupported type: '{_go_type(value)}'")
    return float(value)


def _go_type(value: Any) -> str:
    return {bool: "bool", list: "[]interface {}"}.get(type(value), "map[string]interface {}")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
