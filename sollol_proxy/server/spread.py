"""The parts of an operation: the same request to each host, and the progress that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from sollol_proxy.core.types import AttemptResult, Job
from sollol_proxy.errors import AttemptFailed, Refused, UpstreamBroke
from sollol_proxy.ollama.records import BodyFormat, body_format
from sollol_proxy.server.fanout import REPLY_BYTES, open_part, unless_silent, why
from sollol_proxy.server.operations import Operation
from sollol_proxy.server.replies import HTTP_ERROR, PartReply
from sollol_proxy.server.services import Services
from sollol_proxy.server.upstream import Outbound, Upstream

LINE_BYTES = 8_000_000
"""Longest line that Ollama's own client takes."""


class Broadcast(Operation):
    """One request to several hosts at once. jobs: one for each host."""

    def __init__(self, services: Services, jobs: Iterable[Job], outbound: Outbound) -> None:
        self._jobs = list(jobs)
        super().__init__(job.only for job in self._jobs)
        self._services = services
        self._outbound = outbound
        self._moved = dict.fromkeys(self.hosts, 0)
        self._over: set[str] = set()

    async def run(self) -> None:
        """Carry all parts out."""
        async with asyncio.TaskGroup() as parts:
            for job in self._jobs:
                parts.create_task(self._part(job), name=f"part {job.id}")

    async def _part(self, job: Job) -> None:
        """One host's part; whatever becomes of it, `progress` hears of its end."""
        host_id = job.only
        failure: str | None = "it was cut short"
        try:
            async with (
                unless_silent(self._services, host_id, lambda: self._moved[host_id]),
                open_part(self._services, job, self._outbound) as (lease, upstream),
            ):
                is_stream = body_format(upstream.content_type) is BodyFormat.NDJSON
                if upstream.status >= HTTP_ERROR or not is_stream:
                    failure = await self._refused(host_id, upstream)
                else:
                    self.head = self.head or tuple(upstream.headers)
                    await self._follow(host_id, upstream)
                    # Before anybody hears of success: whoever asks for a list then, sees it.
                    self._services.probes.ask_now(host_id, with_tags=True)
                    failure = None
                self._end(host_id, failure)
                done = host_id in self.progress.succeeded
                lease.done(AttemptResult.COMPLETED if done else AttemptResult.REFUSED)
        except (Refused, AttemptFailed, UpstreamBroke) as error:
            failure = why(error)
        finally:
            self._end(host_id, failure)

    async def _refused(self, host_id: str, upstream: Upstream) -> str:
        body = await upstream.read_small(REPLY_BYTES)
        reply = PartReply(host_id, upstream.status, tuple(upstream.headers), body)
        self.refusals.append(reply)
        return reply.reason

    async def _follow(self, host_id: str, upstream: Upstream) -> None:
        """Pass the host's records on until its body ends."""
        rest = b""
        chunk = upstream.first
        while chunk:
            self._moved[host_id] += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES:
                raise UpstreamBroke(host_id, f"a record of more than {LINE_BYTES} bytes")
            for line in lines:
                self.tell(self.progress.feed(host_id, line + b"\n"))
            chunk = await upstream.next_chunk()
        if rest:
            self.tell(self.progress.feed(host_id, rest))

    def _end(self, host_id: str, failure: str | None) -> None:
        if host_id not in self._over:
            self._over.add(host_id)
            self.tell(self.progress.end(host_id, failure))
