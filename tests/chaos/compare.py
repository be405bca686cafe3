"""The same requests at the same moments through two proxies: nginx and ours.

nginx gets what favours it: one worker, since each worker counts connections for itself, and no
log. Both get equal hosts of their own, and the clock of the hosts runs faster than the wall's.
"""

from __future__ import annotations

import asyncio
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from aiohttp import ClientSession

from sollol_proxy.lab.simhost import SimHost, SimSpec
from sollol_proxy.lab.simspec import SimModel
from tests.chaos.asking import GENERATE, MODEL
from tests.chaos.processes import free_port, spawned_proxy
from tests.support import PATIENCE_S

PROMPT_TOKENS = 256
OUTPUT_TOKENS = 160

_NGINX = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_max_body_size 0;
  client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  upstream ollama {{
    least_conn;
{servers}
    keepalive 256; keepalive_requests 100000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://ollama; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_set_header Host localhost;
      proxy_buffering off; proxy_request_buffering off;
      proxy_connect_timeout 2s; proxy_read_timeout 1h; proxy_send_timeout 1h;
      proxy_next_upstream error timeout http_502 http_503 non_idempotent;
      proxy_next_upstream_tries 2;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Result:
    """What one load through one proxy came to.

    taken_s: model seconds from arrival to the last byte, by request in order of arrival.
    shares: requests by host id.
    """

    taken_s: Sequence[float]
    shares: Mapping[str, int]

    @property
    def p95_s(self) -> float:
        """The smallest time that 95 % of the requests did not exceed."""
        ordered = sorted(self.taken_s)
        return ordered[-(-len(ordered) * 95 // 100) - 1]

    @property
    def mean_s(self) -> float:
        """The mean time."""
        return sum(self.taken_s) / len(self.taken_s)


def service_s(spec: SimSpec) -> float:
    """Model seconds that a host alone needs for one request of the comparison."""
    return PROMPT_TOKENS / spec.prefill_tps + OUTPUT_TOKENS / spec.decode_tps


def arrivals_s(specs: Sequence[SimSpec], *, load: float, count: int, seed: int) -> list[float]:
    """Moments of a Poisson process, model seconds; load 1 is all that the hosts can do."""
    rate = load * sum(1 / service_s(spec) for spec in specs)
    rng = Random(seed)
    moments, now = [], 0.0
    for _ in range(count):
        now += rng.expovariate(rate)
        moments.append(now)
    return moments


def comparable(spec: SimSpec, time_scale: float) -> SimSpec:
    """The host with the one model of the comparison in memory."""
    return replace(spec, models=(SimModel(MODEL),), resident=(MODEL,), time_scale=time_scale)


async def compare(
    specs: Sequence[SimSpec], moments: Sequence[float], session: ClientSession, directory: Path
) -> tuple[Result, Result]:
    """The same load through nginx and through our proxy, at the same time; in this order."""
    async with AsyncExitStack() as stack:
        pools = [
            [await stack.enter_async_context(SimHost(spec)) for spec in specs] for _ in range(2)
        ]
        nginx_url = await stack.enter_async_context(
            running_nginx([host.url for host in pools[0]], directory)
        )
        document = {"hosts": [{"url": host.url, "id": host.spec.id} for host in pools[1]]}
        ours = await stack.enter_async_context(spawned_proxy(document, directory, session))
        start_s = asyncio.get_running_loop().time()
        times = await asyncio.gather(
            *(
                _drive(url, moments, start_s, specs[0].time_scale, session)
                for url in (nginx_url, ours.url)
            )
        )
        shares = [
            {host.spec.id: host.stats.requests.get(GENERATE, 0) for host in pool} for pool in pools
        ]
    return Result(times[0], shares[0]), Result(times[1], shares[1])


async def _drive(
    url: str,
    moments: Sequence[float],
    start_s: float,
    time_scale: float,
    session: ClientSession,
) -> list[float]:
    """Send a request at each of the moments, whatever became of those before."""
    loop = asyncio.get_running_loop()

    async def one(number: int, due_s: float) -> float:
        is_due = loop.create_future()
        loop.call_at(due_s, is_due.set_result, None)
        await is_due
        async with session.post(url + GENERATE, json=_request(number)) as response:
            answer = await response.json()
            assert response.status == 200, answer
            assert answer["prompt_eval_count"] == PROMPT_TOKENS
            assert answer["eval_count"] == OUTPUT_TOKENS
        return (loop.time() - due_s) * time_scale

    return await asyncio.gather(
        *(one(number, start_s + moment / time_scale) for number, moment in enumerate(moments))
    )


def _request(number: int) -> dict[str, object]:
    """A request whose prompt shares no beginning with the others: no prompt cache helps."""
    prompt = f"{number:06d}".ljust(PROMPT_TOKENS * 4, ".")
    options = {"num_predict": OUTPUT_TOKENS}
    return {"model": MODEL, "prompt": prompt, "stream": False, "options": options}


@asynccontextmanager
async def running_nginx(hosts: Sequence[str], directory: Path) -> AsyncIterator[str]:
    """nginx with `least_conn` over these hosts, for the block; its address."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    assert program, "nginx is missing; the comparison needs it: apt-get install nginx-light"
    port = free_port()
    home = directory / f"nginx-{port}"
    home.mkdir()
    servers = "\n".join(
        f"    server {urlsplit(host).netloc} max_fails=1 fail_timeout=5s;" for host in hosts
    )
    (home / "nginx.conf").write_text(_NGINX.format(servers=servers, port=port))
    process = await asyncio.create_subprocess_exec(
        *(program, "-p", str(home), "-c", str(home / "nginx.conf")),
        stdin=DEVNULL,
        stderr=PIPE,
    )
    try:
        await _until_accepting(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        _, said = await process.communicate()
        # Its warnings would be about hosts that failed.
        assert b"[error]" not in said, said.decode()


async def _until_accepting(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                continue
            writer.close()
            await writer.wait_closed()
            return
