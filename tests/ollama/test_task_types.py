from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import TaskType
from sollol_proxy.ollama.tasks import LOOKED_AT, task_type


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("Why is the sky blue?", TaskType.GENERATION),
        ("", TaskType.GENERATION),
        ("CLASSIFY this mail", TaskType.CLASSIFICATION),
        ("What is the sentiment of this review?", TaskType.CLASSIFICATION),
        ("Extract the names", TaskType.EXTRACTION),
        ("Find all dates in the text", TaskType.EXTRACTION),
        ("Summarise this article", TaskType.SUMMARIZATION),
        ("tl;dr please", TaskType.SUMMARIZATION),
        ("Compare the two contracts", TaskType.ANALYSIS),
        ("Analyze this data and extract key insights", TaskType.ANALYSIS),
        ("Generate a detailed analysis of the market", TaskType.ANALYSIS),
        ("Write about psychoanalysts and extractors", TaskType.GENERATION),
    ],
)
def test_task_type_of_words(asked: str, expected: TaskType) -> None:
    assert task_type(asked) is expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("analyze and classify", TaskType.CLASSIFICATION),
        ("analyze and extract", TaskType.EXTRACTION),
        ("analyze and summarize", TaskType.SUMMARIZATION),
        ("extract and classify", TaskType.CLASSIFICATION),
        ("extract extract extract and compare, then evaluate", TaskType.ANALYSIS),
    ],
)
def test_task_type_goes_to_the_more_specific_one_when_words_tie(
    asked: str, expected: TaskType
) -> None:
    assert task_type(asked) is expected


def test_task_type_looks_at_the_start_only() -> None:
    assert task_type("x " * (LOOKED_AT // 2) + "summarize") is TaskType.GENERATION
    assert task_type("x " * LOOKED_AT, "summarize") is TaskType.GENERATION


@given(st.text(), st.text())
def test_task_type_is_never_embedding(asked: str, system: str) -> None:
    assert task_type(asked, system) is not TaskType.EMBEDDING
