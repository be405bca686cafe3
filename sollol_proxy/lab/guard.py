"""Faults around handlers whose answer is one object."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from sollol_proxy.lab.ask import AskError
from sollol_proxy.lab.faults import FaultKind, Faults, crash, cut, fail_at_once, hang

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_FAILED = "internal error"


def guarded(faults: Faults, handler: Handler) -> Handler:
    """The handler with the faults in force that strike its requests.

    A cut comes when the work is done: the host has changed and its client does not know.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        fault = faults.strike(request.method, request.path)
        if fault is None:
            return await handler(request)
        early = await fail_at_once(request, fault)
        if early is not None:
            return early
        if fault.kind is FaultKind.HANG:
            await hang()
        if fault.kind is FaultKind.ERROR_RECORD:
            raise AskError(500, fault.message or _FAILED)
        if fault.kind is FaultKind.CRASH:
            crash()
        response = await handler(request)
        if fault.kind is FaultKind.CUT:
            cut(request)
        return response

    return handle
