"""A scripted Ollama host over real sockets: slots, loads, memory, speeds and faults on command.

    async with SimHost(SimSpec(id="a", models=(SimModel("llama3"),), time_scale=100)) as host:
        host.fault("cut", after_records=3, count=1)
        ...                                     # talk to host.url
        await host.until(lambda stats: stats.cancelled == 1)

It knows Ollama's wire and nothing of the proxy. One record is sent for each output token, on a
schedule that does not drift, though tokens less than 2 ms apart leave together. The durations in
its answers are seconds as a client's clock shows them: model seconds ÷ `time_scale`.

As a process of its own: `python -m sollol_proxy.lab.simhost --spec JSON --port N`.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Self

from aiohttp import web

from sollol_proxy.lab.account import Account, AccountPages
from sollol_proxy.lab.ask import INFERENCE_PATHS
from sollol_proxy.lab.disk import Disk
from sollol_proxy.lab.faults import Fault, FaultKind, Faults
from sollol_proxy.lab.manage import ManageRoutes, Stock
from sollol_proxy.lab.places import Places, cloud_spec
from sollol_proxy.lab.process import Child, add_process_arguments, announce_and_wait, spawned
from sollol_proxy.lab.pulls import Registry
from sollol_proxy.lab.replies import (
    ask_errors,
    drop_server_header,
    error_reply,
    go_router_errors,
    json_reply,
    plain_reply,
)
from sollol_proxy.lab.shapes import encode
from sollol_proxy.lab.simanswer import Answerer
from sollol_proxy.lab.simdisk import SimDisk, SimFiles
from sollol_proxy.lab.simdriver import SimDriver
from sollol_proxy.lab.simpages import SimPages
from sollol_proxy.lab.simspec import HOST_CLASSES, SimModel, SimSpec, preset, spec_from_json
from sollol_proxy.lab.simstats import ManageCounts, SimStats, Tally

__all__ = [
    "SimHost",
    "SimSpec",
    "SimModel",
    "SimStats",
    "ManageCounts",
    "FaultKind",
    "HOST_CLASSES",
    "preset",
    "spec_from_json",
    "spawned_simhost",
]

# An Ollama server that is stopped cuts its streams at once.
_SHUTDOWN_TIMEOUT_S = 0.05
_BACKLOG = 128
# Handshakes that fill a backlog of 0, so that the next one gets no answer.
_BACKLOG_FILLERS = 2


class SimHost:
    """One simulated host. `async with`, or `start` and `stop`."""

    def __init__(self, spec: SimSpec, *, may_crash: bool = False) -> None:
        """may_crash: whether the fault `crash` may end this process."""
        self.spec = spec
        self._may_crash = may_crash
        self._faults = Faults()
        self._tally = Tally()
        self._disk = SimDisk(spec.models)
        self._account = Account(spec.id, spec.account, offline=spec.offline)
        self._driver: SimDriver | None = None
        self._cloud: SimDriver | None = None
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._listener: socket.socket | None = None
        self._fillers: list[socket.socket] = []
        self._accepts = asyncio.Event()
        self._accepts.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def port(self) -> int:
        """Where it listens; it keeps the number between `stop` and `start(port)`."""
        if self._listener is None:
            raise RuntimeError("the host is not started")
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """Base address without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def stats(self) -> SimStats:
        """Counts since the host was made; they survive `stop`."""
        return self._tally.stats()

    @property
    def resident(self) -> tuple[str, ...]:
        """Canonical names of the models in memory."""
        driver = self._running_driver()
        driver.catch_up()
        return tuple(runner.model.key for runner in driver.virtual.runners.values())

    @property
    def disk(self) -> Disk:
        """What lies on its disk. At first the models of the specification; survives `stop`."""
        return self._disk

    @property
    def account(self) -> Account:
        """Who is signed in; a test may sign somebody in or out."""
        return self._account

    async def until(self, holds: Callable[[SimStats], bool]) -> SimStats:
        """Wait until the counts satisfy `holds`."""
        return await self._tally.until(holds)

    async def start(self, port: int = 0) -> None:
        """Listen on 127.0.0.1; memory as the specification says, faults as they were."""
        self._driver = SimDriver(self._spec_of_now(), self._tally.changed)
        self._cloud = SimDriver(cloud_spec(self.spec), self._tally.changed)
        self._tally.watch(self._driver.virtual.counts, self._cloud.virtual.counts)
        self._runner = web.AppRunner(
            self._app(self._driver, self._cloud),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
        )
        await self._runner.setup()
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(_BACKLOG)
        await self._accept()

    async def stop(self) -> None:
        """Close the listener and every connection, at once."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for driver in (self._driver, self._cloud):
            if driver is not None:
                driver.stop()
        self._driver = self._cloud = None
        self._drop_fillers()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def fault(self, kind: FaultKind | str, **details: Any) -> None:
        """Put a fault in force; `details` are `Fault`'s fields.

        Raises:
            ValueError: no such kind, or a crash of a host in the caller's process.
            TypeError: no such detail.
        """
        fault = Fault(FaultKind(kind), **details)
        if fault.kind is FaultKind.CRASH and not self._may_crash:
            raise ValueError("a host in the caller's process cannot crash: use spawned_simhost")
        self._faults.add(fault)
        if fault.kind is FaultKind.SLOW:
            self._running_driver().slow_down(fault.factor)
        if fault.kind is FaultKind.HANG_CONNECT:
            self._stop_accepting()

    async def clear_faults(self) -> None:
        """End all faults. Requests that a `hang` holds stay held until their clients leave."""
        self._faults.clear()
        self._running_driver().slow_down(1.0)
        if not self._accepts.is_set():
            self._drop_fillers()
            await self._accept()

    def _running_driver(self) -> SimDriver:
        if self._driver is None:
            raise RuntimeError("the host is not started")
        return self._driver

    def _spec_of_now(self) -> SimSpec:
        """The specification without the resident models that have been deleted since."""
        resident = tuple(
            name
            for name in self.spec.resident
            if self.spec.model(name) is None or self._disk.find(name) is not None
        )
        return replace(self.spec, resident=resident)

    def _app(self, driver: SimDriver, cloud: SimDriver) -> web.Application:
        app = web.Application(
            middlewares=[go_router_errors, ask_errors, self._count_and_hang],
            client_max_size=2**30,
        )
        app.on_response_prepare.append(drop_server_header)
        disk, account, faults, tally = self._disk, self._account, self._faults, self._tally
        places = Places(disk, account, local=driver, cloud=cloud)
        answerer = Answerer(places, faults, tally, may_crash=self._may_crash)
        for path in sorted(INFERENCE_PATHS):
            app.router.add_post(path, answerer.handle)
        SimPages(self.spec, disk, account, driver).add_to(app)
        registry = Registry(self.spec, disk, tally)
        stock = Stock(disk, source=registry, target=registry, files=SimFiles(disk), account=account)
        ManageRoutes(stock, faults, tally).add_to(app)
        AccountPages(account, faults).add_to(app)
        app.router.add_get("/sim/stats", self._get_stats, allow_head=False)
        app.router.add_post("/sim/fault", self._post_fault)
        app.router.add_post("/sim/clear", self._post_clear)
        return app

    @web.middleware
    async def _count_and_hang(
        self, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        if not request.path.startswith("/sim/"):
            self._tally.came(request.path)
            await self._accepts.wait()
        if request.path.startswith(self.spec.lacks):
            return plain_reply(404, "404 page not found")
        response: web.StreamResponse = await handler(request)
        return response

    async def _accept(self) -> None:
        if self._runner is None or self._runner.server is None or self._listener is None:
            raise RuntimeError("the host is not started")
        # The server closes the socket it is given: it gets a second handle of the same one.
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._runner.server, sock=self._listener.dup(), backlog=_BACKLOG
        )
        self._accepts.set()

    def _stop_accepting(self) -> None:
        """Let the socket listen on with nobody behind it and its queue of handshakes full."""
        if self._server is None or self._listener is None:
            return
        self._accepts.clear()
        self._server.close()
        self._server = None
        self._listener.listen(0)
        for _ in range(_BACKLOG_FILLERS):
            filler = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            filler.setblocking(False)
            filler.connect_ex(self._listener.getsockname())
            self._fillers.append(filler)

    def _drop_fillers(self) -> None:
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()

    async def _get_stats(self, request: web.Request) -> web.Response:
        return json_reply(encode(asdict(self.stats)))

    async def _post_fault(self, request: web.Request) -> web.Response:
        try:
            self.fault(**await request.json())
        except (TypeError, ValueError) as error:
            return error_reply(request.path, 400, str(error))
        return json_reply(encode({}))

    async def _post_clear(self, request: web.Request) -> web.Response:
        await self.clear_faults()
        return json_reply(encode({}))


def spawned_simhost(spec: SimSpec) -> Child:
    """The host in a process of its own, which may be killed: `async with … as child`."""
    return spawned("sollol_proxy.lab.simhost", "--spec", spec.to_json())


async def _serve(spec: SimSpec, port: int, *, until_eof: bool) -> None:
    host = SimHost(spec, may_crash=True)
    await host.start(port)
    try:
        await announce_and_wait(host.url, until_eof=until_eof)
    finally:
        await host.stop()


def main(arguments: list[str] | None = None) -> None:
    """Run a simulated host until SIGTERM, SIGINT or the end of standard input."""
    parser = argparse.ArgumentParser(prog="python -m sollol_proxy.lab.simhost")
    parser.add_argument("--spec", type=spec_from_json, required=True, help="SimSpec as JSON")
    add_process_arguments(parser)
    options = parser.parse_args(arguments)
    asyncio.run(_serve(options.spec, options.port, until_eof=options.until_eof))


if __name__ == "__main__":
    main()
