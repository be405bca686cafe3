"""How a simulated host answers inference requests, well or with a fault."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace

from aiohttp import web

from sollol_proxy.lab.ask import (
    CHAT,
    EMBEDDING_PATHS,
    GENERATE,
    V1_EMBEDDINGS,
    V1_MESSAGES,
    V1_RESPONSES,
    Ask,
    AskError,
    read_ask,
)
from sollol_proxy.lab.faults import Fault, FaultKind, Faults
from sollol_proxy.lab.recital import Recital, embedding
from sollol_proxy.lab.replies import error_reply, json_reply
from sollol_proxy.lab.shapes import BROKEN, JSON_TYPE, Result, Shape
from sollol_proxy.lab.shapes_v1 import shape_for
from sollol_proxy.lab.simdriver import SimDriver
from sollol_proxy.lab.simjobs import SimJob
from sollol_proxy.lab.simspec import SimModel, SimSpec
from sollol_proxy.lab.simstats import Tally
from sollol_proxy.lab.vectors import embedding_body
from sollol_proxy.lab.virtualhost import LoadQueueFull

_QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"

# A stream that is behind its schedule would otherwise keep the event loop to itself.
_RECORDS_A_TURN = 32

# `load_duration` of a warm request: never absent, as with Ollama, which needs about as long.
_WARM_LOAD_S = 0.0005


@dataclass(slots=True)
class _Work:
    """One inference request on its way."""

    request: web.Request
    ask: Ask
    job: SimJob
    recital: Recital
    fault: Fault | None
    streamed_records: int = 0


class Answerer:
    """Handles the inference routes of one host."""

    def __init__(
        self, spec: SimSpec, driver: SimDriver, faults: Faults, tally: Tally, *, may_crash: bool
    ) -> None:
        self._spec = spec
        self._driver = driver
        self._faults = faults
        self._tally = tally
        self._may_crash = may_crash

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one inference request."""
        body = await request.read()
        fault = self._faults.strike()
        try:
            ask = read_ask(request.path, body)
            model = self._find(ask, fault)
            self._tally.entered(model.key)
            try:
                return await self._answer(request, ask, model, fault)
            finally:
                self._tally.left(model.key)
        except AskError as error:
            return error_reply(request.path, error.status, error.message)

    async def _answer(
        self, request: web.Request, ask: Ask, model: SimModel, fault: Fault | None
    ) -> web.StreamResponse:
        early = None if fault is None else await self._fail_early(request, fault)
        if early is not None:
            return early
        if ask.is_unload:
            self._driver.unload(model)
            return json_reply(shape_for(ask).whole("", Result("unload")))
        return await self._run(request, ask, model, fault)

    def _find(self, ask: Ask, fault: Fault | None) -> SimModel:
        model = self._spec.model(ask.model)
        if model is None or (fault is not None and fault.kind is FaultKind.MISSING_MODEL):
            raise AskError(404, _not_found(ask))
        if model.is_embedder and ask.path in (GENERATE, CHAT):
            verb = "chat" if ask.path == CHAT else "generate"
            raise AskError(400, f'"{ask.model}" does not support {verb}')
        return model

    async def _fail_early(self, request: web.Request, fault: Fault) -> web.StreamResponse | None:
        """Faults that strike before the model is asked."""
        if fault.kind is FaultKind.STATUS:
            raise AskError(fault.status, fault.message)
        if fault.kind is FaultKind.HANG:
            await asyncio.get_running_loop().create_future()
        if fault.kind is FaultKind.RESET_BEFORE_HEAD:
            _abort(request)
            return web.Response()
        if fault.kind is FaultKind.ERROR_RECORD and fault.after_records == 0:
            raise AskError(500, BROKEN)
        return None

    async def _run(
        self, request: web.Request, ask: Ask, model: SimModel, fault: Fault | None
    ) -> web.StreamResponse:
        recital = Recital(ask)
        makes_text = not ask.is_load and not ask.is_embedding
        job = SimJob(
            model=model,
            prompt=ask.prompt,
            output_tokens=recital.tokens if makes_text else 0,
            # A slot remembers no more than fits its context.
            answer=recital.text(model.context_length) if makes_text else "",
            num_ctx=ask.num_ctx,
            keep_alive_s=ask.keep_alive_s,
            load_only=ask.is_load,
        )
        try:
            self._driver.submit(job)
            work = _Work(request, ask, job, recital, fault)
            if ask.stream and makes_text:
                return await self._stream(work)
            await self._driver.progress(job, None)
            return await self._answer_whole(work)
        except LoadQueueFull:
            raise AskError(503, _QUEUE_FULL) from None
        finally:
            # However this ends, the job must not go on: the client may be gone.
            self._driver.cancel(job)

    async def _answer_whole(self, work: _Work) -> web.StreamResponse:
        ask, job, fault = work.ask, work.job, work.fault
        if ask.is_embedding:
            vectors = [embedding(text) for text in ask.inputs]
            body = embedding_body(ask, vectors, self._result(job, ""))
            content_type = JSON_TYPE if ask.path != V1_EMBEDDINGS else "application/json"
            return await self._maybe_cut(work, body, content_type)
        shape = shape_for(ask)
        if ask.is_load:
            return json_reply(shape.whole("", Result("load")), shape.json_type)
        if fault is not None and fault.kind is FaultKind.ERROR_RECORD:
            raise AskError(500, BROKEN)
        is_unfinished = fault is not None and fault.kind is FaultKind.NO_DONE
        body = shape.whole(work.recital.text(), None if is_unfinished else self._done(work))
        return await self._maybe_cut(work, body, shape.json_type)

    async def _maybe_cut(self, work: _Work, body: bytes, content_type: str) -> web.StreamResponse:
        """The reply; half of it where the fault says that the connection ends."""
        fault = work.fault
        if fault is not None and fault.kind is FaultKind.CRASH:
            self._crash()
        if fault is None or fault.kind is not FaultKind.CUT:
            return json_reply(body, content_type)
        response = web.StreamResponse(headers={"Content-Type": content_type})
        response.content_length = len(body)
        await response.prepare(work.request)
        await response.write(body[: len(body) // 2])
        _close(work.request)
        return response

    async def _stream(self, work: _Work) -> web.StreamResponse:
        job, shape = work.job, shape_for(work.ask)
        # No status line before there is a token: that is how a host behaves.
        await self._driver.progress(job, 0)
        response = web.StreamResponse(headers={"Content-Type": shape.content_type})
        if work.ask.path in (V1_MESSAGES, V1_RESPONSES):
            response.headers.update({"Cache-Control": "no-cache", "Connection": "keep-alive"})
        await response.prepare(work.request)
        for piece in shape.head():
            await response.write(piece)
        while not self._must_break(work):
            if work.streamed_records < job.emitted:
                await response.write(shape.token(work.recital.token(work.streamed_records)))
                work.streamed_records += 1
                self._tally.sent()
                if work.streamed_records % _RECORDS_A_TURN == 0:
                    await asyncio.sleep(0)
            elif job.is_over:
                break
            else:
                await self._driver.progress(job, work.streamed_records)
        if work.fault is not None and _breaks_stream(work.fault):
            await self._break(work, work.fault, response, shape)
            return response
        for piece in shape.end(self._done(work)):
            await response.write(piece)
        await response.write_eof()
        return response

    def _must_break(self, work: _Work) -> bool:
        fault = work.fault
        return (
            fault is not None
            and _breaks_stream(fault)
            and work.streamed_records >= fault.after_records
        )

    async def _break(
        self, work: _Work, fault: Fault, response: web.StreamResponse, shape: Shape
    ) -> None:
        if fault.kind is FaultKind.CRASH:
            self._crash()
        if fault.kind is FaultKind.CUT:
            _close(work.request)
            return
        if fault.kind is FaultKind.ERROR_RECORD and (piece := shape.broken()):
            await response.write(piece)
        await response.write_eof()

    def _crash(self) -> None:
        if not self._may_crash:
            raise RuntimeError("a host in the caller's process cannot crash")
        os._exit(1)

    def _done(self, work: _Work) -> Result:
        result = self._result(work.job, work.recital.done_reason)
        if work.ask.path != GENERATE or work.ask.body.get("raw"):
            return result
        return replace(result, context=work.recital.context(work.job.prompt_tokens))

    def _result(self, job: SimJob, done_reason: str) -> Result:
        wall_s = self._driver.wall_s
        return Result(
            done_reason=done_reason,
            prompt_tokens=job.prompt_tokens,
            output_tokens=job.output_tokens,
            total_s=wall_s(_span_s(job.arrived_s, job.ended_s)) + _WARM_LOAD_S,
            load_s=wall_s(_span_s(job.arrived_s, job.ready_s)) + _WARM_LOAD_S,
            prefill_s=wall_s(_span_s(job.slot_s, job.prefilled_s)),
            decode_s=wall_s(_span_s(job.prefilled_s, job.ended_s)),
        )


def _breaks_stream(fault: Fault) -> bool:
    return fault.kind in (
        FaultKind.CUT,
        FaultKind.ERROR_RECORD,
        FaultKind.NO_DONE,
        FaultKind.CRASH,
    )


def _not_found(ask: Ask) -> str:
    if ask.path in EMBEDDING_PATHS:
        return f'model "{ask.model}" not found, try pulling it first'
    return f"model '{ask.model}' not found"


def _span_s(start_s: float | None, end_s: float | None) -> float:
    return 0.0 if start_s is None or end_s is None else end_s - start_s


def _abort(request: web.Request) -> None:
    """Cut the connection at once; what is buffered is lost."""
    if request.transport is not None:
        request.transport.abort()


def _close(request: web.Request) -> None:
    """End the connection after what is buffered, without a closing chunk."""
    if request.transport is not None:
        request.transport.close()
