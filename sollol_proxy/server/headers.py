"""Headers on their way through: hop-by-hop out, routing metadata in. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache

from multidict import CIMultiDict

from sollol_proxy.core.types import Complexity, Decision, TaskType

PREFIX = "X-SOLLOL-"
REQUEST_ID = "X-SOLLOL-Request-Id"
PRIORITY = "X-SOLLOL-Priority"

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""RFC 9110, 7.6.1, and the obsolete Proxy-Connection."""

_HOP_BYTES = frozenset(name.encode() for name in _HOP_BY_HOP)
_OURS = (b"x-sollol-", b"access-control-", b"vary", b"connection")
"""How the names of what we add begin."""

_NOT_FOR_HOSTS = frozenset({"host", "content-length", "expect", "origin"})
"""Set anew for each host (Host, Content-Length), settled by us (Expect), or refused by a host
that does not know the origin (Origin; the proxy has checked it)."""

_STAY = _HOP_BY_HOP | _NOT_FOR_HOSTS

MAX_REASON = 300


def for_host(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """A client's headers as a host should see them: end-to-end ones, ours taken out."""
    kept: list[tuple[str, str]] = []
    named: set[str] = set()
    for field in headers:
        lowered = field[0].lower()
        if lowered == "connection":
            named |= _named_by_connection([field])
        elif lowered not in _STAY and not lowered.startswith("x-sollol-"):
            kept.append(field)
    if named:
        kept = [field for field in kept if field[0].lower() not in named]
    return kept


def for_client(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """A host's headers as the client should see them: end-to-end ones."""
    headers = list(headers)
    dropped = _HOP_BY_HOP | _named_by_connection(headers)
    return CIMultiDict((name, value) for name, value in headers if name.lower() not in dropped)


def client_block(
    fields: Sequence[tuple[bytes, bytes]], added: Collection[tuple[str, str]]
) -> tuple[bytes, bool]:
    """Header lines for the client, each with its line end, and whether there is a Date.

    A host's end-to-end fields as they came, then ours, which take the place of those of the host
    that have the same name.
    """
    ours = "".join([f"{name}: {value}\r\n" for name, value in added]).encode("latin-1")
    dropped: AbstractSet[bytes] = _HOP_BYTES
    for name, _ in fields:
        if name.lower().startswith(_OURS):
            dropped = _displaced(fields, added)
            break
    has_date = False
    lines: list[bytes] = []
    for name, value in fields:
        lowered = name.lower()
        if lowered not in dropped:
            lines += (name, b": ", value, b"\r\n")
            has_date = has_date or lowered == b"date"
    lines.append(ours)
    return b"".join(lines), has_date


def _displaced(
    fields: Iterable[tuple[bytes, bytes]], added: Iterable[tuple[str, str]]
) -> AbstractSet[bytes]:
    """Names of a host's fields that stay behind: hop-by-hop ones, and what we say in its place."""
    names = {name.lower().encode("latin-1") for name, _ in added}
    dropped = set(_HOP_BYTES)
    for name, value in fields:
        lowered = name.lower()
        if lowered == b"connection":
            named = _named_by_connection([("connection", value.decode("latin-1"))])
            dropped |= {each.encode("latin-1") for each in named}
        elif lowered.startswith(_OURS):
            dropped |= names
    return dropped


def routing(
    request_id: str,
    decision: Decision | None,
    *,
    task_type: TaskType,
    complexity: Complexity,
    priority: int,
    attempts: int,
    queue_s: float,
    rewrote: str = "",
) -> dict[str, str]:
    """What was decided, as response headers. Queue time is in seconds."""
    fields = {
        REQUEST_ID: request_id,
        "X-SOLLOL-Task-Type": task_type.value,
        "X-SOLLOL-Complexity": complexity.value,
        PRIORITY: str(priority),
        "X-SOLLOL-Attempts": str(attempts),
        "X-SOLLOL-Queue-Time": f"{queue_s:.3f}",
    }
    if rewrote:
        fields["X-SOLLOL-Rewrote"] = printable(rewrote)
    if decision is not None:
        fields["X-SOLLOL-Host"] = _printable_kept(decision.host_id)
        fields["X-SOLLOL-Policy"] = decision.policy
        if decision.cost.score is not None:
            fields["X-SOLLOL-Score"] = f"{decision.cost.score:.1f}"
        elif decision.policy != "pass":
            fields["X-SOLLOL-Cost"] = f"{decision.cost.total:.3f}"
        fields["X-SOLLOL-Reason"] = printable(decision.reason)
    return fields


def parts(
    hosts: Sequence[str], failures: Sequence[tuple[str, str]], targets: int
) -> dict[str, str]:
    """How many of several hosts did their part, and which did not; empty where one was asked."""
    if not targets:
        return {}
    fields = {"X-SOLLOL-Hosts": f"{len(hosts)}/{targets}"}
    if failures:
        names = dict.fromkeys(host_id for host_id, _ in failures)
        fields["X-SOLLOL-Failed-Hosts"] = printable(", ".join(names))
    return fields


def printable(text: str) -> str:
    """Text that may stand in a header: printable ASCII, bounded."""
    is_safe = text.isascii() and text.isprintable()
    safe = text if is_safe else "".join(char if " " <= char <= "~" else "?" for char in text)
    return safe if len(safe) <= MAX_REASON else safe[: MAX_REASON - 3] + "..."


_printable_kept = lru_cache(maxsize=64)(printable)


def split_query(raw_query: str) -> tuple[str, str | None]:
    """The query without `priority`, its other parts untouched, and the last priority given."""
    if "priority=" not in raw_query:
        return raw_query, None
    kept: list[str] = []
    priority: str | None = None
    for part in raw_query.split("&"):
        name, equals, value = part.partition("=")
        if equals and name == "priority":
            priority = value
        else:
            kept.append(part)
    return "&".join(kept), priority


def _named_by_connection(headers: Iterable[tuple[str, str]]) -> frozenset[str]:
    return frozenset(
        token.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for token in value.split(",")
    ) - {"close", "content-length", "content-type"}
