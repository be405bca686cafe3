"""Images are stepped over; everything else is read as before."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.ollama.describe import describe
from sollol_proxy.ollama.elide import LONG_BYTES, without_images
from sollol_proxy.ollama.routes import find

LONG = "iVBORw0KGgo" * (LONG_BYTES // 8)
OTHER = LONG[:-5000] + "AAAA" + LONG[-4990:]


def body(**members: Any) -> bytes:
    return json.dumps({"model": "m", **members}).encode()


IMAGES = {
    "chat": ("/api/chat", {"messages": [{"role": "user", "content": "see", "images": [LONG]}]}),
    "several": ("/api/generate", {"prompt": "see", "images": [LONG, OTHER, LONG, "short"]}),
    "openai": (
        "/v1/chat/completions",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "see"},
                        {
                            "type": "image_url",
                            "image_url": {"url": f"data:image/png;base64,{LONG}"},
                        },
                    ],
                }
            ]
        },
    ),
    "anthropic": (
        "/v1/messages",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "data": LONG}},
                        {"type": "text", "text": "see"},
                    ],
                }
            ]
        },
    ),
}


@pytest.mark.parametrize(("path", "members"), IMAGES.values(), ids=IMAGES)
def test_long_images_are_left_out_and_the_facts_are_those_of_short_ones(
    path: str, members: dict[str, Any]
) -> None:
    sent = body(**members)
    shortened = without_images(sent)
    assert len(shortened) < LONG_BYTES
    short = sent.replace(LONG.encode(), b"iVBO").replace(OTHER.encode(), b"AAAA")
    route = find("POST", path)
    facts, expected = describe(route, sent), describe(route, short)
    for name in ("kind", "model", "stream", "prompt_tokens_est", "messages", "task_type"):
        assert getattr(facts, name) == getattr(expected, name)
    assert facts.body_bytes == len(sent)


def test_equal_images_look_alike_in_any_body_and_others_do_not() -> None:
    def prefix(image: str, more: str) -> tuple[int, ...]:
        turns = [{"role": "user", "content": "see", "images": [image]}]
        turns.append({"role": "assistant", "content": more})
        return describe(find("POST", "/api/chat"), body(messages=turns)).prefix

    assert prefix(LONG, "a")[0] == prefix(LONG, "b" * 3 * LONG_BYTES)[0]
    assert prefix(LONG, "a")[0] != prefix(LONG + "AAAA", "a")[0]
    assert prefix(LONG, "a")[0] != prefix("AAAA" + LONG[4:], "a")[0]


@pytest.mark.parametrize(
    "members",
    [
        {"prompt": "x" * 3 * LONG_BYTES},
        {"prompt": '{"images":["' + "x" * 3 * LONG_BYTES + '"]}'},
        {"prompt": "images", "context": [1] * LONG_BYTES},
        {"prompt": "a", "images": ["\\" + "x" * 3 * LONG_BYTES]},
        {"prompt": "\u4e00" * 3 * LONG_BYTES},
    ],
    ids=["text", "quoted text", "numbers", "escapes", "no ASCII"],
)
def test_what_is_not_plainly_an_image_stays(members: dict[str, Any]) -> None:
    assert without_images(body(**members)) == body(**members)


texts = st.sampled_from(["", "a", 'q"q', "\\", LONG, OTHER, '"images":["', "x" * LONG_BYTES * 2])
values = st.recursive(
    texts | st.none() | st.integers(0, 9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["images", "data", "url", "text", "a"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


def is_same_but_for_images(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        same_keys = bool(left.keys() == right.keys())
        return same_keys and all(is_same_but_for_images(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(is_same_but_for_images, left, right))
    if isinstance(left, str) and len(left) > LONG_BYTES and left != right:
        left = f"{left[:1024]}{len(left)}{left[-1024:]}"
    is_same: bool = left == right
    return is_same


@settings(max_examples=60)
@given(value=values, indent=st.sampled_from([None, 1]))
def test_structure_is_never_changed(value: Any, indent: int | None) -> None:
    sent = json.dumps({"model": "m", "x": value}, indent=indent).encode()
    got = orjson.loads(without_images(sent))
    assert is_same_but_for_images({"model": "m", "x": value}, got)


@given(data=st.binary(max_size=40), times=st.integers(1, 3))
def test_any_bytes_pass(data: bytes, times: int) -> None:
    without_images((data + b'"images":["' + b"x" * LONG_BYTES) * times)
