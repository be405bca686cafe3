"""What a bench's requests tell the proxy, and what they tell the hosts alone."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.lab.ask import CHAT, GENERATE, V1_CHAT, read_ask
from sollol_proxy.lab.bench_load import addressed
from sollol_proxy.lab.bench_wire import (
    Message,
    Told,
    conversation,
    is_complete,
    mark,
    native,
    openai,
    told_by,
)
from sollol_proxy.lab.simspec import SimModel
from sollol_proxy.lab.workload import Request
from sollol_proxy.lab.workload_builtin import WORKLOADS
from sollol_proxy.ollama.describe import describe
from sollol_proxy.ollama.routes import find

MODEL = SimModel("llama3:8b")
TOKENS = st.integers(min_value=1, max_value=8000)

requests = st.builds(
    Request,
    id=st.integers(0, 10**6).map("r{}".format),
    arrived_s=st.just(0.0),
    model=st.just(MODEL),
    prompt_tokens=TOKENS,
    output_tokens=TOKENS,
    prompt_tokens_est=TOKENS,
)


def told_of(path: str, body: bytes) -> Told | None:
    return told_by(read_ask(path, body).prompt)


@given(request=requests, shape=st.sampled_from([native, openai]))
def test_host_is_told_what_the_proxy_cannot_see(request: Request, shape: object) -> None:
    path, fields = native(request, []) if shape is native else openai(request, [])
    body = orjson.dumps(fields)
    told = told_of(path, body)
    assert told == Told(request.id, request.prompt_tokens, request.output_tokens, None, 0)
    facts = describe(find("POST", path), body)
    assert facts.output_limit_tokens is None
    # No room for less than the mark itself.
    assert request.prompt_tokens_est <= facts.prompt_tokens_est
    assert facts.prompt_tokens_est <= max(request.prompt_tokens_est, 12) + 1


def turns_of_a_conversation() -> list[Request]:
    drawn = WORKLOADS["chat"]().requests(1.0, 400, Random(3))
    first = max(drawn, key=lambda request: count_turns(request))
    turns, turn = [], first
    while True:
        turns.append(turn)
        if turn.follow is None:
            return turns
        turn = turn.follow


def count_turns(request: Request) -> int:
    return 1 + (count_turns(request.follow) if request.follow else 0)


def test_each_turn_of_a_conversation_begins_with_the_one_before() -> None:
    turns = turns_of_a_conversation()
    assert len(turns) > 3
    messages: list[Message] = []
    prefixes = []
    for turn in turns:
        before, messages = messages, conversation(turn, messages)
        assert messages[: len(before)] == before
        assert [m["role"] for m in messages[:3]] == ["system", "user", "assistant"][: len(messages)]
        assert messages[-1]["role"] == "user"
        path, fields = native(turn, messages)
        body = orjson.dumps(fields)
        told = told_of(path, body)
        assert told is not None
        assert (told.output_tokens, told.session) == (turn.output_tokens, turn.session)
        prefixes.append(describe(find("POST", path), body).prefix)
    for shorter, longer in pairwise(prefixes):
        assert shorter[-1] in longer


def test_job_of_the_host_is_that_of_the_simulation() -> None:
    turn = turns_of_a_conversation()[-1]
    told = told_by(mark(turn))
    assert told is not None
    job = told.job(turn.model)
    assert (job.prompt_tokens, job.output_tokens) == (turn.prompt_tokens, turn.output_tokens)
    assert job.blocks == turn.blocks()
    assert job.blocks_after == turn.blocks(answered=True)


@pytest.mark.parametrize(
    ("tail", "complete"),
    [
        (b'{"response":"","done":true,"eval_count":3}\n', True),
        (b'{"response":"x","done":false}\n', False),
        (b'{"response":"x","done":false}\n{"error":"the host went away"}\n', False),
        (b'data: {"choices":[{"finish_reason":null}]}\n\n', False),
        (b'data: {"choices":[{"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n', True),
        (b'{"choices": [{"finish_reason": "stop"}]}', True),
        (b"", False),
    ],
)
def test_answer_counts_as_whole_only_with_its_end(tail: bytes, complete: bool) -> None:
    assert is_complete(tail) is complete


@pytest.mark.parametrize(
    ("given_url", "asked"),
    [
        ("http://127.0.0.1:8", f"http://127.0.0.1:8{GENERATE}"),
        ("http://127.0.0.1:8/", f"http://127.0.0.1:8{GENERATE}"),
        ("http://127.0.0.1:8/olla/ollama", f"http://127.0.0.1:8/olla/ollama{GENERATE}"),
        (f"http://127.0.0.1:8{V1_CHAT}", f"http://127.0.0.1:8{V1_CHAT}"),
    ],
)
def test_path_of_an_address_stands_before_ollamas(given_url: str, asked: str) -> None:
    request = Request("r1", 0.0, MODEL, 100, 10, 100)
    url, body = addressed(given_url, request, [])
    assert str(url) == asked
    assert ("messages" in body) is (V1_CHAT in asked)


def test_conversation_goes_to_the_chat_route() -> None:
    turn = turns_of_a_conversation()[0]
    url, _ = addressed("http://127.0.0.1:8", turn, conversation(turn, []))
    assert url.path == CHAT
