"""The context length of a request, where the configuration has a say in it."""

from __future__ import annotations

from dataclasses import replace

from sollol_proxy.config.schema import ModelSection
from sollol_proxy.core.types import Facts, JobKind
from sollol_proxy.ollama import options
from sollol_proxy.ollama.rewrite import Unclear, num_ctx_of, with_num_ctx
from sollol_proxy.ollama.routes import Dialect, Route

_LOADING = frozenset({JobKind.GENERATE, JobKind.EMBED, JobKind.LOAD})


def fitted(rules: ModelSection, route: Route, facts: Facts, body: bytes) -> tuple[Facts, bytes]:
    """The request with the context length that it is to have, as facts and as a body.

    Both come back as they are where nothing is to be changed: the rules agree with the request,
    its dialect has no such option, or the body is one that a host refuses.
    """
    has_rules = rules.num_ctx is not None or rules.max_num_ctx is not None
    if not has_rules or route.dialect is not Dialect.NATIVE or facts.kind not in _LOADING:
        return facts, body
    try:
        asked = num_ctx_of(body)
        wanted = rules.num_ctx_for(asked)
        if wanted is None or wanted == asked:
            return facts, body
        rewritten = with_num_ctx(body, wanted)
    except Unclear:
        return facts, body
    key = options.with_num_ctx(facts.options_key, wanted)
    return replace(facts, num_ctx=wanted, options_key=key), rewritten
