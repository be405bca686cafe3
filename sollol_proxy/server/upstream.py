"""What goes to a host and what comes back, whichever way they go."""

from __future__ import annotations

import os
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import aiohttp

TAKEN_BACK = "taken back: the host fell silent"
NO_CONNECTION = "no connection in time"
WITH_LENGTH = frozenset({"POST", "PUT", "PATCH"})
"""Methods that say so where they have no body."""


class Outbound(NamedTuple):
    """A request on its way to some host. target: raw path and query, as the client spelled it.

    body: bytes when it may have to be sent again, an iterator when it is streamed; then in chunks
    unless the headers have a Content-Length.
    """

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes | AsyncIterator[bytes] | None


class Upstream(ABC):
    """An answer in progress: its head, its first bytes, and the rest on demand.

    fields: names and values of the head as they came. length: of the body; None = not announced.
    """

    __slots__ = ("_host_id", "content_type", "fields", "first", "length", "reason", "status")

    def __init__(
        self,
        host_id: str,
        status: int,
        reason: bytes,
        fields: tuple[tuple[bytes, bytes], ...],
        first: bytes,
        *,
        length: int | None,
        content_type: str,
    ) -> None:
        self._host_id = host_id
        self.status = status
        self.reason = reason
        self.fields = fields
        self.first = first
        self.length = length
        self.content_type = content_type

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The head's fields as text."""
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.fields]

    @abstractmethod
    async def next_chunk(self) -> bytes:
        """The next bytes as they come; empty at a proper end.

        Raises:
            UpstreamBroke: the connection ended before the body did.
        """

    async def read_small(self, limit_bytes: int) -> bytes:
        """The beginning of the body, `first` included, at most about `limit_bytes`.

        What was read becomes `first`, so that the answer can still be passed on whole.

        Raises:
            UpstreamBroke: see `next_chunk`.
        """
        parts = [self.first]
        size = len(self.first)
        while size < limit_bytes and (chunk := await self.next_chunk()):
            parts.append(chunk)
            size += len(chunk)
        self.first = b"".join(parts)
        return self.first


def describe_error(error: BaseException) -> str:
    """A short reason for logs and the page, in words and without addresses."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return describe_error(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return describe_error(error.os_error)
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection ended before the body did"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection ended without an answer"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):  # its number is none of the system's
        return f"TLS failed: {(error.reason or 'no reason given').lower().replace('_', ' ')}"
    if isinstance(error, OSError) and not isinstance(error, aiohttp.ClientError):
        # A failed name look-up has a number of its own kind, and its own words.
        if error.errno and not isinstance(error, socket.gaierror):
            return os.strerror(error.errno)
        return error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__
