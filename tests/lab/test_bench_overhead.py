"""The command `bench overhead`, with runs of a second."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sollol_proxy.lab import bench_overhead, bench_overhead_arguments

Call = Callable[..., list[dict[str, Any]]]


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench_overhead.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def benched(tmp_path: Path) -> Call:
    def call(*words: str) -> list[dict[str, Any]]:
        path = tmp_path / "runs.jsonl"
        assert bench_overhead.run(options("--quick", *words, "--json", str(path))) == 0
        return [json.loads(line) for line in path.read_text().splitlines()]

    return call


def by_name(lines: list[dict[str, Any]], measure: str) -> dict[str, dict[str, Any]]:
    return {line["contender"]: line for line in lines if line["measure"] == measure}


def test_every_measure_gives_its_figures(benched: Call, capsys: pytest.CaptureFixture[str]) -> None:
    lines = benched("--contenders", "direct,nginx,haproxy")
    assert [line for line in lines if "error" in line] == []
    first, busy = by_name(lines, "first"), by_name(lines, "busy")
    streams, small, many = (by_name(lines, name) for name in ("streams 16@50", "small", "many"))
    for name in ("nginx", "haproxy"):
        assert first[name]["first_p50_ms"] > 0
        assert first[name]["first_p99_ms"] >= first[name]["first_p50_ms"]
        assert "added_p50_ms" in first[name]
        assert busy[name]["busy_open"] == 20
        assert "busy_added_p99_ms" in busy[name]
        assert streams[name]["open"] == 16
        assert streams[name]["cpu_us_per_record"] > 0
        assert streams[name]["records_per_s"] > 0
        assert small[name]["failed"] == 0
        assert small[name]["rps"] > 0
        assert small[name]["cpu_us_per_request"] > 0
        assert many[name]["many_finished"] == many[name]["many_open"] == 40
        assert many[name]["many_unfinished"] == 0
        assert many[name]["many_cpu_us_per_record"] > 0
        assert many[name]["kb_per_stream"] is not None
        assert {line["is_pinned"] for line in lines if line["contender"] == name} != {False}
        assert first[name]["start_s"] > 0
        assert first[name]["idle_mb"] > 1
    assert "added_p50_ms" not in first["direct"]
    assert small["direct"]["rps"] > 0
    assert small["direct"]["cpu_us_per_request"] is None
    printed = capsys.readouterr().out
    for words in ("CPU a record, 16@50, µs", "finished of 40@50", "nginx ÷ haproxy"):
        assert words in printed


def test_ours_and_the_plain_relay_are_started_and_drawn(benched: Call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ("--contenders", "sollol,plain", "--policy", "round_robin", "--measures", "streams")
    plots = tmp_path / "plots"
    lines = benched(*words, "--plots", str(plots))
    assert [line["contender"] for line in lines] == ["sollol", "plain"]
    assert [line for line in lines if "error" in line] == []
    assert all(line["cpu_us_per_record"] > 0 for line in lines)
    assert (plots / "overhead.png").stat().st_size > 1000


def test_contenders_take_turns_at_being_first(benched: Call) -> None:
    words = ("--contenders", "direct,nginx", "--measures", "first,small", "--rounds", "2")
    lines = benched(*words)
    assert [(line["round"], line["measure"], line["contender"]) for line in lines] == [
        (0, "first", "direct"),
        (0, "first", "nginx"),
        (0, "small", "nginx"),
        (0, "small", "direct"),
        (1, "first", "nginx"),
        (1, "first", "direct"),
        (1, "small", "direct"),
        (1, "small", "nginx"),
    ]


def test_proxy_that_answers_nothing_is_reported(
    benched: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nobody listens on the discard port.
    dead = ("--contenders", "direct", "--contender", "dead=http://127.0.0.1:9")
    lines = benched(*dead, "--measures", "first,streams,small")
    failed = [line for line in lines if line["contender"] == "dead"]
    assert len(failed) == 3
    assert all("error" in line for line in failed)
    assert "dead, first: 127.0.0.1:9" in capsys.readouterr().out


def test_proxy_that_runs_already_is_asked_and_its_process_counted(benched: Call) -> None:
    # To the command, hosts of another pool are a proxy that costs little.
    command = [sys.executable, "-m", "sollol_proxy.lab.bench_upstream", "--hosts", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            words = (
                *("--contender", f"native={url},pid={process.pid}"),
                *("--contender", f"openai={url}/v1/chat/completions,pid={process.pid}"),
            )
            lines = benched("--contenders", "", *words, "--measures", "streams,small")
            assert [line for line in lines if "error" in line] == []
            for name in ("native", "openai"):
                streams = by_name(lines, "streams 16@50")[name]
                assert streams["cpu_us_per_record"] > 0
                assert by_name(lines, "small")[name]["cpu_us_per_request"] > 0
                assert (streams["start_s"], streams["idle_mb"]) == (None, None)
            assert process.poll() is None
        finally:
            process.terminate()


@pytest.mark.parametrize(
    "words",
    [
        ("--contenders", ""),
        ("--contender", "a=http://127.0.0.1:9", "--contender", "a=http://127.0.0.1:9"),
    ],
    ids=" ".join,
)
def test_mistake_is_one_line_and_code_2(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_overhead.run(options(*words)) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ((), 9),
        (("--measures", "small"), 4),
        (("--many", "4000@5"), 4),
        (("--many", "5000@5"), 5),
        (("--hosts", "2"), 2),
    ],
)
def test_no_stream_waits_for_a_slot_unless_hosts_are_counted_by_hand(
    words: tuple[str, ...], count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = options(*words)
    assert bench_overhead._hosts(asked, bench_overhead_arguments.sizes_of(asked)) == count
    assert ("the others wait" in capsys.readouterr().err) is (count == 2)


def test_server_alone_is_measured_by_what_it_can_answer(
    benched: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--contenders", "sollol,server", "--measures", "small", "--policy", "round_robin")
    lines = benched(*words)
    assert [line["contender"] for line in lines] == ["sollol", "server"]
    assert all(line["cpu_us_per_request"] > 0 and "error" not in line for line in lines)
    assert bench_overhead.run(options("--contenders", "server", "--measures", "small,first")) == 2
    assert "answers embeddings alone" in capsys.readouterr().err


def test_program_that_is_missing_is_named_but_not_wanted_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda *args, **kwargs: None)
    assert bench_overhead.run(options("--contenders", "nginx")) == 2
    assert capsys.readouterr().err == "sollol-proxy bench overhead: nginx is not installed\n"
    relays = bench_overhead.contenders_of(options())
    assert [relay.name for relay in relays] == ["direct", "sollol", "plain"]


@pytest.mark.parametrize(
    "words",
    [
        ("--contenders", "luck"),
        ("--measures", "beauty"),
        ("--contender", "http://127.0.0.1:9"),
        ("--contender", "nginx=http://127.0.0.1:9"),
        ("--contender", "a=http://127.0.0.1:port"),
        ("--contender", "a=http://127.0.0.1:9,pid=me"),
        ("--contender", "a=http://127.0.0.1:9,core=1"),
        ("--policy", "luck"),
        ("--policy", "round_robin,seven_factor"),
        ("--streams", "64"),
        ("--streams", "64@0"),
        ("--many", "9@7"),
        ("--hosts", "201"),
        ("--rounds", "0"),
    ],
    ids=" ".join,
)
def test_argument_that_makes_no_sense_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        options(*words)


def test_sizes_are_as_asked_for() -> None:
    sizes = bench_overhead_arguments.sizes_of(
        options("--streams", "8@20,32@10", "--many", "100@5", "--busy", "10@2", "--window", "1.5")
    )
    assert [str(flows) for flows in sizes.streams] == ["8@20", "32@10"]
    assert (str(sizes.many), str(sizes.busy), sizes.window_s) == ("100@5", "10@2", 1.5)
