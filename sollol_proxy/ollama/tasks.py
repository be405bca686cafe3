"""The founding documents' task types, read from a request's words.

Each type has tell-tale words and phrases; the type of which the most different ones occur wins,
and a text without any is generation. Ties go to the more specific type: the order of `_CLUES`.
Whole words are looked up in sets, because a regular expression with all their alternatives costs
a multiple of everything else that is done with a short request.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sollol_proxy.core.types import TaskType

LOOKED_AT = 4_000
"""Characters that are searched: an instruction stands at the start, and the rest costs time."""


class _Clues(NamedTuple):
    task_type: TaskType
    words: frozenset[str]
    phrases: tuple[str, ...]


_WORD = re.compile(r"\w+")
_ALL = ("all", "every")
_CLUES = (
    _Clues(
        TaskType.CLASSIFICATION,
        frozenset(
            {"classify", "classifies", "classified", "classifying", "classification"}
            | {"categorize", "categorizes", "categorized", "categorizing", "categorization"}
            | {"categorise", "categorises", "categorised", "categorising", "categorisation"}
            | {"category", "categories", "label", "labels", "labeled", "labelled", "labeling"}
            | {"labelling", "sentiment", "spam"}
        ),
        ("which class", "which type", "which topic"),
    ),
    _Clues(
        TaskType.EXTRACTION,
        frozenset({"extract", "extracts", "extracted", "extracting", "extraction", "entities"}),
        (
            *("pull out", "named entity"),
            *(f"{verb} {amount}" for verb in ("list", "find", "identify") for amount in _ALL),
        ),
    ),
    _Clues(
        TaskType.SUMMARIZATION,
        frozenset(
            {"summarize", "summarizes", "summarized", "summarizing", "summarization", "summary"}
            | {"summarise", "summarises", "summarised", "summarising", "summarisation"}
            | {"summaries", "tldr", "condense", "recap"}
        ),
        ("tl dr", "key points", "main points", "in brief", "in a nutshell"),
    ),
    _Clues(
        TaskType.ANALYSIS,
        frozenset(
            {"analyze", "analyzes", "analyzed", "analyzing", "analysis", "analyses", "analytical"}
            | {"analyse", "analysed", "analysing", "compare", "compares", "compared", "comparing"}
            | {"comparison", "evaluate", "evaluates", "evaluated", "evaluating", "evaluation"}
            | {"assess", "assesses", "assessed", "assessing", "assessment", "examine"}
            | {"investigate", "insight", "insights", "trend", "trends"}
        ),
        ("pros and cons", "root cause"),
    ),
)


def task_type(asked: str, system: str = "") -> TaskType:
    """What the words ask for; never `embedding`, which is a matter of the route.

    Args:
        asked: the prompt, or the last message of the user.
        system: the system prompt; searched after `asked`, within the same bound.
    """
    searched = f"{asked[:LOOKED_AT]}\n{system[:LOOKED_AT]}"[:LOOKED_AT]
    words = _WORD.findall(searched.lower())
    different = set(words)
    spaced = f" {' '.join(words)} "
    best, most = TaskType.GENERATION, 0
    for candidate, clue_words, phrases in _CLUES:
        hits = len(different & clue_words) + sum(f" {phrase} " in spaced for phrase in phrases)
        if hits > most:
            best, most = candidate, hits
    return best
