"""How a simulated host answers inference requests, well or with a fault."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from aiohttp import web

from sollol_proxy.lab.ask import (
    GENERATE,
    V1_EMBEDDINGS,
    V1_MESSAGES,
    V1_RESPONSES,
    Ask,
    AskError,
    read_ask,
)
from sollol_proxy.lab.faults import (
    QUEUE_FULL,
    Fault,
    FaultKind,
    Faults,
    close,
    crash,
    fail_at_once,
    hang,
)
from sollol_proxy.lab.places import Place, Places
from sollol_proxy.lab.recital import Recital, embedding
from sollol_proxy.lab.replies import json_reply
from sollol_proxy.lab.shapes import BROKEN, JSON_TYPE, Result, Shape
from sollol_proxy.lab.shapes_v1 import shape_for
from sollol_proxy.lab.simjobs import SimJob
from sollol_proxy.lab.simstats import Tally
from sollol_proxy.lab.vectors import embedding_body
from sollol_proxy.lab.virtualhost import LoadQueueFull

# A stream that is behind its schedule would otherwise keep the event loop to itself.
_RECORDS_A_TURN = 32

# `load_duration` of a warm request: never absent, as with Ollama, which needs about as long.
_WARM_LOAD_S = 0.0005


@dataclass(slots=True)
class _Work:
    """One inference request on its way."""

    request: web.Request
    place: Place
    job: SimJob
    recital: Recital
    fault: Fault | None
    streamed_records: int = 0

    @property
    def ask(self) -> Ask:
        """What the model was asked."""
        return self.place.ask

    def new_shape(self) -> Shape:
        """How the answer looks, from its beginning."""
        return shape_for(self.ask, self.place.remote)


class Answerer:
    """Handles the inference routes of one host."""

    def __init__(self, places: Places, faults: Faults, tally: Tally, *, may_crash: bool) -> None:
        self._places = places
        self._faults = faults
        self._tally = tally
        self._may_crash = may_crash

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one inference request."""
        body = await request.read()
        fault = self._faults.strike(request.method, request.path)
        ask = read_ask(request.path, body)
        is_hidden = fault is not None and fault.kind is FaultKind.MISSING_MODEL
        place = self._places.find(ask, is_hidden=is_hidden)
        self._tally.entered(place.key)
        try:
            return await self._answer(request, place, fault)
        finally:
            self._tally.left(place.key)

    async def _answer(
        self, request: web.Request, place: Place, fault: Fault | None
    ) -> web.StreamResponse:
        early = None if fault is None else await _fail_early(request, fault)
        if early is not None:
            return early
        if place.ask.is_unload:
            if not place.is_cloud:
                place.driver.unload(place.model)
            return json_reply(shape_for(place.ask, place.remote).whole("", Result("unload")))
        return await self._run(request, place, fault)

    async def _run(
        self, request: web.Request, place: Place, fault: Fault | None
    ) -> web.StreamResponse:
        ask, model, driver = place.ask, place.model, place.driver
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
            driver.submit(job)
            work = _Work(request, place, job, recital, fault)
            if ask.stream and makes_text:
                return await self._stream(work)
            await driver.progress(job, None)
            return await self._answer_whole(work)
        except LoadQueueFull:
            raise AskError(503, QUEUE_FULL) from None
        finally:
            # However this ends, the job must not go on: the client may be gone.
            driver.cancel(job)

    async def _answer_whole(self, work: _Work) -> web.StreamResponse:
        ask, fault = work.ask, work.fault
        if ask.is_embedding:
            vectors = [embedding(text) for text in ask.inputs]
            body = embedding_body(ask, vectors, _result(work, ""))
            content_type = JSON_TYPE if ask.path != V1_EMBEDDINGS else "application/json"
            return await self._maybe_cut(work, body, content_type)
        shape = work.new_shape()
        if ask.is_load:
            return json_reply(shape.whole("", Result("load")), shape.json_type)
        if fault is not None and fault.kind is FaultKind.ERROR_RECORD:
            raise AskError(500, BROKEN)
        is_unfinished = fault is not None and fault.kind is FaultKind.NO_DONE
        body = shape.whole(work.recital.text(), None if is_unfinished else _done(work))
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
        close(work.request)
        return response

    async def _stream(self, work: _Work) -> web.StreamResponse:
        job, driver, shape = work.job, work.place.driver, work.new_shape()
        # No status line before there is a token: that is how a host behaves.
        await driver.progress(job, 0)
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
                await driver.progress(job, work.streamed_records)
        if work.fault is not None and _breaks_stream(work.fault):
            await self._break(work, work.fault, response, shape)
            return response
        for piece in shape.end(_done(work)):
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
            close(work.request)
            return
        if fault.kind is FaultKind.ERROR_RECORD and (piece := shape.broken()):
            await response.write(piece)
        await response.write_eof()

    def _crash(self) -> None:
        if not self._may_crash:
            raise RuntimeError("a host in the caller's process cannot crash")
        crash()


async def _fail_early(request: web.Request, fault: Fault) -> web.StreamResponse | None:
    """Faults that strike before the model is asked."""
    if fault.kind is FaultKind.HANG:
        await hang()
    if fault.kind is FaultKind.ERROR_RECORD and fault.after_records == 0:
        raise AskError(500, fault.message or BROKEN)
    return await fail_at_once(request, fault)


def _done(work: _Work) -> Result:
    result = _result(work, work.recital.done_reason)
    if work.ask.path != GENERATE or work.ask.body.get("raw"):
        return result
    return replace(result, context=work.recital.context(work.job.prompt_tokens))


def _result(work: _Work, done_reason: str) -> Result:
    job, wall_s = work.job, work.place.driver.wall_s
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


def _span_s(start_s: float | None, end_s: float | None) -> float:
    return 0.0 if start_s is None or end_s is None else end_s - start_s
