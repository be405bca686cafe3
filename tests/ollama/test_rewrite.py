from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.ollama.rewrite import Unclear, num_ctx_of, with_model, with_num_ctx


@pytest.mark.parametrize(
    "marked",
    [
        b'{"model":<"TINY">,"prompt":"hi"}',
        b'{"prompt":"model", "model" : <"a"> }',
        b'\n\t{"MoDeL":<"a">}',
        b'{"m\\u006fdel":<"a\\"}">}',
        b'{"model":"a","model":<"b">}',
        b'{"MODEL":"a","model":"b","Model":<"c">}',
        b'{"model":5,"model":<"b">}',
        b'{"model":<"">}',
        b'{"model":<"a">} trailing {"model":"b"}',
        b'{"model":<"a">}}',
        b'{"options":{"model":"in"},"a":[{"model":"in"},"]}"],"model":<"a">}',
        b'{"prompt":"\\"model\\":\\\\","model":<"a">}',
        b'{"prompt":"\xff\xfe\\ud800","model":<"a">}',
        b'{"n":-1.5e3,"t":true,"z":null,"model":<"a">}',
    ],
)
def test_with_model_exchanges_the_marked_text_and_nothing_else(marked: bytes) -> None:
    body = marked.replace(b"<", b"").replace(b">", b"")
    assert with_model(body, "x:v1") == re.sub(rb"<.*>", b'"x:v1"', marked)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"model"',
        b"{}",
        b'{"prompt":"hi"}',
        b'{"name":"a"}',
        b'{"model":null}',
        b'{"model":["a"]}',
        b'{"model":"a","MODEL":5}',
        b'{"model":"a"',
        b'{"model":"a",}',
        b'{"options":{"model":"a"}}',
    ],
)
def test_with_model_gives_up_where_no_name_is_read(body: bytes) -> None:
    assert with_model(body, "x:v1") is None


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OTHER_KEYS = st.sampled_from(["prompt", "options", '"model"', "\\"]) | st.text().filter(
    lambda key: key.lower() != "model"
)
KEYS = OTHER_KEYS | st.sampled_from(["model", "Model", "MODEL"])


def written(members: list[tuple[str, Any]], spaced: bool) -> str:
    comma, colon = (" ,\n", " :\t") if spaced else (",", ":")
    return comma.join(
        f"{json.dumps(key, ensure_ascii=spaced)}{colon}{json.dumps(value, ensure_ascii=spaced)}"
        for key, value in members
    )


@given(
    st.lists(st.tuples(KEYS, JSON_VALUES), max_size=5),
    st.lists(st.tuples(OTHER_KEYS, JSON_VALUES), max_size=5),
    st.text(),
    st.text(),
    st.booleans(),
    st.sampled_from(["", " ", "}", '{"model":"trailing"}']),
)
def test_with_model_keeps_every_other_byte(
    before: list[tuple[str, Any]],
    after: list[tuple[str, Any]],
    old: str,
    new: str,
    spaced: bool,
    rest: str,
) -> None:
    start = "{" + written(before, spaced) + ',"model":'[not before :]
    end = "," * bool(after) + written(after, spaced) + "}" + rest
    body = f"{start}{json.dumps(old)}{end}".encode()
    assert with_model(body, new) == f"{start}{json.dumps(new)}{end}".encode()


@given(st.binary())
def test_with_model_never_raises(body: bytes) -> None:
    for whole in (body, b'{"model":"a",' + body, b'{"model":' + body):
        with_model(whole, "x")


def test_with_model_copes_with_a_long_prompt_and_deep_nesting() -> None:
    prompt = json.dumps('\\"{[' * 500_000).encode()
    body = b'{"prompt":' + prompt + b',"model":"a"}'
    assert with_model(body, "b") == b'{"prompt":' + prompt + b',"model":"b"}'
    deep = b"[" * 900 + b"]" * 900
    assert with_model(b'{"x":' + deep + b',"model":"a"}', "b") == b'{"x":' + deep + b',"model":"b"}'


