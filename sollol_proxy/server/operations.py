"""Operations that run on several hosts at once and tell how far they are: pulls and creations.

An operation belongs to the proxy, not to one request: whoever asks for a pull that runs already
watches the same one. It goes on as long as somebody watches; when the last one leaves, its
connections are closed, which is how Ollama cancels. What one host does is a part; a part that
fails leaves the others alone.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from sollol_proxy.ollama.progress import Progress, Record
from sollol_proxy.server.replies import PartReply
from sollol_proxy.server.tasks import TaskSet

BACKLOG = 256
"""Records that a watcher may be behind before older ones of a digest are dropped."""

MOST_BEHIND = 10_000
"""Records that are kept for a watcher that does not read. No model has so many layers."""

GAP_S = 0.06
"""Between two looks of a watcher at several hosts: the rhythm in which one host reports."""


class Watcher:
    """One client's view of an operation: records in order, the newest of a digest when behind."""

    def __init__(self, records: Iterable[Record], *, condenses: bool, is_over: bool) -> None:
        self._records = deque(records)
        self._condenses = condenses
        self._is_over = is_over
        self._news = asyncio.Event()
        if self._records or is_over:
            self._news.set()

    def push(self, records: Iterable[Record], *, is_over: bool) -> None:
        """New records; `is_over` when these are the last."""
        self._records.extend(records)
        self._is_over = is_over
        if len(self._records) > BACKLOG:
            self._condense()
            while len(self._records) > MOST_BEHIND:
                self._records.popleft()
        if self._records or is_over:
            self._news.set()

    async def next_lines(self) -> bytes:
        """What has come since the last call, one line or many; empty when all is over."""
        await self._news.wait()
        if self._condenses:
            self._condense()
        lines = b"".join(record.line for record in self._records)
        self._records.clear()
        if not self._is_over:
            self._news.clear()
        return lines

    def _condense(self) -> None:
        newest = {record.key: index for index, record in enumerate(self._records) if record.key}
        self._records = deque(
            record
            for index, record in enumerate(self._records)
            if record.key is None or newest[record.key] == index
        )


class Operation(ABC):
    """One request carried out by several hosts, from its start to the end of its last part.

    hosts: ids of those that take part. task: what carries it out.
    head: of the first answer that streams; None until there is one.
    refusals: whole replies of hosts that answered with something else than a stream.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self.hosts = tuple(hosts)
        self.progress = Progress(self.hosts)
        self.task: asyncio.Task[None] | None = None
        self.head: tuple[tuple[str, str], ...] | None = None
        self.refusals: list[PartReply] = []
        self._watchers: set[Watcher] = set()

    @abstractmethod
    async def run(self) -> None:
        """Carry all parts out; each of them ends in `progress`, whatever becomes of it."""

    @property
    def is_watched(self) -> bool:
        """Whether somebody is interested."""
        return bool(self._watchers)

    def watch(self) -> Watcher:
        """A view from the beginning: what was said so far comes first."""
        watcher = Watcher(
            self.progress.catch_up(),
            condenses=len(self.hosts) > 1,
            is_over=self.progress.is_over,
        )
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """The watcher looks no longer."""
        self._watchers.discard(watcher)

    def tell(self, records: Iterable[Record]) -> None:
        """Pass on to all watchers what `progress` said."""
        for watcher in self._watchers:
            watcher.push(records, is_over=self.progress.is_over)


def pull_key(model: str, hosts: Iterable[str], *, insecure: bool = False) -> str:
    """What a pull is known by: who asks for the same one joins it."""
    return f"pull {model} {insecure} {' '.join(hosts)}"


class Operations:
    """The operations that run, by what they do."""

    def __init__(self) -> None:
        self._running: dict[str, Operation] = {}
        self._tasks = TaskSet()

    @asynccontextmanager
    async def joined(
        self, key: str, make: Callable[[], Operation]
    ) -> AsyncIterator[tuple[Operation, Watcher]]:
        """The running operation of that key, or a new one, watched for the block."""
        operation = self._running.get(key)
        if operation is None:
            operation = self._running[key] = make()
            operation.task = self._tasks.spawn(operation.run(), name=f"operation {key}")
            operation.task.add_done_callback(lambda _: self._forget(key, operation))
        watcher = operation.watch()
        try:
            yield operation, watcher
        finally:
            operation.leave(watcher)
            if not operation.is_watched and operation.task is not None:
                # Whoever asks from now on begins anew; hosts go on from what they have.
                self._forget(key, operation)
                operation.task.cancel()

    def _forget(self, key: str, operation: Operation) -> None:
        if self._running.get(key) is operation:
            del self._running[key]

    @property
    def running(self) -> Mapping[str, Operation]:
        """What runs now."""
        return self._running

    async def stop(self) -> None:
        """Cancel everything."""
        await self._tasks.cancel()
