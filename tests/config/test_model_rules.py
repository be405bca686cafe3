"""What `models` of the configuration says of a model's context length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.config.schema import ModelSection
from tests.config.reading import read

MODELS = """models:
  llama3: {num_ctx: 8192}
  llama3*: {max_num_ctx: 4096}
  other:
"""
ASKED = st.none() | st.integers(4, 2**24)
LENGTH = st.integers(4, 2**24)


@pytest.mark.parametrize(
    ("model", "asked", "given"),
    [
        ("llama3:latest", None, 8192),
        ("llama3:latest", 16384, 8192),
        ("llama3:latest", 8192, 8192),
        ("llama3:8b", None, None),
        ("llama3:8b", 2048, 2048),
        ("llama3.1:70b", 131072, 4096),
        ("other:latest", 131072, 131072),
        ("unheard:latest", None, None),
    ],
)
def test_first_rule_that_covers_a_model_gives_its_context_length(
    model: str, asked: int | None, given: int | None
) -> None:
    config, shown = read(MODELS)
    assert config.rules_for(model).num_ctx_for(asked) == given
    assert read(shown)[0] == config


@given(ASKED, LENGTH)
def test_pinned_length_is_everybodys_and_a_bound_is_never_passed(
    asked: int | None, length: int
) -> None:
    assert ModelSection(num_ctx=length).num_ctx_for(asked) == length
    bounded = ModelSection(max_num_ctx=length).num_ctx_for(asked)
    assert bounded is None if asked is None else bounded == min(asked, length)
    assert ModelSection().num_ctx_for(asked) == asked
