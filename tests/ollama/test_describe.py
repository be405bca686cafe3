from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import Complexity, Facts, JobKind, TaskType
from sollol_proxy.ollama.describe import complexity, describe, requires_gpu
from sollol_proxy.ollama.routes import ROUTES, Plan, find
from tests.wire.recordings import Exchange, http_exchanges

BALANCED = [route for route in ROUTES if route.plan is Plan.BALANCE]
RECORDED = [
    e
    for e in http_exchanges().values()
    if e.body is not None and find(e.method, e.raw_path).plan is Plan.BALANCE
]
GENERATE, CHAT = "/api/generate", "/api/chat"


def facts_of(path: str, body: bytes | dict[str, Any], **headers: str) -> Facts:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return describe(find("POST", path), data, **headers)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# --- nothing raises ---------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
KNOWN_KEYS = (
    "model", "name", "Model", "prompt", "messages", "input", "stream", "options", "keep_alive",
    "system", "images", "tools", "max_tokens", "instructions", "suffix", "_debug_render_only",
)  # fmt: skip
KEYS = st.sampled_from(KNOWN_KEYS)
BODIES = st.binary() | st.dictionaries(KEYS, JSON_VALUES).map(lambda v: json.dumps(v).encode())


@given(
    st.sampled_from(ROUTES), BODIES, st.text(), st.sampled_from(["", "identity", "gzip", "zstd"])
)
def test_describe_never_raises(route: Any, body: bytes, content_type: str, encoding: str) -> None:
    facts = describe(route, body, content_type=content_type, content_encoding=encoding)
    assert facts.body_bytes == len(body)
    assert facts.prompt_tokens_est >= 0
    if not facts.model:
        assert facts.kind is JobKind.OTHER


@pytest.mark.parametrize("depth", [900, 1100, 200_000])
def test_describe_survives_deep_nesting(depth: int) -> None:
    body = (
        b'{"model":"m","messages":[{"role":"user","content":' + b"[" * depth + b"]" * depth + b"}]}"
    )
    assert facts_of(CHAT, body).kind in (JobKind.GENERATE, JobKind.OTHER)


# --- the recordings ---------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", RECORDED, ids=lambda exchange: exchange.id)
def test_describe_finds_a_model_whenever_ollama_did(exchange: Exchange) -> None:
    facts = describe(
        find(exchange.method, exchange.raw_path),
        exchange.body or b"",
        content_type=exchange.header("Content-Type"),
        content_encoding=exchange.header("Content-Encoding"),
    )
    if exchange.status == 200:
        assert facts.model
        assert facts.kind is not JobKind.OTHER
        content_type = exchange.answer_header("Content-Type")
        assert facts.stream is ("ndjson" in content_type or "event-stream" in content_type)
    reason = json.loads(exchange.answer).get("done_reason") if facts.kind is JobKind.LOAD else ""
    assert reason in ("", "load", None)
    if b'"done_reason":"unload"' in exchange.answer:
        assert facts.kind is JobKind.UNLOAD


# --- Go's decoder -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"MODEL":"nosuch","Model":"det","Prompt":"hi"} trailing',
        b'{"model":"nosuch","model":"det","prompt":"hi"}{"model":"x"}',
        b'{"Model":"a","MODEL":"b","Model":"det","prompt":"hi"}',
        b' \n{"model":"det","prompt":"hi","stream":null,"options":null,"system":null}',
        b'{"model":"det","prompt":"\xff\xfe"}',
        b'{"model":"det","prompt":"\\ud800"}',
    ],
)
def test_describe_reads_like_go(body: bytes) -> None:
    facts = facts_of(GENERATE, body)
    assert (facts.kind, facts.model, facts.stream) == (JobKind.GENERATE, "det:latest", True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{bad",
        b'{"model":"det"',
        b"[]",
        b"null",
        b'"det"',
        b'{"model":5}',
        b'{"model":"det","prompt":NaN}',
        b'{"model":"det","prompt":["hi"]}',
        b'{"model":"det","prompt":"hi","stream":"yes"}',
        b'{"model":"det","prompt":"hi","options":[]}',
        b'{"model":"det","keep_alive":true}',
        b'{"model":"","prompt":"hi"}',
        b'{"name":"det","prompt":"hi"}',
        b'{"model":"a@sha256:b","prompt":"hi"}',
        b'{"model":"foo:cloud:local","prompt":"hi"}',
        b"\x1f\x8b\x08",
    ],
)
def test_describe_leaves_to_a_host_what_a_host_refuses(body: bytes) -> None:
    assert facts_of(GENERATE, body) == Facts(kind=JobKind.OTHER, body_bytes=len(body))


