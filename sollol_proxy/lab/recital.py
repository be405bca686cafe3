"""What a simulated model says: the same words for the same prompt, on whatever host."""

from __future__ import annotations

import hashlib

from sollol_proxy.lab.ask import Ask
from sollol_proxy.lab.vectors import normalised

_WORDS = (
    "river",
    "stone",
    "cloud",
    "ember",
    "maple",
    "copper",
    "lantern",
    "harbor",
    "thistle",
    "amber",
    "willow",
    "falcon",
    "granite",
    "meadow",
    "sparrow",
    "cobalt",
    "juniper",
    "canyon",
    "velvet",
    "orchard",
    "pebble",
    "saffron",
    "glacier",
    "heron",
    "cedar",
)
_SHORTEST_ANSWER_TOKENS = 20
_LONGEST_ANSWER_TOKENS = 200
_DIMENSIONS = 16


class Recital:
    """The answer to one prompt."""

    def __init__(self, ask: Ask) -> None:
        self._seed = _hash(ask.prompt)
        span = _LONGEST_ANSWER_TOKENS - _SHORTEST_ANSWER_TOKENS + 1
        natural = _SHORTEST_ANSWER_TOKENS + self._seed % span
        self.tokens = ask.limit_tokens or natural
        self.done_reason = "length" if ask.limit_tokens else "stop"

    def token(self, index: int) -> str:
        """The text of one output token."""
        return " " + _WORDS[(self._seed + index * 7) % len(_WORDS)]

    def text(self, most_tokens: int | None = None) -> str:
        """All of it, or its beginning."""
        count = self.tokens if most_tokens is None else min(self.tokens, most_tokens)
        return "".join(self.token(index) for index in range(count))

    def context(self, prompt_tokens: int) -> tuple[int, ...]:
        """Token numbers of prompt and answer."""
        return tuple((self._seed + index) % 32_000 for index in range(prompt_tokens + self.tokens))


def embedding(text: str) -> list[float]:
    """A vector of length 1 that depends on the text alone."""
    digest = hashlib.sha256(text.encode()).digest()
    return normalised([byte - 127.5 for byte in digest[:_DIMENSIONS]])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
