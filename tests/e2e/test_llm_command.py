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


class Llm:
    """The command with a configuration of its own."""

    def __init__(self, url: str, directory: Path) -> None:
        self._environment = {
            **os.environ,
            "OLLAMA_HOST": url,
            "LLM_USER_PATH": str(directory),
            "LLM_LOAD_PLUGINS": "llm-ollama",
        }

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "llm", *words],
            env=self._environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )


@pytest.mark.parametrize("flags", [(), ("--no-stream",)], ids=["streamed", "whole"])
def test_llm_prints_what_a_host_says(
    flags: tuple[str, ...], sim_pool: Pool, tmp_path: Path
) -> None:
    check_prompt(sim_pool, tmp_path, *flags)


@pytest.mark.real_model
def test_llm_prints_what_a_real_model_says(real_pool: Pool, tmp_path: Path) -> None:
    check_prompt(real_pool, tmp_path)


def check_prompt(pool: Pool, directory: Path, *flags: str) -> None:
    options = {"temperature": 0, "num_predict": 8}
    messages = [{"role": "user", "content": "Name a colour."}]
    with Client(pool.hosts[0].url) as host:
        expected = host.chat(pool.chat_model, messages, options=options).message.content
    chosen = [word for name, value in options.items() for word in ("-o", name, str(value))]
    model = f"ollama/{pool.chat_model}"
    done = Llm(pool.url, directory)("-m", model, "--no-log", *flags, *chosen, "Name a colour.")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (expected or "").strip() != ""


def test_llm_embeds(sim_pool: Pool, tmp_path: Path) -> None:
    model = f"ollama/{sim_pool.embed_model}"
    done = Llm(sim_pool.url, tmp_path)("embed", "-m", model, "-c", "kitten")
    assert done.returncode == 0, done.stderr
    with Client(sim_pool.hosts[0].url) as host:
        (expected,) = host.embed(sim_pool.embed_model, "kitten").embeddings
    assert json.loads(done.stdout) == list(expected)
