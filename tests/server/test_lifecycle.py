"""The process: listening, refusing to, and going down without losing an answer."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from sollol_proxy.lab.simhost import SimHost
from tests.server.pool import sim
from tests.support import PATIENCE_S
from tests.wire.recordings import http_exchanges
from tests.wire.replay import ReplayHost

FREE = "127.0.0.1:0"


@asynccontextmanager
async def command(*arguments: str) -> AsyncIterator[Process]:
    """`sollol-proxy` as users run it; ended by pid if the test leaves it running."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sollol_proxy", *arguments, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def listening_url(process: Process) -> str:
    """The address that the log names."""
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        while line := (await process.stderr.readline()).decode():
            if '"listening"' in line:
                return str(json.loads(line)["url"])
    raise AssertionError("the proxy ended without listening")


async def until_ready(client: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with client.get(f"{url}/sollol/ready") as response:
                if response.status == 200:
                    return


@pytest.fixture
def json_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLLOL_LOG__FORMAT", "json")


@pytest.mark.parametrize("neighbour", ["ollama", "another program"])
async def test_taken_port_gives_one_line_that_says_what_to_do(neighbour: str) -> None:
    async with ReplayHost() as host:
        if neighbour == "ollama":
            host.respond_with(http_exchanges()["root-get"])
        async with command("--listen", f"127.0.0.1:{host.port}", "--host", "gpu-box") as process:
            _, error = await process.communicate()
    assert process.returncode == 1
    [line] = error.decode().splitlines()
    assert f"127.0.0.1:{host.port} is taken" in line
    assert "--listen" in line
    assert ("OLLAMA_HOST=" in line) == (neighbour == "ollama")


async def test_host_that_is_the_proxy_itself_is_refused() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    listen = f"127.0.0.1:{port}"
    async with command("--listen", listen, "--host", f"http://localhost:{port}") as process:
        _, error = await process.communicate()
    assert process.returncode == 2
    [line] = error.decode().splitlines()
    assert "hosts[0].url" in line
    assert "Traceback" not in line


@pytest.mark.usefixtures("json_log")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_running_answer_ends_whole_when_the_proxy_is_stopped(number: signal.Signals) -> None:
    slow = sim("a", time_scale=1.0, decode_tps=20.0)
    async with SimHost(slow) as host, command("--listen", FREE, "--host", host.url) as process:
        url = await listening_url(process)
        async with aiohttp.ClientSession() as client:
            await until_ready(client, url)
            body = {"model": "llama3", "prompt": "hi", "options": {"num_predict": 12}}
            async with client.post(f"{url}/api/generate", json=body) as response:
                await response.content.readany()
                process.send_signal(number)
                rest = await response.text()
            assert json.loads(rest.splitlines()[-1])["done"] is True
        async with asyncio.timeout(PATIENCE_S):
            assert await process.wait() == 0


@pytest.mark.usefixtures("json_log")
async def test_drain_ends_at_its_limit_and_cuts_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOLLOL_LIMITS__DRAIN", "50ms")
    endless = sim("a", time_scale=1.0, decode_tps=2.0)
    async with SimHost(endless) as host, command("--listen", FREE, "--host", host.url) as process:
        url = await listening_url(process)
        async with aiohttp.ClientSession() as client:
            await until_ready(client, url)
            body = {"model": "llama3", "prompt": "hi", "options": {"num_predict": 1000}}
            async with client.post(f"{url}/api/generate", json=body) as response:
                await response.content.readany()
                process.terminate()
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
        async with asyncio.timeout(PATIENCE_S):
            assert await process.wait() == 0
        await host.until(lambda stats: stats.cancelled == 1)


@pytest.mark.usefixtures("json_log")
async def test_log_has_one_line_a_request_and_no_prompt() -> None:
    async with SimHost(sim("a")) as host, command("--listen", FREE, "--host", host.url) as process:
        url = await listening_url(process)
        async with aiohttp.ClientSession() as client:
            await until_ready(client, url)
            body = {"model": "llama3", "prompt": "my secret prompt", "options": {"num_predict": 3}}
            async with client.post(f"{url}/api/generate", json=body) as response:
                await response.read()
        process.terminate()
        _, error = await process.communicate()
    lines = [json.loads(line) for line in error.decode().splitlines()]
    [request] = [line for line in lines if line["event"] == "request"]
    assert request["outcome"] == "completed"
    assert request["model"] == "llama3:latest"
    assert {"host", "queue_s", "first_byte_s", "total_s", "attempts"} <= set(request)
    assert "secret" not in error.decode()


@pytest.mark.usefixtures("json_log")
async def test_malformed_request_is_one_log_line_and_no_traceback() -> None:
    async with command("--listen", FREE) as process:
        url = await listening_url(process)
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"this is no HTTP\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
        process.terminate()
        _, error = await process.communicate()
    assert "Traceback" not in error.decode()
