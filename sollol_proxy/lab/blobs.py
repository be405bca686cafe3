"""`/api/blobs/:digest` of a lab host. Uploads are hashed as they arrive and not kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re

from aiohttp import web

from sollol_proxy.lab.ask import AskError
from sollol_proxy.lab.disk import Disk
from sollol_proxy.lab.faults import (
    QUEUE_FULL,
    Fault,
    FaultKind,
    Faults,
    FaultStruck,
    crash,
    cut,
    fail_at_once,
    hang,
)
from sollol_proxy.lab.guard import guarded
from sollol_proxy.lab.replies import error_reply
from sollol_proxy.lab.simstats import Tally

_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
# What Go's server reads of a body that its handler left unread, before it gives the connection up.
_SWALLOWED_BYTES = 256 * 1024
# How long Go's server then lets the answer reach the client before it closes (net/http,
# rstAvoidanceDelay).
_FAREWELL_S = 0.5
_FAILED = "unexpected EOF"


class BlobRoutes:
    """The handlers."""

    def __init__(self, disk: Disk, faults: Faults, tally: Tally) -> None:
        self._disk = disk
        self._faults = faults
        self._tally = tally

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        path = "/api/blobs/{digest}"
        app.router.add_head(path, guarded(self._faults, self._head))
        app.router.add_post(path, self._post, expect_handler=_say_nothing_yet)

    async def _head(self, request: web.Request) -> web.StreamResponse:
        digest = _wanted(request)
        if _stored_as(digest) not in self._disk.blobs:
            raise AskError(404, f"blob {json.dumps(digest)} not found")
        return web.StreamResponse()

    async def _post(self, request: web.Request) -> web.StreamResponse:
        fault = self._faults.strike(request.method, request.path)
        if fault is not None and fault.kind is FaultKind.STATUS:
            message = fault.message or QUEUE_FULL
            return await _answer_early(request, error_reply(request.path, fault.status, message))
        if fault is not None and (early := await fail_at_once(request, fault)) is not None:
            return early
        digest = _wanted(request)
        if _stored_as(digest) in self._disk.blobs:
            return await _answer_early(request, web.Response())
        try:
            found, size_bytes = await self._read(request, fault)
        except FaultStruck:
            return web.Response()
        if fault is not None and fault.kind is FaultKind.ERROR_RECORD:
            raise AskError(500, fault.message or _FAILED)
        # Data that is not what it was called is kept all the same, as what it is.
        if self._disk.add_blob(found, size_bytes):
            self._tally.did("blobs_stored")
        if found != digest:
            raise AskError(
                400, f"digest mismatch, expected {json.dumps(digest)}, got {json.dumps(found)}"
            )
        return web.Response(status=201)

    async def _read(self, request: web.Request, fault: Fault | None) -> tuple[str, int]:
        """Digest and size of the body."""
        if "Expect" in request.headers:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        sha256, size_bytes = hashlib.sha256(), 0
        async for piece in request.content.iter_any():
            sha256.update(piece)
            size_bytes += len(piece)
            self._tally.did("blob_bytes", len(piece))
            if fault is not None and size_bytes >= fault.after_bytes:
                await _strike(request, fault)
        return f"sha256:{sha256.hexdigest()}", size_bytes


async def _strike(request: web.Request, fault: Fault) -> None:
    if fault.kind is FaultKind.HANG:
        await hang()
    if fault.kind is FaultKind.CRASH:
        crash()
    if fault.kind is FaultKind.CUT:
        cut(request)
        raise FaultStruck


async def _say_nothing_yet(request: web.Request) -> None:
    """Keep `100 Continue` back until the body is wanted."""


async def _answer_early(request: web.Request, response: web.Response) -> web.Response:
    """The answer to a request whose body is not wanted.

    A small body is read and forgotten. Of a large one, or one that waits for `100 Continue`, no
    more is read: the answer goes out, the sending side ends, and the connection with it.
    """
    if await _swallow(request):
        return response
    response.headers["Connection"] = "close"
    response.force_close()
    await response.prepare(request)
    await response.write_eof()
    if (transport := request.transport) is not None:
        transport.write_eof()
        await asyncio.sleep(_FAREWELL_S)
        transport.abort()
    return response


async def _swallow(request: web.Request) -> bool:
    """Read the rest of the body if it is small; whether it was."""
    length = request.content_length
    if "Expect" in request.headers or (length is not None and length > _SWALLOWED_BYTES):
        return False
    read_bytes = 0
    async for piece in request.content.iter_any():
        read_bytes += len(piece)
        if read_bytes > _SWALLOWED_BYTES:
            return False
    return True


def _wanted(request: web.Request) -> str:
    digest = request.match_info["digest"]
    if not _DIGEST.fullmatch(digest):
        raise AskError(400, "invalid digest format")
    return digest


def _stored_as(digest: str) -> str:
    return digest.replace("-", ":", 1)
