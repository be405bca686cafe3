"""Clients under stress: they ask, read to whatever end comes, and say how it ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from tests.support import PATIENCE_S

MODEL = "m"
GENERATE = "/api/generate"


@dataclass(frozen=True)
class Answer:
    """How one request ended. was_cut: the connection ended before the body did."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    was_cut: bool = False

    @property
    def records(self) -> list[dict[str, Any]]:
        """The whole NDJSON records; of an answer that is not streamed, the one there is."""
        if "application/json" in self.headers.get("Content-Type", ""):
            return [] if self.was_cut else [json.loads(self.body)]
        lines = self.body.splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    @property
    def is_whole(self) -> bool:
        """It ended as Ollama ends an answer."""
        return (
            self.status == 200
            and not self.was_cut
            and bool(self.records)
            and self.records[-1].get("done") is True
        )

    @property
    def is_honest_failure(self) -> bool:
        """Bytes of an answer had come, and no client can take what followed for its end."""
        if self.status != 200 or not self.records or "response" not in self.records[0]:
            return False
        return self.was_cut or "error" in self.records[-1]

    @property
    def host(self) -> str:
        """Who answered."""
        return self.headers["X-SOLLOL-Host"]


def generate(tokens: int, prompt: str = "x", **fields: Any) -> dict[str, Any]:
    """The body of a streamed `/api/generate` request."""
    return {"model": MODEL, "prompt": prompt, "options": {"num_predict": tokens}, **fields}


def bodies(count: int, tokens: int, **fields: Any) -> list[dict[str, Any]]:
    """Requests whose prompts share no prefix, so that no prompt cache helps."""
    return [generate(tokens, f"{number} of many", **fields) for number in range(count)]


def patient_session() -> ClientSession:
    """A session that never holds a request back, and gives up only with the test."""
    return ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=PATIENCE_S))


async def ask(
    session: ClientSession,
    url: str,
    body: Mapping[str, Any],
    *,
    path: str = GENERATE,
    on_first_bytes: Callable[[str], None] | None = None,
) -> Answer:
    """Send a request and read its answer to the end.

    on_first_bytes: called with the host's id when the answer begins.
    """
    async with session.post(url + path, json=body) as response:
        received = bytearray()
        was_cut = False
        try:
            async for chunk in response.content.iter_any():
                if not received and on_first_bytes is not None:
                    on_first_bytes(response.headers["X-SOLLOL-Host"])
                received += chunk
        except ClientError:
            was_cut = True
        return Answer(response.status, response.headers, bytes(received), was_cut)


async def ask_all(
    session: ClientSession,
    url: str,
    requests: Iterable[Mapping[str, Any]],
    *,
    at_once: int,
) -> list[Answer]:
    """Their answers in order; at most `at_once` are under way."""
    turn = asyncio.Semaphore(at_once)

    async def one(body: Mapping[str, Any]) -> Answer:
        async with turn:
            return await ask(session, url, body)

    return await asyncio.gather(*(one(body) for body in requests))


async def get_json(session: ClientSession, url: str) -> Any:
    """A document."""
    async with session.get(url) as response:
        return await response.json()
