"""The clients of `bench overhead` together: many streams at once, and requests without a pause."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Self

from sollol_proxy.lab.bench_bytes import Target
from sollol_proxy.lab.bench_callers import Caller
from sollol_proxy.server.tasks import TaskSet

_OPENED_AT_ONCE = 64


@dataclass(slots=True)
class Streams:
    """Many streams at once. ended: good ones; broken: the others. `opened` makes them."""

    callers: list[Caller] = field(default_factory=list)
    ended: int = 0
    broken: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def records(self) -> int:
        """That have come over all of them."""
        return sum(caller.records for caller in self.callers)

    @property
    def pieces(self) -> int:
        """In which they came."""
        return sum(caller.pieces for caller in self.callers)

    @property
    def flowing(self) -> int:
        """Streams that have given a record at least and not ended."""
        return sum(caller.records > 0 and caller.is_open for caller in self.callers)

    def note(self, caller: Caller) -> None:
        """An answer has ended."""
        if caller.is_good:
            self.ended += 1
        else:
            self.broken += 1
        self._changed.set()

    async def all_ended(self, limit_s: float) -> None:
        """Wait until all have ended, or the limit is over."""
        try:
            async with asyncio.timeout(limit_s):
                while self.ended + self.broken < len(self.callers):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return


@asynccontextmanager
async def opened(
    target: Target, requests: Sequence[bytes], limit_s: float
) -> AsyncIterator[Streams]:
    """A stream for each request, open for the block; then those that still flow are left.

    limit_s: when none has opened for so long, those that are open have to do. Some relays let only
    so many flow at once.
    """
    streams = Streams()
    gate = asyncio.Semaphore(_OPENED_AT_ONCE)
    opening = _Opening(limit_s)

    async def open_one(place: int, request: bytes) -> None:
        # The next one waits for this one's first record, so that nobody is flooded.
        async with gate:
            came = asyncio.Event()

            def note_end(caller: Caller) -> None:
                came.set()
                streams.note(caller)

            address = target.addresses[place % len(target.addresses)]
            try:
                async with asyncio.timeout(limit_s):
                    _, caller = await asyncio.get_running_loop().create_connection(
                        lambda: Caller(note_end, came.set), *address
                    )
                streams.callers.append(caller)
                caller.ask(request)
                await opening.wait(came)
            except (OSError, TimeoutError):
                return  # the figures say how many there are

    try:
        async with asyncio.TaskGroup() as group:
            for place, request in enumerate(requests):
                group.create_task(open_one(place, request))
        yield streams
    finally:
        for caller in streams.callers:
            caller.leave()


class _Opening:
    """Waits for streams while any of them opens. limit_s: without one."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._opened_s = asyncio.get_running_loop().time()

    async def wait(self, came: asyncio.Event) -> None:
        """Until a stream has given its first record, or ended.

        Raises:
            TimeoutError: none has for too long.
        """
        loop = asyncio.get_running_loop()
        while not came.is_set():
            left_s = self._opened_s + self._limit_s - loop.time()
            if left_s <= 0:
                raise TimeoutError
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await came.wait()
        self._opened_s = loop.time()


class Loop:
    """Connections that each ask again as soon as they are answered. `async with`.

    done: good answers. failed: the others. A connection that the other side closes is made anew.
    """

    def __init__(self, target: Target, requests: Sequence[bytes], connections: int) -> None:
        self._target = target
        self._requests = requests
        self._connections = connections
        self._callers: dict[int, Caller] = {}
        self._tasks = TaskSet()
        self.done = 0
        self.failed = 0

    async def __aenter__(self) -> Self:
        for place in range(self._connections):
            self._tasks.spawn(self._connect(place), name=f"connection {place}")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._tasks.cancel()
        for caller in self._callers.values():
            caller.leave()

    async def _connect(self, place: int) -> None:
        address = self._target.addresses[place % len(self._target.addresses)]

        def again(caller: Caller) -> None:
            if caller.is_good:
                self.done += 1
            else:
                self.failed += 1
            if caller.is_lost:
                self._tasks.spawn(self._connect(place), name=f"connection {place}")
            else:
                caller.ask(self._requests[self.done % len(self._requests)])

        try:
            loop = asyncio.get_running_loop()
            _, caller = await loop.create_connection(lambda: Caller(again), *address)
        except OSError:
            self.failed += 1  # this connection stays away: nobody shall be asked in a tight loop
            return
        self._callers[place] = caller
        caller.ask(self._requests[place % len(self._requests)])
