"""The simulator: conservation, order of time, known formulas, the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from sollol_proxy.core.policies import POLICIES
from sollol_proxy.core.types import AttemptResult
from sollol_proxy.lab import simulate, simulate_plots
from sollol_proxy.lab.capacity import ScipyMissing
from sollol_proxy.lab.clairvoyant import MANNERS, Clairvoyant
from sollol_proxy.lab.pools import furnish, pool
from sollol_proxy.lab.simspec import SimModel, SimSpec
from sollol_proxy.lab.simulate_baselines import BASELINES
from sollol_proxy.lab.simulate_host import Attempt
from sollol_proxy.lab.simulate_proxy import ProxyFront
from sollol_proxy.lab.simulate_report import gini, latency_s, quantile, table
from sollol_proxy.lab.simulate_world import PATIENCE_S, Front, World
from sollol_proxy.lab.workload import Demand, Request, Workload
from sollol_proxy.lab.workload_builtin import WORKLOADS
from tests.lab.simulating import lines_of, simulate_options

MODEL = SimModel("m")
FRONTS = (*POLICIES, *BASELINES, "clairvoyant")


def make_front(name: str, hosts: list[SimSpec], workload: Workload) -> Front:
    if name == "clairvoyant":
        return Clairvoyant(MANNERS[0], {})
    if name in BASELINES:
        return BASELINES[name](hosts, workload.demands(), 1)
    return ProxyFront(name, hosts, 1)


class Watching:
    """A front that checks what the world tells another one."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self.instants: list[float] = []
        self.arrived: list[str] = []
        self.most_busy: dict[str, int] = {}
        self._world: World | None = None

    def _look(self) -> None:
        assert self._world is not None
        self.instants.append(self._world.now)
        for host_id, host in self._world.hosts.items():
            runners = host.virtual.runners.values()
            busy = max((len(runner.active) for runner in runners), default=0)
            self.most_busy[host_id] = max(self.most_busy.get(host_id, 0), busy)

    def start(self, world: World) -> None:
        self._world = world
        self._front.start(world)

    def arrive(self, request: Request) -> None:
        self._look()
        self.arrived.append(request.id)
        self._front.arrive(request)

    def first_byte(self, attempt: Attempt) -> None:
        self._look()
        assert attempt.request.stream
        self._front.first_byte(attempt)

    def ended(self, attempt: Attempt, result: AttemptResult) -> None:
        self._look()
        self._front.ended(attempt, result)

    def gone(self, request: Request) -> None:
        self._look()
        self._front.gone(request)


def run_world(
    front_name: str, workload_name: str, rate_rps: float, count: int
) -> tuple[World, Watching]:
    workload = WORKLOADS[workload_name]()
    hosts = furnish(pool("tri"), workload.models, resident=workload.is_resident)
    front = Watching(make_front(front_name, hosts, workload))
    faults = Random(7) if workload.has_faults else None
    world = World(hosts, workload.requests(rate_rps, count, Random(2)), front, faults=faults)
    world.run()
    return world, front


@pytest.mark.parametrize("workload_name", ["mixed", "six", "chat", "fault"])
@pytest.mark.parametrize("front_name", FRONTS)
def test_every_request_ends_once_and_time_never_goes_back(
    front_name: str, workload_name: str
) -> None:
    world, front = run_world(front_name, workload_name, 0.4, 150)
    ended = [served.request.id for served in world.served]
    assert sorted(ended) == sorted(front.arrived)
    assert len(set(ended)) == len(ended) == 150
    assert front.instants == sorted(front.instants)
    for served in world.served:
        first_s = served.ended_s if served.first_token_s is None else served.first_token_s
        assert served.request.arrived_s < first_s <= served.ended_s
        assert served.ended_s <= served.request.arrived_s + PATIENCE_S
        assert served.ok is False or served.host_id in world.hosts
    for host_id, busy in front.most_busy.items():
        assert busy <= world.hosts[host_id].spec.slots


def test_overload_ends_by_patience() -> None:
    world, _ = run_world("least_in_flight", "mixed", 8.0, 300)
    good = [served for served in world.served if served.ok]
    assert 0 < len(good) < 300
    assert max(map(latency_s, world.served)) == PATIENCE_S


