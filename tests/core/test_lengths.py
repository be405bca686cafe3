"""How long answers are expected to get."""

from __future__ import annotations

import json
from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_proxy.core.lengths import (
    FORGETS_AFTER,
    MAX_CELLS,
    PRIOR_MEAN_TOKENS,
    Histogram,
    Lengths,
)
from sollol_proxy.core.types import TaskType

TASK = TaskType.GENERATION
MODEL = "m"
PROMPT = 100
CLOSE = 1 + 1e-9

tokens = st.integers(1, 100_000)
samples = st.lists(tokens, max_size=25)
beyonds = st.floats(0.0, 200_000.0)
tasks = st.sampled_from(TaskType)
ends = st.lists(
    st.tuples(st.booleans(), tasks, st.sampled_from("mn"), st.integers(0, 5000), tokens),
    max_size=15,
)
rubbish = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
few = settings(max_examples=30)


def lengths_of(ended: list[int], broken_off: list[int] | None = None) -> Lengths:
    lengths = Lengths()
    for length in ended:
        lengths.add(TASK, MODEL, PROMPT, length)
    for length in broken_off or []:
        lengths.add_longer_than(TASK, MODEL, PROMPT, length)
    return lengths


def mixed(history: list[tuple[bool, TaskType, str, int, int]]) -> Lengths:
    """Answers of many kinds, some of them broken off."""
    lengths = Lengths()
    for has_ended, task, model, prompt, length in history:
        learn = lengths.add if has_ended else lengths.add_longer_than
        learn(task, model, prompt, length)
    return lengths


def expected(lengths: Lengths, beyond: float = 0.0, limit: int | None = None) -> float:
    return lengths.expected(TASK, MODEL, PROMPT, beyond=beyond, limit=limit)


@few
@given(ended=samples)
def test_length_lies_within_its_samples_and_the_prior(ended: list[int]) -> None:
    known = [*ended, PRIOR_MEAN_TOKENS]
    assert min(known) / CLOSE <= expected(lengths_of(ended)) <= max(known) * CLOSE


@few
@given(history=ends, beyond=beyonds, task=tasks, model=st.sampled_from("mno"))
def test_length_is_above_what_has_been_written(
    history: list[tuple[bool, TaskType, str, int, int]], beyond: float, task: TaskType, model: str
) -> None:
    length = mixed(history).expected(task, model, PROMPT, beyond=beyond)
    assert beyond + 1 <= length < float("inf")


@few
@given(history=ends, beyond=st.just(0.0) | beyonds, limit=st.integers(1, 10_000))
def test_length_does_not_exceed_the_limit_unless_more_has_been_written(
    history: list[tuple[bool, TaskType, str, int, int]], beyond: float, limit: int
) -> None:
    lengths = mixed(history)
    assert expected(lengths, beyond, limit) <= max(limit, beyond + 1)
    assert expected(lengths, beyond, limit) <= expected(lengths, beyond)


@few
@given(limit=st.integers(1, 10**6))
def test_length_is_the_prior_or_the_limit_when_nothing_was_learnt(limit: int) -> None:
    assert expected(Lengths()) == pytest.approx(PRIOR_MEAN_TOKENS)
    assert expected(Lengths(), limit=limit) == pytest.approx(min(PRIOR_MEAN_TOKENS, limit))


@few
@given(first=beyonds, second=beyonds)
def test_length_never_falls_with_what_has_been_written_when_nothing_was_learnt(
    first: float, second: float
) -> None:
    low, high = sorted((first, second))
    assert expected(Lengths(), low) <= expected(Lengths(), high) * CLOSE


@few
@given(ended=samples, octave=st.integers(0, 32), parts=st.tuples(*[st.floats(0.001, 0.999)] * 2))
def test_length_never_falls_with_what_has_been_written_within_half_an_octave(
    ended: list[int], octave: int, parts: tuple[float, float]
) -> None:
    lengths = lengths_of(ended)
    low, high = (2 ** ((octave + part) / 2) for part in sorted(parts))
    assert expected(lengths, low) <= expected(lengths, high) * CLOSE


