"""The text of a request: how much of it there is, and what the user asks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from sollol_proxy.core.types import JobKind
from sollol_proxy.ollama import gojson
from sollol_proxy.ollama.gojson import Object, WrongType
from sollol_proxy.ollama.routes import Route

CHARACTERS_PER_TOKEN = 4
TOKENS_PER_IMAGE = 768

# Message, content, part, a tool's result, its parts: deeper nesting holds no text of a prompt.
_MAX_DEPTH = 8
_IMAGE_PARTS = frozenset({"image", "image_url", "input_image"})
_TEXT_KEYS = ("text", "thinking", "content", "output", "arguments")
_JSON_KEYS = ("input", "tool_calls")


@dataclass(slots=True)
class Prompt:
    """What a request wants processed.

    asked: the prompt, or the text of the last message of the user.
    messages: of the conversation; 0 for a bare prompt.
    is_empty: there is nothing to process, which Ollama takes as "load the model".
    """

    asked: str = ""
    system: str = ""
    messages: int = 0
    is_empty: bool = False
    _characters: int = field(default=0, repr=False)
    _images: int = field(default=0, repr=False)

    @property
    def tokens_est(self) -> int:
        """Characters ÷ 4, plus 768 for each image."""
        return self._characters // CHARACTERS_PER_TOKEN + self._images * TOKENS_PER_IMAGE

    def add_text(self, text: str) -> None:
        """Count a text."""
        self._characters += len(text)

    def add_images(self, count: int) -> None:
        """Count images."""
        self._images += count

    def add_json(self, value: Any) -> None:
        """Count what is rendered into the prompt as JSON."""
        try:
            self._characters += len(orjson.dumps(value))
        except orjson.JSONEncodeError:  # half a surrogate pair, or an integer beyond 64 bits
            self._characters += len(repr(value))

    def add_content(self, content: Any, depth: int = 0) -> None:
        """Count a message's content: text, parts, or parts within a part."""
        if isinstance(content, str):
            self.add_text(content)
        elif depth >= _MAX_DEPTH:
            return
        elif isinstance(content, list):
            for part in content:
                self.add_content(part, depth + 1)
        elif isinstance(content, dict):
            self._add_part(gojson.folded_keys(content), depth + 1)

    def _add_part(self, part: Object, depth: int) -> None:
        if part.get("type") in _IMAGE_PARTS:
            self.add_images(1)
            return
        images = part.get("images")
        if isinstance(images, list):
            self.add_images(len(images))
        for key in _TEXT_KEYS:
            self.add_content(part.get(key), depth)
        for key in _JSON_KEYS:
            if part.get(key):
                self.add_json(part[key])


def read_prompt(route: Route, value: Object) -> Prompt:
    """The prompt of a request on a balanced JSON route.

    Raises:
        WrongType: a member has a type that a host would refuse.
    """
    prompt = Prompt()
    if route.kind is JobKind.SHOW:
        return prompt
    if route.path in ("/api/embed", "/v1/embeddings"):
        _read_inputs(prompt, value.get("input"), required=route.path == "/v1/embeddings")
    elif route.path == "/v1/responses":
        _read_responses(prompt, value)
    elif route.path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        _read_messages(prompt, gojson.items(value, "messages"))
        _read_system(prompt, value.get("system"))
    else:
        _read_bare(prompt, value)
    if value.get("tools"):
        prompt.add_json(value["tools"])
    return prompt


def plain_text(content: Any) -> str:
    """The words of a content: itself, or the texts of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def _read_bare(prompt: Prompt, value: Object) -> None:
    prompt.asked = gojson.text(value, "prompt")
    prompt.system = gojson.text(value, "system")
    prompt.is_empty = not prompt.asked
    for text in (prompt.asked, prompt.system, gojson.text(value, "suffix")):
        prompt.add_text(text)
    prompt.add_images(len(gojson.items(value, "images")))


def _read_inputs(prompt: Prompt, inputs: Any, *, required: bool) -> None:
    """The texts to embed. Their first words are nobody's question, so `asked` stays empty."""
    if not isinstance(inputs, str | list | None) or (required and inputs in (None, [])):
        raise WrongType("input")
    prompt.add_content(inputs)
    prompt.is_empty = not inputs


def _read_responses(prompt: Prompt, value: Object) -> None:
    given = value.get("input")
    if isinstance(given, list):
        _read_messages(prompt, given)
    else:
        prompt.asked = gojson.text(value, "input")
        prompt.add_text(prompt.asked)
    # A missing input is the converter's business, not a wish to load.
    prompt.is_empty = False
    _read_system(prompt, value.get("instructions"))


def _read_messages(prompt: Prompt, messages: Any) -> None:
    prompt.messages = len(messages)
    prompt.is_empty = not messages
    for message in messages:
        if not isinstance(message, dict):
            raise WrongType("messages")
        folded = gojson.folded_keys(message)
        prompt.add_content(folded)
        role = str(folded.get("role")).lower()
        if role == "user":
            prompt.asked = plain_text(folded.get("content")) or prompt.asked
        elif role in ("system", "developer"):
            prompt.system = plain_text(folded.get("content"))


def _read_system(prompt: Prompt, system: Any) -> None:
    """A system prompt beside the messages: text, or Anthropic's blocks."""
    if system:
        prompt.system = plain_text(system)
        prompt.add_content(system)