# --- the context length -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"m"}', b'{"options":{"num_ctx":8192},"model":"m"}'),
        (b' { "model" : "m" } x', b' {"options":{"num_ctx":8192}, "model" : "m" } x'),
        (b"{ }", b'{"options":{"num_ctx":8192} }'),
        (b'{"options":null,"model":"m"}', b'{"options":{"num_ctx":8192},"model":"m"}'),
        (b'{"options": {},"a":1}', b'{"options": {"num_ctx":8192},"a":1}'),
        (b'{"options": { },"a":1}', b'{"options": {"num_ctx":8192 },"a":1}'),
        (b'{"options":{"seed":1}}', b'{"options":{"num_ctx":8192,"seed":1}}'),
        (b'{"options":{"num_ctx":5, "seed":1}}', b'{"options":{"num_ctx":8192, "seed":1}}'),
        (b'{"OPTIONS":{"num_ctx" : 5.5e3 }}', b'{"OPTIONS":{"num_ctx" : 8192 }}'),
        (b'{"options":{"num_ctx":null}}', b'{"options":{"num_ctx":8192}}'),
        (b'{"options":{"num\\u005fctx":5}}', b'{"options":{"num\\u005fctx":8192}}'),
        # Within options keys match by case, and of two alike the last counts.
        (b'{"options":{"Num_Ctx":5}}', b'{"options":{"num_ctx":8192,"Num_Ctx":5}}'),
        (
            b'{"options":{"num_ctx":5,"num_ctx":6}}',
            b'{"options":{"num_ctx":5,"num_ctx":8192}}',
        ),
        # Objects under one key are one object.
        (
            b'{"options":{"num_ctx":5},"Options":{"seed":1}}',
            b'{"options":{"num_ctx":5},"Options":{"num_ctx":8192,"seed":1}}',
        ),
        (
            b'{"options":{"num_ctx":5},"options":null}',
            b'{"options":{"num_ctx":5},"options":null,"options":{"num_ctx":8192}}',
        ),
        (
            b'{"x":{"options":{"num_ctx":5}},"prompt":"\\"options\\":{"}',
            b'{"options":{"num_ctx":8192},"x":{"options":{"num_ctx":5}},"prompt":"\\"options\\":{"}',
        ),
    ],
)
def test_with_num_ctx_changes_what_ollama_reads_and_nothing_else(
    body: bytes, expected: bytes
) -> None:
    assert with_num_ctx(body, 8192) == expected
    assert num_ctx_of(expected) == 8192


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b"{}", None),
        (b'{"options":null}', None),
        (b'{"options":{"num_ctx":null}}', None),
        (b'{"options":{"NUM_CTX":5}}', None),
        (b'{"num_ctx":5}', None),
        (b'{"options":{"num_ctx":4096.9}}', 4096),
        (b'{"Options":{"num_ctx":5,"num_ctx":6}}', 6),
        (b'{"options":{"num_ctx":5},"OPTIONS":{"seed":1}}', 5),
        (b'{"options":{"num_ctx":5},"options":null}', None),
        (b'{"options":{"num_ctx":5},"options":null,"options":{}}', None),
    ],
)
def test_num_ctx_is_read_as_go_reads_it(body: bytes, asked: int | None) -> None:
    assert num_ctx_of(body) == asked


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"options":[]}',
        b'{"options":5}',
        b'{"options":{"num_ctx":"8192"}}',
        b'{"options":{"num_ctx":true}}',
        b'{"options":{"num_ctx":1e300}}',
    ],
)
def test_num_ctx_of_what_a_host_refuses_is_unclear(body: bytes) -> None:
    with pytest.raises(Unclear):
        num_ctx_of(body)


def alike(one: bytes, other: bytes) -> int:
    """The length of what both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


OPTION_KEYS = st.sampled_from(["num_ctx", "NUM_CTX", "seed", "\\", "options"]) | st.text()
OPTIONS = st.none() | st.lists(st.tuples(OPTION_KEYS, JSON_VALUES), max_size=4)


@given(
    st.lists(
        st.tuples(st.sampled_from(["options", "Options", "prompt", "num_ctx"]), OPTIONS),
        max_size=4,
    ),
    st.integers(4, 2**40),
    st.booleans(),
)
def test_with_num_ctx_sets_it_and_loses_nothing(
    members: list[tuple[str, list[tuple[str, Any]] | None]], num_ctx: int, spaced: bool
) -> None:
    texts = [
        f'"{key}":' + ("null" if inner is None else "{" + written(inner, spaced) + "}")
        for key, inner in members
    ]
    body = ("{" + ",".join(texts) + "} rest").encode()
    rewritten = with_num_ctx(body, num_ctx)
    assert num_ctx_of(rewritten) == num_ctx
    assert with_num_ctx(rewritten, num_ctx) == rewritten
    start = alike(body, rewritten)
    end = alike(body[start:][::-1], rewritten[start:][::-1])
    # All that is new is the number, and around it what a member needs.
    assert len(rewritten) - start - end <= len(f'null,"options":{{"num_ctx":{num_ctx}}},')


@given(st.binary())
def test_num_ctx_never_raises_anything_else(body: bytes) -> None:
    for whole in (body, b'{"options":{' + body, b'{"options":' + body, b'{"options":{}' + body):
        for function in (num_ctx_of, lambda body: with_num_ctx(body, 5)):
            with suppress(Unclear):
                function(whole)
