"""The demo: a pool that starts, answers, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable

import pytest
from aiohttp import ClientSession

from sollol_proxy.config.schema import Config
from sollol_proxy.lab import demo as demo_module
from sollol_proxy.lab.demo import demo
from sollol_proxy.lab.process import ChildFailed, spawned
from sollol_proxy.server import lifecycle


class Recorded:
    """Stands in for the server: notes the configuration, looks at the hosts, returns."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.config: Config | None = None
        self.tags: dict[str, int] = {}
        self._failure = failure

    async def serve(self, config: Config, *, ready: Callable[[str], None] | None = None) -> int:
        self.config = config
        async with ClientSession() as session:
            for host in config.hosts:
                async with session.get(f"{host.url}/api/tags") as answer:
                    self.tags[host.id] = len((await answer.json())["models"])
        if ready is not None:
            ready("http://127.0.0.1:1")
        if self._failure is not None:
            raise self._failure
        return 7


def is_listening(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0


async def test_demo_serves_a_simulated_pool_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, lines = Recorded(), list[str]()
    monkeypatch.setattr(lifecycle, "serve", recorded.serve)
    code = await demo("127.0.0.1:0", simulate=True, say=lines.append)
    assert code == 7
    assert recorded.config is not None
    assert recorded.config.listen == "127.0.0.1:0"
    assert recorded.tags == {"4090": 4, "3060": 4, "cpu": 4}
    assert [host.memory == 0 for host in recorded.config.hosts] == [False, False, True]
    assert not any(is_listening(host.url) for host in recorded.config.hosts)
    text = "\n".join(lines)
    for hint in (
        "asked for",
        "curl -N http://127.0.0.1:1",
        "OLLAMA_HOST=",
        "http://127.0.0.1:1/sollol/",
    ):
        assert hint in text


async def test_demo_ends_its_hosts_when_serving_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(OSError("no"))
    monkeypatch.setattr(lifecycle, "serve", recorded.serve)
    with pytest.raises(OSError, match="no"):
        await demo("127.0.0.1:0", simulate=True, say=lambda _: None)
    assert recorded.config is not None
    assert not any(is_listening(host.url) for host in recorded.config.hosts)


async def test_demo_reports_a_host_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = spawned("sollol_proxy.lab.simhost", "--spec", "[]")
    monkeypatch.setattr(demo_module, "spawned_simhost", lambda _: broken)
    lines: list[str] = []
    assert await demo("127.0.0.1:0", simulate=True, say=lines.append) == 1
    assert "did not start" in lines[-1]
    with pytest.raises(ChildFailed):
        await broken.start()


async def test_demo_says_which_packages_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, lines = Recorded(), list[str]()
    monkeypatch.setattr(lifecycle, "serve", recorded.serve)
    monkeypatch.setattr(demo_module, "available", lambda: "not installed: xllamacpp")
    await demo("127.0.0.1:0", say=lines.append)
    assert "not installed: xllamacpp" in lines[0]
    assert set(recorded.tags) == {"4090", "3060", "cpu"}


async def test_demo_takes_the_next_port_when_ollamas_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded, lines = Recorded(), list[str]()
    monkeypatch.setattr(lifecycle, "serve", recorded.serve)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(demo_module, "_OLLAMAS_ADDRESS", other.getsockname())
        await demo(None, simulate=True, say=lines.append)
    assert recorded.config is not None
    assert recorded.config.listen == "127.0.0.1:11435"
    assert any("is taken" in line for line in lines)


async def test_demo_answers_as_a_command_and_stops_on_sigterm() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "sollol_proxy", "demo", "--simulate", "--listen", "127.0.0.1:0"),
        stdout=PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    lines: list[str] = []
    async for line in process.stdout:
        lines.append(line.decode().strip())
        if "Ctrl-C" in lines[-1]:
            break
    url = next(line for line in lines if "The pool answers at" in line).split()[4].rstrip(".")
    hosts = [line.split()[1] for line in lines if line.startswith(("4090:", "3060:", "cpu:"))]
    async with ClientSession() as session:
        fields = {"model": "llama3.2:3b", "prompt": "x", "options": {"num_predict": 2}}
        async with session.post(f"{url}/api/generate", json=fields) as answer:
            assert (await answer.read()).count(b"\n") == 3
    process.send_signal(signal.SIGTERM)
    await process.stdout.read()
    assert await process.wait() == 0
    assert len(hosts) == 3
    assert not any(is_listening(host) for host in hosts)


@pytest.mark.real_model
async def test_demo_serves_real_models_where_they_are_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded, lines = Recorded(), list[str]()
    monkeypatch.setattr(lifecycle, "serve", recorded.serve)
    assert await demo("127.0.0.1:0", hosts=1, say=lines.append) == 7
    assert recorded.tags == {"alpha": 2}
    assert "real" in lines[0]
