"""Figures of a bench from known runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sollol_proxy.lab.bench_load import Answer
from sollol_proxy.lab.bench_machine import Busy, cores, machine, processes
from sollol_proxy.lab.bench_report import agreement, line_of, ratios, samples_of, trust
from sollol_proxy.lab.bench_run import Done, Log
from sollol_proxy.lab.bench_scale import SPEEDS, Trial
from sollol_proxy.lab.pools import pool
from sollol_proxy.lab.simspec import SimModel
from sollol_proxy.lab.simulate import Scenario
from sollol_proxy.lab.workload import Request
from sollol_proxy.lab.workload_builtin import WORKLOADS

MODEL = SimModel("m")
SCENARIO = Scenario("tri", WORKLOADS["mixed"](), "0.6", pool("tri"), 1.0, 20)
SIMULATORS = {
    "requests", "mean_s", "p50_s", "p95_s", "p99_s", "max_s", "first_token_mean_s", "ok_ratio",
    "throughput_rps", "gini", "loads", "by_priority", "share",
    "pool", "workload", "load", "policy", "seed",
}  # fmt: skip


def answer(number: int, *, took_s: float = 2.0, ok: bool = True) -> Answer:
    at_s = float(number)
    request = Request(f"r{number}", at_s, MODEL, 10, 10, 10)
    return Answer(request, ok, at_s, at_s + 0.5, at_s + took_s)


def done_of(answers: list[Answer], **changes: Any) -> Done:
    log = Log(
        host_ids={a.request.id: "4090-1" for a in answers if a.ok},
        begun_s={a.request.id: 1000.0 + a.request.arrived_s + 1.0 for a in answers if a.ok},
        loads={"4090-1": 3, "3060-1": 0, "cpu-1": 1},
        lateness_s=[0.0, 0.01],
    )
    done = Done(answers, [0.0 for _ in answers], log, 1000.0, 0.5, 0.4)
    return replace(done, **changes)


def test_line_has_the_simulators_keys_and_says_that_it_is_live() -> None:
    # Twenty, of which the first two are left out.
    answers = [answer(n, took_s=100.0 if n < 2 else 2.0) for n in range(20)]
    line = line_of(SCENARIO, "nginx", 7, 20.0, done_of(answers))
    assert set(line) >= SIMULATORS
    assert (line["live"], line["time_scale"], line["policy"], line["seed"]) == (
        *(True, 20.0),
        *("nginx", 7),
    )
    assert line["mean_s"] == line["p95_s"] == 2.0
    assert line["loads"] == 4
    assert line["share"] == {"4090-1": 1.0, "3060-1": 0.0, "cpu-1": 0.0}
    assert line["is_saturated"] is False


def test_failure_counts_as_the_clients_patience() -> None:
    answers = [answer(n, ok=n != 19) for n in range(20)]
    line = line_of(SCENARIO, "nginx", 0, 20.0, done_of(answers))
    assert line["max_s"] == 300.0
    assert line["ok_ratio"] == pytest.approx(17 / 18, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"busy_cores": float(cores())},
        {"lateness_s": [1.0] * 20},
        {"log": Log({}, {}, {"4090-1": 0}, [1.0] * 20)},
    ],
    ids=["cores", "clients", "hosts"],
)
def test_machine_that_is_saturated_is_told(changes: dict[str, Any]) -> None:
    answers = [answer(n, ok=False) for n in range(20)]
    if "log" not in changes:
        answers = [answer(n) for n in range(20)]
    else:
        answers = [answer(n, ok=False, took_s=1.0) for n in range(20)]
        changes = {"log": replace(changes["log"], lateness_s=[100.0] * 20)}
    line = line_of(SCENARIO, "x", 3, 20.0, done_of(answers, **changes))
    assert line["is_saturated"] is True
    assert "SATURATED: do not trust x (seed 3)" in trust([line])


def test_unknown_use_of_the_machine_is_left_out() -> None:
    done = done_of([answer(n) for n in range(20)], busy_cores=None)
    line = line_of(SCENARIO, "x", 0, 20.0, done)
    assert line["busy_ratio"] is None
    assert "cores" not in trust([line])


def test_queue_is_who_has_come_and_holds_no_slot() -> None:
    # Each comes at its number, gets a slot a second later and is over another second later.
    samples = samples_of(done_of([answer(n) for n in range(30)]))
    assert [(s.at_s, s.waiting, s.unfinished) for s in samples] == [
        (0.0, 1, 1),
        (10.0, 1, 2),
        (20.0, 1, 2),
    ]


def run_of(policy: str, seed: int, mean_s: float, p95_s: float) -> dict[str, Any]:
    return {"policy": policy, "seed": seed, "mean_s": mean_s, "p95_s": p95_s, "p50_s": mean_s}


def test_ratios_are_of_equal_seeds_with_median_and_spread() -> None:
    lines = [run_of("mine", 0, 1, 10), run_of("mine", 1, 2, 10), run_of("mine", 2, 3, 10)]
    lines += [run_of("also", seed, 1, 10) for seed in range(3)]
    lines += [run_of("nginx", seed, 4, 5) for seed in range(3)]
    assert ratios(lines, ["mine", "also"]).splitlines() == [
        "mine ÷ also: mean 2.00 (1.00 to 3.00), P95 1.00 (1.00 to 1.00)",
        "mine ÷ nginx: mean 0.50 (0.25 to 0.75), P95 2.00 (2.00 to 2.00)",
        "also ÷ nginx: mean 0.25 (0.25 to 0.25), P95 2.00 (2.00 to 2.00)",
    ]


def test_agreement_marks_what_is_far_apart() -> None:
    live = [run_of("mine", 0, 1.0, 10), run_of("mine", 1, 1.2, 12)]
    drawn = [run_of("mine", 0, 1.1, 8), run_of("mine", 1, 1.1, 8)]
    assert agreement(live, drawn).splitlines() == [
        "mine live ÷ simulated: mean 1.00, P50 1.00, P95 1.38!",
        "! more than 15% apart",
    ]


@pytest.mark.parametrize(
    ("cost", "free_cores", "speed"),
    [(0.001, 2.0, SPEEDS[0]), (0.05, 2.0, 12.0), (0.05, 1.0, 6.0), (10.0, 2.0, 1.0)],
)
def test_speed_leaves_most_of_the_free_cores_unused(
    cost: float, free_cores: float, speed: float
) -> None:
    assert Trial(cost, free_cores, 80.0).speed == speed


def test_scenario_that_is_too_much_for_the_machine_is_known() -> None:
    assert Trial(10.0, 2.0, 80.0).is_tight
    assert not Trial(0.05, 2.0, 80.0).is_tight
    assert Trial(0.05, 2.0, 80.0).most_records == pytest.approx(3200)


def test_busy_cores_are_cpu_seconds_a_second() -> None:
    assert Busy(8.0, 14.0).cores_since(Busy(2.0, 10.0)) == 1.5


def test_use_of_a_process_that_is_gone_is_unknown() -> None:
    assert processes([2**22 + 1]) is None


def test_use_of_the_machine_never_falls() -> None:
    before, after = machine(), machine()
    assert (before is None) is (after is None)
    if before is not None and after is not None:
        assert after.cpu_s >= before.cpu_s
