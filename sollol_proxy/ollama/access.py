"""Who may call: Ollama's CORS rules and its guard against DNS rebinding, in its order.

A host must not be asked these questions again on behalf of a client, so the proxy answers them
and forwards neither the client's `Origin` nor its `Host`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network

from sollol_proxy.ollama.replies import PLAIN_UTF8, Reply

Headers = tuple[tuple[str, str], ...]

MISSING_HOST = "400 Bad Request: missing required Host header"

_LOCAL_ORIGINS = tuple(
    f"{scheme}://{name}{port}"
    for name in ("localhost", "127.0.0.1", "0.0.0.0")
    for scheme in ("http", "https")
    for port in ("", ":*")
)
_DESKTOP_ORIGINS = ("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
# Go's IsPrivate. Python's `is_private` covers more, documentation networks among them.
_PRIVATE = tuple(
    ip_network(network) for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)

_STAINLESS = (
    "Arch",
    "Async",
    "Custom-Poll-Interval",
    "Helper-Method",
    "Lang",
    "Os",
    "Package-Version",
    "Poll-Helper",
    "Retry-Count",
    "Runtime",
    "Runtime-Version",
    "Timeout",
)
_ALLOW_HEADERS = ",".join(
    (
        "Authorization",
        "Content-Type",
        "User-Agent",
        "Accept",
        "X-Requested-With",
        "Openai-Beta",
        *(f"X-Stainless-{name}" for name in _STAINLESS),
    )
)
_ALLOW_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_MAX_AGE_S = "43200"

_NAME_KEPT = 64
"""Characters of a name whose verdict is kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """What the rules depend on. Equal to itself only, which makes it a cheap key.

    loopback_bound: the proxy listens on a loopback address only; else there is no Host check.
    origins: more allowed web origins, one `*` in each at most, as in OLLAMA_ORIGINS.
    hostname: the machine's own. local_addresses: its IP addresses, as text.
    """

    loopback_bound: bool
    origins: tuple[str, ...] = ()
    hostname: str = ""
    local_addresses: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """reply: the answer, None to go on. headers: for the answer of whoever gives it."""

    reply: Reply | None = None
    headers: Headers = ()


def is_plainly_welcome(
    access: Access, *, method: str, host_header: str | None, origin: str | None
) -> bool:
    """Whether `judge` has nothing to say to a request, as far as that can be told at a glance."""
    if origin or host_header is None or method == "OPTIONS":
        return False
    # Clients come by the same few names again and again; what one makes up must not fill memory.
    return len(host_header) <= _NAME_KEPT and _is_own_kept(access, host_header)


def judge(
    access: Access,
    *,
    method: str,
    host_header: str | None,
    origin: str | None,
    http_version_11: bool,
    allow_methods: Sequence[str] = (),
) -> Verdict:
    """Whether a request may go on.

    Args:
        access: the rules' settings.
        method: as written by the client.
        host_header: None when there is none, which HTTP/1.1 forbids.
        origin: the `Origin` header.
        http_version_11: the request is HTTP/1.1.
        allow_methods: of the path, in Ollama's order; empty when the path is unknown.
    """
    if host_header is None and http_version_11:
        connection_close = (("Connection", "close"),)
        return Verdict(Reply(400, MISSING_HOST.encode(), PLAIN_UTF8, connection_close))
    host = host_header or ""
    # Gin adds `Allow` before its middleware runs, so even these answers carry it.
    allow: Headers = ()
    if allow_methods and method not in allow_methods:
        allow = (("Allow", ", ".join(allow_methods)),)
    cors: Headers = ()
    if origin and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        if not _is_origin_allowed(access, origin):
            return Verdict(Reply(403, headers=allow))
        if method == "OPTIONS":
            return Verdict(_preflight(access, origin, allow))
        cors = _cors(access, origin, vary=("Origin",))
    return _judge_host(access, method, host, allow, cors)


def _judge_host(access: Access, method: str, host: str, allow: Headers, cors: Headers) -> Verdict:
    if not access.loopback_bound:
        return Verdict(headers=cors)
    name = _without_port(host)
    if _is_near(access, name):
        return Verdict(headers=cors)
    if not _is_local_name(access, name):
        return Verdict(Reply(403, headers=cors + allow))
    if method == "OPTIONS":
        return Verdict(Reply(204, headers=cors + allow))
    return Verdict(headers=cors)


def _preflight(access: Access, origin: str, allow: Headers) -> Reply:
    vary = ("Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers")
    headers = (
        ("Access-Control-Allow-Headers", _ALLOW_HEADERS),
        ("Access-Control-Allow-Methods", _ALLOW_METHODS),
        ("Access-Control-Max-Age", _MAX_AGE_S),
        *allow,
        *_cors(access, origin, vary=vary),
    )
    return Reply(204, headers=headers)


def _cors(access: Access, origin: str, *, vary: Sequence[str]) -> Headers:
    """Who may read the answer; where everybody may, it does not vary."""
    if "*" in access.origins:
        return (("Access-Control-Allow-Origin", "*"),)
    return (("Access-Control-Allow-Origin", origin), *(("Vary", name) for name in vary))


def _is_origin_allowed(access: Access, origin: str) -> bool:
    return any(
        _matches(origin, pattern)
        for pattern in (*access.origins, *_LOCAL_ORIGINS, *_DESKTOP_ORIGINS)
    )


def _matches(origin: str, pattern: str) -> bool:
    """Equal, or equal before and after the pattern's one `*`; case does not matter."""
    before, star, after = pattern.lower().partition("*")
    text = origin.lower()
    if not star:
        return text == before
    fits = len(text) >= len(before) + len(after)
    return fits and text.startswith(before) and text.endswith(after)


def _without_port(host: str) -> str:
    """The name or address of a Host header, without brackets and port, in lower case."""
    text = host.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    name, colon, port = text.rpartition(":")
    return name if colon and ":" not in name and port.isdigit() else text


def _is_local_name(access: Access, name: str) -> bool:
    if name in ("", "localhost"):
        return True
    return name == access.hostname.lower() or name.endswith(_LOCAL_SUFFIXES)


def _is_own(access: Access, host: str) -> bool:
    """Whether the Host check lets everything but OPTIONS pass."""
    if not access.loopback_bound:
        return True
    name = _without_port(host)
    return _is_near(access, name) or _is_local_name(access, name)


def _is_near(access: Access, name: str) -> bool:
    """Whether the name is an address that can only be near: loopback, private, the machine's."""
    try:
        address = ip_address(name)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or str(address) in access.local_addresses:
        return True
    return any(address in network for network in _PRIVATE)


_is_own_kept = lru_cache(maxsize=64)(_is_own)
