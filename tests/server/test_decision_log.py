"""One line for each request, whatever the disk does, and never a word of a prompt."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.core.types import Facts, JobKind
from sollol_proxy.server import decision_log
from sollol_proxy.server.decision_log import DecisionLog, append, line_of
from tests.server.pool import pool, sim
from tests.server.samples import DECISION, RECORD, RECORDS

FACTS = Facts(
    JobKind.GENERATE,
    prompt_tokens_est=40,
    output_limit_tokens=300,
    options_key="num_ctx=8192",
    prefix=(7, 2**64 - 1),
    prefix_tokens=(16, 40),
)
LATE_S = 3600.0
"""Later than any test: what is written before was written for another reason."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "decisions.jsonl"


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def lines_of(path: Path, suffix: str = "") -> list[dict[str, Any]]:
    file = Path(f"{path}{suffix}")
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def make_folder(path: Path) -> None:
    path.parent.mkdir()


def log_of(path: Path, *, limit_bytes: int = 2**20, flush_s: float = LATE_S) -> DecisionLog:
    return DecisionLog(str(path), limit_bytes, 100.0, flush_s=flush_s)


# --- lines ------------------------------------------------------------------------------------


def test_line_tells_what_was_decided_and_what_came_of_it() -> None:
    decision = replace(DECISION, predicted_wait_s=0.5, predicted_total_s=2.0)
    line = json.loads(json.dumps(line_of(replace(RECORD, decision=decision), FACTS, 1.23456789)))
    assert line == {
        "id": "r/1",
        "started_at": "2026-03-01T11:59:00.500+00:00",
        "arrived_s": 1.234568,
        "route": "/api/chat",
        "model": "qwen3:8b",
        "kind": "generate",
        "task_type": "analysis",
        "complexity": "medium",
        "priority": 8,
        "stream": True,
        "prompt_tokens_est": 40,
        "output_limit_tokens": 300,
        "options_key": "num_ctx=8192",
        "prefix": ["0000000000000007", "ffffffffffffffff"],
        "prefix_tokens": [16, 40],
        "host": "gpu-box",
        "policy": "seven_factor",
        "cost": 0.8,
        "terms": {"gpu": 2.0, "load": 0.57},
        "predicted_wait_s": 0.5,
        "predicted_total_s": 2.0,
        "prompt_tokens": 120,
        "output_tokens": 300,
        "load_s": None,
        "prefill_s": None,
        "decode_s": 2.5,
        "host_s": None,
        "queue_s": 1.0,
        "first_byte_s": 1.5,
        "total_s": 4.0,
        "outcome": "completed",
        "attempts": 2,
    }


