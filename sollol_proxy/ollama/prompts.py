"""The text of a request: how much of it there is, in which blocks, and what the user asks."""

from __future__ import annotations

from collections.abc import Sequence
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

# Control characters that no template writes: where a block begins, where its text begins.
_BLOCK, _TEXT = "\x1e", "\x1f"
_IMAGE_ENDS = 2048


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a prompt that is the same as another's, or is not: the tools, a message.

    pieces: what it consists of, in order. characters, images: from the prompt's start to its end.
    """

    pieces: tuple[str, ...]
    characters: int
    images: int


@dataclass(slots=True)
class Prompt:
    """What a request wants processed.

    asked: the prompt, or the text of the last message of the user.
    messages: of the conversation; 0 for a bare prompt.
    is_empty: there is nothing to process, which Ollama takes as "load the model".
    blocks: the parts of it, in the order in which templates render them.
    opening, bare: what follows them, where a text without messages does: what stands before the
        text, and the text.
    """

    asked: str = ""
    system: str = ""
    messages: int = 0
    is_empty: bool = False
    blocks: list[Block] = field(default_factory=list)
    opening: tuple[str, ...] = ()
    bare: str = ""
    images: int = 0
    _pieces: list[str] = field(default_factory=list, repr=False)
    _characters: int = field(default=0, repr=False)

    @property
    def tokens_est(self) -> int:
        """See `tokens_est`."""
        return tokens_est(self._characters, self.images)

    def begin_block(self, kind: str) -> None:
        """What is added from here on belongs to one block. kind: such as the message's role."""
        self._pieces = [_BLOCK, kind, _TEXT]

    def end_block(self) -> None:
        """The block is whole."""
        self.blocks.append(Block(tuple(self._pieces), self._characters, self.images))

    def end_with(self, text: str) -> None:
        """Count a text that has no inner structure, and is the last."""
        self.opening, self.bare = tuple(self._pieces), text
        self._characters += len(text)

    def add_text(self, text: str) -> None:
        """Count a text."""
        self._pieces.append(text)
        self._characters += len(text)

    def add_images(self, images: Sequence[Any]) -> None:
        """Count images, each as written: base64, or a URL with it."""
        self.images += len(images)
        for image in images:
            # Megabytes that would tell no more than this does.
            data = image.rpartition(",")[2] if isinstance(image, str) else ""
            self._pieces += (f"{len(data)}", data[:_IMAGE_ENDS], data[-_IMAGE_ENDS:])

    def add_json(self, value: Any) -> None:
        """Count what is rendered into the prompt as JSON."""
        try:
            self.add_text(orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode())
        except orjson.JSONEncodeError:  # half a surrogate pair, or an integer beyond 64 bits
            self.add_text(repr(value))

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
            self.add_images([_image(part)])
            return
        images = part.get("images")
        if isinstance(images, list):
            self.add_images(images)
        for key in _TEXT_KEYS:
            self.add_content(part.get(key), depth)
        for key in _JSON_KEYS:
            if part.get(key):
                self.add_json(part[key])


def tokens_est(characters: int, images: int) -> int:
    """Characters ÷ 4, plus 768 for each image."""
    return characters // CHARACTERS_PER_TOKEN + images * TOKENS_PER_IMAGE


def read_prompt(route: Route, value: Object) -> Prompt:
    """The prompt of a request on a balanced JSON route.

    Raises:
        WrongType: a member has a type that a host would refuse.
    """
    prompt = Prompt()
    if route.kind is JobKind.SHOW:
        return prompt
    if value.get("tools"):
        prompt.begin_block("tools")
        prompt.add_json(value["tools"])
        prompt.end_block()
    if route.path in ("/api/embed", "/v1/embeddings"):
        _read_inputs(prompt, value.get("input"), required=route.path == "/v1/embeddings")
    elif route.path == "/v1/responses":
        _read_system(prompt, value.get("instructions"))
        _read_responses(prompt, value)
    elif route.path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        _read_system(prompt, value.get("system"))
        _read_messages(prompt, gojson.items(value, "messages"))
    else:
        _read_bare(prompt, value)
    return prompt


def plain_text(content: Any) -> str:
    """The words of a content: itself, or the texts of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def _image(part: Object) -> Any:
    """An image part's data, or its URL: OpenAI's two spellings, and Anthropic's."""
    found = part.get("image_url") or part.get("source")
    return found.get("url") or found.get("data") if isinstance(found, dict) else found


def _read_bare(prompt: Prompt, value: Object) -> None:
    prompt.asked = gojson.text(value, "prompt")
    prompt.is_empty = not prompt.asked
    _read_system(prompt, gojson.text(value, "system"))
    # Not counted, but prompts that differ in these do not begin alike.
    shaping = (repr(value[key]) for key in ("template", "context") if value.get(key))
    prompt.begin_block("".join(("raw" if value.get("raw") is True else "user", *shaping)))
    prompt.add_images(gojson.items(value, "images"))
    prompt.end_with(prompt.asked)
    prompt.add_text(gojson.text(value, "suffix"))


def _read_inputs(prompt: Prompt, inputs: Any, *, required: bool) -> None:
    """The texts to embed. Their first words are nobody's question, so `asked` stays empty."""
    if not isinstance(inputs, str | list | None) or (required and inputs in (None, [])):
        raise WrongType("input")
    if isinstance(inputs, str):
        prompt.add_text(inputs)
    else:
        prompt.add_content(inputs)
    prompt.is_empty = not inputs


def _read_responses(prompt: Prompt, value: Object) -> None:
    given = value.get("input")
    if isinstance(given, list):
        _read_messages(prompt, given)
    else:
        prompt.asked = gojson.text(value, "input")
        prompt.begin_block("user")
        prompt.add_text(prompt.asked)
        prompt.end_block()
    # A missing input is the converter's business, not a wish to load.
    prompt.is_empty = False


def _read_messages(prompt: Prompt, messages: Any) -> None:
    prompt.messages = len(messages)
    prompt.is_empty = not messages
    system = ""
    for message in messages:
        if not isinstance(message, dict):
            raise WrongType("messages")
        folded = gojson.folded_keys(message)
        role = str(folded.get("role")).lower()
        prompt.begin_block(role)
        prompt.add_content(folded)
        prompt.end_block()
        if role == "user":
            prompt.asked = plain_text(folded.get("content")) or prompt.asked
        elif role in ("system", "developer"):
            system = plain_text(folded.get("content"))
    prompt.system = prompt.system or system


def _read_system(prompt: Prompt, system: Any) -> None:
    """A system prompt beside the messages: text, or Anthropic's blocks."""
    if system:
        prompt.system = plain_text(system)
        prompt.begin_block("system")
        prompt.add_content(system)
        prompt.end_block()