def test_describe_leaves_encoded_bodies_to_a_host() -> None:
    body = b'{"model":"det","messages":[{"role":"user","content":"hi"}]}'
    path = "/v1/chat/completions"
    for coding in ("gzip", "br", "zstd"):  # the last one is not what these bytes are
        assert facts_of(path, body, content_encoding=coding).kind is JobKind.OTHER
    assert facts_of(path, body, content_encoding="Identity").kind is JobKind.GENERATE


@pytest.mark.parametrize("path", [route.path for route in BALANCED if route.kind is JobKind.SHOW])
def test_describe_takes_the_first_name_that_is_not_empty_on_show(path: str) -> None:
    assert facts_of(path, {"model": "", "name": "ns/det:v2"}).model == "ns/det:v2"
    assert facts_of(path, {"model": "a", "name": "b"}).model == "a:latest"


def test_describe_keeps_the_spelling_of_the_client() -> None:
    facts = facts_of(GENERATE, {"model": " Library/Det ", "prompt": "hi"})
    assert (facts.model, facts.model_as_written) == ("det:latest", " Library/Det ")


@pytest.mark.parametrize("name", ["x:cloud", "gpt-oss:20b-cloud"])
def test_describe_marks_cloud_models(name: str) -> None:
    facts = facts_of(CHAT, {"model": name, "messages": user("hi")})
    assert facts.is_cloud
    assert facts.kind is JobKind.OTHER


# --- kind -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        (GENERATE, {}, JobKind.LOAD),
        (GENERATE, {"prompt": ""}, JobKind.LOAD),
        (GENERATE, {"prompt": "", "images": ["aGk="]}, JobKind.LOAD),
        (GENERATE, {"keep_alive": 0}, JobKind.UNLOAD),
        (GENERATE, {"keep_alive": 0.0}, JobKind.UNLOAD),
        (GENERATE, {"keep_alive": "0"}, JobKind.UNLOAD),
        (GENERATE, {"keep_alive": "0s"}, JobKind.UNLOAD),
        (GENERATE, {"keep_alive": "0h0m0.0s"}, JobKind.UNLOAD),
        (GENERATE, {"keep_alive": "-0ms"}, JobKind.UNLOAD),
        (GENERATE, {"keep_alive": "00"}, JobKind.LOAD),
        (GENERATE, {"keep_alive": "10m"}, JobKind.LOAD),
        (GENERATE, {"keep_alive": -1}, JobKind.LOAD),
        (GENERATE, {"keep_alive": None}, JobKind.LOAD),
        (GENERATE, {"prompt": "hi", "keep_alive": 0}, JobKind.GENERATE),
        (GENERATE, {"_debug_render_only": True}, JobKind.GENERATE),
        (CHAT, {"messages": []}, JobKind.LOAD),
        (CHAT, {}, JobKind.LOAD),
        (CHAT, {"messages": [], "keep_alive": "0s"}, JobKind.UNLOAD),
        (CHAT, {"messages": user("")}, JobKind.GENERATE),
        ("/api/embed", {"input": ""}, JobKind.LOAD),
        ("/api/embed", {"input": [], "keep_alive": 0}, JobKind.LOAD),
        ("/api/embed", {"input": "x"}, JobKind.EMBED),
        ("/api/embeddings", {"prompt": ""}, JobKind.LOAD),
        ("/api/embeddings", {"prompt": "x"}, JobKind.EMBED),
        ("/v1/embeddings", {"input": ["x"]}, JobKind.EMBED),
        ("/v1/embeddings", {"input": []}, JobKind.OTHER),
        ("/v1/completions", {"prompt": ""}, JobKind.LOAD),
        ("/v1/completions", {"prompt": "", "keep_alive": 0}, JobKind.LOAD),
        ("/v1/chat/completions", {"messages": []}, JobKind.OTHER),
        ("/v1/messages", {"messages": []}, JobKind.OTHER),
        ("/v1/responses", {"input": "hi"}, JobKind.GENERATE),
        ("/v1/responses", {"input": user("hi")}, JobKind.GENERATE),
        ("/v1/responses", {"input": "", "instructions": "Greet."}, JobKind.GENERATE),
        ("/v1/responses", {"input": ""}, JobKind.LOAD),
        ("/v1/responses", {"input": []}, JobKind.LOAD),
        ("/v1/responses", {"input": [], "keep_alive": 0}, JobKind.LOAD),
        ("/api/show", {}, JobKind.SHOW),
        ("/api/pull", {}, JobKind.OTHER),
    ],
)
def test_describe_tells_the_kind(path: str, body: dict[str, Any], kind: JobKind) -> None:
    assert facts_of(path, {"model": "m", **body}).kind is kind


