"""Merged reads: answered at once from what the probes know, over all hosts that are up.

No host is asked for a list, so none can delay one. The headers say how many hosts speak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from sollol_proxy.errors import NoHost
from sollol_proxy.ollama import merge, names, replies
from sollol_proxy.ollama.replies import Reply
from sollol_proxy.ollama.routes import Route, find
from sollol_proxy.server.answers import to_response
from sollol_proxy.server.probes import Document
from sollol_proxy.server.services import SERVICES, Services

INLINE_BYTES = 2048
"""Ollama gives a length up to here and sends larger documents in chunks; so do we."""

SETTLE_S = 0.25
"""Longest wait for a host that was asked out of turn: a list stays quick whatever a host does."""

JSON = "application/json; charset=utf-8"
OPENAI_JSON = "application/json"


async def handle(request: web.Request, route: Route) -> web.StreamResponse:
    """Answer from the probes' documents.

    Raises:
        NoHost: no host is up.
    """
    services = request.app[SERVICES]
    routable = _routable(services)
    if not routable:
        # Just started: the first round of probes is on its way.
        await services.probes.first_round(services.config.queue.no_host_wait)
        routable = _routable(services)
    if not routable:
        raise NoHost(_nobody(services))
    # Whoever has just loaded, unloaded or pulled something wants to see it in the list.
    await services.probes.settle(SETTLE_S)
    reply = _ANSWERS[route.path](services, routable, request.rel_url.raw_path)
    headers = {"X-SOLLOL-Hosts": f"{len(routable)}/{len(services.hosts)}"}
    if len(reply.body) <= INLINE_BYTES:
        return to_response(reply, headers)
    return await _chunked(request, reply, headers)


def is_clouds(request: web.Request, route: Route) -> bool:
    """Whether the request is about a model that no host has and Ollama's cloud runs."""
    if route.path != "/v1/models/:model":
        return False
    name = unquote(request.rel_url.raw_path.removeprefix("/v1/models/"))
    lists = request.app[SERVICES].dispatcher.lists
    return names.is_cloud(name) and not lists(names.canonical(name))


def _root(services: Services, routable: Sequence[str], path: str) -> Reply:
    return replies.ROOT


def _version(services: Services, routable: Sequence[str], path: str) -> Reply:
    documents = services.probes.documents
    version = merge.merge_versions([documents[host_id].version for host_id in routable])
    return Reply(200, merge.encode({"version": version}), JSON)


def _tags(services: Services, routable: Sequence[str], path: str) -> Reply:
    return Reply(200, merge.encode(merged_tags(services, routable)), JSON)


def _ps(services: Services, routable: Sequence[str], path: str) -> Reply:
    documents = [services.probes.documents[host_id].ps or {"models": []} for host_id in routable]
    return Reply(200, merge.encode(merge.merge_ps(documents)), JSON)


def _v1_models(services: Services, routable: Sequence[str], path: str) -> Reply:
    document = merge.v1_models(merged_tags(services, routable))
    return Reply(200, merge.encode(document, newline=True), OPENAI_JSON)


def _v1_model(services: Services, routable: Sequence[str], path: str) -> Reply:
    name = unquote(path.removeprefix("/v1/models/"))
    document = merge.v1_model(merged_tags(services, routable), name)
    if document is None:
        return replies.model_not_found(find("GET", path), name)
    return Reply(200, merge.encode(document, newline=True), OPENAI_JSON)


_ANSWERS: Mapping[str, Callable[[Services, Sequence[str], str], Reply]] = {
    "/": _root,
    "/api/version": _version,
    "/api/tags": _tags,
    "/api/ps": _ps,
    "/v1/models": _v1_models,
    "/v1/models/:model": _v1_model,
}


def merged_tags(services: Services, routable: Sequence[str]) -> dict[str, Any]:
    """One `/api/tags` document over these hosts, without what the configuration denies them."""
    return merge.merge_tags([_served(services, host_id) for host_id in routable])


def _served(services: Services, host_id: str) -> Document:
    document = services.probes.documents[host_id].tags or {"models": []}
    spec = services.hosts[host_id]
    if not (spec.allow or spec.deny):
        return document
    models = document.get("models")
    return {
        **document,
        "models": [
            model
            for model in (models if isinstance(models, list) else [])
            if isinstance(model, Mapping)
            and spec.may_serve(names.stored(str(model.get("name", ""))))
        ],
    }


def _routable(services: Services) -> list[str]:
    return services.dispatcher.routable()


def _nobody(services: Services) -> str:
    if not services.hosts:
        return "the pool has no hosts"
    return f"none of {len(services.hosts)} hosts is up"


async def _chunked(
    request: web.Request, reply: Reply, headers: Mapping[str, str]
) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=headers)
    response.headers["Content-Type"] = reply.content_type or JSON
    await response.prepare(request)
    if request.method != "HEAD":
        await response.write(reply.body)
    await response.write_eof()
    return response
