"""The API table: which request is answered how, and in whose dialect errors are worded.

Paths are matched byte for byte. Ollama redirects `/api/tags/` and `//api/tags` to the clean
spelling; that is a host's business, so to this table they are unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sollol_proxy.core.types import JobKind


class Plan(StrEnum):
    """What is done with a request."""

    BALANCE = "balance"
    """Queued, and given to one host that has the model."""
    MERGE = "merge"
    """Answered from what all hosts say."""
    BROADCAST = "broadcast"
    """Carried out by every host concerned, and answered once."""
    IDENTITY = "identity"
    """Goes to the one host whose key and account count."""
    PASS = "pass"
    """Goes to one host and comes back untouched."""


class Dialect(StrEnum):
    """Whose error shapes and stream endings a route speaks."""

    NATIVE = "native"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the API table.

    path: template such as `/api/blobs/:digest`, `other` for unknown paths: bounded, so a label.
    kind: of a well-formed request; `describe` may find another one in the body.
    streams_by_default: whether the answer is a stream where the body does not say.
    """

    method: str
    path: str
    plan: Plan
    dialect: Dialect
    kind: JobKind = JobKind.OTHER
    streams_by_default: bool = False


UNKNOWN = "other"


def dialect_of(path: str) -> Dialect:
    """The dialect by prefix, for known and unknown paths alike."""
    if path.startswith("/v1/messages"):
        return Dialect.ANTHROPIC
    if path.startswith("/v1/"):
        return Dialect.OPENAI
    return Dialect.NATIVE


def _balanced(path: str, kind: JobKind, *, streams: bool = False) -> Route:
    return Route("POST", path, Plan.BALANCE, dialect_of(path), kind, streams)


def _merged(method: str, path: str) -> Route:
    return Route(method, path, Plan.MERGE, dialect_of(path))


def _broadcast(method: str, path: str, *, streams: bool = False) -> Route:
    return Route(method, path, Plan.BROADCAST, dialect_of(path), JobKind.MANAGE, streams)


def _identity(method: str, path: str, *, streams: bool = False) -> Route:
    return Route(
        method, path, Plan.IDENTITY, dialect_of(path), JobKind.PASS, streams_by_default=streams
    )


# In the order in which Ollama's `Allow` header names methods: HEAD first.
ROUTES: tuple[Route, ...] = (
    _balanced("/api/generate", JobKind.GENERATE, streams=True),
    _balanced("/api/chat", JobKind.GENERATE, streams=True),
    _balanced("/api/embed", JobKind.EMBED),
    _balanced("/api/embeddings", JobKind.EMBED),
    _balanced("/api/show", JobKind.SHOW),
    _balanced("/v1/chat/completions", JobKind.GENERATE),
    _balanced("/v1/completions", JobKind.GENERATE),
    _balanced("/v1/embeddings", JobKind.EMBED),
    _balanced("/v1/responses", JobKind.GENERATE),
    _balanced("/v1/messages", JobKind.GENERATE),
    _balanced("/v1/audio/transcriptions", JobKind.TRANSCRIBE),
    _merged("HEAD", "/"),
    _merged("GET", "/"),
    _merged("HEAD", "/api/version"),
    _merged("GET", "/api/version"),
    _merged("HEAD", "/api/tags"),
    _merged("GET", "/api/tags"),
    _merged("GET", "/api/ps"),
    _merged("GET", "/v1/models"),
    _merged("GET", "/v1/models/:model"),
    _broadcast("POST", "/api/pull", streams=True),
    _identity("POST", "/api/push", streams=True),
    _broadcast("POST", "/api/create", streams=True),
    _broadcast("POST", "/api/copy"),
    _broadcast("DELETE", "/api/delete"),
    _broadcast("HEAD", "/api/blobs/:digest"),
    _broadcast("POST", "/api/blobs/:digest"),
    _identity("POST", "/api/me"),
    _identity("POST", "/api/signout"),
    _identity("DELETE", "/api/user/keys/:key"),
    _identity("GET", "/api/status"),
    _identity("POST", "/api/experimental/web_search"),
    _identity("POST", "/api/experimental/web_fetch"),
    _identity("GET", "/api/experimental/model-recommendations"),
)

_BY_METHOD_AND_PATH = {(route.method, route.path): route for route in ROUTES}
_METHODS = {
    path: [route.method for route in ROUTES if route.path == path]
    for path in dict.fromkeys(route.path for route in ROUTES)
}
_PATHS = frozenset(route.path for route in ROUTES)
# Templates end in their one parameter; the prefix decides.
_TEMPLATES = tuple(
    (path[: path.index(":")], path) for path in dict.fromkeys(r.path for r in ROUTES) if ":" in path
)


def plain_paths() -> list[str]:
    """Paths of the table without a parameter, and not the bare `/`."""
    return [path for path in _METHODS if ":" not in path and path != "/"]


def find(method: str, path: str) -> Route:
    """The row for a request.

    An unknown path, and a known one asked with a method Ollama does not have there, pass to a
    host, whose 404 or 405 is the answer.

    Args:
        method: as written by the client.
        path: raw, without query.
    """
    route = _BY_METHOD_AND_PATH.get((method, path))
    if route is not None and ":" not in path:
        return route
    label = _label(path)
    return _BY_METHOD_AND_PATH.get((method, label)) or Route(
        method, label, Plan.PASS, dialect_of(path)
    )


def allowed_methods(path: str) -> list[str]:
    """The methods of Ollama's `Allow` header for a raw path, in its order; empty when unknown."""
    return _METHODS.get(_label(path), [])


def _label(path: str) -> str:
    """The template a raw path belongs to, or `other`."""
    if path in _PATHS and ":" not in path:
        return path
    for prefix, template in _TEMPLATES:
        if path.startswith(prefix) and _is_one_segment(path[len(prefix) :]):
            return template
    return UNKNOWN


def _is_one_segment(text: str) -> bool:
    """Whether a path parameter matches: Ollama splits at an escaped slash as at a plain one."""
    return bool(text) and "/" not in text and "%2f" not in text.lower()
