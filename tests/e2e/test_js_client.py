"""The npm package `ollama`, unchanged, through the proxy."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ollama import Client

from tests.e2e.conftest import ENDLESS_TOKENS, Pool

SCRIPT = Path(__file__).parent / "js" / "client.mjs"

pytestmark = pytest.mark.node

SHORT = {"temperature": 0, "num_predict": 8}
MESSAGES = [{"role": "user", "content": "Name a colour."}]


def node(scenario: str, pool: Pool, **ask: Any) -> Any:
    """What the script prints for a scenario."""
    details = {"host": pool.url, "model": pool.chat_model, "options": SHORT, **ask}
    done = subprocess.run(
        ["node", str(SCRIPT), scenario, json.dumps(details)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_chat_says_what_a_host_says(pool: Pool) -> None:
    with Client(pool.hosts[0].url) as host:
        expected = host.chat(pool.chat_model, MESSAGES, options=SHORT).message.content
    assert node("chat", pool, messages=MESSAGES)["message"]["content"] == expected
    records = node("chat_stream", pool, messages=MESSAGES)
    assert "".join(record["message"]["content"] for record in records) == expected
    assert [record["done"] for record in records] == [False] * 8 + [True]


def test_generate_says_what_a_host_says(sim_pool: Pool) -> None:
    with Client(sim_pool.hosts[0].url) as host:
        expected = host.generate(sim_pool.chat_model, "Count.", options=SHORT).response
    assert node("generate", sim_pool, prompt="Count.")["response"] == expected
    records = node("generate_stream", sim_pool, prompt="Count.")
    assert "".join(record["response"] for record in records) == expected


def test_embed_gives_the_vectors_of_a_host(sim_pool: Pool) -> None:
    texts = ["kitten", "stock market"]
    with Client(sim_pool.hosts[0].url) as host:
        expected = [list(row) for row in host.embed(sim_pool.embed_model, texts).embeddings]
    assert node("embed", sim_pool, model=sim_pool.embed_model, input=texts)["embeddings"] == (
        expected
    )


def test_list_and_show_tell_the_pools_models(sim_pool: Pool) -> None:
    names = [model["name"] for model in node("list", sim_pool)["models"]]
    assert sorted(names) == sorted([sim_pool.chat_model, sim_pool.embed_model])
    assert node("show", sim_pool)["capabilities"] == ["completion"]


def test_missing_model_is_an_error_with_its_status(sim_pool: Pool) -> None:
    assert node("missing", sim_pool, model="nosuch", messages=MESSAGES) == {
        "name": "ResponseError",
        "message": "model 'nosuch' not found",
        "status": 404,
    }


def test_stream_that_a_host_cuts_is_an_error(sim_pool: Pool) -> None:
    for host in sim_pool.hosts:
        host.fault("cut", after_records=3, count=1)
    error = node("cut", sim_pool, messages=MESSAGES)
    assert error["name"] == "Error"
    assert "broke off" in error["message"]


def test_abort_frees_the_slot_and_stops_the_host(small_pool: Pool) -> None:
    (host,) = small_pool.hosts
    cancelled = host.stats()["cancelled"]
    options = {"num_predict": ENDLESS_TOKENS}
    error = node("abort", small_pool, messages=MESSAGES, options=options)
    assert error["name"] == "AbortError"
    small_pool.proxy.until_idle()
    assert small_pool.proxy.requests()[0]["outcome"] == "client_gone"
    host.until(lambda stats: stats["cancelled"] == cancelled + 1)
