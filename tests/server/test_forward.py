"""The way of a request to a host and back, over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import aiohttp
import pytest

from sollol_proxy.core.scheduler import Scheduler
from sollol_proxy.core.types import Effect, HostState, Outcome
from tests.server.pool import pool, sim
from tests.support import make_config, running_proxy

ERROR_KEYS = {
    "/api/generate": {"error"},
    "/v1/chat/completions": {"error"},
    "/v1/messages": {"type", "error", "request_id"},
}
BODIES: dict[str, dict[str, Any]] = {
    "/api/generate": {"model": "llama3", "prompt": "hi"},
    "/v1/chat/completions": {
        "model": "llama3",
        "messages": [{"role": "user", "content": "hi"}],
    },
    "/v1/messages": {
        "model": "llama3",
        "max_tokens": 10,
        "messages": [{"role": "user", "content": "hi"}],
    },
}


@pytest.mark.parametrize(
    ("policy", "header", "terms"),
    [("completion_time", "X-SOLLOL-Cost", 4), ("seven_factor", "X-SOLLOL-Score", 7)],
)
async def test_request_is_explained_in_headers_and_afterwards(
    policy: str, header: str, terms: int
) -> None:
    async with pool(sim("a"), sim("b"), policy=policy) as p:
        response, text = await p.generate()
        assert json.loads(text.splitlines()[-1])["done"] is True
        headers = response.headers
        assert headers["X-SOLLOL-Host"] in ("a", "b")
        assert headers["X-SOLLOL-Policy"] == policy
        assert float(headers[header]) > 0
        assert headers["X-SOLLOL-Attempts"] == "1"
        assert "Server" not in headers
        url = f"{p.proxy.url}/sollol/requests/{headers['X-SOLLOL-Request-Id']}"
        async with p.client.get(url) as looked_up:
            record = await looked_up.json()
        assert record["outcome"] == "completed"
        assert record["observation"]["output_tokens"] == 5
        decision = record["decision"]
        assert decision["host"] == headers["X-SOLLOL-Host"]
        [other] = decision["alternatives"]
        assert {decision["host"], other["host"]} == {"a", "b"}
        assert len(decision["terms"]) >= terms
        assert len(other["terms"]) >= terms
        await p.proxy.until_idle()


@pytest.mark.parametrize(
    ("headers", "query", "priority"),
    [
        ({}, "", "5"),
        ({"X-SOLLOL-Priority": "9"}, "", "9"),
        ({}, "?priority=2", "2"),
        ({"X-SOLLOL-Priority": " 10 "}, "?priority=2", "10"),
    ],
)
async def test_priority_is_header_then_query_then_default(
    headers: dict[str, str], query: str, priority: str
) -> None:
    async with pool(sim("a")) as p:
        response, _ = await p.generate(headers=headers, query=query)
        assert response.headers["X-SOLLOL-Priority"] == priority


async def test_priority_default_may_depend_on_the_route() -> None:
    queue = {"route_priorities": {"/api/generate": 3}}
    async with pool(sim("a"), queue=queue) as p:
        response, _ = await p.generate()
        assert response.headers["X-SOLLOL-Priority"] == "3"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("asked", ["0", "11", "high", "", "5.5", "９"])
async def test_bad_priority_is_refused_in_the_callers_dialect(path: str, asked: str) -> None:
    async with pool(sim("a")) as p:
        url = p.proxy.url + path + "?priority=" + asked
        async with p.client.post(url, json=BODIES[path]) as response:
            assert response.status == 400
            assert set(await response.json()) == ERROR_KEYS[path]
            assert response.headers["X-SOLLOL-Outcome"] == "rejected_bad_request"
        assert p.hosts["a"].stats.requests.get(path, 0) == 0


@pytest.mark.parametrize("path", BODIES)
async def test_full_queue_is_refused_in_the_callers_dialect_with_a_time(path: str) -> None:
    slow = sim("a", time_scale=1.0, decode_tps=5.0)
    async with pool(slow, queue={"max_waiting": 0}) as p:
        async with p.client.post(
            f"{p.proxy.url}/api/generate", json={**BODIES["/api/generate"]}
        ) as running:
            await running.content.readany()
            async with p.client.post(p.proxy.url + path, json=BODIES[path]) as response:
                assert response.status == 503
                assert int(response.headers["Retry-After"]) >= 1
                body = await response.json()
                assert set(body) == ERROR_KEYS[path]
                assert "server busy, please try again.  maximum pending" in json.dumps(body)
                assert response.headers["X-SOLLOL-Outcome"] == "rejected_queue_full"
        await p.proxy.until_idle()


async def test_waiting_job_expires_at_its_deadline() -> None:
    slow = sim("a", time_scale=1.0, decode_tps=5.0)
    async with pool(slow, queue={"deadline": 0.05}) as p:
        url = f"{p.proxy.url}/api/generate"
        async with p.client.post(url, json=BODIES["/api/generate"]) as running:
            await running.content.readany()
            async with p.client.post(url, json=BODIES["/api/generate"]) as response:
                assert response.status == 503
                assert "queue.deadline" in (await response.json())["error"]
                assert "Retry-After" in response.headers
        [record] = [r for r in p.proxy.services.journal.latest(9) if r.status == 503]
        assert record.outcome is Outcome.EXPIRED_IN_QUEUE
        assert record.queue_s > 0


@pytest.mark.parametrize("path", BODIES)
async def test_pool_without_a_host_up_refuses_in_the_callers_dialect(path: str) -> None:
    config = make_config("http://127.0.0.1:1", queue={"no_host_wait": 0.05})
    async with (
        running_proxy(config, wait=False) as proxy,
        aiohttp.ClientSession() as client,
        client.post(proxy.url + path, json=BODIES[path]) as response,
    ):
        assert response.status == 503
        assert set(await response.json()) == ERROR_KEYS[path]
        assert "Retry-After" in response.headers
        assert response.headers["X-SOLLOL-Outcome"] == "no_host"


@pytest.mark.parametrize(
    ("fault", "details"),
    [
        ("status", {"status": 503}),
        ("status", {"status": 500, "message": "llama-server process has terminated"}),
        ("reset_before_head", {}),
        ("missing_model", {}),
    ],
)
async def test_another_host_answers_when_one_fails_before_its_first_byte(
    fault: str, details: dict[str, Any]
) -> None:
    async with pool(sim("bad"), sim("good"), policy="round_robin") as p:
        p.hosts["bad"].fault(fault, **details)
        answered = [await p.generate() for _ in range(8)]
        for response, text in answered:
            assert response.status == 200
            assert json.loads(text.splitlines()[-1])["done"] is True
            assert response.headers["X-SOLLOL-Host"] == "good"
        retried = [r for r, _ in answered if r.headers["X-SOLLOL-Attempts"] == "2"]
        assert retried
        url = f"{p.proxy.url}/sollol/requests/{retried[0].headers['X-SOLLOL-Request-Id']}"
        async with p.client.get(url) as looked_up:
            [failed] = (await looked_up.json())["failed_attempts"]
        assert failed["host"] == "bad"
        await p.proxy.until_idle()


async def test_host_is_ejected_after_failures_and_comes_back() -> None:
    retries = {"eject_after": 2, "backoff": 0.01, "backoff_max": 0.02}
    async with pool(sim("bad"), sim("good"), policy="round_robin", retries=retries) as p:
        p.hosts["bad"].fault("status", status=503)
        for _ in range(10):
            await p.generate()
        bad = next(h for h in p.proxy.snapshot().hosts if h.spec.id == "bad")
        assert bad.failures >= 2
        await p.hosts["bad"].clear_faults()
        served: set[str] = set()
        async with asyncio.timeout(20):
            while served != {"bad", "good"}:
                response, _ = await p.generate()
                served.add(response.headers["X-SOLLOL-Host"])
        await p.proxy.until_up()


async def test_failing_host_of_a_pool_of_one_gives_its_own_answer() -> None:
    async with pool(sim("only")) as p:
        p.hosts["only"].fault("status", status=500, message="out of memory")
        response, text = await p.generate()
        assert (response.status, json.loads(text)) == (500, {"error": "out of memory"})
        assert response.headers["X-SOLLOL-Host"] == "only"


@pytest.mark.parametrize(
    "message", ['option "num_ctx" must be of type integer', 'invalid format: "xml"; expected']
)
async def test_clients_mistake_dressed_as_500_is_not_tried_elsewhere(message: str) -> None:
    async with pool(sim("a"), sim("b")) as p:
        for host in p.hosts.values():
            host.fault("status", status=500, message=message, count=1)
        response, _ = await p.generate()
        assert response.status == 500
        assert response.headers["X-SOLLOL-Attempts"] == "1"
        assert all(host.failures == 0 for host in p.proxy.snapshot().hosts)


async def test_attempts_are_bounded() -> None:
    specs = [sim(f"h{number}") for number in range(6)]
    async with pool(*specs, retries={"attempts": 3}) as p:
        for host in p.hosts.values():
            host.fault("status", status=503)
        response, _ = await p.generate()
        assert response.status == 503
        assert response.headers["X-SOLLOL-Attempts"] == "3"
        seen = sum(host.stats.requests.get("/api/generate", 0) for host in p.hosts.values())
        assert seen == 3


async def test_refused_request_counts_against_nobody() -> None:
    async with pool(sim("a")) as p:
        p.hosts["a"].fault("status", status=400, message="no")
        for _ in range(5):
            response, _ = await p.generate()
            assert response.status == 400
        [host] = p.proxy.snapshot().hosts
        assert (host.state, host.failures) == (HostState.HEALTHY, 0)


@pytest.mark.parametrize("fault", ["error_record", "no_done"])
async def test_answer_that_ends_badly_passes_as_it_is_and_counts_against_the_host(
    fault: str,
) -> None:
    async with pool(sim("a")) as p:
        p.hosts["a"].fault(fault, after_records=2, count=1)
        response, text = await p.generate()
        assert response.status == 200
        assert ('"error"' in text) == (fault == "error_record")
        [record] = p.proxy.services.journal.latest(1)
        assert record.outcome is Outcome.UPSTREAM_BROKE
        assert p.proxy.snapshot().hosts[0].failures == 1


async def test_cut_stream_ends_with_an_error_line() -> None:
    async with pool(sim("a")) as p:
        p.hosts["a"].fault("cut", after_records=2, count=1)
        _, text = await p.generate()
        *records, last = text.splitlines()
        assert len(records) == 2
        assert "a broke off" in json.loads(last)["error"]


async def test_client_that_leaves_while_it_waits_frees_its_place() -> None:
    slow = sim("a", time_scale=1.0, decode_tps=5.0)
    async with pool(slow) as p:
        url = f"{p.proxy.url}/api/generate"
        async with p.client.post(url, json=BODIES["/api/generate"]) as running:
            await running.content.readany()
            waiting = asyncio.create_task(p.generate())
            await p.proxy.until(lambda s: s.waiting_total == 1)
            waiting.cancel()
            await p.proxy.until(lambda s: s.waiting_total == 0)
        assert p.hosts["a"].stats.requests["/api/generate"] == 1


@pytest.mark.parametrize("when", ["before the first byte", "while streaming"])
async def test_client_that_leaves_cancels_its_generation(when: str) -> None:
    prefill = 10.0 if when == "before the first byte" else 1e6
    slow = sim("a", time_scale=1.0, decode_tps=5.0, prefill_tps=prefill)
    async with pool(slow) as p:
        url = f"{p.proxy.url}/api/generate"
        body = {**BODIES["/api/generate"], "prompt": "word " * 400}

        async def ask() -> None:
            async with p.client.post(url, json=body) as response:
                await response.read()

        asking = asyncio.create_task(ask())
        if when == "before the first byte":
            await p.hosts["a"].until(lambda stats: stats.total_in_flight == 1)
        else:
            await p.hosts["a"].until(lambda stats: stats.records_sent >= 2)
        asking.cancel()
        await p.hosts["a"].until(lambda stats: stats.cancelled == 1)
        await p.proxy.until_idle()
        [record] = p.proxy.services.journal.latest(1)
        assert record.outcome is Outcome.CLIENT_GONE
        assert p.proxy.snapshot().hosts[0].failures == 0


async def test_body_larger_than_the_limit_is_refused() -> None:
    async with pool(sim("a"), limits={"body": 1000}) as p:
        response, text = await p.generate(prompt="x" * 2000)
        assert response.status == 413
        assert "limits.body" in json.loads(text)["error"]

        async def chunks() -> Any:
            for _ in range(100):
                yield b"x" * 100

        url = f"{p.proxy.url}/v1/messages"
        async with p.client.post(url, data=chunks()) as chunked:
            assert chunked.status == 413
            assert (await chunked.json())["error"]["type"] == "request_too_large"


async def test_model_pulled_on_a_host_itself_is_found_without_waiting_for_a_round() -> None:
    probes = {"interval": 3600, "tags_interval": 3600}
    async with pool(sim("a"), sim("b"), probes=probes) as p:
        response, _ = await p.generate(model="brand-new")
        assert response.status == 404
        [a, b] = [host.spec.id for host in p.proxy.snapshot().hosts]
        assert (a, b) == ("a", "b")
        # The inventory was asked for at that moment, on both.
        assert all(host.stats.requests["/api/tags"] == 2 for host in p.hosts.values())


async def test_denied_model_is_missing_through_this_proxy() -> None:
    fields = {"models": {"deny": ["llama*"]}}
    async with pool(sim("a", "llama3", "other"), host_fields=fields) as p:
        response, text = await p.generate()
        assert response.status == 404
        assert json.loads(text) == {"error": "model 'llama3' not found"}
        async with p.client.get(f"{p.proxy.url}/api/tags") as tags:
            names = [model["name"] for model in (await tags.json())["models"]]
        assert names == ["other:latest"]


async def test_large_unknown_body_flows_through_without_being_kept() -> None:
    async with pool(sim("a"), limits={"body": 1000}) as p:
        url = f"{p.proxy.url}/api/of-tomorrow"

        async def model_file() -> Any:
            for _ in range(300):
                yield b"x" * 10_000

        async with p.client.post(url, data=model_file()) as response:
            # The simulated host has no such route; the point is that it was asked.
            assert response.status in (404, 405, 501)
            assert response.headers["X-SOLLOL-Policy"] == "pass"
        await p.proxy.until_idle()


async def test_large_prompt_reaches_the_host_whole_and_can_be_sent_again() -> None:
    async with pool(sim("bad"), sim("good"), policy="round_robin") as p:
        p.hosts["bad"].fault("status", status=503)
        body = json.dumps({"model": "llama3", "prompt": "word " * 600_000}).encode()
        for _ in range(2):
            url = f"{p.proxy.url}/api/generate"
            async with p.client.post(url, data=io.BytesIO(body)) as response:
                assert response.status == 200
                last = (await response.text()).splitlines()[-1]
            # Cut to the context by the host, so the count is the host's, not the prompt's.
            assert json.loads(last)["prompt_eval_count"] > 1000


V1_STREAMS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"stream_options": {"include_usage": True}},
    "/v1/messages": {},
    "/v1/responses": {"input": "hi"},
    "/v1/completions": {"prompt": "hi"},
}


@pytest.mark.parametrize("path", V1_STREAMS)
async def test_stream_that_tells_no_durations_is_timed_as_it_passes(path: str) -> None:
    message = {"role": "user", "content": "hi"}
    limits = {"max_tokens": 12, "max_output_tokens": 12}
    body = {"model": "llama3", "messages": [message], "stream": True, **limits, **V1_STREAMS[path]}
    async with pool(sim("a", time_scale=20.0)) as p:
        async with p.client.post(p.proxy.url + path, json=body) as response:
            assert b"data:" in await response.read()
            request_id = response.headers["X-SOLLOL-Request-Id"]
        await p.proxy.until_idle()
        record = p.proxy.services.journal.finished(request_id)
        assert record is not None
        seen = record.observation
        assert seen is not None
        assert seen.is_timed
        assert seen.output_tokens == 12
        assert (seen.load_s, seen.prefill_s) == (None, None)
        assert seen.total_s is not None
        assert seen.decode_s is not None
        assert 0 < seen.decode_s <= seen.total_s


async def test_native_answer_is_believed_rather_than_timed() -> None:
    async with pool(sim("a")) as p:
        for stream in (True, False):
            response, _ = await p.generate(stream=stream)
            await p.proxy.until_idle()
            record = p.proxy.services.journal.finished(response.headers["X-SOLLOL-Request-Id"])
            assert record is not None
            assert record.observation is not None
            assert not record.observation.is_timed
            assert record.observation.prefill_s is not None


async def test_scheduler_hears_how_far_a_stream_has_come_and_nothing_of_an_answer_in_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    def progress(_self: Scheduler, job_id: str, tokens: int, _now: float) -> list[Effect]:
        told.put_nowait((job_id, tokens))
        return []

    monkeypatch.setattr(Scheduler, "progress", progress)
    async with pool(sim("a", time_scale=1.0, decode_tps=10.0)) as p:
        await p.generate(stream=False, options={"num_predict": 20})
        url = f"{p.proxy.url}/api/generate"
        async with p.client.post(url, json=BODIES["/api/generate"]) as response:
            request_id = response.headers["X-SOLLOL-Request-Id"]
            samples = [await told.get() for _ in range(3)]
        await p.proxy.until_idle()
    assert [job_id for job_id, _ in samples] == [request_id] * 3
    counts = [tokens for _, tokens in samples]
    assert counts == sorted(set(counts))
    assert counts[-1] > 0
