"""curl, and the request sequences of the `ollama` command (as recorded from its version 0.33.0)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ollama import Client

from tests.e2e.conftest import ENDLESS_TOKENS, Pool
from tests.e2e.processes import Proxy, until

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

SHORT = {"temperature": 0, "num_predict": 8}
MESSAGES = [{"role": "user", "content": "Name a colour."}]
UNSET: dict[str, Any] = {"system": "", "template": "", "options": None}
"""Fields that the command sends without a value."""


def curl(*words: str, body: Any = None) -> str:
    """What curl prints; with a body it posts it, from standard input."""
    data = [] if body is None else ["--data-binary", "@-"]
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--no-buffer", "--max-time", "60", *data, *words],
        input=None if body is None else json.dumps(body),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def expected_chat(pool: Pool) -> str:
    """What a host itself says."""
    with Client(pool.hosts[0].url) as host:
        return host.chat(pool.chat_model, MESSAGES, options=SHORT).message.content or ""


@needs_curl
def test_curl_streams_what_a_host_says(pool: Pool) -> None:
    body = {"model": pool.chat_model, "messages": MESSAGES, "options": SHORT}
    records = [json.loads(line) for line in curl(f"{pool.url}/api/chat", body=body).splitlines()]
    assert "".join(record["message"]["content"] for record in records) == expected_chat(pool)
    assert [record["done"] for record in records] == [False] * 8 + [True]


@needs_curl
def test_curl_streams_events_to_their_terminator(pool: Pool) -> None:
    body = {"model": pool.chat_model, "messages": MESSAGES, "max_tokens": 8, "stream": True}
    answer = curl(f"{pool.url}/v1/chat/completions?priority=3", "--include", body=body)
    head, _, events = answer.replace("\r\n", "\n").partition("\n\n")
    lines = [line for line in events.splitlines() if line]
    fields = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:])
    assert head.startswith("HTTP/1.1 200 ")
    assert fields["content-type"].startswith("text/event-stream")
    assert fields["x-sollol-priority"] == "3"
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


@needs_curl
def test_curl_sends_a_long_prompt_after_asking_whether_to(sim_pool: Pool, tmp_path: Path) -> None:
    head = tmp_path / "head"
    body = {"model": sim_pool.embed_model, "input": "kitten " * 300_000}
    answer = curl(
        f"{sim_pool.url}/api/embed", "--header", "Expect: 100-continue", "-D", str(head), body=body
    )
    assert len(json.loads(answer)["embeddings"]) == 1
    assert head.read_text().startswith("HTTP/1.1 100 ")


@needs_curl
def test_curl_that_is_stopped_frees_the_slot(small_pool: Pool) -> None:
    (host,) = small_pool.hosts
    cancelled = host.stats()["cancelled"]
    body = {"model": small_pool.chat_model, "options": {"num_predict": ENDLESS_TOKENS}}
    command = ["curl", "--silent", "--no-buffer", f"{small_pool.url}/api/generate", "--data"]
    command.append(json.dumps({**body, "prompt": "hi"}))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["done"] is False
        process.terminate()
    small_pool.proxy.until_idle()
    assert small_pool.proxy.requests()[0]["outcome"] == "client_gone"
    host.until(lambda stats: stats["cancelled"] == cancelled + 1)


@needs_curl
def test_curl_is_told_why_nobody_answers(proxy_without_hosts: Proxy) -> None:
    answer = curl(proxy_without_hosts.url + "/api/tags", "--write-out", " %{http_code}")
    assert "no Ollama host is available" in answer
    assert answer.endswith(" 503")


@pytest.fixture
def command(sim_pool: Pool) -> Iterator[httpx.Client]:
    """An HTTP client with the headers of the `ollama` command."""
    headers = {
        "User-Agent": "ollama/0.33.0 (amd64 linux) Go/go1.26.0",
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "gzip",
    }
    with httpx.Client(base_url=sim_pool.url, headers=headers) as client:
        # Every command starts so.
        greeting = client.head("/")
        assert (greeting.status_code, greeting.content) == (200, b"")
        yield client


def test_list_shows_rows_that_the_command_can_print(command: httpx.Client) -> None:
    rows = command.get("/api/tags").json()["models"]
    assert len(rows) == 2
    for row in rows:
        assert row["name"]
        assert len(row["digest"]) >= 12  # the command cuts it there and panics when it is shorter
        assert row["size"] > 0
        assert row["modified_at"]


@pytest.mark.parametrize("key", ["model", "name"])
def test_show_finds_the_model_by_either_key(
    key: str, command: httpx.Client, sim_pool: Pool
) -> None:
    # The command sends both, one of them empty.
    body = {"model": "", "name": "", **UNSET, "verbose": False, key: sim_pool.chat_model}
    answer = command.post("/api/show", json=body)
    assert answer.status_code == 200
    assert answer.json()["capabilities"] == ["completion"]


def test_run_shows_then_generates(command: httpx.Client, sim_pool: Pool) -> None:
    show = {"model": sim_pool.chat_model, "name": "", **UNSET, "verbose": False}
    assert command.post("/api/show", json=show).status_code == 200
    body = {"model": sim_pool.chat_model, "prompt": "hi", "suffix": "", **UNSET, "options": {}}
    with command.stream(
        "POST", "/api/generate", json=body, headers={"Accept": "application/x-ndjson"}
    ) as answer:
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        records = [json.loads(line) for line in answer.iter_lines()]
    assert [record["done"] for record in records] == [False] * (len(records) - 1) + [True]
    with Client(sim_pool.hosts[0].url) as host:
        expected = host.generate(sim_pool.chat_model, "hi").response
    assert "".join(record["response"] for record in records) == expected


def test_interactive_run_loads_then_chats_with_its_history(
    command: httpx.Client, sim_pool: Pool
) -> None:
    body = {"model": sim_pool.chat_model, "prompt": "", "suffix": "", **UNSET}
    loaded = command.post("/api/generate", json=body).json()
    assert (loaded["done"], loaded["done_reason"]) == (True, "load")
    history = list(MESSAGES)
    for question in ("And another one.", "And a third."):
        answer = command.post(
            "/api/chat", json={"model": sim_pool.chat_model, "messages": history, "options": {}}
        )
        records = [json.loads(line) for line in answer.text.splitlines()]
        assert records[-1]["done"] is True
        said = "".join(record["message"]["content"] for record in records)
        assert said
        history += [{"role": "assistant", "content": said}, {"role": "user", "content": question}]


def test_stop_takes_the_model_out_of_memory(command: httpx.Client, sim_pool: Pool) -> None:
    sim_pool.unload_everywhere()
    body = {"model": sim_pool.chat_model, "prompt": "", "suffix": "", **UNSET}
    assert command.post("/api/generate", json=body).json()["done_reason"] == "load"
    until(lambda: names_in_memory(command), lambda names: sim_pool.chat_model in names)
    stopped = command.post("/api/generate", json={**body, "keep_alive": "0s"}).json()
    assert stopped["done_reason"] == "unload"
    until(lambda: names_in_memory(command), lambda names: sim_pool.chat_model not in names)


def names_in_memory(command: httpx.Client) -> list[str]:
    return [row["name"] for row in command.get("/api/ps").json()["models"]]


def test_run_learns_by_404_that_it_has_to_pull(command: httpx.Client) -> None:
    answer = command.post("/api/show", json={"model": "nosuch", "name": "", **UNSET})
    assert answer.status_code == 404
    assert answer.json() == {"error": "model 'nosuch:latest' not found"}


def test_version_is_that_of_the_hosts(command: httpx.Client, sim_pool: Pool) -> None:
    versions = {host["version"] for host in sim_pool.proxy.hosts()}
    assert {command.get("/api/version").json()["version"]} == versions


def test_unknown_route_is_answered_as_a_host_answers(command: httpx.Client, sim_pool: Pool) -> None:
    direct = httpx.get(f"{sim_pool.hosts[0].url}/api/nonsense")
    answer = command.get("/api/nonsense")
    assert (answer.status_code, answer.text) == (direct.status_code, direct.text)
    assert answer.headers["Content-Type"] == direct.headers["Content-Type"] == "text/plain"
