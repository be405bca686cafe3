"""What was learnt outlives a restart, and nothing that stands in its file stops one."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sollol_proxy.server.memory_file import VERSION, MemoryFile, Unusable
from sollol_proxy.server.reset import reset_learnt
from tests.server.pool import Pool, pool, sim
from tests.support import make_config, running_proxy

LEARNT = {"hosts": {"a": {"speeds": {"decode": {"m": 17.5}}}}}
NEVER = "1h"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def content_of(path: Path, suffix: str = "") -> bytes | None:
    """What a file holds; None = there is none."""
    file = Path(f"{path}{suffix}")
    return file.read_bytes() if file.exists() else None


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.iterdir()}


# --- the file ---------------------------------------------------------------------------------


def test_what_is_written_is_read_and_private(path: Path) -> None:
    assert MemoryFile(str(path)).read() is None
    file = MemoryFile(str(path))
    file.write(LEARNT)
    file.write(LEARNT)
    assert MemoryFile(str(path)).read() == LEARNT
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(path) == {"state.json"}


def test_write_replaces_what_a_link_points_to(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "volume" / "real.json"
    real.parent.mkdir()
    path.symlink_to(real)
    MemoryFile(str(path)).write(LEARNT)
    assert path.is_symlink()
    assert MemoryFile(str(real)).read() == LEARNT


def test_write_is_not_led_astray_by_what_lies_in_its_way(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    Path(f"{path}.new").symlink_to(other)
    MemoryFile(str(path)).write(LEARNT)
    assert other.read_text() == "precious"
    assert MemoryFile(str(path)).read() == LEARNT


def test_what_was_there_stays_when_a_write_fails(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = MemoryFile(str(path))
    file.write(LEARNT)

    def full(_number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.write({})
    assert MemoryFile(str(path)).read() == LEARNT


BROKEN = [
    (b"", "is not JSON"),
    (b"\xff\xfe", "is not JSON"),
    (b'{"version":1,"learnt":{', "is not JSON"),
    (b"[]", "is not a state file"),
    (b'{"learnt":{}}', "is not a state file"),
    (b'{"version":"1"}', "is not a state file"),
    (
        b'{"version":%d,"learnt":{}}' % (VERSION + 1),
        "is of version 2, and this proxy reads up to 1",
    ),
]


@pytest.mark.parametrize(("content", "reason"), BROKEN)
def test_unusable_file_is_kept_until_a_good_one_takes_its_place(
    path: Path, content: bytes, reason: str
) -> None:
    path.write_bytes(content)
    file = MemoryFile(str(path))
    with pytest.raises(Unusable, match=reason):
        file.read()
    assert path.read_bytes() == content
    for _ in range(2):
        file.write(LEARNT)
        assert MemoryFile(str(path)).read() == LEARNT
        assert Path(f"{path}.bad").read_bytes() == content
    assert names(path) == {"state.json", "state.json.bad"}


def test_folder_in_the_place_of_the_file_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="cannot be read: Is a directory"):
        MemoryFile(str(tmp_path)).read()


@given(content=st.binary())
def test_read_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("state") / "state.json"
    for whole in (content, b'{"version":1,"learnt":' + content):
        path.write_bytes(whole)
        try:
            MemoryFile(str(path)).read()
        except Unusable as problem:
            assert str(problem)  # noqa: PT017 - most contents are unusable, some are not


# --- over a restart ---------------------------------------------------------------------------


def learnt_of(p: Pool) -> dict[str, Any]:
    return p.proxy.services.dispatcher.learnt()


def decode_speeds(learnt: dict[str, Any]) -> dict[str, float]:
    speeds: dict[str, float] = learnt["hosts"]["a"]["speeds"]["decode"]
    return speeds


async def test_speeds_are_known_again_after_a_restart(path: Path, logged: list[Any]) -> None:
    async with pool(sim("a"), state=str(path), state_interval=NEVER) as p:
        await p.generate(options={"num_predict": 20})
        before = learnt_of(p)
        assert decode_speeds(before)["llama3:latest"] > 0
        assert content_of(path) is None
    assert MemoryFile(str(path)).read() == before
    async with pool(sim("a"), state=str(path), state_interval=NEVER) as p:
        assert decode_speeds(learnt_of(p)) == decode_speeds(before)
        [host] = p.proxy.snapshot().hosts
        assert host.decode_tokens_per_s == decode_speeds(before)["llama3:latest"]
    assert [line["event"] for line in logged if "learnt" in line["event"]] == [
        "what was learnt is back"
    ]


async def test_state_is_written_while_the_proxy_runs(path: Path) -> None:
    async with running_proxy(make_config(state=str(path), state_interval=0.001)) as proxy:
        await proxy.until(lambda _: path.exists())
        assert MemoryFile(str(path)).read() is not None


@pytest.mark.parametrize("content", [content for content, _ in BROKEN])
async def test_broken_file_is_reported_and_does_not_stop_the_start(
    path: Path, content: bytes, logged: list[Any]
) -> None:
    put(path, content)
    async with running_proxy(make_config(state=str(path), state_interval=NEVER)):
        assert content_of(path) == content
    [line] = [line for line in logged if line["event"] == "the state file is ignored"]
    assert line["log_level"] == "warning"
    assert MemoryFile(str(path)).read() is not None
    assert content_of(path, ".bad") == content


@pytest.mark.parametrize("learnt", [[], 7, {"hosts": 7}, {"hosts": {"a": {"speeds": [1]}}}])
async def test_file_that_holds_something_else_is_reported_and_kept(
    path: Path, learnt: Any, logged: list[Any]
) -> None:
    content = json.dumps({"version": VERSION, "learnt": learnt}).encode()
    put(path, content)
    async with running_proxy(make_config(state=str(path), state_interval=NEVER)):
        pass
    [line] = [line for line in logged if line["event"] == "the state file is ignored"]
    assert line["reason"].startswith("does not hold what it should")
    assert content_of(path, ".bad") == content


async def test_state_that_cannot_be_written_is_reported(tmp_path: Path, logged: list[Any]) -> None:
    path = tmp_path / "missing" / "state.json"
    async with running_proxy(make_config(state=str(path), state_interval=NEVER)):
        pass
    [line] = [line for line in logged if line["event"] == "the state is not written"]
    assert line["reason"] == "No such file or directory"


async def test_reset_forgets_in_memory_and_on_disk(path: Path) -> None:
    async with pool(sim("a"), state=str(path), state_interval=NEVER) as p:
        await p.generate(options={"num_predict": 20})
        await reset_learnt(p.proxy.services)
        assert "llama3:latest" not in json.dumps(learnt_of(p))
        assert b"llama3:latest" not in (content_of(path) or b"llama3:latest")
        [host] = p.proxy.snapshot().hosts
        assert host.decode_tokens_per_s is None
        await p.generate(options={"num_predict": 20})
        assert decode_speeds(learnt_of(p))["llama3:latest"] > 0


async def test_reset_needs_no_file() -> None:
    async with pool(sim("a")) as p:
        await p.generate(options={"num_predict": 20})
        await reset_learnt(p.proxy.services)
        assert "llama3:latest" not in json.dumps(learnt_of(p))
