"""Background questions to the hosts: are you there, what is loaded, what is installed.

Only `/api/version`, `/api/ps` and `/api/tags` are asked: nothing that loads a model or re-arms a
keep_alive. `/api/ps` may stall for seconds while Ollama unloads, so its silence is no failure and
the last answer stays; silence to `/api/version` is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import structlog

from sollol_proxy.config.schema import ProbesSection
from sollol_proxy.core.types import HostReport, HostSpec
from sollol_proxy.ollama import merge
from sollol_proxy.server.tasks import TaskSet
from sollol_proxy.server.upstream import describe_error

REFRESH_GAP_S = 1.0
"""Shortest time between two inventories that clients can bring about by asking for odd names."""

Document = Mapping[str, Any]


@dataclass(slots=True)
class HostDocuments:
    """The last answers of one host, as it gave them; None = none yet."""

    version: str = ""
    tags: Document | None = None
    ps: Document | None = None


class ProbeError(Exception):
    """A probe's question got no usable answer."""


class Probes:
    """Asks every host in rounds and passes reports on.

    on_report: called with each result, in the event loop.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        hosts: Iterable[HostSpec],
        section: ProbesSection,
        clock: Callable[[], float],
        on_report: Callable[[HostReport], None],
    ) -> None:
        self._session = session
        self._hosts = {host.id: host for host in hosts}
        self._section = section
        self._clock = clock
        self._on_report = on_report
        self._tasks = TaskSet()
        self._kicks = {host_id: asyncio.Event() for host_id in self._hosts}
        self._tags_due_s = dict.fromkeys(self._hosts, 0.0)
        self._begun = dict.fromkeys(self._hosts, 0)
        self._rounds = dict.fromkeys(self._hosts, 0)
        self._awaited: dict[str, int] = {}
        self._round_over = asyncio.Condition()
        self._refreshed_s = -REFRESH_GAP_S
        self._log = structlog.get_logger("sollol")
        self.documents = {host_id: HostDocuments() for host_id in self._hosts}

    def start(self) -> None:
        """Begin with a first round at once."""
        for host in self._hosts.values():
            self._tasks.spawn(self._watch(host), name=f"probe {host.id}")

    async def stop(self) -> None:
        """End all rounds."""
        await self._tasks.cancel()

    def ask_now(self, host_id: str, *, with_tags: bool = False) -> None:
        """Probe one host out of turn."""
        if with_tags:
            self._tags_due_s[host_id] = 0.0
        # A round that is under way may have asked too early: what counts begins after this.
        self._awaited[host_id] = self._begun[host_id] + 1
        self._kicks[host_id].set()

    def same_version(self, host_id: str) -> frozenset[str]:
        """The hosts that say they run the same release, this one included.

        Development builds all call themselves 0.0.0 and may be of any age: each is its own.
        """
        version = self.documents[host_id].version
        if version in ("", merge.DEVELOPMENT_VERSION):
            return frozenset({host_id})
        documents = self.documents.items()
        return frozenset(other for other, known in documents if known.version == version)

    async def settle(self, limit_s: float) -> None:
        """Wait for the questions asked out of turn, or until `limit_s` is over."""
        if self._awaited:
            await self._wait_rounds(self._awaited, limit_s)

    async def first_round(self, limit_s: float) -> None:
        """Wait until every host has been asked once, or `limit_s` is over."""
        await self._wait_rounds(dict.fromkeys(self._hosts, 1), limit_s)

    async def refresh_inventory(self) -> None:
        """Ask all hosts for their models and wait for those that answer in time.

        Within a second of the last time it waits only for what is being asked already, so that
        odd names cost the hosts little.
        """
        now = self._clock()
        if now - self._refreshed_s < REFRESH_GAP_S:
            await self.settle(self._section.timeout)
            return
        self._refreshed_s = now
        for host_id in self._hosts:
            self.ask_now(host_id, with_tags=True)
        await self.settle(self._section.timeout)

    async def _wait_rounds(self, wanted: Mapping[str, int], limit_s: float) -> None:
        wanted = dict(wanted)

        def all_came() -> bool:
            return all(self._rounds[host_id] >= count for host_id, count in wanted.items())

        try:
            async with asyncio.timeout(limit_s), self._round_over:
                await self._round_over.wait_for(all_came)
        except TimeoutError:
            return  # a slow host delays nobody

    async def _watch(self, host: HostSpec) -> None:
        kick = self._kicks[host.id]
        was_ok: bool | None = None
        while True:
            kick.clear()
            self._begun[host.id] += 1
            report = await self._ask(host)
            if report.ok is not was_ok:
                self._log_change(report)
                was_ok = report.ok
            self._on_report(report)
            self._rounds[host.id] += 1
            if self._rounds[host.id] >= self._awaited.get(host.id, 0):
                self._awaited.pop(host.id, None)
            async with self._round_over:
                self._round_over.notify_all()
            try:
                async with asyncio.timeout(self._section.interval):
                    await kick.wait()
            except TimeoutError:
                continue

    def _log_change(self, report: HostReport) -> None:
        if report.ok:
            self._log.info("host answers", host=report.host_id, version=report.version)
        else:
            self._log.warning("host does not answer", host=report.host_id, reason=report.detail)

    async def _ask(self, host: HostSpec) -> HostReport:
        documents = self.documents[host.id]
        started_s = self._clock()
        try:
            version = await self._get(host, "/api/version")
        except ProbeError as error:
            return HostReport(host.id, ok=False, detail=str(error))
        round_trip_s = self._clock() - started_s
        documents.version = str(version.get("version", ""))
        tags_are_due = started_s >= self._tags_due_s[host.id]
        if tags_are_due:
            self._tags_due_s[host.id] = started_s + self._section.tags_interval
        ps, tags = await asyncio.gather(
            self._get(host, "/api/ps"),
            self._get(host, "/api/tags") if tags_are_due else _nothing(),
            return_exceptions=True,
        )
        for unexpected in (ps, tags):
            if isinstance(unexpected, BaseException) and not isinstance(unexpected, ProbeError):
                raise unexpected
        if isinstance(tags, ProbeError):
            self._tags_due_s[host.id] = 0.0
            if documents.tags is None:
                return HostReport(host.id, ok=False, detail=f"/api/tags: {tags}")
        documents.ps = ps if isinstance(ps, Mapping) else documents.ps
        documents.tags = tags if isinstance(tags, Mapping) else documents.tags
        return HostReport(
            host.id,
            ok=True,
            round_trip_s=round_trip_s,
            version=documents.version,
            installed=merge.parse_tags(tags) if isinstance(tags, Mapping) else None,
            resident=merge.parse_ps(ps) if isinstance(ps, Mapping) else None,
        )

    async def _get(self, host: HostSpec, path: str) -> Document:
        """A small JSON document of a host.

        Raises:
            ProbeError: no connection, no answer in time, another status, or no JSON object.
        """
        timeout = aiohttp.ClientTimeout(total=self._section.timeout)
        try:
            async with self._session.get(
                host.url + path, timeout=timeout, allow_redirects=False
            ) as response:
                body = await response.read()
        except TimeoutError as error:
            raise ProbeError(f"no answer within {self._section.timeout:g} s") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise ProbeError(describe_error(error)) from error
        if response.status != 200:
            raise ProbeError(f"HTTP {response.status}")
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise ProbeError("the answer is not JSON; is it an Ollama?") from error
        if not isinstance(value, dict):
            raise ProbeError("the answer is no JSON object; is it an Ollama?")
        return value


async def _nothing() -> None:
    return None
