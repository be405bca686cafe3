"""The exception tree. No HTTP numbers here: `server.rescue` alone maps these to answers.

SollolError
├── ConfigError            a configuration that cannot be used; carries every mistake found
├── BadRequest             the client's request makes no sense to us (host not asked)
├── BodyTooLarge           the request body exceeds `limits.body`
├── Refused                the scheduler gave the job no host
│   ├── QueueFull          never queued: `queue.max_waiting` jobs wait already
│   ├── Expired            queued, then its deadline passed
│   ├── NoHost             no host that could take it came up within `queue.no_host_wait`
│   ├── NoModel            the configuration lets no host serve the model
│   └── Draining           the proxy is shutting down
├── AttemptFailed          one attempt at one host ended before its first body byte
├── UpstreamBroke          the host's body ended early, after bytes had gone to the client
└── ClientGone             the client left; nobody is to blame
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SollolError(Exception):
    """Base of everything this package raises on purpose."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One mistake in a configuration.

    source: file name, `environment` or `command line`.
    line: 1-based line in the file; None where there is none.
    key: dotted path such as `hosts[2].slots`; empty for the document itself.
    """

    source: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class ConfigError(SollolError):
    """Every mistake of a configuration at once, in the order of the file."""

    def __init__(self, problems: list[ConfigProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class BadRequest(SollolError):
    """The request cannot be understood; the message is for the client."""


class BodyTooLarge(SollolError):
    """The request body is larger than the limit, in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"request body exceeds {limit_bytes} bytes (limits.body)")
        self.limit_bytes = limit_bytes


class Refused(SollolError):
    """The scheduler gave the job no host.

    retry_after_s: seconds after which trying again is worth it, ≥ 1.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = max(1.0, retry_after_s)


class QueueFull(Refused):
    """Never queued: the waiting room is full."""


class Expired(Refused):
    """Queued, and the deadline passed before a host was free."""


class NoHost(Refused):
    """No host that could take the job is up."""


class NoModel(Refused):
    """The configuration lets no host serve the model."""


class Draining(Refused):
    """The proxy finishes what it has and takes nothing new."""


class Phase(StrEnum):
    """How far an attempt had come when it failed."""

    CONNECT = "connect"
    """No connection: the host has seen nothing."""
    SILENT = "silent"
    """No connection in time: a dead host, or one too busy to accept."""
    HEAD = "head"
    """Connected and (partly) sent; no complete answer head came."""
    BODY = "body"
    """The head came, and the connection ended before the first body byte."""


class AttemptFailed(SollolError):
    """One attempt at one host ended before anything had gone to the client.

    Every attempt is replay-safe in this sense: inference has no side effects, only cost.
    """

    def __init__(self, host_id: str, phase: Phase, detail: str) -> None:
        super().__init__(f"host {host_id} failed ({phase}): {detail}")
        self.host_id = host_id
        self.phase = phase
        self.detail = detail


class UpstreamBroke(SollolError):
    """The host's body ended early after bytes had gone to the client."""

    def __init__(self, host_id: str, detail: str) -> None:
        super().__init__(f"host {host_id} broke off: {detail}")
        self.host_id = host_id
        self.detail = detail


class ClientGone(SollolError):
    """The client closed its connection."""