@few
@given(ended=samples, first=beyonds, second=beyonds)
def test_length_falls_by_less_than_half_an_octave_with_what_has_been_written(
    ended: list[int], first: float, second: float
) -> None:
    lengths = lengths_of(ended)
    low, high = sorted((first, second))
    assert log2(expected(lengths, low) / expected(lengths, high)) <= 0.5


@few
@given(ended=samples, more=st.floats(2.0, 10.0))
def test_what_outlasts_everything_known_goes_on_for_half_as_long_again(
    ended: list[int], more: float
) -> None:
    beyond = max(ended, default=1) * more
    length = expected(lengths_of(ended), beyond)
    assert length == pytest.approx(1.5 * beyond + PRIOR_MEAN_TOKENS)


@few
@given(usual=st.integers(1, 10_000), count=st.integers(100, 150))
def test_a_hundred_samples_count_alone(usual: int, count: int) -> None:
    assert expected(lengths_of([usual] * count)) == pytest.approx(usual, rel=0.01, abs=0.5)


@few
@given(first=tokens)
def test_first_sample_counts_at_once(first: int) -> None:
    length = expected(lengths_of([first]))
    assert abs(length - first) <= 0.2 * abs(PRIOR_MEAN_TOKENS - first) * CLOSE + 1e-9


def test_finer_histograms_outweigh_coarser_ones() -> None:
    lengths = Lengths()
    for _ in range(20):
        lengths.add(TaskType.CLASSIFICATION, MODEL, PROMPT, 2)
        lengths.add(TaskType.SUMMARIZATION, MODEL, PROMPT, 500)
        lengths.add(TaskType.SUMMARIZATION, MODEL, 50 * PROMPT, 4000)
    short = lengths.expected(TaskType.CLASSIFICATION, MODEL, PROMPT)
    middle = lengths.expected(TaskType.SUMMARIZATION, MODEL, PROMPT)
    long = lengths.expected(TaskType.SUMMARIZATION, MODEL, 50 * PROMPT)
    assert short < 250 < middle < 1000 < long
    # A task type not seen yet is expected to be like the others of the model.
    assert short < lengths.expected(TaskType.ANALYSIS, MODEL, PROMPT) < long


@few
@given(ended=samples, broken_off=st.lists(tokens, min_size=1, max_size=10))
def test_answers_broken_off_leave_the_length_above_the_shortest_of_all(
    ended: list[int], broken_off: list[int]
) -> None:
    length = expected(lengths_of(ended, broken_off))
    assert length >= min(*ended, *broken_off, PRIOR_MEAN_TOKENS) / CLOSE


@few
@given(usual=st.integers(1, 1000), times=st.integers(1, 30))
def test_answers_broken_off_at_once_do_not_move_the_length(usual: int, times: int) -> None:
    lengths = lengths_of([usual] * 10)
    before = [expected(lengths), expected(lengths, usual / 2)]
    for _ in range(times):
        lengths.add_longer_than(TASK, MODEL, PROMPT, 0)
    assert [expected(lengths), expected(lengths, usual / 2)] == before


@few
@given(usual=st.integers(1, 1000), factor=st.integers(2, 50))
def test_answer_broken_off_after_more_than_any_other_makes_longer_ones_expected(
    usual: int, factor: int
) -> None:
    broken_off = usual * factor
    before = expected(lengths_of([usual] * 10))
    lengths = lengths_of([usual] * 10, [broken_off])
    assert expected(lengths) > min(before, broken_off)
    # The usual length is not forgotten: nine of ten went no further.
    assert expected(lengths) < 1.5 * broken_off + PRIOR_MEAN_TOKENS


