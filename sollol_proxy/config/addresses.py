"""The two kinds of address: where the proxy listens, and where a host is.

The errors say what is wrong without repeating the address: it may hold a password or come from
`${NAME}`, and the loader knows how to show it.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

OLLAMA_PORT = 11434

_NOT_LISTEN = "is not ADDRESS:PORT, for example 127.0.0.1:11434 or [::1]:11434"
_HOSTNAME = re.compile(r"[\w.-]{1,253}")


def split_listen(value: str) -> tuple[str, int]:
    """Address and port of `ADDRESS:PORT` or `[V6]:PORT`; port 0 means any free one.

    Raises:
        ValueError: anything else.
    """
    address, _, port = value.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(_NOT_LISTEN)
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
        if not _is_ip(address, version=6):
            raise ValueError(_NOT_LISTEN)
    elif not _HOSTNAME.fullmatch(address):
        raise ValueError(_NOT_LISTEN)
    return address, int(port)


def normalised_url(value: str) -> str:
    """A host's address as `http://hostname:port[/prefix]`, read as OLLAMA_HOST is read.

    `gpu-box`, `gpu-box:8080` and `http://gpu-box` are all fine; the port is 11434 without a
    scheme, else the scheme's own. Idempotent.

    Raises:
        ValueError: no hostname, a foreign scheme, a bad port, blanks, a query or credentials.
    """
    text = value.strip()
    bare = "://" not in text
    parts = _split(f"http://{text}" if bare else text)
    if parts.scheme not in ("http", "https"):
        raise ValueError("has a scheme that is neither http nor https")
    if not parts.hostname:
        raise ValueError("names no host; write http://gpu-box:11434")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("has more than scheme, hostname, port and path prefix")
    port = _port(parts)
    if port is None:
        port = OLLAMA_PORT if bare else {"http": 80, "https": 443}[parts.scheme]
    hostname = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{hostname}:{port}{parts.path.rstrip('/')}"


def _split(text: str) -> SplitResult:
    # urlsplit drops tabs and line ends silently and takes blanks for parts of a hostname.
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError("holds a blank or a control character")
    try:
        parts = urlsplit(text)
        hostname = parts.hostname or ""
    except ValueError:
        raise ValueError("is not a URL; write http://gpu-box:11434") from None
    if hostname and not (_HOSTNAME.fullmatch(hostname) or _is_ip(hostname, version=6)):
        raise ValueError("has a hostname that cannot be one")
    return parts


def _port(parts: SplitResult) -> int | None:
    """The port that is written; None where none is.

    Raises:
        ValueError: a colon without a port from 1 to 65535.
    """
    after_hostname = parts.netloc.rpartition("@")[2].rpartition("]")[2]
    _, colon, port = after_hostname.rpartition(":")
    if not colon:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError("has a port that is not a number from 1 to 65535")
    return int(port)


def _is_ip(text: str, *, version: int) -> bool:
    try:
        return ip_address(text).version == version
    except ValueError:
        return False
