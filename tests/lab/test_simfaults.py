"""Faults on command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import (
    ClientPayloadError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ServerDisconnectedError,
    ServerTimeoutError,
)

from sollol_proxy.lab.faults import Fault, FaultKind, Faults
from sollol_proxy.lab.simhost import SimHost, SimModel, SimSpec

FIVE = {"model": "m", "prompt": "x", "options": {"num_predict": 5}}
MESSAGES = [{"role": "user", "content": "x"}]
STREAMS: dict[str, dict[str, Any]] = {
    "/api/generate": FIVE,
    "/api/chat": {"model": "m", "messages": MESSAGES},
    "/v1/chat/completions": {"model": "m", "messages": MESSAGES, "stream": True},
    "/v1/completions": {"model": "m", "prompt": "x", "stream": True},
    "/v1/messages": {"model": "m", "messages": MESSAGES, "stream": True, "max_tokens": 9},
    "/v1/responses": {"model": "m", "input": "x", "stream": True},
}
TERMINATORS = (b'"done":true', b"[DONE]", b"message_stop", b"response.completed")


@pytest.fixture
async def host() -> AsyncIterator[SimHost]:
    spec = SimSpec(
        id="h", time_scale=1000, keep_alive_s=10**6, models=(SimModel("m"),), resident=("m",)
    )
    async with SimHost(spec) as started:
        yield started


@pytest.fixture
async def session(host: SimHost) -> AsyncIterator[ClientSession]:
    async with ClientSession(host.url) as opened:
        yield opened


async def test_status_is_answered_as_often_as_asked(host: SimHost, session: ClientSession) -> None:
    host.fault("status", count=2, status=500, message="boom")
    answers = []
    for _ in range(3):
        async with session.post("/api/generate", json=FIVE) as answer:
            answers.append((answer.status, (await answer.read()).splitlines()[-1]))
    assert answers[:2] == [(500, b'{"error":"boom"}')] * 2
    assert answers[2][0] == 200


async def test_status_spares_the_status_routes(host: SimHost, session: ClientSession) -> None:
    host.fault("status")
    async with session.get("/api/tags") as answer:
        assert answer.status == 200


async def test_missing_model_is_404_though_the_tags_list_it(
    host: SimHost, session: ClientSession
) -> None:
    host.fault("missing_model", count=1)
    async with session.post("/api/chat", json=STREAMS["/api/chat"]) as answer:
        assert (answer.status, await answer.json()) == (404, {"error": "model 'm' not found"})
    async with session.get("/api/tags") as answer:
        assert (await answer.json())["models"][0]["name"] == "m:latest"


async def test_reset_before_head_ends_the_connection_without_an_answer(
    host: SimHost, session: ClientSession
) -> None:
    host.fault("reset_before_head", count=1)
    with pytest.raises((ServerDisconnectedError, ConnectionResetError)):
        await session.post("/api/generate", json=FIVE)


async def collect(answer: ClientResponse, pieces: list[bytes]) -> None:
    async for chunk in answer.content.iter_any():
        pieces.append(chunk)  # noqa: PERF401 - what came before the error counts


@pytest.mark.parametrize("path", sorted(STREAMS))
async def test_cut_ends_the_stream_early(host: SimHost, session: ClientSession, path: str) -> None:
    host.fault("cut", after_records=3, count=1)
    pieces: list[bytes] = []
    async with session.post(path, json=STREAMS[path]) as answer:
        assert answer.status == 200
        with pytest.raises(ClientPayloadError):
            await collect(answer, pieces)
    received = b"".join(pieces)
    assert received.endswith(b"\n")
    assert not any(mark in received for mark in TERMINATORS)
    assert host.stats.records_sent == 3


async def test_cut_spoils_an_answer_that_is_not_streamed(
    host: SimHost, session: ClientSession
) -> None:
    host.fault("cut", count=1)
    async with session.post("/api/generate", json=FIVE | {"stream": False}) as answer:
        with pytest.raises(ClientPayloadError):
            await answer.read()


@pytest.mark.parametrize("kind", ["no_done", "error_record"])
@pytest.mark.parametrize("path", sorted(STREAMS))
async def test_stream_ends_cleanly_without_its_end(
    host: SimHost, session: ClientSession, path: str, kind: str
) -> None:
    host.fault(kind, after_records=2, count=1)
    async with session.post(path, json=STREAMS[path]) as answer:
        received = await answer.read()
    assert not any(mark in received for mark in TERMINATORS)
    is_told = kind == "error_record" and path.startswith("/api/")
    assert received.splitlines()[-1].startswith(b'{"error"') is is_told
    assert host.stats.records_sent == 2


async def test_answer_says_that_it_is_not_done_when_it_is_not_streamed(
    host: SimHost, session: ClientSession
) -> None:
    host.fault("no_done", count=1)
    async with session.post("/api/generate", json=FIVE | {"stream": False}) as answer:
        document = await answer.json()
    assert document["done"] is False
    assert "done_reason" not in document


@pytest.mark.parametrize("stream", [True, False])
async def test_runner_failure_is_500_when_nothing_was_sent(
    host: SimHost, session: ClientSession, stream: bool
) -> None:
    host.fault("error_record", count=1)
    async with session.post("/api/generate", json=FIVE | {"stream": stream}) as answer:
        assert answer.status == 500


async def test_hang_answers_nothing_but_the_status_routes(
    host: SimHost, session: ClientSession
) -> None:
    host.fault("hang", count=1)
    hanging = asyncio.get_running_loop().create_task(session.post("/api/generate", json=FIVE))
    await host.until(lambda stats: stats.total_in_flight == 1)
    async with session.get("/api/version") as answer:
        assert answer.status == 200
    assert not hanging.done()
    hanging.cancel()
    await host.until(lambda stats: stats.total_in_flight == 0)


async def test_hang_connect_takes_no_connection_until_cleared(host: SimHost) -> None:
    host.fault("hang_connect")
    impatient = ClientTimeout(sock_connect=0.05, sock_read=0.05)
    async with ClientSession(host.url, timeout=impatient) as session:
        with pytest.raises(ServerTimeoutError):
            await session.get("/api/version")
    await host.clear_faults()
    async with ClientSession(host.url) as session, session.get("/api/version") as answer:
        assert answer.status == 200


async def test_hang_connect_silences_connections_that_exist(
    host: SimHost, session: ClientSession
) -> None:
    async with session.get("/api/version"):
        pass
    host.fault("hang_connect")
    question = asyncio.get_running_loop().create_task(session.get("/api/version"))
    await host.until(lambda stats: stats.requests["/api/version"] == 2)
    assert not question.done()
    await host.clear_faults()
    async with await question as answer:
        assert answer.status == 200


async def test_slow_host_reports_longer_durations(host: SimHost, session: ClientSession) -> None:
    durations = []
    for factor in (1.0, 8.0):
        host.fault("slow", factor=factor)
        async with session.post("/api/generate", json=FIVE | {"stream": False}) as answer:
            durations.append((await answer.json())["eval_duration"])
    assert durations[1] == pytest.approx(8 * durations[0], rel=1e-3)


async def test_faults_and_counts_are_reached_over_http(
    host: SimHost, session: ClientSession
) -> None:
    fault = {"kind": "cut", "count": 1, "after_records": 1}
    async with session.post("/sim/fault", json=fault) as answer:
        assert answer.status == 200
    async with session.post("/api/generate", json=FIVE) as answer:
        with pytest.raises(ClientPayloadError):
            await answer.read()
    await host.until(lambda stats: stats.total_in_flight == 0)
    async with session.get("/sim/stats") as answer:
        stats = await answer.json()
    assert stats["requests"] == {"/api/generate": 1}
    assert (stats["records_sent"], stats["max_in_flight"]) == (1, {"m:latest": 1})


@pytest.mark.parametrize(
    "body", ['{"kind":"nosuch"}', '{"kind":"cut","colour":1}', "{", '{"kind":"crash"}']
)
async def test_fault_is_refused_when_it_makes_no_sense(session: ClientSession, body: str) -> None:
    async with session.post("/sim/fault", data=body) as answer:
        assert answer.status == 400
        assert json.loads(await answer.read())["error"]


def test_faults_strike_in_order_and_are_spent() -> None:
    faults = Faults()
    faults.add(Fault(FaultKind.STATUS, count=0))
    faults.add(Fault(FaultKind.SLOW))
    faults.add(Fault(FaultKind.CUT, count=2))
    faults.add(Fault(FaultKind.HANG))
    strikes = [faults.strike("POST", "/api/generate") for _ in range(4)]
    struck = [fault.kind for fault in strikes if fault is not None]
    assert struck == [FaultKind.CUT, FaultKind.CUT, FaultKind.HANG, FaultKind.HANG]
    faults.clear()
    assert faults.strike("POST", "/api/generate") is None
