"""The bench of decisions: what it measures is a scheduler at work."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from sollol_proxy.core.policies import POLICIES
from sollol_proxy.lab import bench_decisions
from sollol_proxy.lab.bench_decisions import FREE, Case, measure


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench_decisions.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("hosts", "waiting"), [(2, "held"), (3, 5), (60, 9)])
def test_every_step_is_two_decisions(policy: str, hosts: int, waiting: int | str) -> None:
    line = measure(Case(policy, hosts, waiting, 2), steps=6)
    assert line["decisions"] == 12
    assert 0 <= line["p50_us"] <= line["p99_us"]


@pytest.mark.parametrize("policy", POLICIES)
def test_where_slots_are_free_only_what_finds_nobody_waiting_counts(policy: str) -> None:
    line = measure(Case(policy, 2, FREE, 2), steps=40)
    assert 0 < line["decisions"] <= 80
    assert Case(policy, 2, FREE, 2).slots > 1


def test_command_writes_a_line_a_case_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "decisions.jsonl"
    words = ("--sizes", "2xfree,3x4", "--models", "1,2", "--steps", "3", "--json", str(path))
    assert bench_decisions.run(options(*words, "--policies", "completion_time")) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["hosts"], line["waiting"], line["models"]) for line in lines] == [
        (2, "free", 1),
        (2, "free", 2),
        (3, 4, 1),
        (3, 4, 2),
    ]
    assert capsys.readouterr().out.count("completion_time") == 4


def test_unknown_policy_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_decisions.run(options("--policies", "fastest")) == 2
    assert "fastest" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("--sizes", "8"), ("--sizes", "0x3"), ("--sizes", "8x0"), ("--models", "0")]
)
def test_mistakes_are_refused(words: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        options(*words)