@few
@given(ended=st.lists(tokens, min_size=1, max_size=20), beyond=st.floats(0.5, 200_000.0))
def test_broken_off_answer_adds_one_sample_spread_over_what_is_longer(
    ended: list[int], beyond: float
) -> None:
    histogram = Histogram()
    for length in ended:
        histogram.add(length)
    shorter = 2 ** (int(2 * log2(max(beyond, 1))) / 2)  # the low edge of the half octave
    all_before, sum_before = histogram.tail(0)
    above_before, _ = histogram.tail(shorter)
    weight, total = histogram.tail(beyond)
    histogram.add_longer_than(beyond)
    all_after, sum_after = histogram.tail(0)
    above_after, _ = histogram.tail(shorter)
    assert all_after == pytest.approx(all_before + 1)
    assert above_after == pytest.approx(above_before + 1)
    spread = total / weight if weight > 0 else 1.5 * beyond + 1
    assert sum_after - sum_before == pytest.approx(spread, rel=1e-6, abs=1e-3)


@few
@given(ended=samples.filter(bool), near=st.floats(0.8, 1.2), data=st.data())
def test_tail_is_of_lengths_beyond_and_shrinks(
    ended: list[int], near: float, data: st.DataObject
) -> None:
    histogram, beyond = Histogram(), near * data.draw(st.sampled_from(ended))
    for length in ended:
        histogram.add(length)
    weight, total = histogram.tail(beyond)
    assert total >= weight * beyond / CLOSE
    assert 0.0 <= weight <= len(ended) * CLOSE
    assert histogram.tail(2 * beyond + 1)[0] <= weight * CLOSE


def test_lengths_that_have_changed_are_believed() -> None:
    lengths = lengths_of([1000] * 2 * FORGETS_AFTER)
    for _ in range(1500):
        lengths.add(TASK, MODEL, PROMPT, 10)
    assert expected(lengths) < 100


def test_histograms_are_bounded_and_others_share_the_coarser_ones() -> None:
    lengths = Lengths()
    for index in range(MAX_CELLS + 10):
        lengths.add(TASK, f"m{index}", PROMPT, 1000)
    exported = lengths.export()
    assert [len(table) for table in exported.values()] == [MAX_CELLS] * 3
    assert lengths.expected(TASK, f"m{MAX_CELLS + 5}", PROMPT) == PRIOR_MEAN_TOKENS
    lengths.add(TASK, "m0", 50 * PROMPT, 9000)  # finds no cell for this size of prompt
    assert lengths.expected(TASK, "m0", 50 * PROMPT) > 500


@few
@given(history=ends, beyond=st.just(0.0) | beyonds)
def test_lengths_are_the_same_after_json(
    history: list[tuple[bool, TaskType, str, int, int]], beyond: float
) -> None:
    lengths = mixed(history)
    restored = Lengths.restored(json.loads(json.dumps(lengths.export())))
    assert restored.export() == lengths.export()
    for task in TaskType:
        for model in "mn":
            for prompt in (1, PROMPT, 4000):
                told = lengths.expected(task, model, prompt, beyond=beyond)
                assert restored.expected(task, model, prompt, beyond=beyond) == told


TABLES = ("by_task", "by_size", "by_model")
wrong_rows = st.lists(st.lists(rubbish, min_size=3, max_size=5), max_size=3)


@few
@given(given_=rubbish | st.fixed_dictionaries({}, optional=dict.fromkeys(TABLES, wrong_rows)))
def test_lengths_restored_from_rubbish_raise_value_error_or_work(given_: object) -> None:
    try:
        lengths = Lengths.restored(given_)
    except ValueError:
        return
    assert expected(lengths) >= 1


@pytest.mark.parametrize(
    "bins",
    [[[-1, 1, 1]], [[44, 1, 1]], [[0.5, 1, 1]], [[0, -1, 1]], [[0, 1, float("nan")]], [[0, 1]], {}],
)
def test_histogram_refuses_bins_that_cannot_be(bins: object) -> None:
    with pytest.raises(ValueError, match=r"bin|expected"):
        Histogram.restored(1, bins)


def test_answers_that_were_broken_off_are_forgotten_like_others() -> None:
    whole, broken = Histogram(), Histogram()
    for _ in range(400):
        whole.add(100)
        broken.add(100)
    for _ in range(3000):
        whole.add(100)
        broken.add_longer_than(50)
    assert broken.tail(0)[0] == pytest.approx(whole.tail(0)[0])
