"""Which beginnings of prompts a host is thought to have."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.affinity import ASSUMED_CONTEXT_TOKENS, Affinity
from sollol_proxy.core.types import Job
from tests.core.builders import MODEL, job

BLOCK = 64
ROOMY = 1_000_000

paths = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)
histories = st.lists(paths, min_size=1, max_size=12)
few = settings(max_examples=30)


def prompt(path: tuple[int, ...], **fields: object) -> Job:
    """A prompt of one block for each step of a path through the tree of all prompts."""
    blocks = range(1, len(path) + 1)
    return job(
        "j",
        prefix=tuple(hash(path[:length]) for length in blocks),
        prefix_tokens=tuple(BLOCK * length for length in blocks),
        **fields,
    )


def beginnings(history: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Every prompt of the history, cut at every block."""
    return {path[:length] for path in history for length in range(1, len(path) + 1)}


def held(affinity: Affinity, history: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """The beginnings that are thought to be there in full."""
    return {
        path
        for path in beginnings(history)
        if affinity.matched_tokens("a", prompt(path)) == BLOCK * len(path)
    }


def after(history: list[tuple[int, ...]], context_tokens: int = ROOMY) -> Affinity:
    """The caches after these prompts, answered with nothing."""
    affinity = Affinity()
    for path in history:
        affinity.add("a", prompt(path), answer_tokens=0, context_tokens=context_tokens)
    return affinity


@few
@given(history=histories, asked=paths, answer=st.integers(0, 500))
def test_matched_tokens_never_exceed_the_prompt(
    history: list[tuple[int, ...]], asked: tuple[int, ...], answer: int
) -> None:
    affinity = Affinity()
    for path in history:
        affinity.add("a", prompt(path), answer_tokens=answer, context_tokens=ROOMY)
    assert 0 <= affinity.matched_tokens("a", prompt(asked)) <= BLOCK * len(asked)


@few
@given(history=histories, asked=paths)
def test_matched_tokens_are_the_longest_common_beginning_when_nothing_was_forgotten(
    history: list[tuple[int, ...]], asked: tuple[int, ...]
) -> None:
    known = beginnings(history)
    common = [length for length in range(1, len(asked) + 1) if asked[:length] in known]
    expected = BLOCK * max(common, default=0)
    assert after(history).matched_tokens("a", prompt(asked)) == expected


@few
@given(history=histories, blocks=st.integers(0, 6))
def test_cache_holds_no_more_than_its_context_but_one_block(
    history: list[tuple[int, ...]], blocks: int
) -> None:
    affinity = after(history, context_tokens=BLOCK * blocks + 1)
    assert len(held(affinity, history)) <= max(blocks, 1)


@few
@given(history=histories, blocks=st.integers(1, 6))
def test_cache_holds_the_latest_prompt_as_far_as_its_context_goes(
    history: list[tuple[int, ...]], blocks: int
) -> None:
    latest = history[-1]
    affinity = after(history, context_tokens=BLOCK * blocks)
    assert affinity.matched_tokens("a", prompt(latest)) == BLOCK * min(blocks, len(latest))


@few
@given(history=histories, blocks=st.integers(1, 6))
def test_cache_forgets_the_end_of_a_prompt_before_its_beginning(
    history: list[tuple[int, ...]], blocks: int
) -> None:
    there = held(after(history, context_tokens=BLOCK * blocks), history)
    assert all(path[:-1] in there for path in there if len(path) > 1)


def test_cache_forgets_the_least_recently_used_prompt_first() -> None:
    affinity = after([(0,), (1,), (0,), (2,)], context_tokens=2 * BLOCK)
    there = [affinity.matched_tokens("a", prompt((step,))) for step in range(3)]
    assert there == [BLOCK, 0, BLOCK]


def test_cache_of_unknown_context_holds_the_smallest_default() -> None:
    history: list[tuple[int, ...]] = [
        (step,) for step in range(2 * ASSUMED_CONTEXT_TOKENS // BLOCK)
    ]
    affinity = after(history, context_tokens=0)
    assert len(held(affinity, history)) == ASSUMED_CONTEXT_TOKENS // BLOCK


@few
@given(path=paths, answer=st.integers(0, 200))
def test_answer_counts_as_read_when_the_talk_goes_on(path: tuple[int, ...], answer: int) -> None:
    affinity = Affinity()
    affinity.add("a", prompt(path), answer_tokens=answer, context_tokens=ROOMY)
    matched = affinity.matched_tokens("a", prompt((*path, 0)))
    assert matched == BLOCK * len(path) + min(answer, BLOCK)


@few
@given(history=histories, denied=paths)
def test_denied_prompt_is_not_there_until_it_was_read_again(
    history: list[tuple[int, ...]], denied: tuple[int, ...]
) -> None:
    affinity = after(history)
    affinity.deny("a", prompt(denied))
    assert affinity.matched_tokens("a", prompt(denied)) == 0
    affinity.add("a", prompt(denied), answer_tokens=0, context_tokens=ROOMY)
    assert affinity.matched_tokens("a", prompt(denied)) == BLOCK * len(denied)


@few
@given(history=histories, denied=st.lists(paths, max_size=4))
def test_cache_keeps_its_bound_when_prompts_were_denied(
    history: list[tuple[int, ...]], denied: list[tuple[int, ...]]
) -> None:
    affinity = after(history)
    for path in denied:
        affinity.deny("a", prompt(path))
    affinity.add("a", prompt((0, 1)), answer_tokens=0, context_tokens=2 * BLOCK)
    assert held(affinity, [*history, (0, 1)]) == {(0,), (0, 1)}


@pytest.mark.parametrize(("host", "model"), [("b", MODEL), ("a", "other:latest")])
def test_cache_is_of_one_host_and_one_model(host: str, model: str) -> None:
    affinity = after([(0, 1)])
    assert affinity.matched_tokens(host, prompt((0, 1), model=model)) == 0


def test_dropped_model_takes_its_cache_along_and_no_other() -> None:
    affinity = after([(0,)])
    affinity.add("a", prompt((0,), model="b:1"), answer_tokens=0, context_tokens=ROOMY)
    assert sorted(affinity.models("a")) == ["b:1", MODEL]
    affinity.drop("a", MODEL)
    affinity.drop("nobody", MODEL)
    assert affinity.models("a") == ["b:1"]
    assert affinity.matched_tokens("a", prompt((0,))) == 0


@pytest.mark.parametrize(
    ("prefix", "tokens"), [((), ()), ((1, 2), (64,)), ((1,), (64, 128)), ((), (64,))]
)
def test_prompt_without_whole_blocks_is_neither_kept_nor_matched(
    prefix: tuple[int, ...], tokens: tuple[int, ...]
) -> None:
    affinity = Affinity()
    odd = job("j", prefix=prefix, prefix_tokens=tokens)
    affinity.add("a", odd, answer_tokens=5, context_tokens=ROOMY)
    affinity.deny("a", odd)
    assert affinity.matched_tokens("a", odd) == 0
    assert affinity.models("a") == []


def test_denied_prompt_takes_what_others_had_behind_its_blocks_with_it() -> None:
    affinity = Affinity()
    first = job("a", prefix=(1, 2), prefix_tokens=(64, 128))
    second = job("b", prefix=(1, 3), prefix_tokens=(64, 128))
    for each in (first, second):
        affinity.add("h", each, answer_tokens=0, context_tokens=4096)
    affinity.deny("h", first)
    assert affinity.matched_tokens("h", second) == 0
    affinity.add("h", first, answer_tokens=0, context_tokens=4096)
    assert affinity.matched_tokens("h", second) == 64