@pytest.mark.parametrize(
    ("path", "stream", "expected"),
    [
        (GENERATE, {}, True),
        (GENERATE, {"stream": None}, True),
        (GENERATE, {"stream": False}, False),
        (GENERATE, {"_debug_render_only": True}, False),
        ("/v1/completions", {}, False),
        ("/v1/completions", {"stream": True}, True),
    ],
)
def test_describe_tells_whether_records_stream(
    path: str, stream: dict[str, Any], expected: bool
) -> None:
    assert facts_of(path, {"model": "m", "prompt": "hi", **stream}).stream is expected


def test_describe_says_no_stream_when_the_model_is_only_loaded() -> None:
    assert not facts_of(GENERATE, {"model": "m"}).stream


# --- sizes ------------------------------------------------------------------------------------

HUNDRED = "x" * 400
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
BLOCKS = [{"type": "text", "text": HUNDRED}, {"type": "image", "source": {"data": "aGk="}}]


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        (GENERATE, {"prompt": HUNDRED, "system": HUNDRED, "suffix": HUNDRED}, 300),
        (GENERATE, {"prompt": HUNDRED, "images": ["a", "b"]}, 100 + 2 * 768),
        (CHAT, {"messages": user(HUNDRED) * 3}, 300),
        (CHAT, {"messages": [{"role": "user", "Content": HUNDRED, "images": ["a"]}]}, 868),
        ("/v1/chat/completions", {"messages": [{"content": [*BLOCKS[:1], IMAGE_PART]}]}, 868),
        ("/v1/messages", {"messages": [{"content": BLOCKS}], "system": HUNDRED}, 968),
        ("/v1/messages", {"messages": user(HUNDRED), "system": BLOCKS[:1]}, 200),
        (
            "/v1/messages",
            {"messages": [{"content": [{"type": "tool_result", "content": BLOCKS[:1]}]}]},
            100,
        ),
        ("/v1/responses", {"input": HUNDRED, "instructions": HUNDRED}, 200),
        ("/v1/responses", {"input": [{"type": "message", "content": HUNDRED}]}, 100),
        ("/v1/responses", {"input": [{"type": "function_call_output", "output": HUNDRED}]}, 100),
        ("/api/embed", {"input": [HUNDRED, HUNDRED]}, 200),
        ("/api/embeddings", {"prompt": HUNDRED}, 100),
        (CHAT, {"messages": user(HUNDRED), "tools": [HUNDRED]}, 201),
    ],
)
def test_describe_estimates_the_prompt(path: str, body: dict[str, Any], tokens: int) -> None:
    assert facts_of(path, {"model": "m", **body}).prompt_tokens_est == tokens


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"options": {"num_predict": 5}}, 5),
        ({"options": {"num_predict": -1}}, None),
        ({"max_tokens": 7}, 7),
        ({"max_output_tokens": 9}, 9),
        ({"max_tokens": True}, None),
        ({}, None),
    ],
)
def test_describe_finds_the_output_limit(body: dict[str, Any], limit: int | None) -> None:
    facts = facts_of(GENERATE, {"model": "m", "prompt": "hi", **body})
    assert facts.output_limit_tokens == limit


def test_describe_counts_messages() -> None:
    assert facts_of(CHAT, {"model": "m", "messages": user("a") * 4}).messages == 4
    assert facts_of("/v1/responses", {"model": "m", "input": "a"}).messages == 0


