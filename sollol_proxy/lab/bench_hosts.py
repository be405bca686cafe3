"""A host of a bench: a simulated one on real sockets, in model time.

It computes as the other simulated hosts do, but how long an answer gets is told by a mark in the
prompt (`bench_wire`) rather than by `num_predict`, which would tell the proxy too. And it can
begin anew without closing its port.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

from sollol_proxy.lab.account import Account
from sollol_proxy.lab.ask import CHAT, GENERATE, V1_CHAT, AskError, read_ask
from sollol_proxy.lab.bench_wire import told_by
from sollol_proxy.lab.replies import ask_errors, drop_server_header, go_router_errors, json_reply
from sollol_proxy.lab.shapes import Result, Shape
from sollol_proxy.lab.shapes_v1 import shape_for
from sollol_proxy.lab.simdisk import SimDisk
from sollol_proxy.lab.simdriver import SimDriver
from sollol_proxy.lab.simjobs import SimJob
from sollol_proxy.lab.simpages import SimPages
from sollol_proxy.lab.simspec import SimSpec
from sollol_proxy.lab.virtualhost import LoadQueueFull, VirtualHost

COALESCED_S = 0.004
"""Tokens that a host makes within so many seconds on the wall leave together."""

_WORD = " tok"
_BACKLOG = 1024
_SHUTDOWN_TIMEOUT_S = 0.05


class _Driver(SimDriver):
    """A driver whose host can begin anew."""

    def __init__(self, spec: SimSpec) -> None:
        super().__init__(spec, lambda: None)
        self._spec = spec

    def reset(self) -> None:
        """Memory, caches and speed as at the start."""
        self.virtual = VirtualHost(self._spec, self._now_s())
        self._wake()


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer. begun_s: when a slot took it, by the clock of the process's loop."""

    request_id: str
    host_id: str
    begun_s: float


@dataclass(slots=True)
class _Work:
    """One request on its way. came_s: by the loop's clock."""

    request: web.Request
    shape: Shape
    job: SimJob
    request_id: str
    came_s: float = field(default_factory=lambda: asyncio.get_running_loop().time())


class BenchHost:
    """One host. `async with`, in a `ModelTimeLoop` of the speed; port 0 = any free one."""

    def __init__(self, spec: SimSpec, log: list[Answered], *, speed: float, port: int = 0) -> None:
        self.spec = spec
        self.in_flight = 0
        self._log = log
        self._port = port
        self._together_s = COALESCED_S * speed
        self._driver: _Driver | None = None
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        self._driver = _Driver(self.spec)
        app = web.Application(middlewares=[go_router_errors, ask_errors], client_max_size=2**30)
        app.on_response_prepare.append(drop_server_header)
        disk, account = SimDisk(self.spec.models), Account(self.spec.id, "", offline=True)
        SimPages(self.spec, disk, account, self._driver).add_to(app)
        for path in (GENERATE, CHAT, V1_CHAT):
            app.router.add_post(path, self._answer)
        self._runner = await serving(app, self._port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self.driver.stop()

    @property
    def driver(self) -> _Driver:
        """What moves it. Only within the block."""
        if self._driver is None:
            raise RuntimeError("the host is not started")
        return self._driver

    @property
    def url(self) -> str:
        """Base address without a slash at the end. Only within the block."""
        return url_of(self._runner)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        ask = read_ask(request.path, await request.read())
        model, told = self.spec.model(ask.model), told_by(ask.prompt)
        if model is None:
            raise AskError(404, f"model '{ask.model}' not found")
        if told is None:
            raise AskError(400, "these hosts answer only the requests of a bench")
        work = _Work(request, shape_for(ask), told.job(model), told.request_id)
        self.in_flight += 1
        try:
            self.driver.submit(work.job)
            return await (self._stream(work) if ask.stream else self._answer_whole(work))
        except LoadQueueFull:
            raise AskError(503, "server busy") from None
        finally:
            self.in_flight -= 1
            self.driver.cancel(work.job)

    async def _answer_whole(self, work: _Work) -> web.StreamResponse:
        await self.driver.progress(work.job, None)
        self._note(work)
        text = _WORD * work.job.output_tokens
        return json_reply(work.shape.whole(text, _result(work.job)))

    async def _stream(self, work: _Work) -> web.StreamResponse:
        job, shape, driver = work.job, work.shape, self.driver
        together = max(1, int(self.spec.decode_tps_of(job.model) * self._together_s))
        await driver.progress(job, 0)
        response = web.StreamResponse(headers={"Content-Type": shape.content_type})
        await response.prepare(work.request)
        records, sent = b"".join(shape.head()), 0
        while sent < job.emitted or not job.is_over:
            if sent == job.emitted:
                await driver.progress(job, sent + together - 1)
            records += shape.token(_WORD) * (job.emitted - sent)
            sent = job.emitted
            if records and not job.is_over:
                await response.write(records)
                records = b""
        self._note(work)
        await response.write(records + b"".join(shape.end(_result(job))))
        await response.write_eof()
        return response

    def _note(self, work: _Work) -> None:
        job = work.job
        waited_s = (job.slot_s or job.arrived_s) - job.arrived_s
        self._log.append(Answered(work.request_id, self.spec.id, work.came_s + waited_s))


def _result(job: SimJob) -> Result:
    """Durations are model seconds, as they are for a proxy that lives in model time."""
    ended_s = job.ended_s or 0.0
    ready_s, slot_s = job.ready_s or job.arrived_s, job.slot_s or job.arrived_s
    prefilled_s = job.prefilled_s or slot_s
    return Result(
        done_reason="stop",
        prompt_tokens=job.prompt_tokens,
        output_tokens=job.output_tokens,
        total_s=ended_s - job.arrived_s,
        load_s=ready_s - job.arrived_s,
        prefill_s=prefilled_s - slot_s,
        decode_s=ended_s - prefilled_s,
    )


async def serving(app: web.Application, port: int) -> web.AppRunner:
    """Serve on a port of 127.0.0.1; 0 = any free one."""
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
        keepalive_timeout=1e6,
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=_BACKLOG).start()
    return runner


def url_of(runner: web.AppRunner | None) -> str:
    """Base address of what is served, without a slash at the end.

    Raises:
        RuntimeError: nothing is.
    """
    if runner is None:
        raise RuntimeError("it is not started")
    return f"http://127.0.0.1:{runner.addresses[0][1]}"
