"""The routes of a lab host that ask no model: version, tags, ps, show, `/v1/models`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from aiohttp import web

from sollol_proxy.lab.account import Account
from sollol_proxy.lab.ask import AskError, read_fields, refuse_two_sources
from sollol_proxy.lab.disk import Disk
from sollol_proxy.lab.inventory import (
    Listing,
    Residence,
    ps_document,
    show_document,
    tags_document,
    v1_model_document,
    v1_models_document,
)
from sollol_proxy.lab.manage import model_name
from sollol_proxy.lab.replies import json_reply
from sollol_proxy.lab.shapes import encode, encode_line
from sollol_proxy.ollama.names import display, is_cloud, is_valid

_UNAVAILABLE = "remote model details are unavailable"


class StatusPages(ABC):
    """The handlers. A kind of host says which models are in memory and which the cloud has."""

    def __init__(self, version: str, disk: Disk, account: Account) -> None:
        self._version = version
        self._disk = disk
        self._account = account

    @abstractmethod
    def residences(self) -> Iterable[Residence]:
        """The models in memory."""

    @abstractmethod
    def cloud_listing(self, name: str) -> Listing:
        """A model of ollama.com."""

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
        return json_reply(encode(tags_document(self._disk.listings.values())))

    async def _get_ps(self, request: web.Request) -> web.Response:
        return json_reply(encode(ps_document(self.residences())))

    async def _post_show(self, request: web.Request) -> web.Response:
        name = model_name(read_fields(request.path, await request.read()))
        if not name:
            raise AskError(400, "model is required")
        return json_reply(encode(show_document(self._described(name))))

    async def _get_v1_models(self, request: web.Request) -> web.Response:
        document = v1_models_document(self._disk.listings.values())
        return json_reply(encode_line(document), "application/json")

    async def _get_v1_model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        document = v1_model_document(self._described(name), name)
        return json_reply(encode_line(document), "application/json")

    def _described(self, name: str) -> Listing:
        refuse_two_sources(name)
        if not is_valid(name):
            raise AskError(400, "invalid model name")
        if is_cloud(name):
            self._account.require(_UNAVAILABLE, is_native=True)
            return self.cloud_listing(name)
        listing = self._disk.find(name)
        if listing is None:
            raise AskError(404, f"model '{display(name)}' not found")
        return listing
