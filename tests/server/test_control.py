"""Our own paths: JSON, pages, probes of orchestrators, draining of hosts."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest

from sollol_proxy.core.policies.base import HostView, PerJob
from sollol_proxy.core.types import Cost, Job
from sollol_proxy.lab.simhost import SimModel
from sollol_proxy.server import control
from tests.server.pool import Pool, pool, sim
from tests.support import make_config, running_proxy


class Raises(PerJob):
    """A policy that cannot price anything."""

    name = "raises"

    def cost(self, job: Job, host: HostView, hosts: Sequence[HostView], now: float) -> Cost:
        raise ArithmeticError


async def get(p: Pool, path: str, **headers: str) -> tuple[int, str, Any]:
    async with p.client.get(p.proxy.url + path, headers=headers) as response:
        text = await response.text()
        kind = response.content_type
        return response.status, kind, json.loads(text) if kind == "application/json" else text


async def test_live_and_ready_when_a_host_is_up() -> None:
    async with pool(sim("a")) as p:
        assert (await get(p, "/sollol/live"))[0] == 200
        assert (await get(p, "/sollol/ready"))[0] == 200


async def test_not_ready_but_live_when_no_host_is_up() -> None:
    config = make_config("http://127.0.0.1:1")
    async with (
        running_proxy(config, wait=False) as proxy,
        aiohttp.ClientSession() as client,
    ):
        async with client.get(f"{proxy.url}/sollol/live") as live:
            assert live.status == 200
        async with client.get(f"{proxy.url}/sollol/ready") as ready:
            assert ready.status == 503
            assert (await ready.json())["standing"] == "no_host"


async def test_hosts_tell_state_models_and_learnt_speeds() -> None:
    async with pool(sim("a", slots=2), host_fields={"slots": 2, "labels": {"room": "attic"}}) as p:
        await p.generate(prompt="word " * 200, options={"num_predict": 20})
        _, _, body = await get(p, "/sollol/hosts")
    [host] = body["hosts"]
    assert host["id"] == "a"
    assert host["state"] == "healthy"
    assert host["slots"] == 2
    assert host["labels"] == {"room": "attic"}
    assert host["resident"][0]["name"] == "llama3:latest"
    assert host["first_token_s"] > 0
    assert host["decode_tokens_per_s"] > 0
    assert host["success_ratio"] == 1.0


async def test_request_to_several_hosts_tells_which_did_their_part() -> None:
    registry = (SimModel("new", size_bytes=10**8),)
    async with pool(sim("a", registry=registry), sim("b")) as p:
        body = {"model": "new", "stream": False}
        async with p.client.post(f"{p.proxy.url}/api/pull", json=body) as answer:
            request_id = answer.headers["X-SOLLOL-Request-Id"]
        path = f"/sollol/requests/{request_id}"
        _, _, record = await get(p, path)
        assert (record["outcome"], record["hosts"]) == ("partial", ["a"])
        assert [entry["host"] for entry in record["failed_attempts"]] == ["b"]
        _, _, listed = await get(p, "/sollol/requests")
        assert listed["requests"][0]["hosts"] == ["a"]
        _, _, page = await get(p, path, Accept="text/html")
        assert "Done on 1 of 2 hosts" in page
        _, _, page = await get(p, "/sollol/")
        assert "not on b: pull model manifest: file does not exist" in page
        _, _, metrics = await get(p, "/metrics")
        assert 'sollol_attempts_total{host="a",result="answered"} 1.0' in metrics
        assert 'sollol_attempts_total{host="b",result="failed"} 1.0' in metrics
        assert 'outcome="partial"} 1.0' in metrics


async def test_refused_plans_are_counted_where_they_can_be_seen() -> None:
    async with pool(sim("a"), policy="tests.server.test_control:Raises") as p:
        await p.generate()
        _, _, body = await get(p, "/sollol/stats")
        assert body["plan_faults"] > 0
        assert [alert["kind"] for alert in body["alerts"]] == ["plan_faults"]
        for _ in range(2):
            _, _, metrics = await get(p, "/metrics")
            assert f"sollol_plan_faults_total {float(body['plan_faults'])}" in metrics


async def test_stats_tell_what_was_learnt() -> None:
    async with pool(sim("a")) as p:
        for _ in range(3):
            await p.generate()
        _, _, body = await get(p, "/sollol/stats")
    [row] = body["learnt"]
    assert (row["task_type"], row["model"], row["count"]) == ("generation", "llama3:latest", 3)
    assert 0 < row["min_s"] <= row["mean_s"] <= row["max_s"]
    assert body["standing"] == "serving"
    assert body["queue"]["waiting"] == 0


async def test_stats_and_page_tell_how_near_predictions_came() -> None:
    async with pool(sim("a"), policy="completion_time") as p:
        for _ in range(3):
            await p.generate()
        _, _, body = await get(p, "/sollol/stats")
        [row] = body["calibration"]
        assert (row["host"], row["count"]) == ("a", 3)
        assert row["total_ratio_median"] > 0
        assert row["total_error_mean_s"] >= 0
        assert row["wait_error_mean_s"] >= 0
        _, _, page = await get(p, "/sollol/")
        assert "of 3 requests; off by " in page


async def test_learnt_is_forgotten_when_the_stats_are_reset() -> None:
    async with pool(sim("a"), policy="completion_time") as p:
        for _ in range(3):
            await p.generate()
        _, _, before = await get(p, "/sollol/stats")
        assert before["learnt"]
        async with p.client.post(f"{p.proxy.url}/sollol/stats/reset") as response:
            assert response.status == 200
            body = await response.json()
        assert (body["learnt"], body["calibration"]) == ([], [])
        assert body.keys() == before.keys()
        _, _, hosts = await get(p, "/sollol/hosts")
        assert hosts["hosts"][0]["decode_tokens_per_s"] is None
        await p.generate()
        _, _, after = await get(p, "/sollol/stats")
        assert [row["count"] for row in (*after["learnt"], *after["calibration"])] == [1, 1]


async def test_stats_are_not_reset_by_a_foreign_web_page_or_a_look() -> None:
    async with pool(sim("a")) as p:
        await p.generate()
        url = f"{p.proxy.url}/sollol/stats/reset"
        async with p.client.post(url, headers={"Origin": "http://evil.example"}) as response:
            assert response.status == 403
        async with p.client.get(url) as response:
            assert response.status == 404
        _, _, body = await get(p, "/sollol/stats")
        assert len(body["learnt"]) == 1


async def test_waiting_job_says_on_the_page_when_its_turn_comes() -> None:
    busy = sim("a", time_scale=1.0, decode_tps=0.1)
    async with pool(busy, policy="completion_time") as p:
        asked = [asyncio.create_task(p.generate()) for _ in range(2)]
        await p.proxy.until(lambda s: any("frees in" in job.reason for job in s.waiting))
        _, _, page = await get(p, "/sollol/")
        for each in asked:
            each.cancel()
        await asyncio.wait(asked)
        await p.proxy.until_idle()
    assert re.search(r"host a frees in \d+\.\d s and then needs \d+\.\d s<", page)


async def test_requests_are_listed_newest_first_and_bounded() -> None:
    async with pool(sim("a"), limits={"records": 3}) as p:
        ids = []
        for _ in range(5):
            response, _ = await p.generate()
            ids.append(response.headers["X-SOLLOL-Request-Id"])
        _, _, body = await get(p, "/sollol/requests")
        assert [row["id"] for row in body["requests"]] == ids[:1:-1]
        _, _, body = await get(p, "/sollol/requests?n=1")
        assert len(body["requests"]) == 1
        assert (await get(p, "/sollol/requests?n=x"))[0] == 400
        assert (await get(p, f"/sollol/requests/{ids[0]}"))[0] == 404
        assert (await get(p, f"/sollol/requests/{ids[4]}"))[0] == 200


async def test_running_request_can_be_looked_up() -> None:
    slow = sim("a", time_scale=1.0, decode_tps=5.0)
    async with pool(slow) as p:
        body = {"model": "llama3", "prompt": "hi"}
        async with p.client.post(f"{p.proxy.url}/api/generate", json=body) as running:
            await running.content.readany()
            request_id = running.headers["X-SOLLOL-Request-Id"]
            _, _, record = await get(p, f"/sollol/requests/{request_id}")
            assert (record["state"], record["outcome"]) == ("running", None)
            status, kind, page = await get(p, f"/sollol/requests/{request_id}", Accept="text/html")
            assert (status, kind) == (200, "text/html")
            assert request_id in page


async def test_pages_are_rendered_for_browsers() -> None:
    async with pool(sim("a"), sim("b")) as p:
        response, _ = await p.generate()
        request_id = response.headers["X-SOLLOL-Request-Id"]
        status, kind, page = await get(p, "/sollol/")
        assert (status, kind) == (200, "text/html")
        for text in ("a", "b", "llama3:latest", request_id):
            assert text in page
        status, kind, page = await get(p, f"/sollol/requests/{request_id}", Accept="text/html,*/*")
        assert (status, kind) == (200, "text/html")
        assert "completion_time" in page
        async with p.client.get(f"{p.proxy.url}/sollol", allow_redirects=False) as moved:
            assert (moved.status, moved.headers["Location"]) == (308, "/sollol/")


async def test_page_of_an_empty_pool_says_how_to_begin() -> None:
    async with (
        running_proxy(make_config()) as proxy,
        aiohttp.ClientSession() as client,
        client.get(f"{proxy.url}/sollol/") as response,
    ):
        page = await response.text()
    assert response.status == 200
    assert "--host" in page


async def test_nothing_below_our_prefix_reaches_a_host() -> None:
    async with pool(sim("a")) as p:
        for method in ("GET", "POST", "PUT", "DELETE"):
            async with p.client.request(method, f"{p.proxy.url}/sollol/no/such") as response:
                assert response.status == 404
                assert "/sollol/hosts" in (await response.json())["try"]
        assert not any(path.startswith("/sollol") for path in p.hosts["a"].stats.requests)


async def test_host_is_drained_and_resumed() -> None:
    async with pool(sim("a"), sim("b")) as p:
        async with p.client.post(f"{p.proxy.url}/sollol/hosts/a/drain") as response:
            assert (await response.json())["state"] == "draining"
        for _ in range(4):
            answer, _ = await p.generate()
            assert answer.headers["X-SOLLOL-Host"] == "b"
        async with p.client.post(f"{p.proxy.url}/sollol/hosts/a/resume") as response:
            assert (await response.json())["state"] == "healthy"
        async with p.client.post(f"{p.proxy.url}/sollol/hosts/x/drain") as response:
            assert response.status == 404


async def test_hosts_are_not_drained_by_a_foreign_web_page() -> None:
    async with pool(sim("a")) as p:
        url = f"{p.proxy.url}/sollol/hosts/a/drain"
        async with p.client.post(url, headers={"Origin": "http://evil.example"}) as response:
            assert response.status == 403
        [host] = p.proxy.snapshot().hosts
        assert host.state == "healthy"


FOUNDING_NAMES = (
    "sollol_requests_total",
    "sollol_request_latency_seconds_bucket",
    "sollol_host_latency_ms",
    "sollol_host_success_rate",
    "sollol_worker_failures_total",
    "sollol_active_requests",
)


async def metrics_after_traffic() -> str:
    retries = {"eject_after": 9}
    async with pool(sim("a"), sim("b"), policy="round_robin", retries=retries) as p:
        p.hosts["b"].fault("status", status=503, count=2)
        for _ in range(4):
            await p.generate(prompt="word " * 100, options={"num_predict": 20})
        await p.generate(model="unknown-" + "x" * 50)
        async with p.client.get(f"{p.proxy.url}/no/such/path") as response:
            assert response.status == 404
        _, _, text = await get(p, "/metrics")
        assert isinstance(text, str)
        return text


async def test_metrics_have_the_founding_names_and_bounded_labels() -> None:
    text = await metrics_after_traffic()
    for name in FOUNDING_NAMES:
        assert f"\n{name}" in text
    assert "unknown-" not in text
    assert "/no/such" not in text
    assert 'endpoint="other"' in text
    assert 'sollol_worker_failures_total{host="b"} 2.0' in text
    assert 'sollol_attempts_total{host="b",result="failed"} 2.0' in text
    assert 'sollol_host_state{host="a",state="healthy"} 1.0' in text


async def test_metrics_are_what_promtool_accepts() -> None:
    """But for one founding name, whose unit Prometheus would rather see written out."""
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: install Debian's prometheus package"
    text = await metrics_after_traffic()
    checked = subprocess.run(  # noqa: ASYNC221 - nothing else runs meanwhile
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    complaints = [line for line in (checked.stdout + checked.stderr).splitlines() if line]
    assert complaints == [
        "sollol_host_latency_ms metric names should not contain abbreviated units"
    ]
    assert "sollol_host_first_token_seconds" in text


@pytest.mark.parametrize("path", [path for method, path, _ in control.ROUTES if method == "GET"])
def test_own_paths_stay_under_our_prefix(path: str) -> None:
    assert path.startswith("/sollol") or path == "/metrics"
