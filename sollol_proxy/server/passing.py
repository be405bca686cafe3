"""Requests of routes that are not balanced: which model they are about, for choosing a host."""

from __future__ import annotations

import orjson

from sollol_proxy.core.types import Facts, JobKind
from sollol_proxy.ollama import names
from sollol_proxy.ollama.routes import Route

BODY_KEPT_BYTES = 2**20
"""Up to here a body is read whole; a larger one (a model file, gigabytes) flows through."""

_MODEL_KEYS = {
    "/api/push": ("model", "name"),
    "/api/delete": ("model", "name"),
    "/api/copy": ("source",),
    "/api/create": ("from",),
}
"""Where the body says which model has to be there already."""


def pass_facts(route: Route, body: bytes) -> Facts:
    """The facts of a request that is passed on; a body that cannot be read names no model."""
    model = ""
    keys = _MODEL_KEYS.get(route.path, ())
    if keys and body:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            written = next((v for key in keys if isinstance(v := value.get(key), str) and v), "")
            model = names.canonical(written)
    return Facts(kind=JobKind.PASS, model=model, body_bytes=len(body))
