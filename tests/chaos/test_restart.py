"""The only host of a pool is killed: it comes back in time, or it does not."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession

from sollol_proxy.lab.process import spawned
from sollol_proxy.lab.simhost import spawned_simhost
from tests.chaos.asking import MODEL, ask, bodies, generate
from tests.chaos.pools import host_spec
from tests.support import PATIENCE_S, make_config, running_proxy

MESSAGES = [{"role": "user", "content": "x"}]
WAITING = 20


async def test_waiting_jobs_succeed_when_their_only_host_restarts_in_time(
    session: ClientSession,
) -> None:
    spec = host_spec("only")
    async with spawned_simhost(spec) as first:
        config = make_config(
            {"url": first.url, "id": "only"}, queue={"no_host_wait": 2 * PATIENCE_S}
        )
        async with running_proxy(config) as proxy:
            begun = asyncio.Event()
            endless = generate(10_000_000, "running when it dies")
            running = asyncio.create_task(
                ask(session, proxy.url, endless, on_first_bytes=lambda _: begun.set())
            )
            await begun.wait()
            waiting = [
                asyncio.create_task(ask(session, proxy.url, body)) for body in bodies(WAITING, 3)
            ]
            await proxy.until(lambda snapshot: snapshot.waiting_total == WAITING)
            await first.kill()
            assert (await running).is_honest_failure
            port = str(urlsplit(first.url).port)
            again = spawned("sollol_proxy.lab.simhost", "--spec", spec.to_json(), "--port", port)
            async with again:
                answers = await asyncio.gather(*waiting)
            assert [answer for answer in answers if not answer.is_whole] == []
            await proxy.until_idle()


@pytest.mark.parametrize(
    ("path", "body", "error_at"),
    [
        ("/api/chat", {}, ("error",)),
        ("/v1/chat/completions", {"stream": True}, ("error", "message")),
        ("/v1/messages", {"max_tokens": 9}, ("error", "message")),
    ],
)
async def test_waiting_job_is_refused_in_its_dialect_when_no_host_comes_back(
    path: str, body: dict[str, Any], error_at: tuple[str, ...], session: ClientSession
) -> None:
    async with spawned_simhost(host_spec("only")) as child:
        config = make_config({"url": child.url, "id": "only"}, queue={"no_host_wait": 0.2})
        async with running_proxy(config) as proxy:
            await child.kill()
            request = {"model": MODEL, "messages": MESSAGES, **body}
            async with session.post(proxy.url + path, json=request) as response:
                assert response.status == 503
                assert int(response.headers["Retry-After"]) >= 1
                said: Any = await response.json()
            for key in error_at:
                said = said[key]
            assert said.startswith("no Ollama host is available")
            snapshot = await proxy.until_idle()
            assert [host.failures > 0 for host in snapshot.hosts] == [True]
