"""Which hosts are to hold a model, by `models` of the configuration."""

from __future__ import annotations

import pytest

from tests.config.reading import read

HOSTS = "hosts: [{url: a, id: a}, {url: b, id: b}, {url: c, id: c}]\n"
MODELS = """models:
  llama3: {hosts: [a]}
  llama3*: {hosts: [b, c]}
  qwen?: {hosts: [c]}
  hf.co/*: {hosts: []}
  "*:70b": {hosts: [a, a]}
  mine/*:
"""


@pytest.mark.parametrize(
    ("model", "hosts"),
    [
        ("llama3:latest", {"a"}),
        ("llama3:8b", {"b", "c"}),
        ("llama3:70b", {"b", "c"}),
        ("llama3.1:latest", {"b", "c"}),
        ("qwen3:0.6b", {"c"}),
        ("qwen33:latest", None),
        ("hf.co/some/model:70b", None),
        ("big:70b", {"a"}),
        ("mine/big:70b", {"a"}),
        ("mine/small:latest", None),
        ("other:latest", None),
    ],
)
def test_placed_goes_by_the_first_name_or_pattern_that_covers_the_model(
    model: str, hosts: set[str] | None
) -> None:
    config, shown = read(HOSTS + MODELS)
    placed = config.placed(model)
    assert placed == (None if hosts is None else frozenset(hosts))
    assert read(shown)[0] == config


def test_placed_says_every_host_when_the_file_says_nothing() -> None:
    assert read(HOSTS)[0].placed("llama3:latest") is None


def test_placed_leaves_it_to_the_host_whether_it_may_serve_a_pattern() -> None:
    text = "hosts: [{url: a, id: a, models: {deny: ['*:70b']}}]\nmodels: {'b*': {hosts: [a]}}"
    assert read(text)[0].placed("b:70b") == frozenset("a")
