from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import Facts, JobKind
from sollol_proxy.ollama.describe import describe
from sollol_proxy.ollama.options import with_num_ctx as key_with_num_ctx
from sollol_proxy.ollama.rewrite import with_num_ctx
from sollol_proxy.ollama.routes import find

NATIVE = ("/api/generate", "/api/chat", "/api/embed", "/api/embeddings")


def facts_of(path: str, body: dict[str, Any] | bytes) -> Facts:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return describe(find("POST", path), data)


@pytest.mark.parametrize(
    ("options", "key", "num_ctx"),
    [
        ({}, "", None),
        (None, "", None),
        ({"num_ctx": 8192}, "num_ctx=8192", 8192),
        ({"num_ctx": None}, "", None),
        ({"num_ctx": 4096.7}, "num_ctx=4096", 4096),
        ({"num_ctx": 1}, "num_ctx=4", 4),
        ({"num_ctx": -1}, "num_ctx=4", 4),
        ({"NUM_CTX": 8192}, "", None),  # keys within options match by case
        ({"num_gpu": 20, "num_ctx": 64}, "num_ctx=64,num_gpu=20", 64),
        ({"use_mmap": False, "main_gpu": 0}, "main_gpu=0,use_mmap=false", None),
        ({"num_batch": 256, "draft_num_predict": 2}, "draft_num_predict=2,num_batch=256", None),
        # What stands for the host's own choice.
        ({"num_gpu": -1, "num_thread": 0}, "", None),
        ({"num_gpu": 0, "num_thread": 4}, "num_gpu=0,num_thread=4", None),
        # Options of one request only.
        ({"temperature": 0, "seed": 1, "num_predict": 5, "num_keep": 9, "stop": ["a"]}, "", None),
        # What a host refuses.
        ({"num_ctx": "8192", "num_gpu": True, "use_mmap": 1, "num_batch": 1e300}, "", None),
    ],
)
def test_options_key_has_what_a_runner_is_loaded_for(
    options: dict[str, Any] | None, key: str, num_ctx: int | None
) -> None:
    for path in NATIVE:
        body: dict[str, Any] = {
            "model": "m",
            "prompt": "hi",
            "input": "hi",
            "messages": [{}],
            "options": options,
        }
        facts = facts_of(path, body)
        assert (facts.options_key, facts.num_ctx) == (key, num_ctx)


def test_options_key_says_when_the_context_must_not_shift() -> None:
    body = {"model": "m", "prompt": "hi", "options": {"num_ctx": 64}}
    assert facts_of("/api/generate", {**body, "shift": False}).options_key == (
        "num_ctx=64,shift=false"
    )
    assert facts_of("/api/generate", {**body, "shift": True}).options_key == "num_ctx=64"
    assert facts_of("/api/embeddings", {**body, "shift": False}).options_key == "num_ctx=64"
    assert facts_of("/api/generate", {**body, "shift": "no"}).kind is JobKind.OTHER


def test_options_key_is_empty_where_a_dialect_has_no_options() -> None:
    body = {"model": "m", "messages": [{"role": "user"}], "options": {"num_ctx": 64}}
    for path in ("/v1/chat/completions", "/v1/messages"):
        facts = facts_of(path, body)
        assert (facts.kind, facts.options_key, facts.num_ctx) == (JobKind.GENERATE, "", None)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
KEYS = st.sampled_from(["num_ctx", "num_gpu", "num_thread", "use_mmap", "seed", "num_batch"])


@given(st.none() | st.dictionaries(KEYS, VALUES), st.integers(4, 2**62), st.booleans())
def test_key_with_a_context_length_is_that_of_the_rewritten_body(
    options: dict[str, Any] | None, num_ctx: int, shift: bool
) -> None:
    text = json.dumps({"model": "m", "prompt": "hi", "options": options, "shift": shift})
    if "NaN" in text or "Infinity" in text:
        return
    before = facts_of("/api/generate", text.encode())
    after = facts_of("/api/generate", with_num_ctx(text.encode(), num_ctx))
    assert after.num_ctx == num_ctx
    assert after.options_key == key_with_num_ctx(before.options_key, num_ctx)
