"""The operator's decision log, read back: what was asked when, and what came of it.

The lines are those of `server.decision_log`. A line that cannot be read is counted and skipped;
so is a request that did not end with an answer, because nobody knows how long it would have been.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sollol_proxy.core.types import Complexity, JobKind, Outcome, TaskType
from sollol_proxy.ollama.names import canonical
from sollol_proxy.ollama.options import NUM_CTX

QUIET_S = 600.0
"""A longer silence is cut to this: by then all models have left the memory."""

_RESTART_S = 2.0
"""Two lines whose proxies were started so far apart come from different runs of it."""

_REPLAYED = frozenset({JobKind.GENERATE, JobKind.EMBED})


class LogError(ValueError):
    """A log from which nothing can be played."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One answered request.

    at_s: arrival, since the first one of the log. model: canonical. prompt_tokens: estimated where
    the host did not say. queue_s, total_s: since arrival. host_s: since it was sent to the host.
    The rest as in `core.types`.
    """

    at_s: float
    model: str
    host: str
    policy: str
    kind: JobKind
    priority: int
    stream: bool
    task_type: TaskType
    complexity: Complexity
    prompt_tokens: int
    prompt_tokens_est: int
    output_tokens: int
    output_limit_tokens: int | None
    options_key: str
    prefix: tuple[int, ...]
    prefix_tokens: tuple[int, ...]
    queue_s: float
    total_s: float
    host_s: float
    load_s: float
    prefill_s: float | None
    decode_s: float | None

    @property
    def sent_s(self) -> float:
        """When the host got it."""
        return self.at_s + self.queue_s

    @property
    def ended_s(self) -> float:
        """When the host was done."""
        return self.sent_s + self.host_s

    @property
    def num_ctx(self) -> int | None:
        """The context length that was asked for."""
        for part in self.options_key.split(","):
            name, _, value = part.partition("=")
            if name == NUM_CTX and value.isdecimal():
                return int(value)
        return None


@dataclass(frozen=True, slots=True)
class Log:
    """What could be read.

    entries: in order of arrival. broken: numbers of lines that are no lines of a log, from 1 over
    all files. left_out: other requests that are not played, by the reason.
    """

    entries: Sequence[Entry]
    broken: Sequence[int]
    left_out: Mapping[str, int]


def read(paths: Iterable[str], most: int) -> Log:
    """The logs, oldest first, as one; the last `most` answered requests of it.

    Raises:
        LogError: a file cannot be read, or there is nothing to play.
    """
    lines: list[str] = []
    for path in paths:
        try:
            lines += Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise LogError(f"{path}: {error.strerror or error}") from error
    log = parse(lines)
    if not log.entries:
        others = sum(log.left_out.values())
        raise LogError(
            f"has no request that was answered (broken lines: {len(log.broken)}, others: {others})"
        )
    last = log.entries[-most:]
    first_s = last[0].at_s
    return replace(log, entries=[replace(each, at_s=each.at_s - first_s) for each in last])


def is_decision_line(line: Mapping[str, Any]) -> bool:
    """Whether a recorded line comes from a decision log."""
    return "outcome" in line and "kind" in line


def parse(lines: Iterable[str]) -> Log:
    """The lines of a log."""
    entries: list[Entry] = []
    broken: list[int] = []
    left_out: Counter[str] = Counter()
    clock = _Clock()
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            arrived_s = clock.instant_s(line)
            if reason := _why_not(line):
                left_out[reason] += 1
            else:
                entries.append(_entry(line, arrived_s))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            broken.append(number)
    return Log(_without_silence(entries), broken, left_out)


class _Clock:
    """Puts the runs of a proxy that was started several times on one line of time."""

    def __init__(self) -> None:
        self._begun_s: float | None = None

    def instant_s(self, line: Mapping[str, Any]) -> float:
        arrived_s = _number(line["arrived_s"])
        started_at = line.get("started_at")
        if started_at is not None:
            begun_s = datetime.fromisoformat(started_at).timestamp() - arrived_s
            # The times of one run differ by their rounding only; the first is as good as any.
            if self._begun_s is None or abs(begun_s - self._begun_s) > _RESTART_S:
                self._begun_s = begun_s
        return (self._begun_s or 0.0) + arrived_s


def _why_not(line: Mapping[str, Any]) -> str:
    """Why a request is not played; empty = it is."""
    kind = JobKind(line["kind"])
    if kind not in _REPLAYED:
        return "of other kinds"
    if Outcome(line["outcome"]) is not Outcome.COMPLETED or not line["host"]:
        return "without an answer"
    if kind is JobKind.GENERATE and line.get("output_tokens") is None:
        return "of unknown length"
    return ""


def _entry(line: Mapping[str, Any], arrived_s: float) -> Entry:
    estimated = int(_number(line["prompt_tokens_est"]))
    told = _optional(line, "prompt_tokens")
    prompt_tokens = max(1, estimated if told is None else int(told))
    limit = line.get("output_limit_tokens")
    if limit is not None and not isinstance(limit, int):
        raise TypeError("output_limit_tokens is no whole number")
    queue_s, total_s = _number(line["queue_s"]), _number(line["total_s"])
    host_s = _optional(line, "host_s")
    prefix = tuple(int(block, 16) for block in line.get("prefix") or ())
    prefix_tokens = tuple(int(_number(end)) for end in line.get("prefix_tokens") or ())
    if len(prefix) != len(prefix_tokens):
        raise ValueError("prefix and prefix_tokens differ in length")
    return Entry(
        at_s=arrived_s,
        model=canonical(_text(line["model"])),
        host=_text(line["host"]),
        policy=_text(line["policy"]),
        kind=JobKind(line["kind"]),
        priority=_priority(line["priority"]),
        stream=bool(line["stream"]),
        task_type=TaskType(line["task_type"]),
        complexity=Complexity(line["complexity"]),
        prompt_tokens=prompt_tokens,
        prompt_tokens_est=max(1, estimated or prompt_tokens),
        output_tokens=int(_optional(line, "output_tokens") or 0),
        output_limit_tokens=limit,
        options_key=str(line.get("options_key") or ""),
        prefix=prefix,
        prefix_tokens=prefix_tokens,
        queue_s=queue_s,
        total_s=total_s,
        host_s=max(total_s - queue_s, 0.0) if host_s is None else host_s,
        load_s=_optional(line, "load_s") or 0.0,
        prefill_s=_optional(line, "prefill_s"),
        decode_s=_optional(line, "decode_s"),
    )


def _without_silence(entries: Sequence[Entry]) -> list[Entry]:
    """In order of arrival, the first at 0."""
    kept: list[Entry] = []
    cut_s, quiet_since_s = 0.0, math.inf
    for entry in sorted(entries, key=lambda entry: entry.at_s):
        if not kept:
            cut_s = entry.at_s
            quiet_since_s = cut_s
        cut_s += max(entry.at_s - quiet_since_s - QUIET_S, 0.0)
        quiet_since_s = max(quiet_since_s, entry.ended_s, entry.at_s)
        kept.append(replace(entry, at_s=entry.at_s - cut_s))
    return kept


def _number(value: object, least: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("is no number")
    if not math.isfinite(value) or value < least:
        raise ValueError("is out of bounds")
    return float(value)


def _optional(line: Mapping[str, Any], key: str) -> float | None:
    value = line.get(key)
    return None if value is None else _number(value)


def _priority(value: object) -> int:
    priority = int(_number(value, 1))
    if priority > 10:
        raise ValueError("is no priority")
    return priority


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("is no text")
    return value
