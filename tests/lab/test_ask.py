"""Reading requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.lab.ask import INFERENCE_PATHS, Ask, AskError, duration_s, read_ask
from tests.wire.recordings import http_exchanges


def read(path: str, **fields: Any) -> Ask:
    return read_ask(path, json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600),
        ("1h30m", 5400),
        ("-1m", -60),
        ("0s", 0),
        ("0", 0),
        ("1.5s", 1.5),
        ("5ms", 0.005),
    ],
)
def test_duration_is_read_as_go_reads_it(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["soon", "", "10", "5x", "--1s", "1s junk"])
def test_duration_is_refused_when_go_refuses_it(text: str) -> None:
    with pytest.raises(AskError) as caught:
        duration_s(text)
    assert (caught.value.status, caught.value.message) == (
        400,
        f"time: invalid duration {json.dumps(text)}",
    )


@pytest.mark.parametrize(
    "id_",
    [
        "generate-empty-body",
        "generate-empty-model",
        "generate-bad-keepalive",
        "chat-no-model",
        "embed-bad-input",
        "v1-chat-empty-body",
        "v1-chat-empty-messages",
        "v1-embeddings-no-input",
        "v1-messages-no-max",
    ],
)
def test_bad_request_gets_the_recorded_error(id_: str) -> None:
    exchange = http_exchanges()[id_]
    with pytest.raises(AskError) as caught:
        read_ask(exchange.path, exchange.body or b"")
    error = json.loads(exchange.answer)["error"]
    message = error if isinstance(error, str) else error["message"]
    assert (caught.value.status, caught.value.message) == (exchange.status, message)


@pytest.mark.parametrize(
    ("path", "fields", "is_load", "is_unload"),
    [
        ("/api/generate", {}, True, False),
        ("/api/generate", {"prompt": "", "keep_alive": 0}, True, True),
        ("/api/generate", {"prompt": "", "keep_alive": "0s"}, True, True),
        ("/api/generate", {"prompt": "x", "keep_alive": 0}, False, False),
        ("/api/chat", {"messages": []}, True, False),
        ("/api/chat", {"messages": [], "keep_alive": 0}, True, True),
        ("/api/embed", {"input": []}, True, False),
        ("/api/embed", {"input": "", "keep_alive": 0}, True, False),
        ("/api/embeddings", {"prompt": ""}, True, False),
        ("/v1/completions", {"prompt": ""}, True, False),
        ("/v1/responses", {"input": "x"}, False, False),
    ],
)
def test_empty_prompt_is_a_load(
    path: str, fields: dict[str, Any], is_load: bool, is_unload: bool
) -> None:
    ask = read(path, model="m", **fields)
    assert (ask.is_load, ask.is_unload) == (is_load, is_unload)


@pytest.mark.parametrize(
    ("path", "stream", "streams"),
    [
        ("/api/generate", None, True),
        ("/api/generate", False, False),
        ("/v1/chat/completions", None, False),
        ("/v1/chat/completions", True, True),
        ("/api/embed", True, False),
    ],
)
def test_stream_has_the_default_of_its_route(path: str, stream: bool | None, streams: bool) -> None:
    messages = [{"role": "user", "content": "x"}]
    assert read(path, model="m", stream=stream, messages=messages).stream is streams


def test_turn_begins_with_the_turn_before_and_its_answer() -> None:
    turns = [{"role": "user", "content": "hi"}]
    first = read("/api/chat", model="m", messages=turns)
    turns += [{"role": "assistant", "content": " hello"}, {"role": "user", "content": "and?"}]
    second = read("/api/chat", model="m", messages=turns)
    assert second.prompt.startswith(first.prompt + " hello")


@given(st.sampled_from(sorted(INFERENCE_PATHS)), st.binary())
def test_any_bytes_are_an_ask_or_an_error(path: str, body: bytes) -> None:
    try:
        read_ask(path, body)
    except AskError as error:
        assert 400 <= error.status <= 500  # noqa: PT017 - either end is right


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = ("prompt", "input", "messages", "system", "options", "keep_alive", "max_tokens", "stream")


@given(
    st.sampled_from(sorted(INFERENCE_PATHS)),
    st.dictionaries(st.sampled_from(KEYS), JSON),
)
def test_any_types_are_an_ask_or_an_error(path: str, fields: dict[str, Any]) -> None:
    try:
        read(path, model="m", **fields)
    except AskError as error:
        assert 400 <= error.status <= 500  # noqa: PT017 - either end is right