@pytest.mark.parametrize("front_name", FRONTS)
def test_one_host_with_one_slot_is_a_queue_in_order_of_arrival(front_name: str) -> None:
    # 100 tokens in at 1,000 a second and 50 out at 100 a second: 0.6 s each.
    service_s = 0.6
    host = SimSpec("h", decode_tps=100.0, prefill_tps=1000.0, models=(MODEL,), resident=("m",))
    arrivals = sorted(Random(4).uniform(0, 60) for _ in range(80))
    requests = [Request(f"r{i}", at, MODEL, 100, 50, 100) for i, at in enumerate(arrivals)]
    demands = [Demand(1.0, MODEL, 100, 50)]
    front: Front
    if front_name in BASELINES:
        front = BASELINES[front_name]([host], demands, 0)
    elif front_name == "clairvoyant":
        front = Clairvoyant(MANNERS[0], {})
    else:
        front = ProxyFront(front_name, [host], 0)
    world = World([host], requests, front)
    world.run()
    free_s = 0.0
    expected = []
    for at in arrivals:
        free_s = max(free_s, at) + service_s
        expected.append(free_s)
    assert [served.ended_s for served in world.served] == pytest.approx(expected)


def test_client_that_leaves_when_progress_brings_its_request_to_a_host_leaves_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = SimSpec("h", models=(MODEL,), resident=("m",))
    front, request = ProxyFront("least_in_flight", [host], 0), Request("r", 0.0, MODEL, 9, 9, 9)
    world = World([host], [], front)
    front.start(world)
    monkeypatch.setattr(front, "_ask", lambda question: asked.append(question.func.__name__))
    asked: list[str] = []
    front.arrive(request)
    monkeypatch.setattr(front, "_tell_progress", lambda: front._dispatch("r", "h"))
    front.gone(request)
    assert asked == ["submit", "finish"]
    assert world.hosts["h"].busy_slots == 0


def test_prompt_cache_makes_later_turns_of_a_conversation_start_sooner() -> None:
    host = SimSpec("h", prefill_tps=100.0, models=(MODEL,), resident=("m",))
    second = Request("b", 0.0, MODEL, 1040, 10, 1040, session=3)
    first = Request("a", 0.0, MODEL, 990, 34, 990, session=3, pause_s=1.0, follow=second)
    world = World([host], [first], BASELINES["lc"]([host], [Demand(1.0, MODEL, 1, 1)], 0))
    world.run()
    one, two = world.served
    assert one.first_token_s == pytest.approx(9.90 + 0.01)
    # 1,024 tokens of prompt and answer are 16 whole blocks; 16 tokens are new.
    assert two.first_token_s is not None
    assert two.first_token_s - two.request.arrived_s == pytest.approx(0.16 + 0.01)


class Crashes:
    """A front that has one host crash at an instant and passes everything on."""

    def __init__(self, front: Front, host_id: str, at_s: float) -> None:
        self._front = front
        self._host_id = host_id
        self._at_s = at_s
        self.arrive = front.arrive
        self.first_byte = front.first_byte
        self.ended = front.ended
        self.gone = front.gone

    def start(self, world: World) -> None:
        self._front.start(world)
        world.at(self._at_s, lambda: world.crash(self._host_id))


@pytest.mark.parametrize(
    ("stream", "ok", "host_id"), [(True, False, "first"), (False, True, "second")]
)
def test_only_an_answer_that_has_not_begun_is_tried_on_another_host(
    stream: bool, ok: bool, host_id: str
) -> None:
    hosts = [
        SimSpec("first", decode_tps=10.0, models=(MODEL,), resident=("m",)),
        SimSpec("second", decode_tps=10.0, models=(MODEL,), resident=("m",)),
    ]
    request = Request("r", 1.0, MODEL, 10, 200, 10, stream=stream)
    # Round robin begins with the first of the pool.
    front = Crashes(BASELINES["rr"](hosts, [Demand(1.0, MODEL, 10, 200)], 0), "first", 5.0)
    world = World(hosts, [request], front)
    world.run()
    (served,) = world.served
    assert (served.ok, served.host_id) == (ok, host_id)
    assert served.ended_s == pytest.approx(25.0 if ok else 5.0, abs=0.1)


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 1, 1, 1], 0.0), ([0, 0, 0, 4], 0.75), ([0, 0], 0.0)]
)
def test_gini_tells_even_from_uneven(values: list[float], expected: float) -> None:
    assert gini(values) == pytest.approx(expected)


