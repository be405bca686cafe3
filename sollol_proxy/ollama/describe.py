"""From a route and a body's bytes to `Facts`. Never raises, whatever the bytes are.

What a host would refuse is not refused here: it becomes `JobKind.OTHER`, goes to a host without
waiting for a slot, and is answered in Ollama's own words.
"""

from __future__ import annotations

import re
from typing import Any

from sollol_proxy.core.types import Complexity, Facts, JobKind, TaskType
from sollol_proxy.ollama import encoding, gojson, multipart, names
from sollol_proxy.ollama.elide import without_images
from sollol_proxy.ollama.gojson import Object, WrongType
from sollol_proxy.ollama.options import load_options
from sollol_proxy.ollama.prefix import prefix_of
from sollol_proxy.ollama.prompts import Prompt, read_prompt
from sollol_proxy.ollama.routes import Plan, Route
from sollol_proxy.ollama.tasks import task_type

MEDIUM_TOKENS = 500
"""Prompt and output limit together; the founding documents' threshold."""
COMPLEX_TOKENS = 2_000
"""The founding documents' "complex (2000+ tokens)"."""
MEDIUM_MESSAGES = 6
"""The founding documents' "more than five messages"."""
COMPLEX_MESSAGES = 16
"""About eight turns: by then the history outweighs the question."""
MEDIUM_MODEL_BYTES = 4_000_000_000
"""About 7 billion parameters at 4 bits."""
COMPLEX_MODEL_BYTES = 16_000_000_000
"""About 27 billion parameters at 4 bits."""
GPU_MODEL_BYTES = 2_000_000_000
"""About 3 billion parameters at 4 bits: above it a CPU decodes slower than people read."""

_WORKS = frozenset({JobKind.GENERATE, JobKind.EMBED, JobKind.TRANSCRIBE, JobKind.LOAD})

# Go's time.ParseDuration, restricted to what comes out as zero.
_ZERO_DURATION = re.compile(r"[+-]?(?:0|(?:(?:0+(?:\.0*)?|\.0+)(?:ns|us|µs|μs|ms|s|m|h))+)")


def describe(
    route: Route, body: bytes, *, content_type: str = "", content_encoding: str = ""
) -> Facts:
    """What a request asks, as a host would read it.

    Kind `other` for whatever the proxy cannot or need not schedule: routes that are not balanced,
    bodies that are encoded in a way that no host undoes, unreadable or wrongly typed, names that
    Ollama refuses, cloud models.

    Args:
        route: on which it came.
        body: as sent; `Facts.body_bytes` counts these bytes.
        content_type: the header's value.
        content_encoding: the header's value; zstd is undone where Ollama undoes it.
    """
    facts = _read(route, body, content_type, content_encoding)
    return Facts(kind=JobKind.OTHER, body_bytes=len(body)) if facts is None else facts


def _read(route: Route, body: bytes, content_type: str, content_encoding: str) -> Facts | None:
    """As `describe`; None for whatever cannot be scheduled and has no name worth keeping."""
    if route.plan is not Plan.BALANCE:
        return None
    plain = encoding.decoded(route, body, content_encoding) if content_encoding else body
    if plain is None:
        return None
    if route.kind is JobKind.TRANSCRIBE:
        return _transcription(multipart.field(plain, content_type, "model"), len(body))
    value = gojson.first_object(without_images(plain))
    if value is None:
        return None
    try:
        return _described(route, value, len(body))
    except WrongType:
        return None


def complexity(facts: Facts, model_bytes: int) -> Complexity:
    """How much work the request is likely to be: the highest level any of these reaches.

    Tokens (prompt plus output limit) from 500 medium, from 2,000 complex; messages from 6 medium,
    from 16 complex; the model's size from 4 GB medium, from 16 GB complex. A prompt's length
    alone says little: a short question to a large model, or one that may be answered at length,
    is work too. Embeddings count by input alone, because their models do one pass and stop.

    Args:
        facts: of the request.
        model_bytes: of the model on disk; 0 when unknown, which then counts for nothing.
    """
    if facts.kind not in _WORKS:
        return Complexity.SIMPLE
    if facts.kind is JobKind.EMBED:
        return _level(facts.prompt_tokens_est, MEDIUM_TOKENS, COMPLEX_TOKENS)
    tokens = facts.prompt_tokens_est + (facts.output_limit_tokens or 0)
    levels = {
        _level(tokens, MEDIUM_TOKENS, COMPLEX_TOKENS),
        _level(facts.messages, MEDIUM_MESSAGES, COMPLEX_MESSAGES),
        _level(model_bytes, MEDIUM_MODEL_BYTES, COMPLEX_MODEL_BYTES),
    }
    return next(level for level in reversed(Complexity) if level in levels)


