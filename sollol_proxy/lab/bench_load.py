"""The clients of a bench: they ask at the planned instants, whatever became of those before.

A request's time counts from the instant for which it was planned to the last byte. A client that
could not send in time does not shorten it, so nobody gains from being slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from yarl import URL

from sollol_proxy.lab.ask import V1_CHAT
from sollol_proxy.lab.bench_wire import (
    TAIL_BYTES,
    Message,
    conversation,
    is_complete,
    native,
    openai,
)
from sollol_proxy.lab.simulate_world import PATIENCE_S
from sollol_proxy.lab.workload import Request
from sollol_proxy.server.headers import PRIORITY


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request ended; model seconds since the start. first_s: None = no byte came."""

    request: Request
    ok: bool
    sent_s: float
    first_s: float | None
    ended_s: float


@dataclass(slots=True)
class Load:
    """One run of the clients, whose time begins when it is made.

    started_s: by the wall's monotonic clock.
    """

    url: str
    speed: float
    started_s: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    answers: list[Answer] = field(default_factory=list)

    async def run(self, requests: Sequence[Request]) -> None:
        """Ask everything and wait for the ends."""
        # Every request has its own connection or a free one: clients do not wait for each other.
        connector = TCPConnector(limit=0, keepalive_timeout=PATIENCE_S)
        timeout = ClientTimeout(total=None)
        async with (
            ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
            asyncio.TaskGroup() as clients,
        ):
            for request in requests:
                clients.create_task(self._client(session, request))

    @property
    def lateness_s(self) -> list[float]:
        """How much later than planned each request was sent, model seconds."""
        return [max(0.0, a.sent_s - a.request.arrived_s) for a in self.answers]

    def now(self) -> float:
        """Model seconds since the start."""
        return (asyncio.get_running_loop().time() - self.started_s) * self.speed

    async def _client(self, session: ClientSession, first: Request) -> None:
        """One request, or a conversation turn by turn."""
        turn: Request | None = first
        messages: list[Message] = []
        while turn is not None:
            await asyncio.sleep(max(0.0, turn.arrived_s - self.now()) / self.speed)
            if turn.session is not None:
                messages = conversation(turn, messages)
            answer = await self._ask(session, turn, messages)
            self.answers.append(answer)
            pause_s, turn = turn.pause_s, turn.follow
            if turn is not None:
                turn = replace(turn, arrived_s=answer.ended_s + pause_s)

    async def _ask(
        self, session: ClientSession, request: Request, messages: list[Message]
    ) -> Answer:
        url, body = addressed(self.url, request, messages)
        headers = {PRIORITY: str(request.priority)}
        sent_s, first_s, ok = self.now(), None, False
        limit_s = (request.arrived_s + PATIENCE_S - sent_s) / self.speed
        try:
            async with (
                asyncio.timeout(limit_s),
                session.post(url, json=body, headers=headers) as response,
            ):
                tail = b""
                async for chunk in response.content.iter_any():
                    first_s = self.now() if first_s is None else first_s
                    tail = (tail + chunk)[-TAIL_BYTES:]
                ok = response.status == 200 and is_complete(tail)
        except (ClientError, OSError, TimeoutError):
            pass  # a failure is a figure here
        return Answer(request, ok, sent_s, first_s, self.now())


def addressed(url: str, request: Request, messages: list[Message]) -> tuple[URL, dict[str, Any]]:
    """Where to send a request, and what.

    url: the base address; or the whole one of OpenAI's chat route, for who speaks only that.
    """
    base = URL(url)
    if base.path.endswith(V1_CHAT):
        return base, openai(request, messages)[1]
    path, body = native(request, messages)
    return base.with_path(base.path.rstrip("/") + path), body
