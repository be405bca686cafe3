"""The proxy in model time: `sollol-proxy serve`, but for the clock.

It is the production application and runner. Its timers and its clock run as fast as the hosts do,
so that intervals, thresholds and learnt seconds mean to it what they would at real speed. uvloop
cannot do that, so it answers a little slower than in production.

As a process: `python -m sollol_proxy.lab.bench_serve --config JSON --speed X`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from aiohttp import web

from sollol_proxy import logs
from sollol_proxy.config.schema import Config
from sollol_proxy.lab.bench_clock import run_in_model_time
from sollol_proxy.lab.process import Child, add_process_arguments, announce_and_wait, spawned
from sollol_proxy.lab.simspec import SimSpec
from sollol_proxy.server.app import build_app
from sollol_proxy.server.lifecycle import BACKLOG, make_runner


def document(
    policy: str, hosts: Sequence[SimSpec], urls: Mapping[str, str], *, speed: float
) -> dict[str, Any]:
    """The configuration: defaults, with slots and models at once as the hosts have them.

    What guards against a machine that does not answer is left its time on the wall: here a host
    that is a little late is not down.
    """
    defaults = Config()
    return {
        "listen": "127.0.0.1:0",
        "policy": policy,
        "hosts": [
            {"id": h.id, "url": urls[h.id], "slots": h.slots, "max_models": h.max_models}
            for h in hosts
        ],
        "probes": {"timeout": defaults.probes.timeout * speed},
        "limits": {"connect": defaults.limits.connect * speed},
        "log": {"level": "error"},
    }


def spawned_proxy(config: Mapping[str, Any], *, speed: float, seed: int) -> Child:
    """The proxy of a configuration in a process of its own."""
    words = ("--config", json.dumps(config), "--speed", str(speed), "--seed", str(seed))
    return spawned("sollol_proxy.lab.bench_serve", *words)


async def _serve(config: Config, seed: int, port: int, *, until_eof: bool) -> None:
    logs.configure(config.log)
    app = build_app(config, clock=asyncio.get_running_loop().time, rng=Random(seed))
    runner = make_runner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, backlog=BACKLOG).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        await announce_and_wait(url, until_eof=until_eof)
    finally:
        await runner.cleanup()


def main() -> None:
    """Serve until SIGTERM, SIGINT or the end of standard input."""
    parser = argparse.ArgumentParser(prog="python -m sollol_proxy.lab.bench_serve")
    parser.add_argument("--config", type=json.loads, required=True, help="as JSON")
    parser.add_argument("--speed", type=float, default=1.0, help="model seconds a second")
    parser.add_argument("--seed", type=int, default=0, help="of what breaks ties")
    add_process_arguments(parser)
    options = parser.parse_args()
    config = Config.model_validate(options.config)
    work = _serve(config, options.seed, options.port, until_eof=options.until_eof)
    run_in_model_time(work, options.speed)


if __name__ == "__main__":
    main()
