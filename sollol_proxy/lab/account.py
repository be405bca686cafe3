"""The account of a lab host at ollama.com, and the routes that need it.

An offline host has no way to the internet and its cloud switched off.
"""

from __future__ import annotations

import base64
from typing import Any

from aiohttp import web

from sollol_proxy.lab.ask import AskError, read_fields
from sollol_proxy.lab.faults import Faults
from sollol_proxy.lab.guard import Handler, guarded
from sollol_proxy.lab.replies import json_reply
from sollol_proxy.lab.shapes import encode

CLOUD_HOST = "https://ollama.com:443"

# As Ollama 0.33 has them built in.
_RECOMMENDATIONS: tuple[dict[str, Any], ...] = (
    {
        "model": "kimi-k2.6:cloud",
        "description": (
            "State-of-the-art coding, long-horizon execution, and multimodal agent swarm capability"
        ),
        "context_length": 262_144,
        "max_output_tokens": 262_144,
    },
    {
        "model": "glm-5.1:cloud",
        "description": "Reasoning and code generation",
        "context_length": 202_752,
        "max_output_tokens": 131_072,
    },
    {
        "model": "qwen3.5:cloud",
        "description": "Reasoning, coding, and agentic tool use with vision",
        "context_length": 262_144,
        "max_output_tokens": 32_768,
    },
    {
        "model": "minimax-m2.7:cloud",
        "description": "Fast, efficient coding and real-world productivity",
        "context_length": 204_800,
        "max_output_tokens": 128_000,
    },
    {
        "model": "gemma4",
        "description": "Reasoning and code generation locally",
        "vram_bytes": 12_000_000_000,
    },
    {
        "model": "qwen3.5",
        "description": "Reasoning, coding, and visual understanding locally",
        "vram_bytes": 14_000_000_000,
    },
)


class Account:
    """Who is signed in. host_id: what the host calls itself towards ollama.com."""

    def __init__(self, host_id: str, name: str = "", *, offline: bool = False) -> None:
        """name: empty = nobody."""
        self.host_id = host_id
        self.name = name
        self.offline = offline

    @property
    def signin_url(self) -> str:
        """Where a person signs this host in."""
        key = base64.b64encode(f"ssh-ed25519 key-of-{self.host_id}".encode()).decode()
        return f"https://ollama.com/connect?name={self.host_id}&key={key}"

    def require(self, what: str, *, is_native: bool = False) -> None:
        """Refuse unless the cloud is on and somebody is signed in.

        what: what is not to be had with the cloud off.

        Raises:
            AskError: 403 or 401. is_native: see there.
        """
        if self.offline:
            raise AskError(403, f"ollama cloud is disabled: {what}", is_native=is_native)
        if not self.name:
            raise self.unauthorized(is_native=is_native)

    def unauthorized(self, *, is_native: bool = False) -> AskError:
        """The refusal that says where to sign in."""
        return AskError(
            401, "unauthorized", extra={"signin_url": self.signin_url}, is_native=is_native
        )


class AccountPages:
    """The handlers."""

    def __init__(self, account: Account, faults: Faults) -> None:
        self._account = account
        self._faults = faults

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        router = app.router
        router.add_post("/api/me", self._guarded(self._me))
        router.add_post("/api/signout", self._guarded(self._sign_out))
        router.add_delete("/api/user/keys/{key}", self._guarded(self._sign_out))
        router.add_get("/api/status", self._guarded(self._status), allow_head=False)
        router.add_post("/api/experimental/web_search", self._guarded(self._web_search))
        router.add_post("/api/experimental/web_fetch", self._guarded(self._web_fetch))
        router.add_get(
            "/api/experimental/model-recommendations",
            self._guarded(self._recommendations),
            allow_head=False,
        )

    def _guarded(self, handler: Handler) -> Handler:
        return guarded(self._faults, handler)

    async def _me(self, request: web.Request) -> web.Response:
        account = self._account
        if account.offline:
            raise AskError(503, "account unavailable")
        if not account.name:
            raise account.unauthorized()
        user = {
            "id": f"user-{account.name}",
            "email": f"{account.name}@example.com",
            "name": account.name,
            "plan": "free",
        }
        return json_reply(encode(user))

    async def _sign_out(self, request: web.Request) -> web.Response:
        if self._account.offline:
            raise AskError(500, "there was an error signing out")
        if not self._account.name:
            raise AskError(401, "you are not currently signed in")
        self._account.name = ""
        return json_reply(b"null")

    async def _status(self, request: web.Request) -> web.Response:
        offline = self._account.offline
        cloud = {"disabled": offline, "source": "env" if offline else "none"}
        return json_reply(encode({"cloud": cloud}))

    async def _web_search(self, request: web.Request) -> web.Response:
        fields = read_fields(request.path, await request.read())
        self._account.require("web search is unavailable")
        query = str(fields.get("query") or "")
        page = {"title": query, "url": "https://example.com/", "content": f"About {query}."}
        return json_reply(encode({"results": [page]}))

    async def _web_fetch(self, request: web.Request) -> web.Response:
        fields = read_fields(request.path, await request.read())
        self._account.require("web fetch is unavailable")
        url = str(fields.get("url") or "")
        return json_reply(encode({"title": url, "content": f"What is at {url}.", "links": []}))

    async def _recommendations(self, request: web.Request) -> web.Response:
        return json_reply(encode({"recommendations": _RECOMMENDATIONS}))
