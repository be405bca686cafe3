"""The routes of a lab host that ask no model: version, tags, ps, show, `/v1/models`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from aiohttp import web

from sollol_proxy.lab.inventory import (
    Listing,
    Residence,
    ps_document,
    show_document,
    tags_document,
    v1_model_document,
    v1_models_document,
)
from sollol_proxy.lab.replies import error_reply, json_reply
from sollol_proxy.lab.shapes import encode, encode_line
from sollol_proxy.ollama.names import canonical


class StatusPages(ABC):
    """The handlers. A kind of host says which models are in memory.

    listings: by canonical name.
    """

    def __init__(self, version: str, listings: Mapping[str, Listing]) -> None:
        self._version = version
        self.listings = listings

    @abstractmethod
    def residences(self) -> Iterable[Residence]:
        """The models in memory."""

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        app.router.add_get("/", self._get_root)
        app.router.add_get("/api/version", self._get_version)
        app.router.add_get("/api/tags", self._get_tags)
        app.router.add_get("/api/ps", self._get_ps, allow_head=False)
        app.router.add_post("/api/show", self._post_show)
        app.router.add_get("/v1/models", self._get_v1_models, allow_head=False)
        app.router.add_get("/v1/models/{model}", self._get_v1_model, allow_head=False)

    async def _get_root(self, request: web.Request) -> web.Response:
        return web.Response(text="Ollama is running")

    async def _get_version(self, request: web.Request) -> web.Response:
        return json_reply(encode({"version": self._version}))

    async def _get_tags(self, request: web.Request) -> web.Response:
        return json_reply(encode(tags_document(self.listings.values())))

    async def _get_ps(self, request: web.Request) -> web.Response:
        return json_reply(encode(ps_document(self.residences())))

    async def _post_show(self, request: web.Request) -> web.Response:
        try:
            fields = json.loads(await request.read())
            name = str(fields.get("model") or fields.get("name") or "")
        except (ValueError, AttributeError):
            return error_reply(request.path, 400, "missing request body")
        if not name:
            return error_reply(request.path, 400, "model is required")
        listing = self.listings.get(canonical(name))
        if listing is None:
            return error_reply(request.path, 404, f"model '{canonical(name)}' not found")
        return json_reply(encode(show_document(listing)))

    async def _get_v1_models(self, request: web.Request) -> web.Response:
        document = v1_models_document(self.listings.values())
        return json_reply(encode_line(document), "application/json")

    async def _get_v1_model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        listing = self.listings.get(canonical(name))
        if listing is None:
            return error_reply(request.path, 404, f"model '{canonical(name)}' not found")
        return json_reply(encode_line(v1_model_document(listing, name)), "application/json")
