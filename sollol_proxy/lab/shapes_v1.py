"""How answers look on the `/v1` routes: OpenAI's three and Anthropic's one."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from sollol_proxy.lab.ask import CHAT, GENERATE, V1_CHAT, V1_COMPLETIONS, V1_MESSAGES, Ask
from sollol_proxy.lab.shapes import NativeShape, Result, Shape, encode_event, encode_line

_DONE = b"data: [DONE]\n\n"


def shape_for(ask: Ask, remote: Mapping[str, str] | None = None) -> Shape:
    """The shape of an answer that is text. remote: see `NativeShape`."""
    if ask.path in (GENERATE, CHAT):
        return NativeShape(ask, remote)
    if ask.path in (V1_CHAT, V1_COMPLETIONS):
        return OpenAIShape(ask)
    if ask.path == V1_MESSAGES:
        return MessagesShape(ask)
    return ResponsesShape(ask)


class OpenAIShape:
    """`/v1/chat/completions` and `/v1/completions`."""

    content_type = "text/event-stream"
    json_type = "application/json"

    def __init__(self, ask: Ask) -> None:
        self._is_chat = ask.path == V1_CHAT
        self._model = ask.model
        # Ollama draws its ids from 999 values; nobody may use them as keys.
        number = secrets.randbelow(999)
        self._id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{number}"
        self._created = int(time.time())
        self._wants_usage = bool((ask.body.get("stream_options") or {}).get("include_usage"))
        self._is_first = True

    def head(self) -> list[bytes]:
        """Nothing."""
        return []

    def token(self, text: str) -> bytes:
        """A chunk; the first one of a chat names the role."""
        if not self._is_chat:
            return encode_event(self._chunk({"text": text}, None))
        delta = {"role": "assistant", "content": text} if self._is_first else {"content": text}
        self._is_first = False
        return encode_event(self._chunk({"delta": delta}, None))

    def end(self, result: Result) -> list[bytes]:
        """Finish chunk, usage chunk where asked for, terminator: in one piece, as recorded."""
        empty: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
        piece = encode_event(self._chunk(empty, result.done_reason))
        if self._wants_usage:
            piece += encode_event(self._envelope([], chunk=True) | {"usage": _usage(result)})
        return [piece + _DONE]

    def broken(self) -> bytes:
        """An odd chunk without a model; the text of the error is lost."""
        empty: dict[str, Any] = {"delta": {"content": ""}} if self._is_chat else {"text": ""}
        return encode_event(self._chunk(empty, None) | {"model": ""})

    def whole(self, text: str, result: Result | None) -> bytes:
        """One object."""
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        )
        choice = self._choice(content, result.done_reason if result else None)
        return encode_line(self._envelope([choice], chunk=False) | {"usage": _usage(result)})

    def _chunk(self, content: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
        chunk = self._envelope([self._choice(content, finish_reason)], chunk=True)
        if self._wants_usage and not self._is_chat:
            chunk["usage"] = _usage(None)
        return chunk

    def _choice(self, content: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
        if self._is_chat:
            return {"index": 0, **content, "finish_reason": finish_reason}
        return {**content, "index": 0, "finish_reason": finish_reason}

    def _envelope(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        envelope: dict[str, Any] = {"id": self._id}
        rest = {"model": self._model, "system_fingerprint": "fp_ollama"}
        if self._is_chat:
            envelope["object"] = "chat.completion.chunk" if chunk else "chat.completion"
            return envelope | {"created": self._created} | rest | {"choices": choices}
        envelope["object"] = "text_completion"
        if chunk:
            return envelope | {"created": self._created, "choices": choices} | rest
        return envelope | {"created": self._created} | rest | {"choices": choices}


class MessagesShape:
    """`/v1/messages`."""

    content_type = "text/event-stream"
    json_type = "application/json"

    def __init__(self, ask: Ask) -> None:
        self._model = ask.model
        self._prompt_tokens_est = len(ask.prompt) // 4
        self._id = f"msg_{secrets.token_hex(12)}"

    def head(self) -> list[bytes]:
        """The message and its text block begin."""
        message = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "usage": {"input_tokens": self._prompt_tokens_est, "output_tokens": 0},
        }
        block = {"type": "text", "text": ""}
        return [
            _event("message_start", message=message),
            _event("content_block_start", index=0, content_block=block),
        ]

    def token(self, text: str) -> bytes:
        """A delta."""
        delta = {"type": "text_delta", "text": text}
        return _event("content_block_delta", index=0, delta=delta)

    def end(self, result: Result) -> list[bytes]:
        """Block, message and stream end."""
        usage = {"input_tokens": result.prompt_tokens, "output_tokens": result.output_tokens}
        delta = {"stop_reason": _stop_reason(result)}
        return [
            _event("content_block_stop", index=0),
            _event("message_delta", delta=delta, usage=usage),
            _event("message_stop"),
        ]

    def broken(self) -> bytes:
        """Nothing: the stream just ends."""
        return b""

    def whole(self, text: str, result: Result | None) -> bytes:
        """One object."""
        message: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [{"type": "text", "text": text}],
        }
        if result is not None:
            message["stop_reason"] = _stop_reason(result)
        output = result or Result("")
        return encode_line(
            message
            | {
                "usage": {
                    "input_tokens": output.prompt_tokens,
                    "output_tokens": output.output_tokens,
                }
            }
        )


class ResponsesShape:
    """`/v1/responses`."""

    content_type = "text/event-stream"
    json_type = "application/json"

    def __init__(self, ask: Ask) -> None:
        self._model = ask.model
        self._limit_tokens = ask.limit_tokens
        self._id = f"resp_{secrets.randbelow(1_000_000)}"
        self._item_id = f"msg_{secrets.randbelow(1_000_000)}"
        self._created = int(time.time())
        self._sequence = 0
        self._text: list[str] = []

    def head(self) -> list[bytes]:
        """The response, its item and its part begin."""
        response = self._response("in_progress", [], None)
        item = self._item("in_progress", [])
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
            self._event("response.output_item.added", item=item, output_index=0),
            self._part_event("response.content_part.added", part=_part("")),
        ]

    def token(self, text: str) -> bytes:
        """A delta."""
        self._text.append(text)
        return self._part_event("response.output_text.delta", delta=text, logprobs=[])

    def end(self, result: Result) -> list[bytes]:
        """Part, item and response end."""
        text = "".join(self._text)
        item = self._item("completed", [_part(text)])
        response = self._response("completed", [item], result)
        return [
            self._part_event("response.output_text.done", text=text, logprobs=[]),
            self._part_event("response.content_part.done", part=_part(text)),
            self._event("response.output_item.done", item=item, output_index=0),
            self._event("response.completed", response=response),
        ]

    def broken(self) -> bytes:
        """Nothing: the stream just ends."""
        return b""

    def whole(self, text: str, result: Result | None) -> bytes:
        """One object; it claims to be completed however it ended."""
        item = self._item("completed", [_part(text)])
        return encode_line(self._response("completed", [item], result or Result("")))

    def _event(self, name: str, **fields: Any) -> bytes:
        number = self._sequence
        self._sequence += 1
        return encode_event({**fields, "sequence_number": number, "type": name}, name)

    def _part_event(self, name: str, **fields: Any) -> bytes:
        return self._event(name, content_index=0, item_id=self._item_id, output_index=0, **fields)

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _response(
        self, status: str, output: list[dict[str, Any]], result: Result | None
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if result else None,
            "status": status,
            "incomplete_details": None,
            "model": self._model,
            "previous_response_id": None,
            "instructions": None,
            "output": output,
            "error": None,
            "tools": [],
            "tool_choice": "auto",
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "text": {"format": {"type": "text"}},
            "top_p": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": 1,
            "reasoning": None,
            "usage": _responses_usage(result) if result else None,
            "max_output_tokens": self._limit_tokens,
            "max_tool_calls": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }


def _event(name: str, **fields: Any) -> bytes:
    return encode_event({"type": name, **fields}, name)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(result: Result | None) -> dict[str, int]:
    result = result or Result("")
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.output_tokens,
        "total_tokens": result.prompt_tokens + result.output_tokens,
    }


def _responses_usage(result: Result) -> dict[str, Any]:
    return {
        "input_tokens": result.prompt_tokens,
        "output_tokens": result.output_tokens,
        "total_tokens": result.prompt_tokens + result.output_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _stop_reason(result: Result) -> str:
    return "max_tokens" if result.done_reason == "length" else "end_turn"
