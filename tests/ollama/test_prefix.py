from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import Facts
from sollol_proxy.ollama.describe import describe
from sollol_proxy.ollama.prefix import CUT_CHARACTERS, MAX_BLOCKS, noted
from sollol_proxy.ollama.routes import find

GENERATE, CHAT, V1_CHAT = "/api/generate", "/api/chat", "/v1/chat/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
Message = dict[str, Any]


def facts_of(path: str, **body: Any) -> Facts:
    return describe(find("POST", path), json.dumps({"model": "m", **body}).encode())


def chat(*texts: str) -> Facts:
    """A conversation of user and assistant in turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return facts_of(CHAT, messages=messages)


def shared(one: Facts, other: Facts) -> int:
    """Tokens up to the end of the last block that both prompts have noted."""
    known = dict(zip(one.prefix, one.prefix_tokens, strict=True))
    return max((known[end] for end in other.prefix if end in known), default=0)


TEXTS = st.text(max_size=2 * CUT_CHARACTERS) | st.integers(0, 40).map(
    lambda blocks: "0123456789abcdef" * 16 * blocks
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
TURNS = st.lists(st.builds(lambda role, text: {"role": role, "content": text}, ROLES, TEXTS))


def assert_is_chain(facts: Facts) -> None:
    assert len(facts.prefix) == len(facts.prefix_tokens) <= MAX_BLOCKS
    assert all(0 <= block < 2**64 for block in facts.prefix)
    assert list(facts.prefix_tokens) == sorted(facts.prefix_tokens)
    assert len(set(facts.prefix)) == len(facts.prefix)


@given(TURNS, TURNS.filter(lambda turns: len(turns) <= 30))
def test_conversation_that_goes_on_shares_all_that_was_said(
    said: list[Message], more: list[Message]
) -> None:
    before, after = facts_of(CHAT, messages=said), facts_of(CHAT, messages=said + more)
    assert_is_chain(before)
    assert shared(before, after) == (before.prefix_tokens[-1] if before.prefix else 0)
    assert before.prefix_tokens[-1:] == ((before.prompt_tokens_est,) if said else ())


@given(TEXTS, TEXTS, TEXTS)
def test_prompt_that_goes_on_shares_its_whole_blocks(system: str, text: str, more: str) -> None:
    before = facts_of(GENERATE, system=system, prompt=text + "x")
    after = facts_of(GENERATE, system=system, prompt=text + "x" + more)
    assert_is_chain(before)
    assert before.prefix_tokens[-1] == before.prompt_tokens_est
    blocks = (len(text) + 1) // CUT_CHARACTERS
    whole = (len(system) + blocks * CUT_CHARACTERS) // 4 if blocks else 0
    # Far from both ends of a prompt, noted ends are half an octave apart.
    is_near = len(more) < 30 * CUT_CHARACTERS
    assert shared(before, after) >= (whole if is_near else whole * 0.66)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_ends_noted_for_a_longer_prompt_are_noted_for_a_shorter(count: int, more: int) -> None:
    short, long = noted(count), noted(count + more)
    assert {end for end in long if end <= count} <= set(short)
    assert short == sorted(set(short))
    assert short[-1:] == ([count] if count else [])
    assert len(short) <= MAX_BLOCKS


def test_prompts_share_what_they_begin_with_and_nothing_else() -> None:
    one = chat("a" * 400, "b" * 400, "c" * 400)
    assert shared(one, chat("a" * 400, "b" * 400, "d" * 400)) == 200
    assert shared(one, chat("a" * 400, "x" * 400, "c" * 400)) == 100
    assert shared(one, chat("x", "b" * 400, "c" * 400)) == 0
    text = "0123456789abcdef" * 64
    assert shared(facts_of(GENERATE, prompt=text), facts_of(GENERATE, prompt=text[:800])) == 192


def test_long_common_beginning_is_found_behind_the_first_blocks() -> None:
    """The blocks of a book that two questions are about: none is near either end."""
    book = "".join(f"{number:08d}" for number in range(60_000))
    one, other = (facts_of(GENERATE, prompt=book + text * 9_000) for text in ("?", "!"))
    assert_is_chain(one)
    assert shared(one, other) >= 0.66 * len(book) / 4


@pytest.mark.parametrize("key", ["system", "template", "context", "images", "tools", "raw"])
def test_prompts_with_different_beginnings_share_nothing(key: str) -> None:
    values: dict[str, tuple[Any, Any]] = {
        "context": ([1, 2], [1, 3]),
        "images": (["YWFh"], ["YWFi"]),
        "tools": ([{"type": "a"}], [{"type": "b"}]),
        "raw": (True, False),
    }
    one, other = values.get(key, ("one", "two"))
    prompt = "word " * 200
    given = facts_of(GENERATE, prompt=prompt, **{key: one})
    assert shared(given, facts_of(GENERATE, prompt=prompt, **{key: one})) > 0
    assert shared(given, facts_of(GENERATE, prompt=prompt, **{key: other})) == 0
    assert shared(given, facts_of(GENERATE, prompt=prompt)) == 0 or one is False


def test_large_images_differ_by_their_length_and_their_ends() -> None:
    def with_image(data: str) -> Facts:
        return facts_of(CHAT, messages=[{"role": "user", "content": "?", "images": [data]}])

    one = with_image("a" * 10_000)
    assert with_image("a" * 10_000).prefix == one.prefix
    for other in ("a" * 10_001, "b" + "a" * 9_999, "a" * 9_999 + "b"):
        assert with_image(other).prefix != one.prefix


SYSTEM, QUESTION, ANSWER = "Be brief. " * 50, "Why? " * 100, "Because. " * 30
TALK = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": "And then?"},
]
PARTS = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TALK]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (V1_CHAT, {"messages": [{"role": "system", "content": SYSTEM}, *TALK]}),
        (V1_CHAT, {"messages": [{"role": "system", "content": SYSTEM}, *PARTS]}),
        (MESSAGES, {"system": SYSTEM, "messages": TALK}),
        (MESSAGES, {"system": [{"type": "text", "text": SYSTEM}], "messages": PARTS}),
        (RESPONSES, {"instructions": SYSTEM, "input": PARTS}),
    ],
)
def test_one_conversation_is_the_same_in_every_dialect(path: str, body: dict[str, Any]) -> None:
    native = facts_of(CHAT, messages=[{"role": "system", "content": SYSTEM}, *TALK])
    assert facts_of(path, **body).prefix == native.prefix


def test_one_question_is_the_same_with_and_without_messages() -> None:
    asked = facts_of(GENERATE, system=SYSTEM, prompt=QUESTION)
    native = facts_of(CHAT, messages=[{"role": "system", "content": SYSTEM}, TALK[0]])
    assert shared(asked, native) == native.prompt_tokens_est
    assert facts_of("/v1/completions", prompt=QUESTION).prefix == (
        facts_of(GENERATE, prompt=QUESTION).prefix
    )
    assert facts_of(RESPONSES, input=QUESTION).prefix == chat(QUESTION).prefix


def test_images_are_the_same_in_every_dialect() -> None:
    native = {"role": "user", "content": "?", "images": ["aGk="]}
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    source = {"type": "image", "source": {"type": "base64", "data": "aGk="}}
    text = {"type": "text", "text": "?"}
    expected = facts_of(CHAT, messages=[native]).prefix
    for path, part in ((V1_CHAT, url), (MESSAGES, source)):
        messages = [{"role": "user", "content": [part, text]}]
        assert facts_of(path, messages=messages).prefix == expected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/embed", {"input": "x" * 999}),
        ("/api/embeddings", {"prompt": "x" * 999}),
        (GENERATE, {"system": "x" * 999}),
        ("/api/show", {}),
    ],
)
def test_what_generates_nothing_has_no_prefix(path: str, body: dict[str, Any]) -> None:
    facts = facts_of(path, **body)
    assert (facts.prefix, facts.prefix_tokens) == ((), ())


def test_hashes_are_the_same_in_another_process() -> None:
    code = (
        "from sollol_proxy.ollama.describe import describe\n"
        "from sollol_proxy.ollama.routes import find\n"
        'body = b\'{"model":"m","prompt":"hi"}\'\n'
        "print(describe(find('POST', '/api/generate'), body).prefix)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(facts_of(GENERATE, prompt="hi").prefix)
