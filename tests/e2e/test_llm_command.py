"""The `llm` command with its `llm-ollama` plugin, unchanged, through the proxy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ollama import Client

from tests.e2e.conftest import Pool


def llm(url: str, directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command, with a configuration of its own."""
    environment = {
        **os.environ,
        "OLLAMA_HOST": url,
        "LLM_USER_PATH": str(directory),
        # The package with the tiny model is a plugin too, which needs an engine that is not here.
        "LLM_LOAD_PLUGINS": "llm-ollama",
    }
    return subprocess.run(
        [sys.executable, "-m", "llm", *words],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


@pytest.mark.real_model
def test_llm_streams_what_a_host_says(real_pool: Pool, tmp_path: Path) -> None:
    check_prompt(real_pool, tmp_path)


def test_llm_prints_what_a_host_says_when_it_is_not_streamed(
    sim_pool: Pool, tmp_path: Path
) -> None:
    check_prompt(sim_pool, tmp_path, "--no-stream")


def check_prompt(pool: Pool, directory: Path, *flags: str) -> None:
    options = {"temperature": 0, "num_predict": 8}
    messages = [{"role": "user", "content": "Name a colour."}]
    with Client(pool.hosts[0].url) as host:
        expected = host.chat(pool.chat_model, messages, options=options).message.content
    chosen = [word for name, value in options.items() for word in ("-o", name, str(value))]
    model = f"ollama/{pool.chat_model}"
    done = llm(pool.url, directory, "-m", model, "--no-log", *flags, *chosen, "Name a colour.")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (expected or "").strip() != ""


def test_llm_embeds(sim_pool: Pool, tmp_path: Path) -> None:
    model = f"ollama/{sim_pool.embed_model}"
    done = llm(sim_pool.url, tmp_path, "embed", "-m", model, "-c", "kitten")
    assert done.returncode == 0, done.stderr
    with Client(sim_pool.hosts[0].url) as host:
        (expected,) = host.embed(sim_pool.embed_model, "kitten").embeddings
    assert json.loads(done.stdout) == list(expected)
