"""The hosts of a bench: a whole pool in one process, in model time, with a control port.

The control port empties the hosts' memory between two runs, for nobody shall inherit the models
that another one had loaded. It slows a host down, and says which host answered what.

As a process: `python -m sollol_proxy.lab.bench_pool --specs JSON --speed X`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from aiohttp import web

from sollol_proxy.lab.bench_clock import BEAT_S, Heartbeat, run_in_model_time
from sollol_proxy.lab.bench_hosts import Answered, BenchHost, serving, url_of
from sollol_proxy.lab.process import Child, add_process_arguments, announce_and_wait, spawned
from sollol_proxy.lab.shapes import encode
from sollol_proxy.lab.simspec import SimSpec, spec_from_json


class BenchPool:
    """All hosts and their control port. `async with`.

    first_port: the hosts take this port and the next ones; 0 = any free ones.
    """

    def __init__(self, specs: Sequence[SimSpec], *, speed: float, first_port: int = 0) -> None:
        self._log: list[Answered] = []
        self.hosts = [
            BenchHost(spec, self._log, speed=speed, port=first_port + place if first_port else 0)
            for place, spec in enumerate(specs)
        ]
        self._heart = Heartbeat(BEAT_S * speed)
        self._stack = AsyncExitStack()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for host in self.hosts:
                await stack.enter_async_context(host)
            await stack.enter_async_context(self._heart)
            app = web.Application()
            app.router.add_get("/hosts", self._get_hosts)
            app.router.add_post("/reset", self._post_reset)
            app.router.add_post("/slow", self._post_slow)
            app.router.add_get("/log", self._get_log)
            self._runner = await serving(app, 0)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        await self._stack.aclose()

    @property
    def control_url(self) -> str:
        """Base address of the control port. Only within the block."""
        return url_of(self._runner)

    async def _get_hosts(self, request: web.Request) -> web.Response:
        return _json({host.spec.id: host.url for host in self.hosts})

    async def _post_reset(self, request: web.Request) -> web.Response:
        """Begin anew; 409 while a request is in one of the hosts."""
        if any(host.in_flight for host in self.hosts):
            return _json({"error": "requests are in flight"}, status=409)
        for host in self.hosts:
            host.driver.reset()
        self._log.clear()
        self._heart.lateness_s.clear()
        return _json({})

    async def _post_slow(self, request: web.Request) -> web.Response:
        asked = await request.json()
        for host in self.hosts:
            if host.spec.id == asked["host"]:
                host.driver.slow_down(float(asked["factor"]))
        return _json({})

    async def _get_log(self, request: web.Request) -> web.Response:
        return _json(
            {
                "answered": [[a.request_id, a.host_id, a.begun_s] for a in self._log],
                "loads": {h.spec.id: h.driver.virtual.counts.loads for h in self.hosts},
                "lateness_s": self._heart.lateness_s,
            }
        )


def spawned_pool(specs: Sequence[SimSpec], *, speed: float, first_port: int = 0) -> Child:
    """The pool in a process of its own; the child's URL is that of its control port."""
    words = ("--specs", json.dumps([spec.to_json() for spec in specs]), "--speed", str(speed))
    return spawned("sollol_proxy.lab.bench_pool", *words, "--first-port", str(first_port))


def _json(document: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=encode(document), status=status, content_type="application/json")


def _specs(text: str) -> list[SimSpec]:
    return [spec_from_json(item) for item in json.loads(text)]


async def _serve(specs: Sequence[SimSpec], speed: float, first_port: int, until_eof: bool) -> None:
    async with BenchPool(specs, speed=speed, first_port=first_port) as pool:
        await announce_and_wait(pool.control_url, until_eof=until_eof)


def main() -> None:
    """Run the hosts until SIGTERM, SIGINT or the end of standard input."""
    parser = argparse.ArgumentParser(prog="python -m sollol_proxy.lab.bench_pool")
    parser.add_argument("--specs", type=_specs, required=True, help="a JSON list of SimSpecs")
    parser.add_argument("--speed", type=float, default=1.0, help="model seconds a second")
    parser.add_argument("--first-port", type=int, default=0, help="of the hosts; 0 = free ones")
    add_process_arguments(parser)
    options = parser.parse_args()
    work = _serve(options.specs, options.speed, options.first_port, options.until_eof)
    try:
        run_in_model_time(work, options.speed)
    except OSError as error:
        raise SystemExit(f"the hosts cannot listen: {error}") from None


if __name__ == "__main__":
    main()
