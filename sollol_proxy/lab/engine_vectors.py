"""Vectors from the engine's own server."""

from __future__ import annotations

from aiohttp import ClientSession

from sollol_proxy.lab.ask import EMBED, Ask, AskError
from sollol_proxy.lab.engine_text import ask_engine

_TOO_LONG = "the input length exceeds the context length"


async def vectors(
    session: ClientSession, ask: Ask, context_length: int
) -> tuple[list[list[float]], int]:
    """One vector for each input, and the tokens read.

    Inputs beyond the context length are cut, as Ollama does.

    Raises:
        AskError: `truncate` is false and an input is too long, or the engine fails.
    """
    inputs = [await _fitting(session, ask, text, context_length) for text in ask.inputs]
    answer = await ask_engine(session, "/v1/embeddings", {"input": inputs})
    rows = sorted(answer["data"], key=lambda row: int(row["index"]))
    return [row["embedding"] for row in rows], answer["usage"]["prompt_tokens"]


async def _fitting(
    session: ClientSession, ask: Ask, text: str, context_length: int
) -> str | list[int]:
    if len(text) < context_length:  # a token has a character at least
        return text
    body = {"content": text, "add_special": True}
    tokens: list[int] = (await ask_engine(session, "/tokenize", body))["tokens"]
    if len(tokens) <= context_length:
        return text
    if ask.path == EMBED and ask.body.get("truncate") is False:
        raise AskError(400, _TOO_LONG)
    return [*tokens[: context_length - 1], tokens[-1]]
