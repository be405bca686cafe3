"""Models of the real lab host that were created from others: same file, other settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from sollol_proxy.lab.ask import CHAT, GENERATE, V1_CHAT, Ask, AskError
from sollol_proxy.lab.inventory import Listing
from sollol_proxy.lab.progress import Say

_NOT_GGUF = "supplied file was not in GGUF format"


class KnownFiles:
    """Uploads that are the very files the engine comes with; it can read no others."""

    def __init__(self, listings: Iterable[Listing]) -> None:
        self._listings = tuple(listings)

    def listing(self, digests: Iterable[str], size_bytes: int) -> Listing:
        """See `creates.Files`."""
        wanted = set(digests)
        for listing in self._listings:
            if {layer.digest for layer in listing.layers} == wanted:
                return listing
        raise AskError(500, _NOT_GGUF)


class NoTarget:
    """Nowhere to push to."""

    async def push(self, listing: Listing, say: Say) -> None:
        """Never asked: nobody is signed in on this host."""
        raise AskError(500, "push access denied")


def with_settings(ask: Ask, listing: Listing) -> Ask:
    """The request with the model's own system prompt and parameters where it names none."""
    body = dict(ask.body)
    limit = ask.limit_tokens
    if listing.parameters and ask.path in (CHAT, GENERATE):
        options = {**listing.parameters, **(body.get("options") or {})}
        body["options"] = options
        limit = limit or options.get("num_predict")
    if listing.system and ask.path == GENERATE and not (body.get("raw") or body.get("system")):
        body["system"] = listing.system
    if ask.path in (CHAT, V1_CHAT):
        body["messages"] = _with_system(body.get("messages") or [], listing)
    is_limit = isinstance(limit, int) and limit > 0
    return replace(ask, body=body, limit_tokens=limit if is_limit else None)


def _with_system(messages: list[Any], listing: Listing) -> list[Any]:
    """The model's own turns before those of the request; its system prompt if there is none."""
    has_system = any(
        isinstance(message, dict) and message.get("role") == "system" for message in messages
    )
    head = [{"role": "system", "content": listing.system}]
    own = [] if has_system or not listing.system else head
    return [*own, *listing.messages, *messages]
