"""Requests get the context length that the configuration wants, and lose nothing by it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.config.schema import ModelSection
from sollol_proxy.core.types import Facts
from sollol_proxy.ollama.describe import describe
from sollol_proxy.ollama.rewrite import num_ctx_of
from sollol_proxy.ollama.routes import ROUTES, Plan, Route, find
from sollol_proxy.server.context import fitted
from tests.server.pool import pool, sim

GENERATE = find("POST", "/api/generate")
BALANCED = [route for route in ROUTES if route.plan is Plan.BALANCE]
PINNED, BOUNDED = ModelSection(num_ctx=8192), ModelSection(max_num_ctx=8192)


def fit(rules: ModelSection, body: bytes, route: Route = GENERATE) -> tuple[Facts, bytes]:
    return fitted(rules, route, describe(route, body), body)


@pytest.mark.parametrize(
    ("rules", "asked", "sent"),
    [
        (PINNED, None, 8192),
        (PINNED, 2048, 8192),
        (PINNED, 65536, 8192),
        (BOUNDED, 65536, 8192),
        (BOUNDED, 65536.5, 8192),
    ],
)
def test_context_length_is_changed_in_body_and_facts_alike(
    rules: ModelSection, asked: float | None, sent: int
) -> None:
    options = {"num_gpu": 7} if asked is None else {"num_ctx": asked, "num_gpu": 7}
    facts, body = fit(rules, json.dumps({"model": "m", "prompt": "x", "options": options}).encode())
    assert json.loads(body) == {
        "model": "m",
        "prompt": "x",
        "options": {"num_ctx": sent, "num_gpu": 7},
    }
    assert replace(facts, body_bytes=len(body)) == describe(GENERATE, body)
    assert (facts.num_ctx, facts.options_key) == (sent, f"num_ctx={sent},num_gpu=7")


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        (PINNED, {"num_ctx": 8192}),
        (PINNED, {"num_ctx": "8k"}),  # a host's own words are better than a silent repair
        (PINNED, []),
        (BOUNDED, {"num_ctx": 8192}),
        (BOUNDED, {"num_ctx": 5}),
        (BOUNDED, {}),
        (BOUNDED, None),
        (ModelSection(), {"num_ctx": 65536}),
    ],
)
def test_request_stays_as_it_is_where_nothing_is_to_be_changed(
    rules: ModelSection, options: Any
) -> None:
    body = json.dumps({"model": "m", "prompt": "x", "options": options}).encode()
    facts, same = fit(rules, body)
    assert same is body
    assert facts == describe(GENERATE, body)


@pytest.mark.parametrize("route", BALANCED, ids=lambda route: route.path)
def test_context_length_is_given_only_where_a_model_is_run_natively(route: Route) -> None:
    message = {"role": "user", "content": "hi"}
    body = json.dumps({"model": "m", "prompt": "x", "input": "x", "messages": [message]}).encode()
    facts, sent = fit(PINNED, body, route)
    runs = route.path in ("/api/generate", "/api/chat", "/api/embed", "/api/embeddings")
    assert (sent != body) is runs
    assert facts.num_ctx == (8192 if runs else None)


def test_load_is_given_the_context_length_and_unload_is_not() -> None:
    assert fit(PINNED, b'{"model":"m"}')[1] == b'{"options":{"num_ctx":8192},"model":"m"}'
    unload = b'{"model":"m","keep_alive":0}'
    assert fit(PINNED, unload)[1] is unload


@given(st.binary(), st.sampled_from([PINNED, BOUNDED]), st.sampled_from(BALANCED))
def test_fitted_never_raises_and_never_passes_the_bound(
    body: bytes, rules: ModelSection, route: Route
) -> None:
    for whole in (body, b'{"model":"m","prompt":"x","options":{' + body):
        _, sent = fit(rules, whole, route)
        if sent is not whole:
            asked = num_ctx_of(sent)
            assert asked is not None
            assert asked <= 8192


async def test_host_loads_with_the_length_and_the_client_is_told() -> None:
    spec = sim("a", resident=())
    async with pool(spec, models={"llama*": {"num_ctx": 3072}}) as p:
        for asked in ({}, {"num_ctx": 2048}, {"num_ctx": 4096}):
            response, text = await p.generate(options={"num_predict": 3, **asked})
            assert json.loads(text.splitlines()[-1])["eval_count"] == 3
            assert response.headers["X-SOLLOL-Rewrote"] == "num_ctx=3072"
        response, _ = await p.generate(options={"num_predict": 3, "num_ctx": 3072})
        assert "X-SOLLOL-Rewrote" not in response.headers
        async with p.client.get(f"{p.hosts['a'].url}/api/ps") as answer:
            [resident] = (await answer.json())["models"]
        assert resident["context_length"] == 3072
        assert p.hosts["a"].stats.loads == 1
