"""Between Ollama's text requests and those of the engine's own server (llama.cpp's).

`/api/chat` becomes `/v1/chat/completions`. `/api/generate` becomes `/completion` on tokens, so
that `context`, the tokens of the conversation so far, can go in and out.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientResponse, ClientSession

from sollol_proxy.lab.ask import CHAT, Ask, AskError, text_of
from sollol_proxy.lab.shapes import Result

# Options that both call the same.
_SHARED_OPTIONS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "seed",
    "stop",
    "repeat_last_n",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer as the engine sends it; the last one carries the result."""

    text: str
    result: Result | None = None


async def pieces(session: ClientSession, ask: Ask) -> AsyncGenerator[Piece, None]:
    """The answer to a native text request, piece by piece.

    session: its base address is the engine's. Breaking off closes the connection, which makes
    the engine stop.

    Raises:
        AskError: the engine refuses, or fails on its way.
    """
    reader: _ChatReader | _GenerateReader
    if ask.path == CHAT:
        path, body, reader = "/v1/chat/completions", _chat_body(ask), _ChatReader()
    else:
        prompt = await _prompt_tokens(session, ask)
        path, body = "/completion", _generate_body(ask, prompt)
        reader = _GenerateReader(prompt, is_raw=bool(ask.body.get("raw")))
    async with session.post(path, json=body) as response:
        await raise_for_engine_error(response)
        async for event in _events(response):
            if piece := reader.piece(event):
                yield piece


async def raise_for_engine_error(response: ClientResponse) -> None:
    """Raise AskError for an answer of the engine that is an error."""
    if response.status >= 400:
        raise AskError(response.status, _error_text(await response.read()))


class _ChatReader:
    """Reads the events of `/v1/chat/completions`; the finish comes before the figures."""

    def __init__(self) -> None:
        self._finish_reason = "stop"

    def piece(self, event: Mapping[str, Any]) -> Piece | None:
        if timings := event.get("timings"):
            return Piece("", _result(timings, self._finish_reason, None))
        for choice in event.get("choices") or ():
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            if text := choice["delta"].get("content"):
                return Piece(text)
        return None


class _GenerateReader:
    """Reads the events of `/completion` and collects the tokens for `context`."""

    def __init__(self, prompt: list[int], *, is_raw: bool) -> None:
        self._tokens = list(prompt)
        self._is_raw = is_raw

    def piece(self, event: Mapping[str, Any]) -> Piece | None:
        self._tokens += event.get("tokens") or ()
        if not event.get("stop"):
            text = event.get("content")
            return Piece(text) if text else None
        reason = "length" if event.get("stop_type") == "limit" else "stop"
        context = None if self._is_raw else tuple(self._tokens)
        return Piece(event.get("content") or "", _result(event["timings"], reason, context))


def _result(
    timings: Mapping[str, Any], done_reason: str, context: tuple[int, ...] | None
) -> Result:
    return Result(
        done_reason=done_reason,
        prompt_tokens=timings["prompt_n"] + timings["cache_n"],
        output_tokens=timings["predicted_n"],
        prefill_s=timings["prompt_ms"] / 1000,
        decode_s=timings["predicted_ms"] / 1000,
        context=context,
    )


async def _events(response: ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each `data:` line until the stream ends."""
    async for line in response.content:
        if line.startswith((b"error:", b'data: {"error"')):
            raise AskError(500, _error_text(line.partition(b":")[2]))
        if line.startswith(b"data: {"):
            yield json.loads(line[len(b"data: ") :])


def _error_text(body: bytes) -> str:
    try:
        error = json.loads(body)
    except ValueError:
        return body.decode(errors="replace").strip()
    error = error.get("error", error) if isinstance(error, dict) else error
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)


async def _prompt_tokens(session: ClientSession, ask: Ask) -> list[int]:
    """The tokens the model is to read: those of `context`, then those of the prompt."""
    prompt, system = text_of(ask.body.get("prompt")), text_of(ask.body.get("system"))
    if not ask.body.get("raw"):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        answer = await ask_engine(session, "/apply-template", {"messages": messages})
        prompt = answer["prompt"]
    context = ask.body.get("context") or []
    body = {"content": prompt, "add_special": not context, "parse_special": True}
    tokens = (await ask_engine(session, "/tokenize", body))["tokens"]
    return [*context, *tokens]


async def ask_engine(session: ClientSession, path: str, body: Mapping[str, Any]) -> Any:
    """The engine's JSON answer; AskError when it is an error."""
    async with session.post(path, json=body) as response:
        await raise_for_engine_error(response)
        return await response.json()


def _generate_body(ask: Ask, prompt: list[int]) -> dict[str, Any]:
    body = _options(ask) | {"prompt": prompt, "stream": True, "return_tokens": True}
    if ask.limit_tokens is not None:
        body["n_predict"] = ask.limit_tokens
    if schema := _schema(ask):
        body["json_schema"] = schema
    return body


def _chat_body(ask: Ask) -> dict[str, Any]:
    messages = [
        {"role": str(message.get("role")).lower(), "content": text_of(message.get("content"))}
        for message in ask.body.get("messages") or ()
        if isinstance(message, dict)
    ]
    body = _options(ask) | {"messages": messages, "stream": True}
    body["stream_options"] = {"include_usage": True}
    if ask.limit_tokens is not None:
        body["max_tokens"] = ask.limit_tokens
    if schema := _schema(ask):
        body["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
    return body


def _options(ask: Ask) -> dict[str, Any]:
    given = ask.body.get("options") or {}
    return {name: given[name] for name in _SHARED_OPTIONS if given.get(name) is not None}


def _schema(ask: Ask) -> dict[str, Any] | None:
    """What `format` asks for, as a JSON schema."""
    wanted = ask.body.get("format")
    if not wanted:
        return None
    if wanted == "json":
        return {"type": "object"}
    if isinstance(wanted, dict):
        return wanted
    text = json.dumps(wanted)
    raise AskError(
        500, f'invalid format: {json.dumps(text)}; expected "json" or a valid JSON Schema object'
    )