# --- task type, complexity, GPU ---------------------------------------------------------------


def test_describe_reads_the_task_from_the_last_message_of_the_user() -> None:
    messages = [
        *user("Summarize this"),
        {"role": "assistant", "content": "Done. Shall I classify it?"},
        *user("No. Extract all dates."),
    ]
    assert facts_of(CHAT, {"model": "m", "messages": messages}).task_type is TaskType.EXTRACTION


def test_describe_reads_the_task_from_the_system_prompt_too() -> None:
    messages = [{"role": "system", "content": "You classify mails."}, *user("Dear sir, …")]
    assert facts_of(CHAT, {"model": "m", "messages": messages}).task_type is TaskType.CLASSIFICATION
    body = {"model": "m", "messages": user("Dear sir, …"), "system": "Summarize."}
    assert facts_of("/v1/messages", body).task_type is TaskType.SUMMARIZATION


def test_describe_takes_embeddings_for_a_task_of_their_own() -> None:
    facts = facts_of("/api/embed", {"model": "m", "input": "Summarize this"})
    assert facts.task_type is TaskType.EMBEDDING


def facts_with(kind: JobKind = JobKind.GENERATE, **fields: Any) -> Facts:
    return Facts(kind=kind, **fields)


@pytest.mark.parametrize(
    ("facts", "model_bytes", "level", "gpu"),
    [
        (facts_with(prompt_tokens_est=16), 0, Complexity.SIMPLE, False),
        (facts_with(prompt_tokens_est=16), 2_000_000_000, Complexity.SIMPLE, True),
        (facts_with(prompt_tokens_est=16), 4_700_000_000, Complexity.MEDIUM, True),
        (facts_with(prompt_tokens_est=16), 40_000_000_000, Complexity.COMPLEX, True),
        (facts_with(prompt_tokens_est=499), 0, Complexity.SIMPLE, False),
        (facts_with(prompt_tokens_est=500), 0, Complexity.MEDIUM, True),
        (facts_with(prompt_tokens_est=11, output_limit_tokens=2000), 0, Complexity.COMPLEX, True),
        (facts_with(prompt_tokens_est=9, messages=5), 0, Complexity.SIMPLE, False),
        (facts_with(prompt_tokens_est=9, messages=6), 0, Complexity.MEDIUM, True),
        (facts_with(prompt_tokens_est=9, messages=16), 0, Complexity.COMPLEX, True),
        (facts_with(JobKind.EMBED, prompt_tokens_est=9), 40_000_000_000, Complexity.SIMPLE, False),
        (facts_with(JobKind.EMBED, prompt_tokens_est=5000), 0, Complexity.COMPLEX, False),
        (facts_with(JobKind.LOAD), 40_000_000_000, Complexity.COMPLEX, True),
        (facts_with(JobKind.SHOW), 40_000_000_000, Complexity.SIMPLE, False),
        (facts_with(JobKind.OTHER), 40_000_000_000, Complexity.SIMPLE, False),
    ],
)
def test_complexity_and_gpu_come_from_all_that_is_known(
    facts: Facts, model_bytes: int, level: Complexity, gpu: bool
) -> None:
    assert complexity(facts, model_bytes) is level
    assert requires_gpu(facts, level, model_bytes) is gpu


@given(
    st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 30), st.integers(0, 10**11),
    st.integers(0, 5000), st.integers(0, 10**11),
)  # fmt: skip
def test_complexity_never_falls_when_there_is_more_of_anything(
    tokens: int, limit: int, messages: int, model_bytes: int, more: int, more_bytes: int
) -> None:
    order = list(Complexity)
    less = facts_with(prompt_tokens_est=tokens, output_limit_tokens=limit, messages=messages)
    bigger = facts_with(
        prompt_tokens_est=tokens + more, output_limit_tokens=limit, messages=messages + more
    )
    before = complexity(less, model_bytes)
    after = complexity(bigger, model_bytes + more_bytes)
    assert order.index(before) <= order.index(after)
    assert not requires_gpu(less, before, model_bytes) or requires_gpu(
        bigger, after, model_bytes + more_bytes
    )
