"""A file with one JSON line for each finished request: what was decided, and what came of it.

For whoever wants to look at decisions in bulk, or to run them again elsewhere. No text of a prompt
or an answer is in it; where prompts begin alike is told by hashes of their beginnings, which give
no text away but let somebody who guesses one see that it is right.

Writing waits for no disk: lines gather, and go out together from a thread.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from typing import Any

import orjson
import structlog

from sollol_proxy.core.types import Decision, Facts, Observation, RequestRecord
from sollol_proxy.server.tasks import TaskSet

FLUSH_BYTES = 64 * 2**10
FLUSH_S = 1.0
"""Lines go out when there are so many, or after so long."""

MAX_GATHERED_BYTES = 8 * 2**20
"""A disk that is slower than the requests come loses lines, not memory."""

_log = structlog.get_logger("sollol")


class DecisionLog:
    """Lines on their way to the file.

    limit_bytes: at this size the file becomes `PATH.1`, and a new one is begun.
    begun_s: monotonic; `arrived_s` in the lines counts from here.
    """

    def __init__(
        self, path: str, limit_bytes: int, begun_s: float, *, flush_s: float = FLUSH_S
    ) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._begun_s = begun_s
        self._flush_s = flush_s
        self._lines: list[bytes] = []
        self._gathered_bytes = 0
        self._lost = 0
        self._some, self._enough = asyncio.Event(), asyncio.Event()
        self._is_stopped = False
        self._was_refused = False
        self._tasks = TaskSet()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._task = self._tasks.spawn(self._run(), name="decision log")

    def add(self, record: RequestRecord, facts: Facts, arrived_s: float) -> None:
        """Take a finished request in. arrived_s: monotonic."""
        if self._gathered_bytes >= MAX_GATHERED_BYTES:
            self._lost += 1
            return
        line = _encoded(line_of(record, facts, arrived_s - self._begun_s))
        self._lines.append(line)
        self._gathered_bytes += len(line)
        self._some.set()
        if self._gathered_bytes >= FLUSH_BYTES:
            self._enough.set()

    async def stop(self) -> None:
        """Write what is left, and no more."""
        self._is_stopped = True
        self._some.set()
        self._enough.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._flush_s):
                    await self._enough.wait()
            await self._flush()
            if self._is_stopped and not self._lines:
                return

    async def _flush(self) -> None:
        block, lost = b"".join(self._lines), self._lost
        self._lines.clear()
        self._gathered_bytes = self._lost = 0
        self._some.clear()
        self._enough.clear()
        if lost:
            _log.warning("the disk is too slow for the decision log", lines_lost=lost)
        try:
            await asyncio.to_thread(append, self._path, block, self._limit_bytes)
        except OSError as error:
            if not self._was_refused:  # and not again with every second
                reason = error.strerror or str(error)
                _log.warning("the decision log is not written", file=self._path, reason=reason)
            self._was_refused = True
        else:
            self._was_refused = False


def append(path: str, block: bytes, limit_bytes: int) -> None:
    """Add whole lines to a file that only its owner may read; all of them or none.

    Raises:
        OSError: the disk takes no more.
    """
    if not block:
        return
    if os.path.exists(path) and 0 < os.path.getsize(path) > limit_bytes - len(block):
        os.replace(path, f"{path}.1")
    # Opened each time, so that whoever moves the file away finds a new one begun.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size_bytes = os.fstat(file).st_size
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            os.ftruncate(file, size_bytes)
            raise
    finally:
        os.close(file)


def line_of(record: RequestRecord, facts: Facts, arrived_s: float) -> dict[str, Any]:
    """A request as one line. arrived_s: seconds since the log was begun."""
    return {
        "id": record.id,
        "started_at": record.started_at,
        "arrived_s": round(arrived_s, 6),
        "route": record.route,
        "model": record.model,
        "kind": record.kind.value,
        "task_type": record.task_type.value,
        "complexity": record.complexity.value,
        "priority": record.priority,
        "stream": record.stream,
        "prompt_tokens_est": facts.prompt_tokens_est,
        "output_limit_tokens": facts.output_limit_tokens,
        "options_key": facts.options_key,
        # Text, because many a reader of JSON takes numbers for floats.
        "prefix": [f"{block:016x}" for block in facts.prefix],
        "prefix_tokens": facts.prefix_tokens,
        **_decided(record.decision),
        **_seen(record.observation),
        "queue_s": record.queue_s,
        "first_byte_s": record.first_byte_s,
        "total_s": record.total_s,
        "outcome": record.outcome.value,
        "attempts": record.attempts,
    }


def _encoded(line: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(line) + b"\n"
    except orjson.JSONEncodeError:  # a client's limit beyond 64 bits
        return json.dumps(line).encode() + b"\n"


def _decided(decision: Decision | None) -> dict[str, Any]:
    if decision is None:
        return {"host": None, "policy": None}
    return {
        "host": decision.host_id,
        "policy": decision.policy,
        "cost": decision.cost.total,
        "terms": {term.name: term.value for term in decision.cost.terms},
        "predicted_wait_s": decision.predicted_wait_s,
        "predicted_total_s": decision.predicted_total_s,
    }


def _seen(observation: Observation | None) -> dict[str, Any]:
    if observation is None:
        return {}
    return {
        "prompt_tokens": observation.prompt_tokens,
        "output_tokens": observation.output_tokens,
        "load_s": observation.load_s,
        "prefill_s": observation.prefill_s,
        "decode_s": observation.decode_s,
        "host_s": observation.total_s,
    }
