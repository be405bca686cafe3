"""The routes of a lab host that change its disk: pull, push, create, copy, delete, blobs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from aiohttp import web

from sollol_proxy.lab.account import Account
from sollol_proxy.lab.ask import AskError, read_fields, refuse_two_sources
from sollol_proxy.lab.blobs import BlobRoutes
from sollol_proxy.lab.creates import Creator, Files, read_create
from sollol_proxy.lab.disk import Disk
from sollol_proxy.lab.faults import Fault, Faults, fail_at_once
from sollol_proxy.lab.guard import guarded
from sollol_proxy.lab.inventory import Listing
from sollol_proxy.lab.progress import Say, Work, answer, status
from sollol_proxy.lab.pulls import Source
from sollol_proxy.lab.simstats import Tally
from sollol_proxy.ollama.names import DEFAULT_HOST, display, is_valid


class Target(Protocol):
    """What a host pushes to."""

    async def push(self, listing: Listing, say: Say) -> None:
        """Send a model away.

        Raises:
            AskError: it is not taken.
        """


@dataclass(frozen=True, slots=True)
class Stock:
    """What the routes work with: the disk, where models come from and go to, what reads files."""

    disk: Disk
    source: Source
    target: Target
    files: Files
    account: Account


class ManageRoutes:
    """The handlers."""

    def __init__(self, stock: Stock, faults: Faults, tally: Tally) -> None:
        self._disk = stock.disk
        self._source = stock.source
        self._target = stock.target
        self._account = stock.account
        self._creator = Creator(stock.disk, stock.source, stock.files)
        self._blobs = BlobRoutes(stock.disk, faults, tally)
        self._faults = faults
        self._tally = tally

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        app.router.add_post("/api/pull", self._pull)
        app.router.add_post("/api/push", self._push)
        app.router.add_post("/api/create", self._create)
        app.router.add_post("/api/copy", guarded(self._faults, self._copy))
        app.router.add_delete("/api/delete", guarded(self._faults, self._delete))
        self._blobs.add_to(app)

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        fields = read_fields(request.path, await request.read())
        name = model_name(fields)
        refuse_two_sources(name)
        if not is_valid(name):
            raise AskError(400, "invalid model name")
        return await self._answer(request, fields, partial(self._source.pull, name))

    async def _push(self, request: web.Request) -> web.StreamResponse:
        fields = read_fields(request.path, await request.read())
        name = model_name(fields)
        if not name:
            raise AskError(400, "model is required")
        return await self._answer(request, fields, partial(self._send, name))

    async def _send(self, name: str, say: Say) -> None:
        await say(status("retrieving manifest"))
        listing = self._disk.find(name)
        if listing is None:
            await say(status("couldn't retrieve manifest"))
            raise AskError(
                500, f"open /models/manifests/{_manifest_path(name)}: no such file or directory"
            )
        if not self._account.name:
            raise AskError(500, "push access denied")
        await self._target.push(listing, say)
        self._tally.did("pushes")

    async def _create(self, request: web.Request) -> web.StreamResponse:
        fields = read_fields(request.path, await request.read())
        wanted = read_create(fields)

        async def create(say: Say) -> None:
            await self._creator.create(wanted, say)
            self._tally.did("creates")

        return await self._answer(request, fields, create)

    async def _answer(
        self, request: web.Request, fields: Mapping[str, Any], work: Work
    ) -> web.StreamResponse:
        fault: Fault | None = self._faults.strike(request.method, request.path)
        if fault is not None and (early := await fail_at_once(request, fault)) is not None:
            return early
        stream = fields.get("stream") is not False
        return await answer(request, work, stream=stream, fault=fault)

    async def _copy(self, request: web.Request) -> web.StreamResponse:
        fields = read_fields(request.path, await request.read())
        names = [str(fields.get(key) or "") for key in ("source", "destination")]
        for key, name in zip(("source", "destination"), names, strict=True):
            if not is_valid(name):
                raise AskError(400, f"{key} {json.dumps(name)} is invalid")
        source, destination = names
        found = self._disk.find(source)
        if found is None:
            raise AskError(404, f"model {json.dumps(source)} not found")
        self._disk.copy(found, destination, datetime.now(UTC))
        self._tally.did("copies")
        return web.Response()

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        fields = read_fields(request.path, await request.read())
        name = model_name(fields)
        if not name:
            raise AskError(400, "model is required")
        refuse_two_sources(name)
        if not is_valid(name):
            raise AskError(400, f"name {json.dumps(name)} is invalid")
        found = self._disk.find(name)
        if found is None:
            raise AskError(404, f"model '{name}' not found")
        self._disk.delete(found)
        self._tally.did("deletes")
        return web.Response()


def model_name(fields: Mapping[str, Any]) -> str:
    """The name a body means: `model`, or the older `name`."""
    return str(fields.get("model") or fields.get("name") or "").strip()


def _manifest_path(name: str) -> str:
    """Where a model's manifest lies below the folder of manifests."""
    path, _, tag = display(name).rpartition(":")
    parts = path.split("/")
    defaults = [DEFAULT_HOST, "library"]
    return "/".join([*defaults[: 3 - len(parts)], *parts, tag])
