"""A decision log played again: what is read, what is rebuilt of the hosts, what is compared."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy import cli
from sollol_proxy.config.schema import Config
from sollol_proxy.lab import replay
from sollol_proxy.lab.pools import furnish, pool
from sollol_proxy.lab.replay_hosts import LoggedSpec, models_of, rebuild
from sollol_proxy.lab.replay_levels import Levels
from sollol_proxy.lab.replay_log import QUIET_S, parse
from sollol_proxy.lab.replay_run import play
from sollol_proxy.lab.replay_setup import as_logged
from sollol_proxy.lab.simspec import SimModel, SimSpec
from sollol_proxy.lab.workload import LONG_CONTEXT, Request
from sollol_proxy.lab.workload_builtin import WORKLOADS
from sollol_proxy.lab.workload_files import WorkloadError, workload
from tests.lab.decisions import Line, decision_lines, write_log
from tests.server.pool import pool as running_pool
from tests.server.pool import sim

MODEL = SimModel("m", context_length=LONG_CONTEXT)
FAST = SimSpec("fast", 100.0, 4000.0, slots=2, alpha=0.2, models=(MODEL,), resident=("m",))
SLOW = replace(FAST, id="slow", decode_tps=20.0, prefill_tps=500.0, slots=1)
Replayed = Callable[..., dict[str, Any]]


def requests(count: int = 120, rate_rps: float = 1.5) -> list[Request]:
    rng = Random(3)
    now = 0.0
    drawn = []
    for serial in range(count):
        now += rng.expovariate(rate_rps)
        prompt, output = rng.randint(20, 900), rng.randint(20, 200)
        priority = rng.choice((3, 8))
        drawn.append(Request(f"q{serial}", now, MODEL, prompt, output, prompt, priority))
    return drawn


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return decision_lines([FAST, SLOW], requests())


@pytest.fixture
def replayed(tmp_path: Path) -> Replayed:
    def call(lines: Sequence[Line | str], *words: str) -> dict[str, Any]:
        log, out = write_log(tmp_path / "log.jsonl", lines), tmp_path / "out.json"
        assert cli.main(["replay", str(log), "--json", str(out), *words], {}) == 0
        document: dict[str, Any] = json.loads(out.read_text())
        return document

    return call


def texts(lines: Sequence[Line]) -> list[str]:
    return [json.dumps(line) for line in lines]


def rebuilt(lines: Sequence[Line]) -> dict[str, LoggedSpec]:
    entries = parse(texts(lines)).entries
    return {host.id: host for host in rebuild(entries, models_of(entries))}


# --- the log ------------------------------------------------------------------------------------


def test_log_is_read_in_order_of_arrival_from_zero(lines: list[Line]) -> None:
    log = parse(texts(lines))
    assert len(log.entries) == len(lines) == 120
    arrivals = [entry.at_s for entry in log.entries]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] == 0.0
    assert (log.broken, log.left_out) == ([], {})


@given(
    text=st.text(max_size=30)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ).map(json.dumps)
)
def test_line_that_is_none_is_counted_and_never_raises(text: str) -> None:
    log = parse([text])
    assert not log.entries
    assert list(log.broken) == ([1] if text.strip() else [])


@pytest.mark.parametrize(
    "field",
    [
        {"arrived_s": "soon"},
        {"priority": 11},
        {"queue_s": -1.0},
        {"kind": "poem"},
        {"model": None},
        {"prefix": ["xyz"], "prefix_tokens": [3]},
        {"prefix": ["7"], "prefix_tokens": []},
        {"output_limit_tokens": "many"},
        {"total_s": True},
    ],
    ids=str,
)
def test_line_with_a_wrong_value_is_broken(lines: list[Line], field: Line) -> None:
    log = parse(texts([{**lines[0], **field}, lines[1]]))
    assert (len(log.entries), log.broken) == (1, [1])


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ({"kind": "show"}, "of other kinds"),
        ({"outcome": "client_gone"}, "without an answer"),
        ({"host": None, "outcome": "no_host"}, "without an answer"),
        ({"output_tokens": None}, "of unknown length"),
    ],
    ids=str,
)
def test_request_that_cannot_be_played_is_counted(
    lines: list[Line], field: Line, reason: str
) -> None:
    log = parse(texts([{**lines[0], **field}, lines[1]]))
    assert (len(log.entries), log.left_out) == (1, {reason: 1})


def test_limit_beyond_64_bits_is_kept(lines: list[Line]) -> None:
    [entry] = parse(texts([{**lines[0], "output_limit_tokens": 10**400}])).entries
    assert entry.output_limit_tokens == 10**400


def test_estimate_stands_for_what_the_host_did_not_count(lines: list[Line]) -> None:
    line = {**lines[0], "kind": "embed", "prompt_tokens": None, "output_tokens": None}
    [entry] = parse(texts([line])).entries
    assert (entry.prompt_tokens, entry.output_tokens) == (line["prompt_tokens_est"], 0)


def test_runs_of_the_proxy_follow_each_other_and_long_silence_is_cut(lines: list[Line]) -> None:
    first = {**lines[0], "arrived_s": 50.0, "started_at": "2026-03-01T12:00:50.000+00:00"}
    # Started anew three days later: its clock begins at 0 again.
    then = {**lines[1], "arrived_s": 1.0, "started_at": "2026-03-04T12:00:01.000+00:00"}
    soon = {**lines[2], "arrived_s": 2.5, "started_at": "2026-03-04T12:00:02.500+00:00"}
    one, two, three = parse(texts([first, soon, then])).entries
    assert two.at_s == pytest.approx(one.ended_s + QUIET_S)
    assert three.at_s - two.at_s == pytest.approx(1.5)


# --- the hosts ----------------------------------------------------------------------------------

SPANS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=12)


@given(spans=SPANS, start=st.integers(0, 20), length=st.integers(1, 10))
def test_level_is_the_number_of_intervals_at_once(
    spans: list[tuple[int, int]], start: int, length: int
) -> None:
    levels = Levels(spans)
    units = range(22)
    at = [sum(a <= unit < b for a, b in spans) for unit in units]
    assert levels.peak == max(at)
    inside = [at[unit] if unit < len(at) else 0 for unit in range(start, start + length)]
    assert levels.mean(start, start + length) == pytest.approx(sum(inside) / length)
    assert sum(b - a for a, b in levels.covered()) == sum(level > 0 for level in at)


def test_hosts_are_rebuilt_as_they_were(lines: list[Line]) -> None:
    hosts = rebuilt(lines)
    for spec in (FAST, SLOW):
        pace = hosts[spec.id].paces["m:latest"]
        assert pace.decode_tps == pytest.approx(spec.decode_tps, rel=0.05)
        assert pace.prefill_tps == pytest.approx(spec.prefill_tps, rel=0.1)
        assert hosts[spec.id].slots == spec.slots
        assert hosts[spec.id].resident == ("m:latest",)
    assert hosts["fast"].alpha == pytest.approx(0.2, abs=0.05)


def test_room_of_a_host_is_what_its_loads_tell() -> None:
    """Two of three models fit; each is asked for again and again."""
    models = tuple(SimModel(name, context_length=LONG_CONTEXT) for name in "abc")
    host = SimSpec("h", models=models, memory_bytes=2 * models[0].memory_bytes)
    asked = [Request(f"q{n}", 30.0 * n, models[n % 3], 50, 20, 50) for n in range(30)]
    hosts = rebuilt(decision_lines([host], asked))
    sizes = [model.memory_bytes for model in hosts["h"].models]
    assert max(sizes) < 1.01 * min(sizes)
    assert 2 * max(sizes) <= hosts["h"].memory_bytes < 3 * min(sizes)
    assert hosts["h"].paces["a:latest"].load_s == pytest.approx(host.load_s_of(models[0]), rel=0.1)
    assert hosts["h"].resident == ()


def test_prompts_that_begin_alike_are_found_in_the_cache() -> None:
    chats = WORKLOADS["chat"]()
    hosts = furnish(pool("tri"), chats.models, resident=True)
    lines = decision_lines(hosts, chats.requests(0.3, 120, Random(5)))
    entries = parse(texts(lines)).entries
    models = models_of(entries)
    setup = as_logged(Config(policy="seven_factor"), rebuild(entries, models))
    with_cache = play(entries, models, setup)
    alone = [replace(entry, prefix=(), prefix_tokens=()) for entry in entries]
    without = play(alone, models, setup)
    assert sum(a.total_s for a in with_cache) < sum(a.total_s for a in without)


# --- replays ------------------------------------------------------------------------------------


def test_replay_by_the_logs_policy_comes_to_what_was_logged(
    lines: list[Line], replayed: Replayed
) -> None:
    document = replayed(lines)
    real, again = document["logged"], document["replayed"]
    assert document["policy"] == "seven_factor"
    assert again["requests"] == real["requests"] == 120
    assert again["mean_s"] == pytest.approx(real["mean_s"], rel=0.05)
    assert again["p95_s"] == pytest.approx(real["p95_s"], rel=0.1)
    assert real["share"].keys() == {"fast", "slow"}
    assert [level["requests"] for level in again["by_priority"].values()] == [
        level["requests"] for level in real["by_priority"].values()
    ]


def test_replay_is_the_same_each_time(lines: list[Line], replayed: Replayed) -> None:
    words = ("--policy", "completion_time")
    assert replayed(lines, *words) == replayed(lines, *words)


def test_other_policy_is_compared_with_the_replay(
    lines: list[Line], replayed: Replayed, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replayed(lines, "--policy", "round_robin")
    changed = document["changed"]
    assert changed["policy"] == "round_robin"
    assert 0 < changed["moved"] <= 120
    ratio = changed["mean_s"] / document["replayed"]["mean_s"]
    assert changed["mean_ratio"] == pytest.approx(ratio, abs=0.001)
    printed = capsys.readouterr().out
    assert f"With --policy round_robin: {changed['moved']} of 120 requests" in printed
    assert "An estimate" in printed


def test_configuration_leaves_out_hosts_that_it_does_not_name(
    lines: list[Line], replayed: Replayed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(
        "hosts:\n- {url: 'http://fast:1', id: fast, slots: 1}\n- {url: 'http://new:1', id: new}\n"
    )
    document = replayed(lines, "--config", str(file))
    assert document["changed"]["share"] == {"fast": 1.0}
    assert document["changed"]["mean_s"] > document["replayed"]["mean_s"]
    assert "not in the log, so left out: new" in capsys.readouterr().err


def test_suggestions_are_sorted_and_worth_their_name(
    lines: list[Line], replayed: Replayed, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replayed(lines, "--suggest", "--requests", "60")
    tried = document["suggestions"]
    keys = {key for suggestion in tried for key in suggestion["changes"]}
    assert keys == {"policy", "queue.ageing", "slots of fast", "slots of slow"}
    means = [suggestion["mean_s"] for suggestion in tried if not suggestion["failed"]]
    assert means == sorted(means)
    for suggestion in tried:
        if suggestion["is_better"]:
            assert suggestion["mean_s"] < 0.985 * document["replayed"]["mean_s"]
    assert document["replayed"]["requests"] == 60
    assert "this log" in capsys.readouterr().out


def test_boost_is_tried_where_the_policy_has_one(lines: list[Line], replayed: Replayed) -> None:
    words = ("--policy", "completion_time", "--suggest", "--requests", "30")
    tried = replayed(lines, *words)["suggestions"]
    boosts = {each["changes"].get("queue.boost") for each in tried} - {None}
    assert boosts == {"0s", "40s", "2m", "15m"}


def test_broken_lines_and_others_are_told(
    lines: list[Line], replayed: Replayed, capsys: pytest.CaptureFixture[str]
) -> None:
    document = replayed(["", "{half", *lines[:20], "[]", {**lines[0], "kind": "load"}])
    assert (document["requests"], document["broken_lines"]) == (20, 2)
    assert "left out: 1 of other kinds, 2 broken lines (2, 23)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words", "complaint"),
    [
        ("", (), "has no request that was answered"),
        ("{}\n", (), "broken lines: 1, others: 0"),
        ('{"policy": "own"}', (), "'own' is not one of"),
        (None, (), "No such file"),
        ("log", ("--policy", "luck"), "luck"),
        ("log", ("--config", "/no/such.yaml"), "such.yaml"),
        ("log", ("--config", "other.yaml"), "no host of the configuration is in the log"),
    ],
)
def test_mistake_is_one_line_and_code_2(
    content: str | None,
    words: tuple[str, ...],
    complaint: str,
    lines: list[Line],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.yaml").write_text("hosts: ['http://other:1']\n")
    if content == "log":
        write_log(Path("log"), lines[:3])
    elif content is not None and "policy" in content:
        write_log(Path("log"), [{**lines[0], **json.loads(content)}])
    elif content is not None:
        Path("log").write_text(content)
    assert cli.main(["replay", "log", *words], {}) == 2
    printed = capsys.readouterr().err
    assert complaint in printed
    assert printed.count("\n") == 1


def test_number_of_requests_has_to_be_one() -> None:
    parser = argparse.ArgumentParser()
    replay.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["log", "--requests", "0"])


async def test_log_of_a_real_proxy_is_played_whole(tmp_path: Path, replayed: Replayed) -> None:
    path = tmp_path / "decisions.jsonl"
    secret = "hunter2 "
    async with running_pool(sim("a"), sim("b"), decision_log=str(path)) as p:
        for number in range(12):
            await p.generate(prompt=secret * (number + 1), query=f"?priority={1 + number % 2}")
        async with p.client.get(f"{p.proxy.url}/api/tags") as answer:
            await answer.read()
        async with p.client.post(
            f"{p.proxy.url}/api/embed", json={"model": "llama3", "input": secret}
        ) as answer:
            await answer.read()
    lines = path.read_text().splitlines()
    document = replayed(lines, "--policy", "completion_time")
    logged = [json.loads(line) for line in lines]
    played = [line for line in logged if line["kind"] in ("generate", "embed")]
    assert document["requests"] == len(played) - sum(document["left_out"].values()) > 11
    assert document["logged"]["share"].keys() == {line["host"] for line in played if line["host"]}
    assert document["replayed"]["failed"] == document["changed"]["failed"] == 0
    assert "hunter2" not in json.dumps(document)


# --- the same log as a workload -----------------------------------------------------------------


def test_decision_log_is_a_recording(lines: list[Line], tmp_path: Path) -> None:
    path = write_log(
        tmp_path / "log.jsonl",
        [*lines, {**lines[0], "kind": "show"}, {**lines[0], "outcome": "client_gone"}],
    )
    asked = workload(str(path)).requests(None, 1000, Random(0))
    given = sorted(requests(), key=lambda request: request.arrived_s)
    begun_s = given[0].arrived_s
    assert [(r.prompt_tokens, r.output_tokens, r.priority, r.stream) for r in asked] == [
        (r.prompt_tokens, r.output_tokens, r.priority, r.stream) for r in given
    ]
    assert [r.arrived_s for r in asked] == pytest.approx(
        [r.arrived_s - begun_s for r in given], abs=1e-4
    )


def test_decision_log_with_a_broken_line_is_no_recording(lines: list[Line], tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.jsonl", [lines[0], {**lines[0], "priority": "high"}])
    with pytest.raises(WorkloadError, match="line 2 is no line of a decision log"):
        workload(str(path))
