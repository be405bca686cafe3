"""Estimates bent on purpose: what the scheduler believes changes, the world does not."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import TaskType
from sollol_proxy.lab.simulate_wrong import Wrong, parse
from tests.lab.simulating import lines_of

RUN = ("--pool", "mix8", "--workload", "six", "--load", "0.6", "--requests", "250")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("lengths=4", Wrong(lengths=4)),
        ("speeds=2, prompts=0.5", Wrong(speeds=2, prompts=0.5)),
        ("", Wrong()),
    ],
)
def test_what_is_wrong_is_read(text: str, wrong: Wrong) -> None:
    assert parse(text) == wrong


@pytest.mark.parametrize(
    "text", ["lengths", "lengths=x", "lengths=0", "speeds=0.5", "prompts=1", "sizes=2", "=2"]
)
def test_what_cannot_be_wrong_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="lengths=FACTOR"):
        parse(text)


@given(
    factor=st.floats(0.1, 10),
    seen=st.lists(st.integers(1, 5000), min_size=1, max_size=30),
    beyond=st.floats(0, 6000),
)
def test_what_is_still_to_come_is_off_by_the_factor(
    factor: float, seen: list[int], beyond: float
) -> None:
    right, wrong = Wrong().memory(0).lengths, Wrong(lengths=factor).memory(0).lengths
    for lengths in (right, wrong):
        for tokens in seen:
            lengths.add(TaskType.GENERATION, "m", 100, tokens)
    true, bent = (
        lengths.expected(TaskType.GENERATION, "m", 100, beyond=beyond) for lengths in (right, wrong)
    )
    assert bent == pytest.approx(max(beyond + (true - beyond) * factor, beyond + 1.0))
    assert wrong.expected(TaskType.GENERATION, "m", 100, limit=3) <= 3


def test_speeds_are_off_either_way_and_stay_so() -> None:
    right, wrong = Wrong().memory(7), Wrong(speeds=2).memory(7)
    ratios = [
        wrong.pace(f"h{number}", "m", 0).decode / right.pace(f"h{number}", "m", 0).decode
        for number in range(40)
    ]
    assert set(ratios) == {0.5, 2.0}
    again = Wrong(speeds=2).memory(7)
    assert again.pace("h3", "m", 0) == wrong.pace("h3", "m", 0)


@pytest.mark.parametrize("wrong", ["lengths=4", "lengths=0.25", "speeds=2", "prompts=0.5"])
def test_wrong_estimates_cost_little_and_starve_nobody(tmp_path: Path, wrong: str) -> None:
    words = (*RUN, "--policies", "completion_time", "--seeds", "2")
    right = lines_of(tmp_path, *words)
    bent = lines_of(tmp_path, *words, "--wrong", wrong)
    name, _, number = wrong.partition("=")
    assert [line["wrong"] for line in bent] == [{name: float(number)}] * 2
    assert all("wrong" not in line for line in right)
    assert all(line["ok_ratio"] == 1.0 for line in bent)
    means = [sum(line["mean_s"] for line in lines) for lines in (right, bent)]
    assert means[0] != means[1]
    assert means[1] <= 1.25 * means[0]


def test_others_are_told_nothing_wrong(tmp_path: Path) -> None:
    words = (*RUN, "--policies", "wlc")
    assert lines_of(tmp_path, *words) == lines_of(tmp_path, *words, "--wrong", "lengths=4,speeds=2")
