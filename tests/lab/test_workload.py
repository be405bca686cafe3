"""What clients ask of a simulated pool: lengths, arrivals, sessions, files."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.lab.pools import POOLS, PoolError, furnish, pool
from sollol_proxy.lab.workload import Lengths, Request, all_turns
from sollol_proxy.lab.workload_builtin import WORKLOADS
from sollol_proxy.lab.workload_files import WorkloadError, workload


def turns(first: Request) -> list[Request]:
    chain = [first]
    while chain[-1].follow is not None:
        chain.append(chain[-1].follow)
    return chain


@given(
    median=st.floats(1, 5000),
    sigma=st.floats(0, 2),
    low=st.integers(1, 50),
    span=st.integers(0, 8000),
    seed=st.integers(0, 99),
)
def test_lengths_stay_within_their_cuts(
    median: float, sigma: float, low: int, span: int, seed: int
) -> None:
    lengths = Lengths(median, sigma, low=low, high=low + span)
    assert low <= lengths.draw(Random(seed)) <= low + span


@pytest.mark.parametrize(
    "lengths", [Lengths(120, 0.7), Lengths(450, 0.6, high=600), Lengths(10, 1.5, low=8), Lengths(7)]
)
def test_mean_length_is_that_of_many_draws(lengths: Lengths) -> None:
    rng = Random(0)
    drawn = sum(lengths.draw(rng) for _ in range(20_000)) / 20_000
    assert lengths.mean() == pytest.approx(drawn, rel=0.03)


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_gives_as_many_requests_as_asked_in_order_when_drawn_twice(name: str) -> None:
    one = WORKLOADS[name]().requests(2.0, 400, Random(3))
    two = WORKLOADS[name]().requests(2.0, 400, Random(3))
    assert one == two
    assert all_turns(one) == 400
    assert all(a.arrived_s <= b.arrived_s for a, b in pairwise(one))
    ids = [turn.id for first in one for turn in turns(first)]
    assert len(set(ids)) == 400


@pytest.mark.parametrize("name", ["uniform", "mixed", "burst", "conv", "code", "six", "prio"])
def test_arrivals_keep_the_rate_over_a_long_run(name: str) -> None:
    requests = WORKLOADS[name]().requests(2.0, 4000, Random(1))
    assert len(requests) / requests[-1].arrived_s == pytest.approx(2.0, rel=0.12)


@pytest.mark.parametrize("name", WORKLOADS)
def test_demands_are_shares_of_one(name: str) -> None:
    assert sum(demand.share for demand in WORKLOADS[name]().demands()) == pytest.approx(1.0)


def test_burst_brings_most_of_its_requests_in_a_tenth_of_the_time() -> None:
    requests = WORKLOADS["burst"]().requests(2.0, 4000, Random(1))
    in_burst = sum(request.arrived_s % 300 < 30 for request in requests)
    assert in_burst / len(requests) == pytest.approx(8 * 30 / (8 * 30 + 270), abs=0.05)


def test_turn_of_a_session_begins_with_prompt_and_answer_of_the_turn_before() -> None:
    for first in WORKLOADS["chat"]().requests(1.0, 200, Random(5)):
        for before, after in pairwise(turns(first)):
            known = before.blocks(answered=True)
            assert after.blocks()[: len(known)] == known
            assert after.prompt_tokens > before.prompt_tokens + before.output_tokens


def test_proxy_sees_the_messages_of_a_session_as_a_chain_that_grows() -> None:
    for first in WORKLOADS["chat"]().requests(1.0, 200, Random(5)):
        for before, after in pairwise(turns(first)):
            names, ends = before.prefix()
            later_names, later_ends = after.prefix()
            assert later_names[: len(names)] == names
            assert later_ends[: len(ends)] == pytest.approx(ends, abs=1)
            assert len(later_names) == len(names) + 2
            assert later_ends[-1] == after.prompt_tokens_est
    assert WORKLOADS["mixed"]().requests(1.0, 1, Random(0))[0].prefix() == ((), ())


def test_sessions_share_no_block_but_those_of_the_system_prompt() -> None:
    firsts = WORKLOADS["chat"]().requests(1.0, 300, Random(5))
    sharing = [first for first in firsts if first.shared_tokens]
    assert 0 < len(sharing) < len(firsts)
    one, two = sharing[0].blocks(), sharing[1].blocks()
    assert set(one) & set(two) == set(one[: 400 // 64])
    apart = [first for first in firsts if not first.shared_tokens]
    assert not set(apart[0].blocks()) & set(apart[1].blocks())


def test_file_describes_classes_models_and_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        """
        models: {small: {size_bytes: 1000000000, params_b: 1}}
        classes:
          - {model: small, prompt: 100, output: {median: 50, sigma: 0.5, high: 80}, priority: 9}
          - {share: 3, prompt: 10, output: 10}
        arrivals: burst
        priorities: {2: 1}
        stream_share: 0.0
        """
    )
    described = workload(str(path))
    assert [model.name for model in described.models] == ["small", "llama3"]
    assert described.models[0].size_bytes == 10**9
    requests = described.requests(1.0, 400, Random(0))
    small = [request for request in requests if request.model.name == "small"]
    assert len(small) / 400 == pytest.approx(0.25, abs=0.08)
    assert {request.priority for request in small} == {9}
    assert {request.priority for request in requests if request not in small} == {2}
    assert not any(request.stream for request in requests)


def test_recording_keeps_its_times_when_no_rate_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    entries = [
        {"arrived_s": 107.0, "model": "b", "prompt_tokens": 3, "output_tokens": 4, "priority": 8},
        {"arrived_s": 100.0, "model": "a", "prompt_tokens": 1, "output_tokens": 2, "host": "x"},
    ]
    path.write_text("\n".join(map(json.dumps, entries)) + "\n")
    requests = workload(str(path)).requests(None, 10, Random(0))
    assert [(r.arrived_s, r.model.name, r.priority) for r in requests] == [
        (0.0, "a", 5),
        (7.0, "b", 8),
    ]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("w.yaml", "classes: [{prompt: 1}]", "output"),
        ("w.yaml", "classes: []\nspeed: 3", "speed"),
        ("w.yaml", "[]", "object"),
        ("w.yaml", "a: [", "w.yaml"),
        ("w.yaml", "classes: [{prompt: 1, output: 1}]\narrivals: sometimes", "sometimes"),
        ("w.jsonl", "{}", "arrived_s"),
        ("w.jsonl", "", "no requests"),
        ("w.jsonl", "[]", "line 1"),
    ],
)
def test_file_is_refused_with_its_name_and_the_mistake(
    tmp_path: Path, name: str, text: str, complaint: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(WorkloadError, match=complaint) as caught:
        workload(str(path))
    assert name in str(caught.value)


def test_unknown_workload_is_told_what_is_built_in() -> None:
    with pytest.raises(WorkloadError, match="uniform, mixed"):
        workload("nothing")


@pytest.mark.parametrize("name", POOLS)
def test_pool_has_the_slots_its_name_asks_for(name: str) -> None:
    assert {host.slots for host in pool(name)} == {1}
    assert {host.slots for host in pool(f"{name}/4")} == {4}
    assert len({host.id for host in pool(name)}) == len(pool(name))


def test_pool_file_names_classes_figures_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(
        """
        hosts:
          - {class: "4090", count: 2}
          - {id: own, decode_tps: 12, prefill_tps: 90, slots: 3, models: [a, {name: b}]}
        """
    )
    hosts = pool(str(path))
    assert [host.id for host in hosts] == ["4090-1", "4090-2", "own"]
    assert (hosts[2].decode_tps, hosts[2].slots) == (12, 3)
    assert [model.name for model in hosts[2].models] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[{class: abacus}]", "abacus"),
        ("[{colour: red}]", "colour"),
        ("[{id: a}, {id: a}]", "several hosts"),
        ("[3]", "host 1"),
        ("[]", "list of hosts"),
    ],
)
def test_pool_file_is_refused_with_the_mistake(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(text)
    with pytest.raises(PoolError, match=complaint):
        pool(str(path))


def test_host_gets_the_models_that_fit_into_its_memory() -> None:
    hosts = {
        host.id: host for host in furnish(pool("tri"), WORKLOADS["six"]().models, resident=False)
    }
    assert len(hosts["4090-1"].models) == 6
    assert "qwen2.5:32b" not in {model.name for model in hosts["3060-1"].models}
    assert not any(host.resident for host in hosts.values())
