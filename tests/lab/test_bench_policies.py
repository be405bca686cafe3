"""The command `bench policies`, with runs of a few seconds."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sollol_proxy.lab import bench_policies, bench_scale

# So fast that a run is over in a second; what is measured then is worth nothing.
SMALL = (
    *("--pool", "hom4", "--workload", "uniform", "--load", "0.6"),
    *("--requests", "30", "--time-scale", "200"),
)
Call = Callable[..., list[dict[str, Any]]]


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench_policies.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def benched(tmp_path: Path) -> Call:
    pytest.importorskip("scipy")

    def call(*words: str) -> list[dict[str, Any]]:
        path = tmp_path / "runs.jsonl"
        assert bench_policies.run(options(*SMALL, *words, "--json", str(path))) == 0
        return [json.loads(line) for line in path.read_text().splitlines()]

    return call


def test_contenders_get_the_same_requests_and_take_turns_at_being_first(
    benched: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--policies", "least_in_flight", "--nginx", "--haproxy", "--simulated")
    lines = benched(*words, "--seeds", "2")
    assert [(line["policy"], line["seed"]) for line in lines] == [
        ("least_in_flight", 0),
        ("nginx", 0),
        ("haproxy", 0),
        ("nginx", 1),
        ("haproxy", 1),
        ("least_in_flight", 1),
    ]
    assert {line["ok_ratio"] for line in lines} == {1.0}
    assert {line["requests"] for line in lines} == {30}
    printed = capsys.readouterr().out
    assert "uniform on hom4, load 0.6, median of 2 seeds" in printed
    assert "time ran 200 times as fast" in printed
    for name in ("nginx", "haproxy"):
        assert f"least_in_flight ÷ {name}: mean " in printed
        assert f"{name} live ÷ simulated: mean " in printed


def test_proxy_that_answers_nothing_counts_as_failing(
    benched: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nobody listens on the discard port.
    against = ("--against", "dead=http://127.0.0.1:9")
    (line,) = benched("--policies", "", *against, "--simulated")
    assert (line["policy"], line["ok_ratio"], line["mean_s"]) == ("dead", 0.0, 300.0)
    assert "simulated" not in capsys.readouterr().out


def test_held_hosts_are_named_before_anything_runs(
    benched: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed_before_enter = ""
    keyboard, fingers = os.pipe()
    os.write(fingers, b"\n")

    class Enter:
        @staticmethod
        def fileno() -> int:
            return keyboard

        @staticmethod
        def readline() -> str:
            nonlocal printed_before_enter
            printed_before_enter = capsys.readouterr().err
            return "\n"

    monkeypatch.setattr("sys.stdin", Enter())
    benched("--policies", "", "--against", "dead=http://127.0.0.1:9", "--hold")
    for number in (1, 2, 3, 4):
        assert f"3060-{number}: http://127.0.0.1:" in printed_before_enter
    assert "seed" not in printed_before_enter
    os.close(keyboard)
    os.close(fingers)


def test_slow_host_is_noticed(benched: Call, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--requests", "120", "--slow", "3060-2", "--time-scale", "60")
    (line,) = benched(*words, "--policies", "round_robin", "--nginx")
    assert (line["policy"], line["slow_host"], line["live"]) == ("round_robin", "3060-2", True)
    assert 0 < line["noticed_after"] <= line["answers_when_slow"]
    assert "3060-2 at a quarter of its speed was noticed after " in capsys.readouterr().out


def test_speed_is_found_by_a_trial(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy")
    monkeypatch.setattr(bench_scale, "TRIAL_S", 0.5)
    words = ("--pool", "hom4", "--workload", "uniform", "--requests", "2", "--json", "-")
    assert bench_policies.run(options(*words, "--policies", "round_robin")) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["time_scale"] in bench_scale.SPEEDS
    assert "times as fast" in printed.err


def test_pictures_are_drawn(benched: Call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "pictures"
    benched("--policies", "round_robin", "--requests", "12", "--plots", str(folder))
    written = sorted(path.name for path in folder.iterdir())
    assert written == [f"uniform-hom4-{kind}.png" for kind in ("latency", "queue", "share")]


@pytest.mark.parametrize(
    "words",
    [
        ("--pool", "nowhere"),
        ("--workload", "nothing"),
        ("--workload", "fault"),
        ("--slow", "nobody"),
        ("--policies", ""),
        ("--against", "a=http://127.0.0.1:9", "--against", "a=http://127.0.0.1:9"),
    ],
    ids=" ".join,
)
def test_mistake_is_one_line_and_code_2(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy")
    assert bench_policies.run(options(*words)) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_program_that_is_missing_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scipy")
    monkeypatch.setattr("shutil.which", lambda *args, **kwargs: None)
    assert bench_policies.run(options("--nginx")) == 2
    assert capsys.readouterr().err == "sollol-proxy bench policies: nginx is not installed\n"


@pytest.mark.parametrize(
    "words",
    [
        ("--load", "0"),
        ("--load", "much"),
        ("--seeds", "0"),
        ("--time-scale", "-1"),
        ("--policies", "luck"),
        ("--against", "http://127.0.0.1:9"),
        ("--against", "nginx=http://127.0.0.1:9"),
        ("--first-port", "70000"),
    ],
    ids=" ".join,
)
def test_argument_that_makes_no_sense_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        options(*words)