def requires_gpu(facts: Facts, complexity: Complexity, model_bytes: int) -> bool:
    """Whether a CPU host would be a poor place for the request.

    True for medium and complex work, and for any work of a model from 2 GB. Never for embeddings:
    their models are small, and a batch of documents is what CPU hosts are good for.
    """
    if facts.kind not in _WORKS or facts.kind is JobKind.EMBED:
        return False
    return complexity is not Complexity.SIMPLE or model_bytes >= GPU_MODEL_BYTES


def _level(amount: int, medium: int, complex_: int) -> Complexity:
    if amount >= complex_:
        return Complexity.COMPLEX
    return Complexity.MEDIUM if amount >= medium else Complexity.SIMPLE


def _transcription(written: str, body_bytes: int) -> Facts | None:
    asked = names.asked(written)
    if asked is None:
        return None
    return Facts(
        kind=JobKind.OTHER if asked.is_cloud else JobKind.TRANSCRIBE,
        model=asked.canonical,
        model_as_written=written,
        is_cloud=asked.is_cloud,
        body_bytes=body_bytes,
    )


def _described(route: Route, value: Object, body_bytes: int) -> Facts | None:
    prompt = read_prompt(route, value)
    kind = _kind(route, value, prompt)
    rendered_only = gojson.flag(value, "_debug_render_only", False)
    streams = gojson.flag(value, "stream", route.streams_by_default)
    embeds = route.kind is JobKind.EMBED
    options = load_options(route, value)
    # Only what generates goes on from a prompt that was there before.
    prefix, prefix_tokens = prefix_of(prompt) if kind is JobKind.GENERATE else ((), ())
    written = _model(route, value)
    asked = names.asked(written)
    if asked is None:
        return None
    return Facts(
        kind=JobKind.OTHER if asked.is_cloud else kind,
        model=asked.canonical,
        model_as_written=written,
        is_cloud=asked.is_cloud,
        body_bytes=body_bytes,
        stream=streams and kind is JobKind.GENERATE and not rendered_only,
        task_type=TaskType.EMBEDDING if embeds else task_type(prompt.asked, prompt.system),
        prompt_tokens_est=prompt.tokens_est,
        output_limit_tokens=_output_limit_tokens(value),
        messages=prompt.messages,
        options_key=options.key,
        num_ctx=options.num_ctx,
        prefix=prefix,
        prefix_tokens=prefix_tokens,
    )


def _model(route: Route, value: Object) -> str:
    written = gojson.text(value, "model")
    if route.kind is JobKind.SHOW:
        # The CLI sends both keys, one of them empty.
        return written or gojson.text(value, "name")
    return written


def _kind(route: Route, value: Object, prompt: Prompt) -> JobKind:
    """The route's kind, or what an empty prompt makes of it."""
    asks_nothing = prompt.is_empty or (route.path == _RESPONSES and _asks_nothing(prompt))
    if route.kind is JobKind.SHOW or not asks_nothing:
        return route.kind
    if route.path in _REFUSE_EMPTY:
        return JobKind.OTHER
    if gojson.flag(value, "_debug_render_only", False):
        return JobKind.GENERATE
    if route.path in _UNLOAD and _is_zero(value.get("keep_alive")):
        return JobKind.UNLOAD
    return JobKind.LOAD


def _asks_nothing(prompt: Prompt) -> bool:
    """Whether a request for a response comes down to a conversation without messages."""
    return not (prompt.messages or prompt.asked or prompt.system)


_RESPONSES = "/v1/responses"

_UNLOAD = frozenset({"/api/generate", "/api/chat"})
"""Routes on which `keep_alive: 0` without a prompt unloads. The embedding routes load first."""

_REFUSE_EMPTY = frozenset({"/v1/chat/completions", "/v1/messages"})
"""Routes that answer 400 where there are no messages."""


def _is_zero(keep_alive: Any) -> bool:
    """Whether a `keep_alive` means "unload": 0 seconds as a number or as Go writes durations."""
    if isinstance(keep_alive, bool):
        raise WrongType("keep_alive")
    if isinstance(keep_alive, int | float):
        return keep_alive == 0
    return isinstance(keep_alive, str) and _ZERO_DURATION.fullmatch(keep_alive) is not None


def _output_limit_tokens(value: Object) -> int | None:
    options = gojson.members(value, "options")
    for limit in (
        options.get("num_predict") if options else None,
        value.get("max_tokens"),
        value.get("max_output_tokens"),
    ):
        # A boolean is an `int` too, but not of that class.
        if limit.__class__ is int and limit > 0:
            return limit
    return None
