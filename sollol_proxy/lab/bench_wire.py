"""How the simulated requests of a bench look on the wire.

A proxy sees what it would see of a real client: a prompt of some size. What only the host may
know, such as the true length of the answer, stands in a short mark in the last message, which
every proxy passes on and none understands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sollol_proxy.lab.ask import CHAT, GENERATE, V1_CHAT
from sollol_proxy.lab.simjobs import CHARACTERS_PER_TOKEN, SimJob
from sollol_proxy.lab.simspec import SimModel
from sollol_proxy.lab.workload import Request

_NOBODY = -1
_MARK = re.compile(r"\[(\S+) (\d+) (\d+) (-?\d+) (\d+)\]")

# The last words of a good answer, where they are streamed and where they are not.
_END = re.compile(rb'"done": ?true|data: \[DONE\]|"finish_reason": ?"')
TAIL_BYTES = 4096
"""How much of an answer's end `is_complete` wants to see."""

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Told:
    """What a mark says."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    session: int | None
    shared_tokens: int

    def job(self, model: SimModel) -> SimJob:
        """The work that it makes, the same as in the simulation."""
        request = Request(
            id=self.request_id,
            arrived_s=0.0,
            model=model,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            prompt_tokens_est=self.prompt_tokens,
            session=self.session,
            shared_tokens=self.shared_tokens,
        )
        return SimJob(
            model=model,
            output_tokens=self.output_tokens,
            tokens=self.prompt_tokens,
            blocks=request.blocks(),
            blocks_after=request.blocks(answered=True),
        )


def mark(request: Request) -> str:
    """The mark of a request."""
    session = _NOBODY if request.session is None else request.session
    figures = (request.prompt_tokens, request.output_tokens, session, request.shared_tokens)
    return f"[{request.id} {' '.join(map(str, figures))}]"


def told_by(prompt: str) -> Told | None:
    """What the last mark in a prompt says; None = there is none."""
    marks = _MARK.findall(prompt)
    if not marks:
        return None
    request_id, *figures = marks[-1]
    prompt_tokens, output_tokens, session, shared_tokens = map(int, figures)
    return Told(
        request_id,
        prompt_tokens,
        output_tokens,
        None if session == _NOBODY else session,
        shared_tokens,
    )


def conversation(request: Request, before: list[Message]) -> list[Message]:
    """The messages of a turn. before: those of the turn before it, none for the first."""
    names, ends_tokens = request.prefix()
    messages = list(before)
    for place in range(len(messages), len(names)):
        start_tokens = ends_tokens[place - 1] if place else 0
        size = (ends_tokens[place] - start_tokens) * CHARACTERS_PER_TOKEN
        role = "system" if not place else ("user" if place % 2 else "assistant")
        is_last = place == len(names) - 1
        content = _filled(f"{names[place]}:", size, mark(request) if is_last else "")
        messages.append({"role": role, "content": content})
    return messages


def native(request: Request, messages: list[Message]) -> tuple[str, dict[str, Any]]:
    """Path and body on Ollama's own routes. messages: none for a bare prompt."""
    fields: dict[str, Any] = {"model": request.model.name, "stream": request.stream}
    if messages:
        return CHAT, {**fields, "messages": messages}
    return GENERATE, {**fields, "prompt": _prompt(request)}


def openai(request: Request, messages: list[Message]) -> tuple[str, dict[str, Any]]:
    """Path and body on the route of OpenAI's clients."""
    turns = messages or [{"role": "user", "content": _prompt(request)}]
    return V1_CHAT, {"model": request.model.name, "stream": request.stream, "messages": turns}


def is_complete(tail: bytes) -> bool:
    """Whether an answer of status 200 that ends with these bytes is whole."""
    return b'"error"' not in tail and _END.search(tail) is not None


def _prompt(request: Request) -> str:
    """A prompt that begins like no other: no cache helps."""
    size = request.prompt_tokens_est * CHARACTERS_PER_TOKEN
    return _filled(f"{request.id}:", size, mark(request))


def _filled(head: str, size: int, tail: str) -> str:
    return head.ljust(max(0, size - len(tail)), ".") + tail
