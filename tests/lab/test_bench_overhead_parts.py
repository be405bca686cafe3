"""The hosts and the clients of `bench overhead`, each against a scripted other side."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession

from sollol_proxy.lab import bench_overhead_measures
from sollol_proxy.lab.bench_bytes import (
    EMBED,
    EMBED_MODEL,
    ENDLESS,
    LAST_CHUNK,
    MODELS,
    V1_EMBED,
    Target,
)
from sollol_proxy.lab.bench_callers import Caller, CallFailed, Line
from sollol_proxy.lab.bench_crowds import Loop, opened
from sollol_proxy.lab.bench_overhead_contenders import Running
from sollol_proxy.lab.bench_overhead_measures import QUICK, Stage
from sollol_proxy.lab.bench_upstream import GO, HOLD, STATS, Upstreams, addresses_of

PATIENCE_S = 60.0

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
RECORD = b'{"message":{"content":" tok"},"done":false}\n'
END = b'{"done":true}\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def scripted(*pieces: bytes, closes: bool = False) -> AsyncIterator[Target]:
    """Somebody who answers every request with these pieces, each when the one before is read."""
    writers: list[asyncio.StreamWriter] = []
    tasks: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
            await reader.readexactly(length)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                for _ in range(20):  # the other side shares this loop, and has read it then
                    await asyncio.sleep(0)
            if closes:
                writer.close()
                return

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(quietly, "127.0.0.1", 0)
    try:
        yield Target((("127.0.0.1", server.sockets[0].getsockname()[1]),))
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*tasks)


@pytest.fixture
async def upstreams() -> AsyncIterator[Upstreams]:
    async with Upstreams(2) as made:
        yield made


@pytest.fixture
def target(upstreams: Upstreams) -> Target:
    return Target(addresses_of(upstreams.urls))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - the callers set no event
            await asyncio.sleep(0)


async def control(url: str, path: str) -> dict[str, float]:
    async with ClientSession() as session, session.get(url + path) as response:
        return dict(await response.json())


async def test_hosts_answer_what_proxies_ask_of_an_ollama(upstreams: Upstreams) -> None:
    async with ClientSession(upstreams.urls[0]) as session:
        async with session.get("/api/tags") as response:
            tags = await response.json()
        async with session.get("/api/ps") as response:
            resident = await response.json()
        async with session.get("/api/version") as response:
            assert (await response.json())["version"]
        async with session.get("/") as response:
            assert await response.text() == "Ollama is running"
        async with session.head("/") as response:
            assert response.status == 200
        async with session.post("/api/show", json={"model": MODELS[0]}) as response:
            assert "completion" in (await response.json())["capabilities"]
        async with session.get("/nowhere") as response:
            assert response.status == 404
        async with session.post("/api/chat", json={}) as response:
            assert response.status == 400
    assert [model["name"] for model in tags["models"]] == list(MODELS)
    assert [model["name"] for model in resident["models"]] == list(MODELS)


@pytest.mark.parametrize("path", [EMBED, V1_EMBED])
async def test_embedding_has_about_eight_kilobytes(upstreams: Upstreams, path: str) -> None:
    async with (
        ClientSession(upstreams.urls[0]) as session,
        session.post(path, json={"model": EMBED_MODEL, "input": "x"}) as response,
    ):
        body = await response.read()
    assert 7900 <= len(body) <= 8400
    document = json.loads(body)
    vector = document["embeddings"][0] if path == EMBED else document["data"][0]["embedding"]
    assert len(vector) > 300


@pytest.mark.parametrize("rate", [0, 1000])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_stream_has_the_records_that_were_asked_for(
    upstreams: Upstreams, path: str, rate: int
) -> None:
    async with ClientSession(upstreams.urls[0]) as session:
        message = {"role": "user", "content": f"[7 records at {rate}]"}
        document = {"model": MODELS[0], "messages": [message], "stream": True}
        async with session.post(path, json=document) as response:
            body = await response.read()
    assert body.count(b" tok") == 7
    assert body.rstrip().endswith(b"[DONE]" if path.startswith("/v1") else b"}")
    assert (await control(upstreams.urls[0], STATS))["open"] == 0


async def test_held_streams_open_and_go_on_later(upstreams: Upstreams, target: Target) -> None:
    await control(upstreams.urls[0], HOLD)
    requests = [target.chat(number, 3, 1000) for number in range(6)]
    async with opened(target, requests, PATIENCE_S) as streams:
        assert (streams.flowing, streams.ended, streams.records) == (6, 0, 6)
        assert (await control(upstreams.urls[0], STATS))["open"] == 6
        await control(upstreams.urls[0], GO)
        await streams.all_ended(PATIENCE_S)
        assert (streams.ended, streams.broken, streams.records) == (6, 0, 18)
        assert 6 < streams.pieces <= 18 + 6


async def test_streams_end_with_the_block(upstreams: Upstreams, target: Target) -> None:
    requests = [target.chat(number, ENDLESS, 100) for number in range(4)]
    async with opened(target, requests, PATIENCE_S) as streams:
        await until(lambda: streams.records > 8)
        assert streams.flowing == 4
    async with asyncio.timeout(PATIENCE_S):
        while (await control(upstreams.urls[0], STATS))["open"]:
            pass


async def test_stream_that_never_ends_is_not_waited_for(target: Target) -> None:
    async with opened(target, [target.chat(0, ENDLESS, 100)], PATIENCE_S) as streams:
        await streams.all_ended(0.0)
        assert (streams.ended, streams.broken, streams.flowing) == (0, 0, 1)


async def test_nobody_who_listens_means_no_stream() -> None:
    nobody = Target((("127.0.0.1", 9),))
    async with opened(nobody, [nobody.chat(0, 1, 0)], PATIENCE_S) as streams:
        assert streams.flowing == 0
    with pytest.raises(CallFailed, match=r"127\.0\.0\.1:9"):
        await Line(nobody).ask(nobody.chat(0, 1, 0))


async def test_line_times_one_answer_after_another(target: Target) -> None:
    line = Line(target)
    times = [await line.ask(target.chat(number, 2, 0)) for number in range(5)]
    line.close()
    assert len([taken_s for taken_s in times if taken_s > 0]) == 5


async def test_loop_asks_again_and_again(target: Target) -> None:
    async with Loop(target, [target.embed(number) for number in range(3)], 2) as loop:
        await until(lambda: loop.done >= 20)
    assert loop.failed == 0


async def test_loop_makes_connections_anew() -> None:
    close = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with scripted(close, closes=True) as target:
        async with Loop(target, [target.embed(0)], 2) as loop:
            await until(lambda: loop.done >= 10)
        assert loop.failed == 0


@pytest.mark.parametrize(
    ("pieces", "records", "is_good"),
    [
        ((HEAD + chunk(RECORD), chunk(RECORD + END) + LAST_CHUNK), 2, True),
        (
            (HEAD[:20], HEAD[20:], chunk(RECORD), chunk(END), LAST_CHUNK[:3], LAST_CHUNK[3:]),
            1,
            True,
        ),
        ((HEAD + chunk(RECORD) + LAST_CHUNK,), 1, False),
        ((HEAD + chunk(b'{"error":"broke"}\n') + LAST_CHUNK,), 0, True),
        ((b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy",), 0, False),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",), 0, True),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", b"te", b"xt"), 0, True),
    ],
)
async def test_answer_is_read_to_its_end(
    pieces: tuple[bytes, ...], records: int, is_good: bool
) -> None:
    ended = asyncio.Event()
    async with scripted(*pieces) as target, asyncio.timeout(PATIENCE_S):
        _, caller = await asyncio.get_running_loop().create_connection(
            lambda: Caller(lambda _: ended.set()), *target.addresses[0]
        )
        for _ in range(2):
            ended.clear()
            caller.ask(target.chat(0, 1, 0))
            await ended.wait()
            assert (caller.records, caller.is_good, caller.is_open) == (records, is_good, False)
        caller.leave()


async def test_answer_that_is_cut_is_no_good_one() -> None:
    pieces = (HEAD + chunk(RECORD), chunk(RECORD))
    async with scripted(*pieces, closes=True) as target, asyncio.timeout(PATIENCE_S):
        async with opened(target, [target.chat(0, 5, 100)], PATIENCE_S) as streams:
            await streams.all_ended(PATIENCE_S)
            assert (streams.ended, streams.broken, streams.records) == (0, 1, 2)
        with pytest.raises(CallFailed, match="not good"):
            await Line(target).ask(target.chat(0, 5, 100))


async def test_host_that_nobody_reads_loses_no_record(upstreams: Upstreams) -> None:
    """What does not fit is sent when there is room again."""
    host, port = addresses_of(upstreams.urls)[0]
    reader, writer = await asyncio.open_connection(host, port, limit=1024)
    writer.write(Target(((host, port),)).chat(0, 300, 1000))
    body = b""
    async with asyncio.timeout(PATIENCE_S):
        while not body.endswith(LAST_CHUNK):
            body += await reader.read(256)
    writer.close()
    assert body.count(b" tok") == 300


async def test_streams_that_stay_open_are_noticed(
    upstreams: Upstreams, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_overhead_measures, "_LEFT_TRIES", 1)
    monkeypatch.setattr(bench_overhead_measures, "_LOOK_EVERY_S", 0.0)
    async with ClientSession() as session:
        pid = os.getpid()
        stage = Stage(Running(target), target, pid, upstreams.urls[0], session, QUICK)
        assert await stage.have_all_left()
        async with opened(target, [target.chat(0, ENDLESS, 100)], PATIENCE_S):
            assert not await stage.have_all_left()


async def test_hosts_that_are_gone_are_no_traceback(target: Target) -> None:
    async with ClientSession() as session:
        stage = Stage(Running(target), target, os.getpid(), "http://127.0.0.1:9", session, QUICK)
        with pytest.raises(CallFailed, match="the hosts do not answer"):
            await stage.control(STATS)


async def test_streams_that_do_not_open_are_not_waited_for_when_none_does(
    upstreams: Upstreams, target: Target
) -> None:
    # The rest of its body never comes, so neither does an answer.
    silent = b"POST /api/chat HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf"
    requests = [target.chat(0, ENDLESS, 100), silent, silent]
    async with opened(target, requests, 0.05) as streams:
        assert streams.flowing <= 1
        assert len(streams.callers) <= 3