def test_quantile_is_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [quantile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert quantile([7.0], 0.95) == 7.0


SMALL = ("--pool", "tri", "--load", "0.5", "--requests", "120", "--policies")


def test_command_writes_a_line_a_run_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_of(tmp_path, *SMALL, "round_robin,fifo", "--seeds", "2", "--workload", "prio")
    assert [(line["policy"], line["seed"]) for line in lines] == [
        ("round_robin", 0),
        ("round_robin", 1),
        ("fifo", 0),
        ("fifo", 1),
    ]
    for line in lines:
        shares = line["share"]
        priorities = line["by_priority"]
        assert isinstance(shares, dict)
        assert isinstance(priorities, dict)
        assert sum(shares.values()) == pytest.approx(1.0, abs=0.001)
        assert sum(level["count"] for level in priorities.values()) == 108
        assert line["requests"] == 120
    printed = capsys.readouterr().out
    assert "prio on tri, load 0.5, median of 2 seeds" in printed
    assert "p95 of priority 8" in printed


def test_figures_are_the_same_in_another_process(tmp_path: Path) -> None:
    words = (*SMALL, "seven_factor,herd,clairvoyant", "--workload", "six", "--requests", "60")
    here = lines_of(tmp_path, *words)
    code = (
        "import argparse, sys; from sollol_proxy.lab import simulate\n"
        "parser = argparse.ArgumentParser(); simulate.add_arguments(parser)\n"
        "sys.exit(simulate.run(parser.parse_args()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--json", "-"],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    there = [json.loads(line) for line in done.stdout.splitlines()]
    for line in (*here, *there):
        line.pop("decisions_p99_ms", None)
    assert here == there


def test_clairvoyant_beats_least_connections_where_hosts_are_unequal(tmp_path: Path) -> None:
    lc, seer = lines_of(tmp_path, *SMALL, "lc,clairvoyant")
    assert seer["mean_s"] < 0.7 * lc["mean_s"]
    assert seer["p95_s"] < lc["p95_s"]


def test_pictures_are_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    words = (*SMALL, "lc", "--requests", "40", "--plots", str(tmp_path / "pictures"))
    assert simulate.run(simulate_options(*words)) == 0
    written = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert written == [f"mixed-tri-{kind}.png" for kind in ("latency", "queue", "share")]


@pytest.mark.parametrize(
    ("package", "words", "hint"),
    [
        ("matplotlib", ("--plots", "pictures"), simulate_plots.MatplotlibMissing()),
        ("scipy.optimize", (), ScipyMissing()),
    ],
)
def test_missing_package_is_named_before_anything_runs(
    package: str,
    words: tuple[str, ...],
    hint: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert simulate.run(simulate_options(*SMALL, "lc", *words)) == 2
    assert str(hint) in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [("--pool", "nowhere"), ("--workload", "nothing"), ("--load", "recorded")],
    ids=lambda words: words[0],
)
def test_mistake_is_one_line_and_code_2(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate.run(simulate_options(*words)) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [("--load", "fast"), ("--load", "0"), ("--policies", "luck"), ("--seeds", "0")]
)
def test_argument_that_makes_no_sense_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        simulate_options(*words)


def test_table_shows_medians_over_seeds() -> None:
    line = {
        "pool": "p", "workload": "w", "load": 0.5, "policy": "x", "mean_s": 1.0, "p50_s": 1.0,
        "p95_s": 1.0, "p99_s": 1.0, "first_token_mean_s": None, "ok_ratio": 1.0,
        "throughput_rps": 1.0, "loads": 1, "gini": 0.0, "by_priority": {"5": {}},
    }  # fmt: skip
    text = table([line, {**line, "mean_s": 2.0}, {**line, "mean_s": 9.0}])
    row = next(row for row in text.splitlines() if row.startswith("x"))
    assert row.split()[1] == "2.00"
    assert row.split()[5] == "-"
