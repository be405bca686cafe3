"""Figures of `bench overhead` from known runs, and how processes are accounted for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sollol_proxy.lab.bench_machine import (
    affinity,
    family,
    family_memory_bytes,
    family_used,
    most_descriptors,
    pinned,
    processes,
)
from sollol_proxy.lab.bench_overhead_meter import Meter, Usage, is_floor
from sollol_proxy.lab.bench_overhead_plots import draw
from sollol_proxy.lab.bench_overhead_report import names_of, ratios, table, trust

NOBODY = 2**22 + 1
"""Above the largest number that Linux gives a process."""

BURN = "import sys, time\nwhile time.process_time() < 0.3: pass\n"
STAY = BURN + "print('burnt', flush=True)\nsys.stdin.read()\n"
PARENT = """
import subprocess, sys
burn, stay = ([sys.executable, "-c", code] for code in sys.argv[1:])
subprocess.run(burn, check=True)
print("one has ended", flush=True)
with subprocess.Popen(stay, stdin=subprocess.PIPE):
    sys.stdin.read()
"""


@contextmanager
def parent() -> Iterator[tuple[int, list[str]]]:
    """A process that had one child and has another, each of which used 0.3 s of CPU."""
    command = [sys.executable, "-c", PARENT, BURN, STAY]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        lines = [process.stdout.readline().strip() for _ in range(2)]
        yield process.pid, lines
        process.stdin.close()


def test_cpu_time_counts_children_that_live_and_that_have_ended() -> None:
    with parent() as (pid, lines):
        assert lines == ["one has ended", "burnt"]
        assert len(family(pid)) == 2
        own, all_of_it = processes([pid]), family_used(pid)
        memory, own_memory = family_memory_bytes(pid), family_memory_bytes(family(pid)[1])
    assert own is not None
    assert all_of_it is not None
    # What ended children used is counted in steps of 10 ms.
    assert all_of_it.cpu_s - own.cpu_s > 0.55
    assert memory is not None
    assert own_memory is not None
    assert memory > own_memory > 1e6


def test_nobody_knows_what_a_process_used_that_has_ended() -> None:
    assert family_used(NOBODY) is None
    assert family_memory_bytes(NOBODY) is None
    assert affinity(NOBODY) == frozenset()
    usage = Meter(NOBODY, NOBODY).usage()
    assert (usage.relay, usage.hosts) == (None, None)
    assert usage.clients is not None


def test_cores_are_taken_for_a_block_and_what_is_started_in_it() -> None:
    before = affinity(os.getpid())
    core = frozenset({max(before)})
    with pinned(core):
        assert affinity(os.getpid()) == core
        seen = subprocess.check_output(
            [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], text=True
        )
    assert seen.strip() == str(set(core))
    assert affinity(os.getpid()) == before
    with pinned(frozenset()):
        assert affinity(os.getpid()) == before


def test_descriptors_are_as_many_as_is_allowed() -> None:
    assert most_descriptors() == most_descriptors() > 100


def test_cpu_time_is_shared_among_units() -> None:
    usage = Usage(wall_s=2.0, relay=0.5, clients=0.1, hosts=0.1, others=0.0)
    assert usage.cpu_us_per(10_000) == pytest.approx(100.0)
    assert usage.cpu_us_per(0) is None
    assert Usage(2.0, None, 0.1, 0.1, None).cpu_us_per(10) is None
    assert usage.shares() == {
        "relay_cores": 0.5,
        "clients_cores": 0.1,
        "hosts_cores": 0.1,
        "others_cores": 0.0,
    }


@pytest.mark.parametrize(
    ("relay", "clients", "hosts", "load_cores", "rps", "expected"),
    [
        (0.9, 0.3, 0.3, 1, 1000.0, False),
        (0.9, 0.85, 0.0, 2, None, True),
        (0.9, 0.0, 0.85, 2, None, True),
        (0.9, 0.45, 0.45, 1, None, True),
        (0.9, 0.45, 0.45, 2, None, False),
        (0.3, 0.4, 0.2, 1, 1000.0, True),
        (0.8, 0.1, 0.1, 1, 1000.0, True),
        (0.3, 0.4, 0.2, 1, None, False),
        (None, 0.4, 0.2, 1, 1000.0, False),
        (None, 0.9, 0.0, 1, 1000.0, True),
        (0.3, None, None, 1, 1000.0, False),
    ],
)
def test_generator_that_is_the_bottleneck_is_noticed(
    relay: float | None,
    clients: float | None,
    hosts: float | None,
    load_cores: int,
    rps: float | None,
    expected: bool,
) -> None:
    line = {"relay_cores": relay, "clients_cores": clients, "hosts_cores": hosts, "rps": rps}
    assert is_floor({"measure": "small", **line}, load_cores) is expected
    assert not is_floor({"measure": "first", **line}, load_cores)


def small(contender: str, number: int, rps: float, **more: Any) -> dict[str, Any]:
    place = ("direct", "sollol", "nginx").index(contender)
    return {
        "measure": "small",
        "contender": contender,
        "round": number,
        "place": place,
        "rps": rps,
        "cpu_us_per_request": 1e6 / rps,
        "is_floor": False,
        **more,
    }


LINES = [
    small("sollol", 0, 1000.0),
    small("nginx", 0, 20_000.0, is_floor=True),
    small("nginx", 1, 25_000.0, is_floor=True),
    small("sollol", 1, 2000.0),
    small("sollol", 2, 1500.0),
    small("nginx", 2, 20_000.0, is_floor=True),
]


def test_table_shows_medians_and_where_values_go() -> None:
    assert names_of(LINES) == ["sollol", "nginx"]
    printed = table(LINES)
    assert "1500 (1000–2000)" in printed
    assert "≥ 20000 (20000–25000)" in printed
    assert "666.7 (500.0–1000.0)" in printed
    assert "50.0 (40.0–50.0)" in printed
    assert "first record" not in printed


def test_ratios_are_taken_round_by_round() -> None:
    printed = ratios(LINES)
    assert "sollol ÷ nginx" in printed
    assert "≤ 0.07 (0.05 to 0.08)" in printed
    assert "13.33 (12.50 to 20.00)" in printed
    assert ratios([line for line in LINES if line["contender"] == "sollol"]) == ""


@pytest.mark.parametrize(
    ("own", "other", "sign"),
    [(False, False, ""), (True, False, "≥ "), (False, True, "≤ "), (True, True, "? ")],
)
def test_ratio_of_a_floor_has_a_sign(own: bool, other: bool, sign: str) -> None:
    lines = [small("sollol", 0, 100.0, is_floor=own), small("nginx", 0, 200.0, is_floor=other)]
    assert f"  {sign}0.50" in ratios(lines)


def test_report_says_what_spoils_figures() -> None:
    streams = {"measure": "streams 64@50", "contender": "sollol", "round": 0, "place": 1}
    lines = [
        *LINES,
        {**streams, "broken": 2, "kept": 50.0, "cpu_us_per_record": 20.0, "records_per_piece": 1.5},
        {**streams, "contender": "nginx", "place": 2, "hosts_lateness_s": 0.25, "kept": 100.0},
        small("nginx", 3, 10.0, others_cores=0.7, relay_cores=0.3, is_pinned=False),
        {"measure": "many", "contender": "direct", "round": 0, "place": 0, "error": "none opens"},
    ]
    printed = trust(lines)
    assert "floors that the load sets" in printed
    assert "(small: nginx)" in printed
    assert "not all records that were due came: streams 64@50: sollol" in printed
    assert "lumps of up to 1.5" in printed
    assert "broke off while records were counted: streams 64@50: sollol" in printed
    assert "clock was up to 0.25 s late: streams 64@50: nginx" in printed
    assert "others used up to 0.7 cores meanwhile: small: nginx" in printed
    assert "not on the one core that it should have: nginx" in printed
    assert "direct, many: none opens" in printed
    assert trust([small("sollol", 0, 1.0)]) == ""
    assert "CPU a record, 64@50, µs" in table(lines)


def test_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = draw(tmp_path / "pictures", LINES)
    assert path.read_bytes().startswith(b"\x89PNG")
