"""What was learnt, on disk: read at start, written now and then and at the end.

A file that cannot be used is never a reason not to start, nor lost: it is reported, left as it is
until a good one takes its place, and then kept beside it with `.bad` behind its name.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog

from sollol_proxy.server.dispatcher import Dispatcher
from sollol_proxy.server.tasks import TaskSet

VERSION = 1
"""Goes up when older proxies would misread what is written."""

_log = structlog.get_logger("sollol")


class Unusable(Exception):
    """The file is there and nothing can be taken from it; the text says why."""


class MemoryFile:
    """The file. Its methods block: reading once at start, writing in a thread.

    path: a link is followed, and what it points to replaced.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_suspect = False

    def read(self) -> Any:
        """What was learnt; None where there is no file.

        Raises:
            Unusable: there is one.
        """
        self.is_suspect = True
        try:
            with open(self.path, "rb") as file:
                document = orjson.loads(file.read())
        except FileNotFoundError:
            self.is_suspect = False
            return None
        except OSError as error:
            raise Unusable(f"cannot be read: {error.strerror or error}") from error
        except orjson.JSONDecodeError as error:
            raise Unusable("is not JSON") from error
        version = document.get("version") if isinstance(document, dict) else None
        if not isinstance(version, int):
            raise Unusable("is not a state file")
        if version > VERSION:
            raise Unusable(f"is of version {version}, and this proxy reads up to {VERSION}")
        self.is_suspect = False
        return document.get("learnt")

    def write(self, learnt: dict[str, Any]) -> None:
        """Put this in its place: all of it, or what was there stays.

        Raises:
            OSError: it cannot be written.
        """
        written_at = datetime.now(UTC).isoformat(timespec="seconds")
        document = {"version": VERSION, "written_at": written_at, "learnt": learnt}
        path = os.path.realpath(self.path)
        made = f"{path}.new"
        with suppress(FileNotFoundError):
            os.unlink(made)  # of a proxy that was killed while it wrote
        with open(made, "xb", opener=_private) as file:
            file.write(orjson.dumps(document))
            file.flush()
            os.fsync(file.fileno())
        if self.is_suspect and os.path.exists(path):
            os.replace(path, f"{path}.bad")
        os.replace(made, path)
        self.is_suspect = False
        _sync_folder(os.path.dirname(path))


class Keeper:
    """Restores what was learnt, and keeps it on disk while the proxy runs.

    interval_s: between two writings.
    """

    def __init__(self, file: MemoryFile, dispatcher: Dispatcher, interval_s: float) -> None:
        self._file = file
        self._dispatcher = dispatcher
        self._interval_s = interval_s
        self._stopped = asyncio.Event()
        self._writing = asyncio.Lock()
        self._tasks = TaskSet()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take over what the file holds, and begin to keep it."""
        try:
            learnt = self._file.read()
            if learnt is not None:
                self._restore(learnt)
                _log.info("what was learnt is back", file=self._file.path)
        except Unusable as problem:
            _log.warning("the state file is ignored", file=self._file.path, reason=str(problem))
        self._task = self._tasks.spawn(self._run(), name="state file")

    async def stop(self) -> None:
        """Write once more, and no more."""
        self._stopped.set()
        if self._task is not None:
            await self._task

    async def save(self) -> None:
        """Write now. A failure is logged, and what was there stays."""
        async with self._writing:
            try:
                await asyncio.to_thread(self._file.write, self._dispatcher.learnt())
            except OSError as error:
                reason = error.strerror or str(error)
                _log.warning("the state is not written", file=self._file.path, reason=reason)

    def _restore(self, learnt: object) -> None:
        try:
            self._dispatcher.restore(learnt)
        except ValueError as error:
            self._file.is_suspect = True
            raise Unusable(f"does not hold what it should: {error}") from error

    async def _run(self) -> None:
        while not self._stopped.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._stopped.wait()
                break
            await self.save()
        await self.save()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
