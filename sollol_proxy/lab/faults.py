"""Faults that a simulated host shows on command."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from enum import StrEnum

from aiohttp import web

from sollol_proxy.lab.ask import INFERENCE_PATHS, AskError

QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"


class FaultStruck(Exception):
    """A fault has ended the answer: what is being done for it stops."""


class FaultKind(StrEnum):
    """What goes wrong.

    All but the first two strike inference requests, or those of another `path`. Records are the
    tokens of an answer and the progress of a pull, push or creation.
    """

    HANG_CONNECT = "hang_connect"
    """New connections are not accepted, those that exist get no answers. Until cleared."""
    SLOW = "slow"
    """The host computes `factor` times slower. Until cleared."""
    STATUS = "status"
    """An error of this `status`, at once."""
    HANG = "hang"
    """No answer, while the status routes stay well: a wedged host. Progress stops after
    `after_records`, an upload is read for `after_bytes`."""
    RESET_BEFORE_HEAD = "reset_before_head"
    """The connection is cut before the status line."""
    MISSING_MODEL = "missing_model"
    """404 for a model that the tags list. Inference only."""
    CUT = "cut"
    """The connection ends after `after_records` records, without the closing chunk, or after
    `after_bytes` of an upload. Where the answer is one object the host has done its work."""
    ERROR_RECORD = "error_record"
    """An error after `after_records` records, as the dialect shows it; with 0, a 500 of an
    inference request. An upload fails with 500 when it is complete."""
    NO_DONE = "no_done"
    """The stream ends cleanly after `after_records` records, without its last record."""
    CRASH = "crash"
    """The whole process dies after `after_records` records. For hosts in a process of their own."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    count: requests it will strike; None = until it is cleared. path: beginning of the paths it
    strikes; empty = those of inference. method: empty = any. message: empty = what Ollama would
    say.
    """

    kind: FaultKind
    count: int | None = None
    path: str = ""
    method: str = ""
    after_records: int = 0
    after_bytes: int = 0
    status: int = 503
    factor: float = 4.0
    message: str = ""

    def strikes(self, method: str, path: str) -> bool:
        """Whether such a request meets it."""
        if self.kind in (FaultKind.HANG_CONNECT, FaultKind.SLOW):
            return False
        if self.method and self.method != method:
            return False
        return path.startswith(self.path) if self.path else path in INFERENCE_PATHS


class Faults:
    """The faults in force, oldest first."""

    def __init__(self) -> None:
        self._in_force: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Put a fault in force behind the others."""
        if fault.count is None or fault.count > 0:
            self._in_force.append(fault)

    def clear(self) -> None:
        """End all faults."""
        self._in_force.clear()

    def has(self, kind: FaultKind) -> bool:
        """Whether a fault of this kind is in force."""
        return any(fault.kind is kind for fault in self._in_force)

    def strike(self, method: str, path: str) -> Fault | None:
        """The fault that the request at hand meets, spent by one."""
        for index, fault in enumerate(self._in_force):
            if not fault.strikes(method, path):
                continue
            if fault.count is not None:
                left = replace(fault, count=fault.count - 1)
                self._in_force[index : index + 1] = [left] if left.count else []
            return fault
        return None


async def fail_at_once(request: web.Request, fault: Fault) -> web.StreamResponse | None:
    """The faults that need no work of the host: an error, or a connection cut. None for others.

    Raises:
        AskError: the host refuses.
    """
    if fault.kind is FaultKind.STATUS:
        raise AskError(fault.status, fault.message or QUEUE_FULL)
    if fault.kind is FaultKind.RESET_BEFORE_HEAD:
        cut(request)
        return web.Response()
    return None


async def hang() -> None:
    """Wait until the client leaves."""
    await asyncio.get_running_loop().create_future()


def cut(request: web.Request) -> None:
    """Break the connection at once; what is buffered is lost."""
    if request.transport is not None:
        request.transport.abort()


def close(request: web.Request) -> None:
    """End the connection after what is buffered, without a closing chunk."""
    if request.transport is not None:
        request.transport.close()


def crash() -> None:
    """End the process as a kill would. Only hosts that may crash are told to."""
    os._exit(1)