@given(record=RECORDS, limit=st.integers())
def test_any_request_becomes_one_line(
    tmp_path_factory: pytest.TempPathFactory, record: Any, limit: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "decisions.jsonl"

    async def write() -> None:
        log = log_of(path)
        log.start()
        log.add(record, replace(FACTS, output_limit_tokens=limit), 100.0)
        await log.stop()

    asyncio.run(write())
    [line] = lines_of(path)
    assert line["output_limit_tokens"] == limit


# --- when they are written --------------------------------------------------------------------


async def test_lines_are_written_at_the_end_and_in_order(path: Path) -> None:
    log = log_of(path)
    log.start()
    for number in range(50):
        log.add(replace(RECORD, id=f"{number}"), FACTS, 100.0 + number)
    assert lines_of(path) == []
    await log.stop()
    assert [(line["id"], line["arrived_s"]) for line in lines_of(path)] == [
        (f"{number}", float(number)) for number in range(50)
    ]


async def until_written(path: Path, count: int) -> None:
    async with asyncio.timeout(30):
        while len(lines_of(path)) < count:  # noqa: ASYNC110 - a file has no events
            await asyncio.sleep(0)


async def test_lines_are_written_after_a_while(path: Path) -> None:
    log = log_of(path, flush_s=0.001)
    log.start()
    for count in (1, 2):
        log.add(RECORD, FACTS, 100.0)
        await until_written(path, count)
    await log.stop()
    assert len(lines_of(path)) == 2


async def test_lines_are_written_when_there_are_many(path: Path) -> None:
    log = log_of(path)
    log.start()
    await asyncio.sleep(0)
    for _ in range(1 + decision_log.FLUSH_BYTES // 300):
        log.add(RECORD, FACTS, 100.0)
    await until_written(path, 1)
    await log.stop()


async def test_log_that_has_nothing_to_write_makes_no_file(path: Path) -> None:
    log = log_of(path)
    log.start()
    await log.stop()
    assert lines_of(path) == []


# --- the disk ---------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 60), max_size=40),
    limit_bytes=st.integers(1, 200),
)
def test_file_and_the_one_before_it_stay_within_their_bound(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "decisions.jsonl"
    written = b""
    for number, size in enumerate(sizes):
        block = b"%d" % (number % 10) * size + b"\n"
        append(str(path), block, limit_bytes)
        written += block
        kept = [path, Path(f"{path}.1")]
        assert all(f.stat().st_size <= max(limit_bytes, 61) for f in kept if f.exists())
        before = kept[1].read_bytes() if kept[1].exists() else b""
        assert written.endswith(before + path.read_bytes())
        assert path.read_bytes().endswith(block)


def test_file_is_private_and_goes_on_after_a_restart(path: Path) -> None:
    for _ in range(2):
        append(str(path), b"{}\n", 100)
    assert path.read_bytes() == b"{}\n{}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_half_a_block_does_not_stay_when_the_disk_is_full(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(str(path), b"{}\n", 100)
    write = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) < 9:
            raise OSError(28, "No space left on device")
        return write(file, data[:5])

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OSError, match="No space"):
        append(str(path), b'{"id":7}\n', 100)
    assert path.read_bytes() == b"{}\n"


async def test_disk_that_refuses_is_reported_once_and_tried_again(
    tmp_path: Path, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "missing" / "decisions.jsonl"
    tried = asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()

    def watched(*arguments: Any) -> None:
        loop.call_soon_threadsafe(tried.release)
        append(*arguments)

    monkeypatch.setattr(decision_log, "append", watched)
    log = log_of(path, flush_s=0.001)
    log.start()
    for _ in range(3):
        log.add(RECORD, FACTS, 100.0)
        await tried.acquire()
    make_folder(path)
    log.add(replace(RECORD, id="last"), FACTS, 100.0)
    await log.stop()
    assert [line["id"] for line in lines_of(path)][-1:] == ["last"]
    [line] = logged
    assert (line["event"], line["reason"]) == (
        "the decision log is not written",
        "No such file or directory",
    )


async def test_lines_beyond_what_may_gather_are_lost_and_counted(
    path: Path, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_log, "MAX_GATHERED_BYTES", 2000)
    log = log_of(path)
    for _ in range(100):
        log.add(RECORD, FACTS, 100.0)
    log.start()
    await log.stop()
    [line] = logged
    assert line["lines_lost"] == 100 - len(lines_of(path))
    assert 2 <= len(lines_of(path)) < 10


async def test_requests_through_the_proxy_are_logged_without_their_text(path: Path) -> None:
    secret = "hunter2 " * 100
    async with pool(sim("a"), decision_log=str(path)) as p:
        await p.generate(prompt=secret, options={"num_predict": 3, "num_ctx": 1024})
        async with p.client.get(f"{p.proxy.url}/api/tags") as answer:
            await answer.read()
        async with p.client.post(f"{p.proxy.url}/api/generate", data=secret) as answer:
            await answer.read()
    generated, *others = lines_of(path)
    assert generated["outcome"] == "completed"
    assert (generated["host"], generated["options_key"]) == ("a", "num_ctx=1024")
    assert generated["prefix_tokens"] == [64, 128, 192, 200]
    assert generated["output_tokens"] == 3
    assert 0 < generated["arrived_s"] < LATE_S
    assert [line["kind"] for line in others if line["route"] == "/api/generate"] == ["other"]
    assert "hunter2" not in json.dumps([generated, *others])
